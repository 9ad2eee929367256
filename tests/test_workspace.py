"""Append, quarantine, init and the lock lose nothing."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmgr import locks
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.records import Query, Record
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
    before = path.read_bytes()
    for _ in range(2):  # who does not hold the workspace changes nothing, and says so once
        assert [q.text for q in ws.read("queries", Query)] == ["1", "2", "4"]
    assert path.read_bytes() == before and not ws.path("quarantine.jsonl").exists()
    assert len(told) == 1 and "1 damaged line(s) (3) left out" in told.pop()
    with ws.lock("cmgr search"):
        assert [q.text for q in ws.read("queries", Query)] == ["1", "2", "4"]
    kept = json.loads(ws.path("quarantine.jsonl").read_text())
    assert kept["line"] == 3 and kept["text"] == '{"id": "3", "cult' and kept["reason"]
    assert "quarantine" in told[0]
    assert [q.text for q in ws.read("queries", Query)] == ["1", "2", "4"] and len(told) == 1


def test_a_damaged_line_of_the_quarantine_itself_stays(ws: Workspace) -> None:
    ws.path("quarantine.jsonl").write_bytes(b'{"id": "1"}\n{"id": \xff\x00\n{"id": "2"}\n')
    assert [r.model_dump() for r in ws.read("quarantine", Record)] == [{"id": "1"}, {"id": "2"}]
    with ws.lock("cmgr synthesize"):
        assert len(ws.read("quarantine", Record)) == 2
        for _ in range(2):
            one, two, aside = ws.read("quarantine", Record)
    assert (one.model_dump(), two.model_dump()) == ({"id": "1"}, {"id": "2"})
    found = aside.model_dump()
    assert (found["file"], found["line"]) == ("quarantine.jsonl", 2)
    assert base64.b64decode(found["base64"]) == b'{"id": \xff\x00'  # to the byte


def test_a_line_goes_only_once_it_is_in_quarantine(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ws.path("queries.jsonl")
    path.write_bytes(b'{"broken\n')
    events: list[str] = []
    sync = os.fsync

    def watched(number: int) -> None:
        events.append(Path(f"/proc/self/fd/{number}").readlink().name)
        if events[-1] == "quarantine.jsonl":
            assert b"broken" in path.read_bytes()
        sync(number)

    monkeypatch.setattr(os, "fsync", watched)
    with ws.lock("cmgr search"):
        assert ws.read("queries", Query) == []
    assert events == ["quarantine.jsonl", ws.folder.name, "queries.jsonl"]
    assert not path.read_bytes().strip()


def test_who_appends_while_a_damaged_line_is_moved_loses_nothing(ws: Workspace) -> None:
    path, total = ws.path("queries.jsonl"), 1500
    path.touch()
    code = (
        "import sys; from pathlib import Path; from cmgr.records import Query\n"
        "from cmgr.workspace import append_lines\n"
        f"for n in range({total}):\n"
        "    damaged = '{\"broken\\n' if n % 3 == 0 else ''\n"
        "    line = Query(culture='japan', text=f'{n} ' + 'x' * (n % 7000)).model_dump_json()\n"
        "    append_lines(Path(sys.argv[1]), damaged + line + '\\n', sync=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as other, ws.lock("x"):
        reads = 0
        while other.poll() is None:
            ws.read("queries", Query)
            reads += 1
        found = ws.read("queries", Query)
    assert other.returncode == 0 and reads > 3
    assert [int(q.text.split()[0]) for q in found] == list(range(total))
    assert len(ws.read("quarantine", Record)) == 1  # all of one text have one id
    lines = ws.path("quarantine.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["line"] for line in lines) == sorted(
        number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.isspace()
    )
    assert len(lines) == total / 3


def test_a_last_line_that_is_still_being_written_is_let_alone(ws: Workspace) -> None:
    path = ws.path("queries.jsonl")
    whole = query(1).model_dump_json().encode() + b"\n"
    with path.open("ab", buffering=0) as file, ws.lock("cmgr search"):
        file.write(whole[:9])
        assert ws.read("queries", Query) == []
        file.write(whole[9:])
        assert [q.text for q in ws.read("queries", Query)] == ["1"]
    assert not ws.path("quarantine.jsonl").exists()


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


HOLD = """
import sys, time; from pathlib import Path; from cmgr import locks
with locks.output(Path(sys.argv[1]), "cmgr chat --batch"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_an_output_file_has_one_writer_and_keeps_no_lock(tmp_path: Path) -> None:
    out, link = tmp_path / "new" / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(out)
    words = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        told = rf"in use by `cmgr chat --batch` \(process {other.pid} on .*\)\. Wait for it"
        for name in (out, link):
            with pytest.raises(CmgrError, match=told), locks.output(name, "cmgr report"):
                pass
        other.kill()
    assert list(out.parent.iterdir()) != []  # a kill leaves the names, but not the lock
    with locks.output(out, "cmgr report"):
        pass
    assert list(out.parent.iterdir()) == []


def test_many_take_turns_at_one_output_file(tmp_path: Path) -> None:
    """A lock that is removed when it is done is never held twice."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from cmgr import locks; from cmgr.errors import CmgrError\n"
        "out = Path(sys.argv[1]); done = 0\n"
        "while done < 60:\n"
        "    try:\n"
        "        with locks.output(out, 'x'):\n"
        "            os.close(os.open(out.with_name('alone'), os.O_CREAT | os.O_EXCL))\n"
        "            done += 1\n"
        "            os.unlink(out.with_name('alone'))\n"
        "    except CmgrError as error:\n"
        "        assert 'in use by' in str(error), error\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    others = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(p.communicate()[1], p.returncode) for p in others] == [("", 0)] * 4
    assert list(tmp_path.iterdir()) == []


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
