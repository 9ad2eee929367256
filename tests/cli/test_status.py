"""`cmgr status`: who follows its advice comes to an end."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import cmgr, write_recipe


def stages(folder: Path) -> dict[str, dict[str, str]]:
    done = cmgr("status", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}


def follow(folder: Path) -> list[str]:
    """Do what status names first until it names nothing; each command makes its line go away."""
    done: list[str] = []
    while todo := [s for s in stages(folder).values() if s["next"]]:
        first = todo[0]
        assert len(done) < 8 and first["next"] not in done, done
        done.append(first["next"])
        said = cmgr(*shlex.split(first["next"])[1:], cwd=folder)
        assert said.returncode == 0, (first, said.stderr)
        assert not stages(folder)[first["stage"]]["next"], first
    return done


def brought(folder: Path, *cultures: str) -> str:
    """A file of labelled questions, as people bring it."""
    rows: list[dict[str, Any]] = []
    for culture in cultures:
        for number, food in enumerate(("bread", "rice", "tea", "soup")):
            ways = [f"with {culture} {food} spoons", f"with {food} forks", f"{food} by hand"]
            asked = f"What is {food} eaten with in a house of number {number}?"
            rows.append({"question": asked, "culture": culture, "answer": ways[0], "options": ways})
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def alone(folder: Path) -> None:
    """A workspace whose folder of documents is empty."""
    write_recipe(folder)
    for path in (folder / "documents").rglob("*.md"):
        path.unlink()


def test_a_new_workspace_without_evidence_comes_to_an_end(tmp_path: Path) -> None:
    alone(tmp_path)
    assert [s["state"] for s in stages(tmp_path).values()] == ["missing"] * 5
    assert follow(tmp_path) == ["cmgr search"]
    states = {stage: s["state"] for stage, s in stages(tmp_path).items()}
    assert states["synthesize"] == "no evidence" and states["train"] == "no examples"
    assert states["eval"] == "no held-out items"


@pytest.mark.model
def test_examples_that_were_brought_are_trained_on_and_nothing_else_is_asked(
    tmp_path: Path,
) -> None:
    alone(tmp_path)
    words = ("--import", brought(tmp_path, "japan"), "--task", "everyday")
    assert cmgr("synthesize", *words, cwd=tmp_path).returncode == 0
    assert follow(tmp_path) == ["cmgr search", "cmgr train --culture japan", "cmgr route --fit"]
    states = {stage: s["state"] for stage, s in stages(tmp_path).items()}
    assert states["eval"].startswith("no adapter brazil")  # nor examples to make it from
    assert states["synthesize"] == states["train"] == states["route"] == "up to date"
    (tmp_path / "adapters" / "japan" / "adapter.gguf").unlink()
    assert stages(tmp_path)["train"]["state"] == "out of date"


@pytest.mark.model
def test_labels_and_examples_brought_to_a_finished_workspace(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    shutil.copytree(trained, folder)
    assert follow(folder) == []
    words = ("--import", brought(tmp_path, "japan"), "--task", "everyday")
    assert cmgr("synthesize", *words, cwd=folder).returncode == 0
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"text": "How do I behave in an onsen?", "culture": "japan"}\n')
    assert cmgr("route", "--learn", str(labels), cwd=folder).returncode == 0
    assert follow(folder) == ["cmgr train", "cmgr eval"]


def test_none_accepted_yet_is_for_a_person(tmp_path: Path) -> None:
    write_recipe(tmp_path, train={"review": "accepted"})
    for command in ("search", "synthesize"):
        assert cmgr(command, cwd=tmp_path).returncode == 0
    train = stages(tmp_path)["train"]
    assert (train["state"], train["next"]) == ("no example accepted", "cmgr review")
