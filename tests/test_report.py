"""cmgr/report: one page that needs nothing else, tells the figures, and lets nothing in."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import cmgr
from hypothesis import given
from hypothesis import strategies as st

from cmgr import report, search, synthesize
from cmgr.evaluate.tables import Result, interference, paired, router, scores
from cmgr.records import json_lines
from cmgr.report.pictures import draw
from cmgr.workspace import Workspace, write_json

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>"\'><svg onload=alert(2)> {{ 7*7 }}'
VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, scripts and styles apart from text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def result(number: int, culture: str, said: str = "yes") -> Result:
    return Result(
        id=str(number),
        culture=culture,
        task="everyday",
        split="test",
        group=str(number),
        contested=False,
        answer="yes",
        labels=["yes", said],
        routed_to=culture if number % 3 else None,
        probability=0.2 + 0.07 * (number % 10),
        said={"base": said, "routed": "yes"},
        right={"base": said == "yes", "routed": True},
        under={"japan": number % 2 == 0, "brazil": True},
    )


def evaluated(ws: Workspace, said: str = "no", name: str = "posts") -> None:
    """An evaluation of twenty items, as `cmgr eval` keeps it."""
    results = [result(n, ("japan", "brazil")[n % 2], said if n % 4 else "yes") for n in range(20)]
    for r in results:
        r.labels = ["yes", said]
    ws.path("eval").mkdir(exist_ok=True)
    ws.path("eval", f"{name}.items.jsonl").write_text(json_lines(results))
    methods = ["base", "routed"]
    rows = [
        *scores(results, methods, 1),
        *paired(results, methods, 1),
        *router(results, methods, 1),
        *interference(results),
    ]
    about = {"name": name, "finished_at": "2026-01-01", "base": "smollm2", "seed": 1}
    about |= {"methods": methods, "lacking": {"shared": said}, "notes": [said], "rows": rows}
    write_json(ws.path("eval", f"{name}.json"), about)


@pytest.mark.parametrize("n", [2, 4, 5, 8, 10, 14, 24, 36])
def test_accuracies_of_0_and_1_have_their_picture(n: int) -> None:
    results = [
        result(i, ("japan", "brazil")[i % 2], "no").model_copy(
            update={"right": {"base": False, "routed": True}}
        )
        for i in range(n)
    ]
    rows = [*scores(results, ["base", "routed"], 1)]
    assert {row["accuracy"] for row in rows} == {0.0, 1.0}
    for row in rows:
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        # what an evaluation of before has kept
        row["interval"] = [row["interval"][0] + 1e-16, row["interval"][1] - 2e-16]
    part = {"task": "everyday", "split": "test", "rows": rows}
    about = {"name": "posts", "rows": rows, "routed": [], "parts": [part]}
    data = {"counts": [], "training": [], "agreement": None, "evaluations": [about]}
    assert "methods-1-1" in [picture.name for picture in draw(data)]


@pytest.fixture
def ws(recipe_folder: Path, tmp_path: Path) -> Workspace:
    found, _ = Workspace.init(str(recipe_folder / "recipe.yaml"), tmp_path / "ws")
    search.build(found)
    synthesize.build(found)
    return found


def page_of(ws: Workspace) -> Page:
    path = ws.path("report", "report.html")
    report.build(ws, path)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_tells_what_was_made(ws: Workspace) -> None:
    evaluated(ws)
    page = page_of(ws)
    assert page.open == []
    text = " ".join(page.text)
    examples = synthesize.all_examples(ws)
    assert f"{len(examples)} of {len(examples)}, chosen by hash" in text
    assert "0.250" in text and "1.000" in text  # base and routed
    assert "Interference" in text or "interference" in text
    assert "bow from the waist" in text
    assert [attrs["id"] for tag, attrs in page.tags if tag == "figure"] == [
        *("pipeline", "methods-1-1", "interference-1", "confusion", "reliability"),
    ]
    marked = [n for n, (tag, _) in enumerate(page.tags) if tag == "mark"]
    assert len(marked) > 10


def test_an_empty_workspace_has_a_page(recipe_folder: Path, tmp_path: Path) -> None:
    empty, _ = Workspace.init(str(recipe_folder / "recipe.yaml"), tmp_path / "empty")
    page = page_of(empty)
    text = " ".join(page.text)
    assert "No adapter yet" in text and "Nothing was evaluated yet" in text
    assert page.open == []


def test_nothing_from_outside_becomes_part_of_the_page(ws: Workspace) -> None:
    """Evidence, questions, answers, labels and model output that try to be script."""
    for name in ("evidence", "examples"):
        path = ws.path(f"{name}.jsonl")
        lines = []
        for line in path.read_text().splitlines():
            value = json.loads(line)
            if name == "evidence":
                value |= {"text": EVIL + value["text"], "title": EVIL, "license": EVIL}
                value["url"] = f"javascript:alert('{EVIL}')"
            else:
                value |= {"answer": EVIL, "quote": EVIL, "generator": EVIL, "reason": EVIL}
                value["messages"][0]["content"] += EVIL
            lines.append(json.dumps(value))
        path.write_text("\n".join(lines) + "\n")
    evaluated(ws, said=EVIL)
    tried = [{"prompt": EVIL, "culture": None, "base": EVIL, "routed": "</p></article>" + EVIL}]
    write_json(ws.manifest_path("eval"), {"inputs": "", "table": [], "tried": tried})
    page = page_of(ws)
    assert page.open == []
    assert "".join(page.text).count('<script>alert("x")</script>') > 20  # there, as text
    assert "{{ 7*7 }}" in "".join(page.text) and "49}}" not in "".join(page.text)
    script = Path(report.__file__).with_name("page.js").read_text()
    assert page.scripts == [script]
    for tag, attrs in page.tags:
        assert tag not in {"img", "iframe", "object", "embed", "link", "base", "form"}
        assert not any(name.startswith("on") for name in attrs)
        for name in ("href", "src", "xlink:href", "action"):
            assert re.match(r"#|https?://[^/]", attrs.get(name) or "#"), (tag, attrs)


def test_the_page_needs_no_network_and_runs_no_other_script(ws: Workspace) -> None:
    evaluated(ws)
    page = page_of(ws)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'")
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    html = ws.path("report", "report.html").read_text()
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_it_can_be_read_without_seeing_it(ws: Workspace) -> None:
    evaluated(ws)
    page = page_of(ws)
    assert ("html", {"lang": "en"}) in page.tags
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    images = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(images) == 5 and all(len(a["aria-label"] or "") > 20 for a in images)
    svgs = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(a["aria-hidden"] == "true" and "viewbox" in a and "width" not in a for a in svgs)
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    inside = [a["href"] for t, a in page.tags if t == "a" and (a["href"] or "").startswith("#")]
    assert inside and all((href or "")[1:] in ids for href in inside)
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags) > 3
    assert all(attrs.get("scope") in {"row", "col"} for tag, attrs in page.tags if tag == "th")
    labels = [attrs["for"] for tag, attrs in page.tags if tag == "label"]
    assert labels == [attrs["id"] for tag, attrs in page.tags if tag == "input"]


def test_pictures_are_files_too_and_the_same_each_time(ws: Workspace) -> None:
    evaluated(ws)
    write_json(
        ws.path("logs", "analyse.json"),
        {"adapters": ["a", "b"], "rows": [{"adapters": ["a", "b"], "cosine": -0.5}]},
    )
    written = report.build(ws, ws.path("report", "report.html"))
    assert all(path.is_file() for path in written)
    svgs = [path for path in written if path.suffix == ".svg"]
    assert {path.stem for path in svgs} == {path.stem for path in written if path.suffix == ".png"}
    assert "agreement" in {path.stem for path in svgs}
    before = {path: path.read_bytes() for path in svgs}
    for path, content in before.items():
        assert ElementTree.fromstring(content).tag.endswith("svg")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    report.build(ws, ws.path("report", "report.html"))
    assert before == {path: path.read_bytes() for path in svgs}


def test_pictures_show_the_figures(ws: Workspace) -> None:
    evaluated(ws)
    pictures = {picture.name: picture for picture in draw(report.gather(ws))}
    heat = pictures["interference-1"].svg.decode()
    assert set(re.findall(r">(\d\.\d\d)<", heat)) == {"1.00", "0.00"}
    assert "routed" in pictures["methods-1-1"].about and "1.000" in pictures["methods-1-1"].about
    assert pictures["confusion"].about.startswith("7 of 20 items")


@given(st.text(max_size=40))
def test_links_lead_to_the_web_alone(text: str) -> None:
    for url in (text, f"javascript:{text}", f"data:{text}", f"file:///{text}", f"//{text}"):
        link = report.safe_link(url)
        assert link is None or re.match(r"https?://", link, re.IGNORECASE)
    assert report.safe_link("https://example.org/a?b=c") == "https://example.org/a?b=c"
    assert report.safe_link("http:relative") is None


@pytest.mark.model
def test_the_command(trained: Path, tmp_path: Path) -> None:
    done = cmgr("report", "-o", str(tmp_path / "out" / "page.html"), cwd=trained)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out' / 'page.html'}\n"
    page = Page((tmp_path / "out" / "page.html").read_text())
    figures = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    assert {"pipeline", "losses", "confusion", "reliability", "methods-1-1"} <= figures
    assert "Do I tip a waiter in Japan?" in "".join(page.text)
    found: dict[str, Any] = json.loads(
        cmgr("report", "--json", "-o", str(tmp_path / "p.html"), cwd=trained).stdout
    )
    assert found["page"].endswith("p.html") and len(found["pictures"]) == 2 * len(figures)
