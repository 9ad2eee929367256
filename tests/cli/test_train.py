"""`cmgr search`, `synthesize` and `train` one by one; a missing extra names its install line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import cmgr


@pytest.fixture
def workspace(recipe_folder: Path, tmp_path: Path) -> Path:
    done = cmgr("init", str(recipe_folder / "recipe.yaml"), "ws", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "ws\n"
    return tmp_path / "ws"


def test_a_stage_before_its_time_names_the_command_that_is_missing(workspace: Path) -> None:
    done = cmgr("synthesize", cwd=workspace)
    assert done.returncode == 3 and "cmgr search" in done.stderr
    done = cmgr("train", cwd=workspace)
    assert done.returncode == 3 and "cmgr synthesize" in done.stderr
    done = cmgr("eval", cwd=workspace)
    assert done.returncode == 3 and "cmgr synthesize" in done.stderr


def test_stages_one_by_one_and_a_missing_extra(workspace: Path) -> None:
    assert cmgr("search", cwd=workspace).returncode == 0
    done = cmgr("synthesize", "--json", cwd=workspace)
    assert done.returncode == 0 and all(json.loads(line) for line in done.stdout.splitlines())
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['cmgr', 'train']\n"
        "from cmgr.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3 and re.search(r"pip install .*\[train\]'", done.stderr)
    assert not (workspace / "adapters").exists()


def test_an_unknown_culture_is_wrong_usage(workspace: Path) -> None:
    done = cmgr("search", "--culture", "peru", cwd=workspace)
    assert done.returncode == 2 and "japan, brazil, germany" in done.stderr


@pytest.mark.model
def test_one_example_as_it_is_trained(trained: Path) -> None:
    done = cmgr("train", "--inspect", "--culture", "japan", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    stages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [s["stage"] for s in stages] == ["broad", "task"]
    for stage in stages:
        read = "".join(text for text, learnt in stage["tokens"] if not learnt)
        learnt = "".join(text for text, learnt in stage["tokens"] if learnt)
        assert read.endswith("<|im_start|>assistant\n") and learnt.endswith("<|im_end|>")
        assert "Japan" in read and "<|im_start|>" not in learnt
    shown = cmgr("train", "--inspect", "--culture", "japan", cwd=trained)
    assert f"]{learnt}" in shown.stdout and "\x1b" not in shown.stdout


@pytest.mark.model
def test_one_preference_as_it_is_trained(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "ws"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    recipe["train"] = {**recipe.get("train", {}), "stages": ["prefer"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    path = folder / "examples.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:
        row["inputs"]["options"] = [row["answer"], "They [shout]."]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    shown = cmgr("train", "--inspect", "--culture", "japan", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "rather than: They [shout].<|im_end|>\n" in shown.stdout
    # nothing to prefer an answer to: an error where it is the only stage
    path.write_text("".join(json.dumps({**r, "inputs": {}}) + "\n" for r in rows), "utf-8")
    refused = cmgr("train", "--force", "--culture", "japan", cwd=folder)
    assert refused.returncode != 0 and "no examples for prefer" in refused.stderr


@pytest.mark.model
def test_a_dry_run_writes_nothing(trained: Path) -> None:
    before = sorted(p.name for p in trained.rglob("*"))
    done = cmgr("train", "--dry-run", "--force", "--json", "--shard", "2/2", cwd=trained)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [c["culture"] for c in found["cultures"]] == ["brazil"]
    assert all(found["cultures"][0][key] > 0 for key in ("tokens", "steps", "seconds"))
    assert found["memory_mb"] > 100
    assert sorted(p.name for p in trained.rglob("*")) == before
    nothing = cmgr("train", "--dry-run", "--json", cwd=trained)
    assert json.loads(nothing.stdout)["cultures"] == []


@pytest.mark.model
def test_a_dry_run_counts_the_shared_adapter_and_the_reading_of_prompts(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ws"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("adapters", "eval"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["train"] |= {"start": "shared"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = cmgr("train", "--dry-run", "--json", "--culture", "japan", cwd=folder)
    assert done.returncode == 0, done.stderr
    shared, japan = json.loads(done.stdout)["cultures"]
    assert (shared["culture"], japan["culture"]) == ("shared", "japan")
    assert shared["examples"] > 2 * japan["examples"] and shared["steps"] > japan["steps"]
    for one in (shared, japan):
        assert 0 < one["read_seconds"] < one["seconds"]
    assert not (folder / "adapters").exists()


@pytest.mark.model
def test_finished_cultures_are_shown_again(trained: Path) -> None:
    done = cmgr("train", "--json", "--culture", "japan", cwd=trained)
    manifest = json.loads(done.stdout)
    assert done.returncode == 0 and "up to date" in done.stderr
    assert manifest["kind"] == "activated" and manifest["folder"].endswith("japan")
    wrong = cmgr("train", "--shard", "9/2", cwd=trained)
    assert wrong.returncode == 2 and "I/N" in wrong.stderr
