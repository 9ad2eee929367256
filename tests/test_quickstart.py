"""What the README shows first is what a newcomer gets: one culture of quickstart, trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import cmgr

from cmgr.evaluate import free

README = Path(__file__).parent.parent / "README.md"
ANSWER = "No tip is left, and money on the table is handed back."


@pytest.mark.model
def test_the_readmes_first_example_is_answered_right(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    asked = re.search(r'^cmgr chat -p "(.+)"$', text, re.MULTILINE)
    assert asked and asked[1] == "Should I leave a tip at a restaurant in Osaka?"
    for words in (
        ["init", "quickstart", "qs"],
        ["search", "-w", "qs"],
        ["synthesize", "-w", "qs"],
        ["train", "-w", "qs", "--culture", "japan"],
        ["route", "-w", "qs", "--fit"],
    ):
        done = cmgr(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = cmgr("chat", "-w", "qs", "--json", "-p", asked[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["culture"] == "japan" and answer["decided_by"] == "router"
    assert free.is_right(answer["response"], [ANSWER], ["The bill is rounded up by ten percent."])
    assert not free.flaw(answer["response"], ANSWER)
    first = answer["sources"][0]
    assert first["title"] == "How much is given to a waiter as a tip?" and first["sentence"]
    assert any(claim["source"] == 1 for claim in answer["claims"])
    # a person sees where it stands
    shown = cmgr("chat", "-w", "qs", "--no-log", "-p", asked[1], cwd=tmp_path).stderr
    assert "[1] How much is given to a waiter as a tip?" in shown and "tipping.md" in shown
