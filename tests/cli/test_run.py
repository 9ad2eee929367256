"""The main job end to end, in processes of their own, with the real SmolLM2."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import cmgr, write_recipe

pytestmark = pytest.mark.model


def test_every_stage_has_left_its_files(trained: Path) -> None:
    for name in ("queries.jsonl", "evidence.jsonl", "examples.jsonl", "router/router.npz"):
        assert (trained / name).stat().st_size > 0, name
    assert not list(trained.rglob("*.part")) and not list(trained.rglob("*.pkl"))


def test_a_second_run_does_nothing_and_says_the_same(trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.suffix in {".gguf", ".npz"}}
    done = cmgr("run", "-w", str(trained), "--json", cwd=trained)
    assert done.returncode == 0
    assert done.stderr.count("up to date") == 5
    table = json.loads(done.stdout)["table"]
    scores = [row for row in table if row["kind"] == "score"]
    assert {row["culture"] for row in scores} == {"japan", "brazil", "germany", "all"}
    reading = {"evidence", "routed+evidence"}
    nothing = {"popular", "words"}  # they read nothing
    methods = {"base", "prompt", "routed", "oracle"} | reading | nothing
    assert {row["method"] for row in scores} == methods
    assert all(0 <= row["accuracy"] <= 1 for row in scores)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_status_tells_what_is_out_of_date(trained: Path) -> None:
    state = json.loads(cmgr("status", "--json", cwd=trained).stdout)
    assert {s["stage"]: s["state"] for s in state["stages"]} == dict.fromkeys(
        ("search", "synthesize", "train", "route", "eval"), "up to date"
    )
    recipe = trained / "recipe.yaml"
    text = recipe.read_text()
    try:
        recipe.write_text(text.replace("task_epochs: 1", "task_epochs: 2"))
        state = json.loads(cmgr("status", "--json", cwd=trained).stdout)
        stages = {s["stage"]: (s["state"], s["next"]) for s in state["stages"]}
        assert stages["train"] == ("out of date", "cmgr train")
        assert stages["search"] == ("up to date", "")
    finally:
        recipe.write_text(text)
    person = cmgr("status", cwd=trained)
    assert "japan" in person.stdout and "\x1b" not in person.stdout


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL once the first adapter stands: it is kept as it is, the others are made."""
    (tmp_path / "source").mkdir()
    write_recipe(tmp_path / "source")
    command = [sys.executable, "-c", "from cmgr.cli.app import main; main()"]
    first = tmp_path / "ws" / "adapters" / "japan" / "manifest.json"
    process = subprocess.Popen(
        [*command, "run", "source/recipe.yaml", "-w", "ws"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists()
    stamp = first.stat().st_mtime_ns
    done = cmgr("run", "-w", "ws", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == stamp
    assert (tmp_path / "ws" / "adapters" / "germany" / "adapter.gguf").exists()
    assert "Free answers right: other wordings " in done.stdout
