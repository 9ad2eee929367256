"""`cmgr search`, `synthesize` and `train` one by one; a missing extra names its install line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
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
    assert done.returncode == 3 and "pip install 'cmgr[train]'" in done.stderr
    assert not (workspace / "adapters").exists()


def test_an_unknown_culture_is_wrong_usage(workspace: Path) -> None:
    done = cmgr("search", "--culture", "peru", cwd=workspace)
    assert done.returncode == 2 and "japan, brazil, germany" in done.stderr
