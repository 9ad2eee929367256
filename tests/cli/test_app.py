"""The front door: help, exit codes, and a README that tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import cmgr, write_recipe

from cmgr import __version__
from cmgr.cli.app import COMMANDS

README = Path(__file__).parents[2] / "README.md"


def test_version_and_help_name_every_command(tmp_path: Path) -> None:
    assert cmgr("--version", cwd=tmp_path).stdout == f"cmgr {__version__}\n"
    text = cmgr("--help", cwd=tmp_path).stdout
    assert all(re.search(rf"^  {name}\b", text, re.M) for name in COMMANDS)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['cmgr', '--help']\n"
        "from cmgr.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'torch', 'pydantic', 'llama_cpp', 'sklearn', 'requests'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, tmp_path: Path) -> None:
    done = cmgr(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and COMMANDS[name].split()[0] in done.stdout


def test_the_readmes_commands_and_options_exist(tmp_path: Path) -> None:
    helps: dict[str, str] = {}
    seen = 0
    for words in re.findall(r"\bcmgr ([a-z]+[^\n`#|;]*)", README.read_text(encoding="utf-8")):
        name = words.split()[0]
        if name not in COMMANDS:
            continue
        seen += 1
        if name not in helps:
            helps[name] = cmgr(name, "--help", cwd=tmp_path).stdout
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", words):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", helps[name]), (name, option)
    assert seen > 8


def test_the_readmes_test_line_is_what_ci_runs() -> None:
    script = (README.parent / ".ci" / "run").read_text()
    assert "README.md" in script
    assert re.search(r"^pip install .*pytest", README.read_text(encoding="utf-8"), re.M)


def test_no_workspace_here(tmp_path: Path) -> None:
    done = cmgr("status", cwd=tmp_path)
    assert done.returncode == 3 and "cmgr init quickstart" in done.stderr


def test_a_broken_recipe_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = write_recipe(tmp_path / "source")
    path.write_text(path.read_text().replace("search:", "search: [", 1))
    done = cmgr("run", "source/recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "recipe.yaml:" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_missing_base_is_exit_3(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_recipe(tmp_path / "source", base={"model": "no-such.gguf"})
    done = cmgr("run", "source/recipe.yaml", "-w", "ws", cwd=tmp_path)
    assert done.returncode == 3 and "no-such.gguf" in done.stderr


def test_ctrl_c_in_a_finalizer_is_neither_lost_nor_shown(tmp_path: Path) -> None:
    code = """
import signal, sys, time, types
from cmgr.cli import app

class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def command():
    held = Held()
    del held
    for _ in range(600):
        time.sleep(0.05)

sys.modules["cmgr.cli.status"] = types.SimpleNamespace(command=command)
sys.argv = ["cmgr", "status"]
app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130 and done.stderr.startswith("cmgr: interrupted")
    assert "Traceback" not in done.stderr
