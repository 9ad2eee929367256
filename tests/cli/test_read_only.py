"""A workspace that nobody here may write to is still good to read, to route by and to ask."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.model
CMGR = "from cmgr.cli.app import main; main()"


class Place:
    """A workspace where the system refuses every write, and a way to run cmgr in it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.before: list[str] = []
        if kind == "read-only file system":
            mine = [] if os.geteuid() == 0 else ["--map-root-user"]
            # in a mount namespace of its own; the folder one is in stays what it was
            script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && "$@"'
            self.before = ["unshare", "--mount", *mine, "sh", "-c", script, str(folder)]
        elif os.geteuid() == 0:  # root without its right to pass over permissions
            self.before = ["setpriv", "--bounding-set=-all"]

    def cmgr(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run(
            [*self.before, sys.executable, "-c", CMGR, *words],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module", params=["read-only file system", "no permission"])
def place(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("read_only") / "ws"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "logs" / "chat", ignore_errors=True)
    for path in (*folder.glob(".lock*"), *folder.glob(".holder*")):
        path.unlink()
    with (folder / "examples.jsonl").open("a") as file:
        file.write('{"id": "cut\n')
    found = Place(folder, request.param)
    every = [folder, *folder.rglob("*")]
    if found.kind == "no permission":
        for path in every:
            path.chmod(path.stat().st_mode & ~0o222)
    refused = subprocess.run(
        [*found.before, "sh", "-c", "touch new"], cwd=folder, capture_output=True, text=True
    )
    if not refused.returncode or "touch" not in refused.stderr:
        pytest.skip(f"no {found.kind} can be made here: {refused.stderr}")
    state = {path: path.read_bytes() for path in every if path.is_file()}
    yield found
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == state
    for path in every:
        path.chmod(path.stat().st_mode | 0o200)


def test_status_reads(place: Place) -> None:
    done = place.cmgr("status", "--json")
    assert done.returncode == 0, done.stderr
    assert {s["state"] for s in json.loads(done.stdout)["stages"]} == {"up to date"}
    assert done.stderr.count("1 damaged line(s)") == 1


def test_the_router_routes(place: Place) -> None:
    done = place.cmgr("route", "--json", stdin="How do people greet in Japan?\n")
    assert done.returncode == 0 and json.loads(done.stdout)["culture"] == "japan", done.stderr


def test_chat_answers_and_says_once_that_nothing_is_kept(place: Place) -> None:
    words = ("chat", "--culture", "japan", "--max-tokens", "3")
    done = place.cmgr(*words, "-p", "How do people greet?")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert done.stderr.count("this thread is not kept") == 1
    done = place.cmgr(*words, "--no-log", "-p", "How do people greet?")
    assert done.returncode == 0 and "not kept" not in done.stderr


def test_evaluations_that_are_kept_are_shown(place: Place) -> None:
    done = place.cmgr("eval", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    kept = json.loads((place.folder / "logs" / "eval.json").read_text())["table"]
    assert rows == kept
    assert done.stderr.count("nothing new is kept") == 1
    done = place.cmgr("eval", "--task", "everyday", "--json")  # other figures of the same scores
    assert done.returncode == 0, done.stderr
    scores = [r for r in map(json.loads, done.stdout.splitlines()) if r["kind"] == "score"]
    assert [r for r in kept if r["kind"] == "score"] == scores


def test_what_reads_goes_on_and_what_writes_says_why_not(place: Place, tmp_path: Path) -> None:
    for words in (
        ("review", "--report"),
        ("review", "--export", str(tmp_path / f"{place.kind[:2]}.csv"), "--sample", "3"),
        ("merge", "--analyse", "--json"),
        ("search", "--dry-run"),
        ("synthesize", "--dry-run"),
        ("report", "-o", str(tmp_path / place.kind[:2] / "report.html"), "--json"),
    ):
        done = place.cmgr(*words)
        assert done.returncode == 0, (words, done.stderr)
    for words in (("search",), ("synthesize",), ("route", "--fit"), ("train",)):
        done = place.cmgr(*words)
        assert done.returncode == 1 and "cannot be written to" in done.stderr, (words, done.stderr)
        assert words[0] in done.stderr and "unexpected" not in done.stderr
