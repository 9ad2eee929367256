"""Adapters made one say what they say together."""

from __future__ import annotations

from pathlib import Path

import gguf
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


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """`alpha / r * B @ A` of a few of an adapter's tensors, as llama.cpp applies it."""
    reader = gguf.GGUFReader(folder / "adapter.gguf")
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    halves = {t.name: np.asarray(t.data, np.float32) for t in reader.tensors}
    names = [n.removesuffix(".lora_a") for n in halves if n.endswith(".lora_a")][::17]
    found = {}
    for name in names:
        a, b = halves[f"{name}.lora_a"], halves[f"{name}.lora_b"]
        found[name] = alpha / len(a) * b @ a
    return found


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
    assert np.isfinite(runtime.next_logits(QUESTION, {"both": 1.0})).all()
    runtime.close()
    # the deltas themselves: the 8-bit arithmetic of the base hides what weak adapters do to logits
    parents = [deltas(folder / name) for name in ("japan", "brazil")]
    for name, delta in deltas(merged).items():
        wanted = 0.75 * parents[0][name] - 0.5 * parents[1][name]
        assert np.linalg.norm(delta - wanted) < 2e-3 * np.linalg.norm(wanted), name


def test_kinds_do_not_mix(trained: Path, standard: Path, tmp_path: Path) -> None:
    with pytest.raises(CmgrError, match="kind"):
        cat({trained / "adapters" / "japan": 1.0, standard / "brazil": 1.0}, tmp_path / "both")
    assert not (tmp_path / "both").exists()
