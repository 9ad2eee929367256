"""Adapters made one say what they say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmgr.base import resolve
from cmgr.errors import CmgrError
from cmgr.merge import cat
from cmgr.records import Message
from cmgr.runtime import Runtime
from cmgr.workspace import read_json

pytestmark = pytest.mark.model
QUESTION = [Message(role="user", content="In Japan: How is a waiter tipped?")]


@pytest.mark.parametrize("kind", ["activated", "standard"])
def test_cat_is_the_blend(trained: Path, standard: Path, tmp_path: Path, kind: str) -> None:
    folder = trained / "adapters" if kind == "activated" else standard
    merged = cat({folder / "japan": 0.75, folder / "brazil": -0.5}, tmp_path / "both")
    assert (read_json(merged / "manifest.json") or {})["parents"] == {"japan": 0.75, "brazil": -0.5}
    runtime = Runtime(resolve("smollm2"))
    for name in ("japan", "brazil"):
        runtime.load_adapter(name, folder / name)
    runtime.load_adapter("both", merged)
    assert ("both" in runtime.model.activated) == (kind == "activated")
    blend = runtime.next_logits(QUESTION, {"japan": 0.75, "brazil": -0.5})
    one = runtime.next_logits(QUESTION, {"both": 1.0})
    base = runtime.next_logits(QUESTION, {})
    runtime.close()
    # against what the adapters change, not against the logits, which are mostly the base's
    assert np.linalg.norm(one - blend) < 0.02 * np.linalg.norm(blend - base)


def test_kinds_do_not_mix(trained: Path, standard: Path, tmp_path: Path) -> None:
    with pytest.raises(CmgrError, match="kind"):
        cat({trained / "adapters" / "japan": 1.0, standard / "brazil": 1.0}, tmp_path / "both")
    assert not (tmp_path / "both").exists()
