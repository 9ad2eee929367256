"""cmgr/errors.py: a hint to install names the cmgr that runs here, and no other project's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAME = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
ASK = "from cmgr.errors import install_command; print(install_command('report'))"


def hint(site: Path, cwd: Path) -> str:
    """What cmgr in a folder of packages would tell a person in another folder."""
    # -S: no other packages; -P: not those of the current folder
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {ASK}"
    done = subprocess.run(
        [sys.executable, "-E", "-S", "-P", "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def package(folder: Path) -> None:
    (folder / "cmgr").mkdir(parents=True)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "cmgr" / name, folder / "cmgr")


def installed(site: Path, name: str, origin: dict[str, Any] | None, script: str) -> None:
    """What an installer writes beside a package."""
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[console_scripts]\ncmgr = {script}\n")
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))


OURS = "cmgr.cli.app:main"


def test_from_an_index_it_is_the_name(tmp_path: Path) -> None:
    package(tmp_path / "site")
    installed(tmp_path / "site", "cmgr", None, "cmgr.main:run")  # another project
    installed(tmp_path / "site", NAME, None, OURS)
    assert hint(tmp_path / "site", tmp_path) == f"pip install '{NAME}[report]'"


@pytest.mark.parametrize("editable", [False, True])
def test_from_a_checkout_it_is_its_path(tmp_path: Path, editable: bool) -> None:
    checkout, site = tmp_path / "my checkout", tmp_path / "site"
    package(checkout)
    (checkout / "pyproject.toml").write_text("")
    origin: dict[str, Any] = {"url": checkout.as_uri(), "dir_info": {}}
    if editable:
        origin["dir_info"]["editable"] = True
        installed(site, NAME, origin, OURS)
        shutil.copytree(site, checkout, dirs_exist_ok=True)
        site = checkout
    else:
        package(site)
        installed(site, NAME, origin, OURS)
    option = "-e " if editable else ""
    assert hint(site, checkout) == f"pip install {option}'.[report]'"
    assert hint(site, tmp_path) == f"pip install {option}'{checkout}[report]'"
    if not editable:
        shutil.rmtree(checkout)
        assert hint(site, tmp_path) == "pip install '.[report]' (in a checkout of cmgr)"


def test_from_a_repository_or_a_file_it_is_the_same_again(tmp_path: Path) -> None:
    vcs = {"vcs": "git", "commit_id": "abc123"}
    package(tmp_path / "one")
    installed(tmp_path / "one", NAME, {"url": "https://host/x.git", "vcs_info": vcs}, OURS)
    command = f"pip install '{NAME}[report] @ git+https://host/x.git@abc123'"
    assert hint(tmp_path / "one", tmp_path) == command
    package(tmp_path / "two")
    installed(tmp_path / "two", NAME, {"url": "file:///x.whl", "archive_info": {}}, OURS)
    assert hint(tmp_path / "two", tmp_path) == f"pip install '{NAME}[report] @ file:///x.whl'"


def test_not_installed_at_all_it_is_the_checkout(tmp_path: Path) -> None:
    package(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    assert hint(tmp_path, tmp_path) == "pip install '.[report]'"


def test_nothing_tells_people_to_install_another_project() -> None:
    texts = [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    texts += [p for p in (ROOT / "recipes").rglob("*") if p.suffix in (".md", ".yaml")]
    texts += [p for folder in ("cmgr", "tests") for p in (ROOT / folder).rglob("*.py")]
    texts += (ROOT / "tests").rglob("*.md")
    bad = [
        (path.name, line)
        for path in texts
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install [^.]*\bcmgr\b(\[|$)|[\"']cmgr\[", line)
    ]
    assert not bad
    hints = [
        path.name
        for path in (ROOT / "cmgr").rglob("*.py")
        if re.search(r"pip install (?!pandas)", path.read_text(encoding="utf-8"))
    ]
    assert hints == ["errors.py"]
