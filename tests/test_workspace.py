"""Append, quarantine, init and the lock lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.records import Query
from cmgr.workspace import STALE, Workspace, write_atomic


def query(number: int) -> Query:
    return Query(culture="japan", text=str(number))


@pytest.fixture
def ws(recipe_folder: Path, tmp_path: Path) -> Workspace:
    return Workspace.init(str(recipe_folder / "recipe.yaml"), tmp_path / "ws")[0]


def test_init_copies_the_documents_and_is_repeatable(ws: Workspace, recipe_folder: Path) -> None:
    assert (ws.folder / "documents" / "japan" / "greetings.md").is_file()
    again, new = Workspace.init(str(recipe_folder / "recipe.yaml"), ws.folder)
    assert not new and again.folder == ws.folder


def test_init_leaves_nothing_behind_when_documents_are_missing(tmp_path: Path) -> None:
    from conftest import write_recipe

    (tmp_path / "source").mkdir()
    path = write_recipe(tmp_path / "source", sources=[{"kind": "documents", "path": "nowhere"}])
    with pytest.raises(MissingError, match="nowhere"):
        Workspace.init(str(path), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_init_refuses_a_folder_with_other_things(recipe_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a workspace"):
        Workspace.init(str(recipe_folder / "recipe.yaml"), folder)
    assert (folder / "letter.txt").read_text() == "mine"


def test_a_damaged_line_goes_to_quarantine_and_the_rest_goes_on(ws: Workspace) -> None:
    told: list[str] = []
    ws.say = told.append
    ws.append("queries", [query(1), query(2)])
    path = ws.path("queries.jsonl")
    path.write_bytes(
        path.read_bytes() + b'{"id": "3", "cult\n' + query(4).model_dump_json().encode()
    )
    assert [q.text for q in ws.read("queries", Query)] == ["1", "2", "4"]
    kept = json.loads(ws.path("quarantine.jsonl").read_text())
    assert kept["line"] == 3 and kept["text"] == '{"id": "3", "cult' and kept["reason"]
    assert "quarantine" in told[0]
    assert [q.text for q in ws.read("queries", Query)] == ["1", "2", "4"] and len(told) == 1


def test_append_after_a_cut_off_line_keeps_both_apart(ws: Workspace) -> None:
    ws.path("queries.jsonl").write_bytes(b'{"id": "1"')
    ws.append("queries", [query(2)])
    assert [q.text for q in ws.read("queries", Query)] == ["2"]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Threads and processes: each writes it whole, one is the last, nothing is left beside it."""
    path = tmp_path / "made" / "value.json"
    code = (
        "import sys; from pathlib import Path; from cmgr.workspace import write_atomic\n"
        "for n in range(40): write_atomic(Path(sys.argv[1]), sys.argv[2].encode() * 50_000)"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "xy"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_atomic(path, b"%d" % (n % 10) * 50_000), range(200)))
    assert [other.wait(60) for other in others] == [0, 0]
    data = path.read_bytes()
    assert len(data) == 50_000 and len(set(data)) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["value.json"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / n for n in (".a.0123abcd.part", ".a.4567cdef.part", ".b.part"))
    for path in (old, new, other):
        path.write_text("half")
    os.utime(old, (0, time.time() - STALE - 60))
    os.utime(other, (0, 0))
    write_atomic(tmp_path / "a", b"whole")
    assert not old.exists()  # any other may be of a writer that is at work
    assert new.exists() and other.exists()
    with pytest.raises(OSError):
        write_atomic(tmp_path, b"a folder is no file")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*.part"))


def test_the_second_is_told_who_holds_the_workspace(ws: Workspace) -> None:
    with ws.lock("cmgr train"):
        other = Workspace(ws.folder)
        with (
            pytest.raises(CmgrError, match=r"in use by `cmgr train` \(process \d+"),
            other.lock("x"),
        ):
            pass
    with ws.lock("cmgr train"):
        pass


def test_shards_go_side_by_side_and_beside_nothing_else(ws: Workspace) -> None:
    other = Workspace(ws.folder)
    with ws.lock("cmgr train --shard 1/2", "1/2"):
        with other.lock("cmgr train --shard 2/2", "2/2"):
            pass
        for shard in (None, "1/2"):
            with pytest.raises(CmgrError, match="`cmgr train --shard 1/2`"), other.lock("x", shard):
                pass
    with (
        ws.lock("cmgr synthesize"),
        pytest.raises(CmgrError, match="`cmgr synthesize`"),
        other.lock("x", "1/2"),
    ):
        pass
    with ws.lock("x"):
        pass


def test_a_manifest_is_current_only_for_its_inputs(ws: Workspace) -> None:
    ws.finish("search", "abc", queries=3)
    assert ws.is_current("search", "abc") and not ws.is_current("search", "abd")
