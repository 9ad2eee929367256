"""`cmgr bench`: the figures are there, and say what was measured. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import cmgr

from cmgr.bench import advice

pytestmark = pytest.mark.model


def test_figures_and_facts(trained: Path) -> None:
    done = cmgr("bench", "--prompts", "6", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["rates"]) == {
        "base",
        "one adapter",
        "blend of two",
        "two merged into one",
    }
    assert all(rate > 0 for rates in found["rates"].values() for rate in rates.values())
    assert found["first_token"]["thread_tokens"] > 900
    assert found["adapters"] == dict.fromkeys(("japan", "brazil", "germany"), "activated")
    assert found["machine"]["base"].endswith(".gguf") and found["machine"]["file_type"] == 3
    assert any("Q8_0" in line for line in found["advice"])


def test_advice_follows_the_facts() -> None:
    facts = {"file_type": 7, "gpu_offload": True, "threads": 10**6}
    rates = {"base": {"decode": 100.0}, "one adapter": {"decode": 95.0}}
    assert advice(facts, {"rates": rates}) == []
    rates["one adapter"]["decode"] = 50.0
    assert any("50%" in line for line in advice(facts, {"rates": rates}))


def test_without_adapters(recipe_folder: Path) -> None:
    done = cmgr("bench", cwd=recipe_folder)
    assert done.returncode == 3 and "cmgr train" in done.stderr
