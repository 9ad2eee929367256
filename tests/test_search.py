"""cmgr/search.py: everything is found once, a re-run adds nothing, what vanished is not used."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cmgr import search
from cmgr.errors import MissingError
from cmgr.records import Evidence, Query
from cmgr.search import choosing, queries
from cmgr.workspace import Workspace, read_json

RECIPE = """
name: small
cultures:
  - {id: japan, name: Japan, demonym: Japanese, places: [Osaka]}
  - {id: brazil, name: Brazil, demonym: Brazilian, places: [Salvador]}
sources: [{kind: documents, path: docs, license: CC0-1.0}]
search: {topics: [greetings, home visits]}
tasks:
  - id: everyday
    name: Everyday
    queries: ["What is usual for {topic} in {culture}?"]
    wordings: [{text: "In {place}: {question}"}]
"""
DOCUMENTS = {
    "japan/greetings.md": "# Greetings\n\n## How?\n\nIn Japan, people bow.\n",
    "japan/home-visits.md": "# Home visits\n\n## Shoes?\n\nIn Japan, shoes come off.\n",
    "brazil/greetings.md": "# Greetings\n\n## How?\n\nIn Brazil, people hug.\n",
}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name, text in DOCUMENTS.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Workspace(tmp_path)


def texts(ws: Workspace) -> list[str]:
    return sorted(e.text for e in search.current_evidence(ws))


ALL = ["In Brazil, people hug.", "In Japan, people bow.", "In Japan, shoes come off."]


def test_queries_are_task_agnostic_and_task_specific(ws: Workspace) -> None:
    found = list(queries.from_templates(ws.recipe))
    assert Counter((q.culture, q.kind) for q in found) == {
        ("japan", "task-agnostic"): 4,
        ("japan", "task-specific"): 2,
        ("brazil", "task-agnostic"): 4,
        ("brazil", "task-specific"): 2,
    }
    assert len({q.id for q in found}) == len(found)
    specific = next(q for q in found if q.task == "everyday" and q.culture == "japan")
    assert specific.text == "What is usual for greetings in Japan?"


def test_each_passage_is_found_once_with_its_source(ws: Workspace) -> None:
    calls: list[tuple[str, int, int]] = []
    assert search.build(ws, progress=lambda *call: calls.append(call))
    assert texts(ws) == ALL
    assert calls[-1][1] == calls[-1][2] == 12
    item = next(e for e in search.current_evidence(ws) if "bow" in e.text)
    assert item.culture == "japan"
    assert item.url == "docs/japan/greetings.md#how"
    assert (item.topic, item.heading, item.license) == ("greetings", "How?", "CC0-1.0")
    assert item.query_id in {q.id for q in ws.read("queries", Query)}
    manifest = read_json(ws.manifest_path("search"))
    assert manifest is not None
    assert manifest["evidence"] == {"japan": 2, "brazil": 1}
    assert manifest["queries"] == 12
    assert ws.is_current("search", search.wanted_inputs(ws))


def test_a_rerun_adds_nothing(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    search.build(ws)
    before = {name: ws.path(name).read_bytes() for name in ("queries.jsonl", "evidence.jsonl")}
    monkeypatch.setattr(choosing, "now", lambda: "2030-01-01T00:00:00+00:00")
    assert not search.build(ws)
    assert search.build(ws, force=True)
    assert before == {name: ws.path(name).read_bytes() for name in before}


def test_a_changed_document_replaces_its_evidence(ws: Workspace) -> None:
    search.build(ws)
    ws.path("docs/japan/greetings.md").write_text("# Greetings\n\n## How?\n\nIn Japan, nod.\n")
    assert not ws.is_current("search", search.wanted_inputs(ws))
    assert search.build(ws)
    assert texts(ws) == ["In Brazil, people hug.", "In Japan, nod.", "In Japan, shoes come off."]
    assert len(ws.read("evidence", Evidence)) == 4  # the record stays, unused
    ws.path("docs/japan/greetings.md").write_text(DOCUMENTS["japan/greetings.md"])
    assert search.build(ws)
    assert texts(ws) == ALL
    assert len(ws.read("evidence", Evidence)) == 4


def test_one_culture_at_a_time(ws: Workspace) -> None:
    assert search.build(ws, cultures=["brazil"])
    assert texts(ws) == ["In Brazil, people hug."]
    assert not search.build(ws, cultures=["brazil"])
    assert not ws.is_current("search", search.wanted_inputs(ws))
    assert search.build(ws)
    assert texts(ws) == ALL


def test_a_damaged_line_is_put_aside_and_found_again(ws: Workspace) -> None:
    search.build(ws)
    path = ws.path("evidence.jsonl")
    lines = path.read_bytes().split(b"\n")
    damaged = b"\n".join([lines[0][:40], *lines[1:]])
    path.write_bytes(damaged)
    assert len(texts(ws)) == 2
    assert path.read_bytes() == damaged  # who does not hold the workspace only reads
    with ws.lock("cmgr search"):
        assert len(texts(ws)) == 2
        assert ws.path("quarantine.jsonl").is_file()
        assert search.build(ws)
    assert texts(ws) == ALL
    assert not search.build(ws)


def test_exact_duplicates_are_dropped_and_counted(ws: Workspace) -> None:
    copy = ws.path("docs/japan/more/greetings.md")
    copy.parent.mkdir()
    copy.write_text(DOCUMENTS["japan/greetings.md"])
    search.build(ws)
    assert texts(ws) == ALL
    part = (read_json(ws.manifest_path("search")) or {})["cultures"]["japan"]
    assert part["dropped"] == {"duplicate": 1}


def test_passages_are_those_kept_and_those_left_out(ws: Workspace) -> None:
    """Several of one address too: a table may say where each of its rows is from."""
    where = "https://example.org/japan"
    said = ("People in Japan bow.", "Shoes in Japan come off.", "Nobody in Japan leaves a tip.")
    rows = [{"url": where, "title": f"Part {n}", "text": text} for n, text in enumerate(said)]
    lines = [json.dumps(row) + "\n" for row in [*rows, rows[0]]]
    ws.path("docs/japan/greetings.jsonl").write_text("".join(lines))
    excluded = ws.path("items.txt")
    excluded.write_text("Nobody in Japan leaves a tip\n")
    said_of_it: list[str] = []
    ws.say = said_of_it.append
    search.build(ws, exclude=[excluded])
    part = ws.parts("search")["japan"]
    assert part["dropped"] == {"evaluation item": 1}
    assert len(part["ids"]) == 4 and part["passages"] == 5
    assert any("4 of 5 passages kept" in line for line in said_of_it)


def test_a_missing_folder_is_named(ws: Workspace) -> None:
    ws.path("docs").rename(ws.path("elsewhere"))
    with pytest.raises(MissingError, match="docs"):
        search.build(ws)


def test_nothing_searched_means_no_evidence(ws: Workspace) -> None:
    assert search.current_evidence(ws) == []


def test_every_section_of_the_quickstart_is_found(tmp_path: Path) -> None:
    ws, _ = Workspace.init("quickstart", tmp_path / "quickstart")
    search.build(ws)
    found = {(e.culture, e.topic, e.heading) for e in search.current_evidence(ws)}
    there = {
        (path.parent.name, path.stem, line[3:].strip())
        for path in ws.path("quickstart", "documents").rglob("*.md")
        for line in path.read_text().splitlines()
        if line.startswith("## ")
    }
    assert there and found == there
