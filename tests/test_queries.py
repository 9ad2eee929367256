"""cmgr/search/queries.py and cmgr/llm.py: who words the queries, and what people change of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import write_recipe
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from cmgr import search
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.records import Query
from cmgr.search import queries
from cmgr.workspace import Workspace

JAPAN = {"id": "japan", "name": "Japan", "languages": ["ja"]}
BRAZIL = {"id": "brazil", "name": "Brazil", "languages": ["pt"]}


def workspace(folder: Path, **changes: object) -> Workspace:
    folder.mkdir(exist_ok=True)
    write_recipe(folder, **{"cultures": [JAPAN, BRAZIL], **changes})
    return Workspace(folder)


def texts(ws: Workspace, culture: str = "japan") -> list[str]:
    return [q.text for q in queries.current(ws) if q.culture == culture]


def test_the_tree_is_whole() -> None:
    languages = {frozenset(group["in"]) for group in queries.tree().values()}
    assert len(languages) == 1
    assert len(next(iter(languages))) == 24
    topics = [t for group in queries.tree().values() for t in group["topics"]]
    assert len(topics) == len(set(topics)) >= 50


def test_templates_speak_the_culture_s_languages(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", search={"topics": ["greetings", "weddings", "my own topic"]})
    queries.build(ws)
    found = [q for q in queries.current(ws) if q.culture == "japan"]
    kinds = Counter((q.language, q.kind) for q in found)
    assert kinds == {
        ("en", "task-agnostic"): 6,
        ("en", "task-specific"): 3,
        ("ja", "task-agnostic"): 2,
    }
    assert {"greetings in Japan", "日本 マナー 礼儀"} <= {q.text for q in found}
    assert any(q.text.startswith("Brasil ") for q in queries.current(ws))
    english = workspace(tmp_path / "en", search={"topics": ["greetings"], "languages": "english"})
    assert {q.language for q in queries.planned(english)} == {"en"}
    local = workspace(tmp_path / "ja", search={"topics": ["greetings"], "languages": "local"})
    assert {q.language for q in queries.planned(local)} == {"ja", "pt"}


def test_without_topics_the_whole_tree_is_asked(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", search={})
    asked = {q.topic for q in queries.planned(ws) if q.language == "en"}
    assert asked == {t for group in queries.tree().values() for t in group["topics"]}


def test_a_language_without_words_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    ws = workspace(
        tmp_path / "ws", cultures=[{"id": "wales", "name": "Wales", "languages": ["cy"]}]
    )
    ws.say = said.append
    queries.build(ws)
    assert any("Welsh" in line and "queries.jsonl" in line for line in said)


def test_what_people_change_stays(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", search={"topics": ["greetings"], "languages": "english"})
    queries.build(ws)
    path = ws.path("queries.jsonl")
    lines = path.read_text().splitlines()
    first, second = json.loads(lines[0]), json.loads(lines[1])
    edited = json.dumps({**first, "text": "how deep to bow"})
    own = '{"culture": "brazil", "text": "beijo no rosto", "language": "pt"}'
    path.write_text("\n".join([edited, *lines[2:], own]) + "\n")  # one edited, one deleted, one new
    queries.build(ws)
    assert "how deep to bow" in texts(ws)
    assert {first["id"], second["id"]}.isdisjoint(q.id for q in queries.current(ws))
    assert "beijo no rosto" in texts(ws, "brazil")
    # another topic: its queries come, what was deleted does not come back
    again = workspace(
        tmp_path / "ws", search={"topics": ["greetings", "tipping"], "languages": "english"}
    )
    queries.build(again)
    assert {"tipping in Japan", "how deep to bow"} <= set(texts(again))
    assert {first["id"], second["id"]}.isdisjoint(q.id for q in queries.current(again))
    # and one less: what was made for it counts no more, what people wrote does
    less = workspace(tmp_path / "ws", search={"topics": ["tipping"], "languages": "english"})
    queries.build(less)
    assert set(texts(less)) >= {"how deep to bow", "tipping in Japan"}
    assert not any("greetings" in text for text in texts(less))


def test_an_edited_query_is_searched_again(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", search={"topics": ["greetings"], "languages": "english"})
    search.build(ws)
    assert not search.build(ws)
    with ws.path("queries.jsonl").open("a") as file:
        file.write('{"culture": "japan", "text": "tipping a waiter"}\n')
    assert not ws.is_current("search", search.wanted_inputs(ws))
    assert search.build(ws)
    assert any(e.topic == "tipping" for e in search.current_evidence(ws))


def test_queries_of_one_s_own(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", search={"writer": "none"})
    given = tmp_path / "mine.txt"
    given.write_text('how to greet in {culture}\n\n{"culture": "japan", "text": "お辞儀"}\n')
    assert queries.add(ws, given) == 3
    assert queries.add(ws, given) == 0
    queries.build(ws)
    assert texts(ws) == ["how to greet in Japan", "お辞儀"]
    parted = "tea\u2028and\x85rice"
    line = json.dumps({"culture": "japan", "text": parted}, ensure_ascii=False)
    given.write_text(line + "\n", encoding="utf-8")
    assert queries.add(ws, given) == 1 and parted in texts(ws)
    given.write_text('{"culture": "japan"}\n')
    with pytest.raises(UsageError, match=r"mine\.txt:1"):
        queries.add(ws, given)
    given.write_text('fine\n{"culture": "nowhere", "text": "a"}\n')
    with pytest.raises(UsageError, match=r"mine\.txt:2: no culture 'nowhere'"):
        queries.add(ws, given)
    with pytest.raises(MissingError, match="nowhere"):
        queries.add(ws, tmp_path / "nowhere.txt")


# -- a model writes them --------------------------------------------------------------------------


class Endpoint:
    """An OpenAI-compatible endpoint whose answers are scripted here."""

    def __init__(self, server: HTTPServer) -> None:
        self.server = server
        self.asked: list[dict[str, Any]] = []
        self.refuses: set[str] = set()  # formats that it does not take
        self.unknown: set[str] = set()  # parameters that it does not take
        self.status = 200
        self.content: Any = None
        server.expect_request("/v1/chat/completions").respond_with_handler(self.answer)

    def answer(self, request: Request) -> Response:
        body = request.get_json()
        self.asked.append(body)
        if refused := self.unknown & body.keys():
            told = f"Unsupported parameter: '{min(refused)}' is not supported with this model."
            return Response(json.dumps({"error": {"message": told}}), 400)
        if body.get("response_format", {"type": "text"})["type"] in self.refuses:
            return Response('{"error": {"message": "no such format"}}', 400)
        if self.status != 200:
            return Response('{"error": {"message": "no"}}', self.status)
        content = self.content(body) if callable(self.content) else self.content
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Response(
            json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [choice],
                }
            ),
            content_type="application/json",
        )

    def workspace(self, folder: Path, **search: object) -> Workspace:
        generator = {"kind": "openai_compatible", "model": "m"}
        generator["base_url"] = self.server.url_for("/v1")
        return workspace(
            folder,
            generator=generator,
            search={"topics": ["greetings"], "writer": "generator", **search},
        )


@pytest.fixture
def endpoint(httpserver: HTTPServer) -> Endpoint:
    return Endpoint(httpserver)


def written(body: dict[str, Any]) -> str:
    """One query for each call, in words that tell the calls apart; and one of them twice."""
    asked = body["messages"][1]["content"]
    words = ("Culture: Japan", "Japanese", "Portuguese")
    text = " ".join(["bow", *(word for word in words if word in asked)])
    if "serve a task" in asked:
        text += " everyday"
    found = [{"topic": "Greetings", "query": text}, {"topic": "greetings", "query": text.upper()}]
    return json.dumps({"queries": found})


def test_a_model_writes_per_culture_language_and_task(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.content = written
    ws = endpoint.workspace(tmp_path / "ws")
    queries.build(ws)
    assert len(endpoint.asked) == len(queries.calls(ws.recipe)) == 8
    found = queries.current(ws)
    assert len(found) == 8  # the repeats are dropped
    assert {(q.culture, q.language, q.kind) for q in found} >= {("japan", "ja", "task-specific")}
    assert {q.topic for q in found} == {"greetings"}
    assert endpoint.asked[0]["response_format"]["json_schema"]["strict"] is True
    queries.build(ws)
    assert len(endpoint.asked) == 8  # asked once


@pytest.mark.parametrize("refuses", [{"json_schema"}, {"json_schema", "json_object"}])
def test_formats_that_a_server_does_not_take(
    endpoint: Endpoint, tmp_path: Path, refuses: set[str]
) -> None:
    endpoint.refuses = refuses
    endpoint.content = lambda body: f"Here you are:\n```json\n{written(body)}\n```"
    ws = endpoint.workspace(tmp_path / "ws", languages="english")
    queries.build(ws)
    assert len(queries.current(ws)) == 4
    assert len(endpoint.asked) == 4 + len(refuses)  # found out once


def test_parameters_that_a_model_does_not_take(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.unknown = {"max_tokens", "temperature"}
    endpoint.content = written
    ws = endpoint.workspace(tmp_path / "ws", languages="english")
    queries.build(ws)
    assert len(queries.current(ws)) == 4
    assert len(endpoint.asked) == 4 + 2  # found out once
    last = endpoint.asked[-1]
    assert last["max_completion_tokens"] > 0 and "temperature" not in last
    assert last["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    "content",
    [
        "I'm sorry, but I cannot help with that.",
        '{"queries": [{"topic": "greetings", "query": "I am sorry, as an AI I cannot"}]}',
        '{"queries": []}',
        '{"queries": [{"topic": "greetings"}]}',
        "",
    ],
)
def test_a_refusal_leaves_the_templates(endpoint: Endpoint, tmp_path: Path, content: str) -> None:
    endpoint.content = content
    said: list[str] = []
    ws = endpoint.workspace(tmp_path / "ws")
    ws.say = said.append
    queries.build(ws)
    plain = workspace(tmp_path / "plain", search={"topics": ["greetings"]})
    assert {q.text for q in queries.current(ws)} == {q.text for q in queries.planned(plain)}
    assert any("templates" in line for line in said)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, MissingError, "refuses the key"),
        (404, MissingError, "no model 'm'"),
        (403, MissingError, "refuses the key"),
    ],
)
def test_what_no_template_can_mend_is_told(
    endpoint: Endpoint, tmp_path: Path, status: int, kind: type[CmgrError], message: str
) -> None:
    endpoint.status = status
    with pytest.raises(kind, match=message):
        queries.build(endpoint.workspace(tmp_path / "ws"))


def test_a_key_is_asked_for_where_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    search_keys = {"topics": ["greetings"], "writer": "generator"}
    ws = workspace(tmp_path / "ws", generator={"kind": "openai_compatible"}, search=search_keys)
    with pytest.raises(MissingError, match="OPENAI_API_KEY"):
        queries.build(ws)
    ws = workspace(tmp_path / "ws", generator={"kind": "extractive"}, search=search_keys)
    with pytest.raises(UsageError, match="extractive"):
        queries.build(ws)


@pytest.mark.model
def test_a_model_in_this_process_writes(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path / "ws",
        cultures=[JAPAN],
        generator={"kind": "llama", "model": "smollm2"},
        search={"topics": ["greetings", "gifts"], "writer": "generator", "languages": "english"},
    )
    queries.build(ws)
    found = queries.current(ws)
    assert found  # a small model writes poorly; what it cannot, the templates do
    assert all(isinstance(q, Query) and q.text for q in found)
