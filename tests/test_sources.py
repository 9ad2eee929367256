"""Each source against its API's shapes, served here, and with every fault that an API can have."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from cmgr.errors import MissingError
from cmgr.recipe import SOURCES, Culture, Source
from cmgr.recipe import Web as Settings
from cmgr.records import Query
from cmgr.sources import Place, Searchable, open_source
from cmgr.sources import web as web_module
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError, Web

JAPAN = Culture(id="japan", name="Japan", languages=["ja"])
QUERY = Query(culture="japan", text="tipping in Japan", topic="tipping")
KEY = "a-secret-key-1234"


def wiki(request: Request) -> Any:
    if request.args.get("list") == "search":
        return {"query": {"search": [{"ns": 0, "title": "Tipping", "pageid": 7}]}}
    page = {
        "pageid": 7,
        "title": "Tipping in Japan",
        "extract": "A tip is not usual.\n\n\n== Inns ==\nAn envelope.\n\n\n== See also ==\nGifts",
        "fullurl": "https://en.wikipedia.org/wiki/Tipping",
        "revisions": [{"revid": 4711, "parentid": 1}],
    }
    return {"batchcomplete": True, "query": {"pages": [page]}}


RSS = """<?xml version="1.0" encoding="UTF-8"?><rss version="2.0"><channel><title>Search</title>
<item><title>Tipping</title><link>/content/book/A/Tipping é</link></item>
</channel></rss>"""
DUCK = """<html><body><div class="links_main links_deep result__body">
<h2 class="result__title"><a class="result__a" href="https://example.org/tips">Tipping</a></h2>
<a class="result__snippet" href="https://example.org/tips">None</a></div></body></html>"""
RESULT = {"url": "https://example.org/tips", "title": "Tipping"}
# kind -> (path, what the API answers, what comes of it)
SHAPES: dict[str, tuple[str, Callable[[Request], Any], Result]] = {
    "searxng": (
        "/search",
        lambda _: {"query": "q", "results": [{**RESULT, "content": "c", "engine": "e"}]},
        Result(**RESULT),
    ),
    "wikipedia": (
        "/w/api.php",
        wiki,
        Result(
            "https://en.wikipedia.org/wiki/Tipping",
            "Tipping in Japan",
            markdown="A tip is not usual.\n\n\n\n\n\n## Inns\n\nAn envelope.\n\n\n\n\n\n",
            language="en",
            revision="4711",
        ),
    ),
    "kiwix": ("/search", lambda _: RSS, Result("{url}/content/book/A/Tipping%20%C3%A9", "Tipping")),
    "brave": (
        "/res/v1/web/search",
        lambda _: {"type": "search", "web": {"type": "search", "results": [RESULT]}},
        Result(**RESULT),
    ),
    "tavily": (
        "/search",
        lambda _: {"query": "q", "results": [{**RESULT, "raw_content": "# Tips\n\nNone."}]},
        Result(**RESULT, markdown="# Tips\n\nNone."),
    ),
    "serper": (
        "/search",
        lambda _: {"organic": [{"title": "Tipping", "link": RESULT["url"], "position": 1}]},
        Result(**RESULT),
    ),
    "duckduckgo": ("/html/", lambda _: DUCK, Result(**RESULT)),
}
# fault -> the reason that is told
FAULTS = {
    "slow": "timed out",
    "drip": "timed out",
    "forbidden": "forbidden (403)",
    "unknown": "no such page (404)",
    "refused": "key refused (401)",
    "limited": "rate limited (429)",
    "limited-long": "rate limited (429)",
    "broken": "status 500",
    "huge": "too large",
    "nonsense": "invalid answer",
    "other shape": "invalid answer",
    "empty": "invalid answer",
    "binary": "invalid answer",
    "bad-gzip": "broken encoding",
    "cut": "broken connection",
    "private": "redirected",
}


class Api:
    """One API served here, sound or with a fault."""

    def __init__(self, server: HTTPServer, kind: str, folder: Path) -> None:
        self.server, self.kind, self.fault = server, kind, ""
        path, self.answer, self.expected = SHAPES[kind]
        server.expect_request(path).respond_with_handler(self.handle)
        settings = Settings(delay=0, timeout=0.5, backoff=0.01, patience=1, max_mb=1, retries=1)
        self.said: list[str] = []
        web = Web(settings, folder / "cache", self.said.append)
        place = Place([JAPAN], folder, folder / "cache", web, self.said.append)
        url = f"http://localhost:{server.port}"
        if kind not in {"searxng", "kiwix"}:
            url += path
        options = {"books": ["book"]} if kind == "kiwix" else {}
        self.web = web
        self.source: Searchable = open_source(
            Source.model_validate({"kind": kind, "url": url, "delay": 0, **options}), place
        )
        self.wanted = Result(
            **{
                **self.expected.__dict__,
                "url": self.expected.url.replace("{url}", f"http://localhost:{server.port}"),
            }
        )

    def handle(self, request: Request) -> Response:
        fault = self.fault
        if fault == "once":
            self.fault = ""
            return Response("", 429, headers={"Retry-After": "0"})
        status = {"forbidden": 403, "unknown": 404, "refused": 401, "limited": 429, "broken": 500}
        if fault in status:
            return Response("no", status[fault])
        if fault == "limited-long":
            return Response("no", 429, headers={"Retry-After": "3600"})
        if fault == "slow":
            time.sleep(0.8)
        if fault == "drip":
            return Response(time.sleep(0.05) or b" " for _ in range(60))
        if fault == "huge":
            return Response(b"[" * 1024**2 for _ in range(100))
        if fault == "nonsense":
            return Response("<html>{not json")
        if fault == "other shape":
            return Response('{"results": 3, "web": 4, "query": [], "organic": [5]}')
        if fault == "empty":
            return Response(b"")
        if fault == "binary":
            return Response(bytes(range(256)) * 9)
        if fault == "bad-gzip":
            return Response(b"\x1f\x8bno", headers={"Content-Encoding": "gzip"})
        if fault == "cut":
            return Response(iter([b"{"]), headers={"Content-Length": "999"})
        if fault == "private":
            return Response("", 302, headers={"Location": "http://127.0.0.1:9/"})
        answer = self.answer(request)
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        charset = "iso-8859-1" if fault == "charset" else "utf-8"
        return Response(text.encode(), content_type=f"text/plain; charset={charset}")


@pytest.fixture(params=[kind for kind in SHAPES if kind != "duckduckgo"])
def api(
    request: pytest.FixtureRequest,
    httpserver: HTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Api:
    for name in ("BRAVE", "TAVILY", "SERPER"):
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
    return Api(httpserver, request.param, tmp_path)


def test_results_come_in_one_shape(api: Api) -> None:
    assert api.source.search(QUERY, 3) == [api.wanted]
    asked = api.server.log[0][0]
    said = asked.get_data(as_text=True) + " ".join(asked.args.values())
    assert "tipping in Japan" in said


def test_an_answer_is_kept_and_holds_no_key(api: Api) -> None:
    api.source.search(QUERY, 3)
    count = len(api.server.log)
    assert api.source.search(QUERY, 3) == [api.wanted]
    assert len(api.server.log) == count
    from gzip import decompress

    files = [p for p in Path(api.web._cache).rglob("*") if p.is_file()]
    assert files
    assert not any(KEY.encode() in decompress(p.read_bytes()) for p in files)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_told_and_nothing_else_is_lost(api: Api, fault: str) -> None:
    api.fault = fault
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        api.source.search(QUERY, 3)
    assert time.monotonic() - began < 10
    reason = caught.value.reason
    if fault == "unknown" and api.kind == "kiwix":
        assert reason in {"no such book: book", "status 500"}
    else:
        assert reason.startswith(FAULTS[fault])
    told = f"{caught.value} {reason} {' '.join(api.said)}"
    assert KEY not in told
    if fault == "forbidden" and api.kind == "searxng":
        assert "search.formats" in told
    api.fault = ""
    assert api.source.search(QUERY, 3) == [api.wanted]  # a failure is not kept


def test_a_limited_rate_is_met_with_patience(api: Api) -> None:
    api.fault = "once"
    assert api.source.search(QUERY, 3) == [api.wanted]


def test_what_the_server_says_of_its_charset_may_be_wrong(api: Api) -> None:
    api.fault = "charset"
    assert api.source.search(QUERY, 3) == [api.wanted]


def test_nobody_there(api: Api) -> None:
    api.server.stop()
    with pytest.raises(SourceError, match="nothing answers") as caught:
        api.source.search(QUERY, 3)
    assert caught.value.reason == "no connection"
    api.server.start()


@pytest.mark.parametrize("kind", ["brave", "tavily", "serper"])
def test_a_key_comes_from_the_environment(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"{kind.upper()}_API_KEY", raising=False)
    place = Place([JAPAN], tmp_path, tmp_path, Web(Settings(), tmp_path), print)
    with pytest.raises(MissingError, match=f"{kind.upper()}_API_KEY"):
        open_source(Source(kind=kind), place)


def test_keys_travel_where_they_belong(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"brave": "X-Subscription-Token", "tavily": "Authorization", "serper": "X-API-KEY"}
    for kind, header in places.items():
        monkeypatch.setenv(f"{kind.upper()}_API_KEY", KEY)
        httpserver.clear()
        api = Api(httpserver, kind, tmp_path / kind)
        api.source.search(QUERY, 3)
        asked = httpserver.log[-1][0]
        assert KEY in asked.headers[header]
        assert KEY not in asked.url and KEY not in asked.get_data(as_text=True)


def test_searxng_tells_of_engines_that_fail(httpserver: HTTPServer, tmp_path: Path) -> None:
    api = Api(httpserver, "searxng", tmp_path)
    api.answer = lambda _: {"results": [], "unresponsive_engines": [["bing", "timeout"]]}
    with pytest.raises(SourceError, match="bing timeout"):
        api.source.search(QUERY, 3)


def test_wikipedia_asks_the_edition_of_the_query(tmp_path: Path, httpserver: HTTPServer) -> None:
    api = Api(httpserver, "wikipedia", tmp_path)
    place = Place([JAPAN], tmp_path, tmp_path, api.web, print)
    url = f"http://localhost:{httpserver.port}/{{language}}/w/api.php"
    httpserver.expect_request("/ja/w/api.php").respond_with_handler(api.handle)
    source = open_source(Source(kind="wikipedia", url=url), place)
    query = Query(culture="japan", text="日本 礼儀", language="ja")
    assert source.search(query, 2)[0].language == "ja"
    assert {urlsplit(r.url).path for r, _ in httpserver.log} == {"/ja/w/api.php"}


def test_duckduckgo(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pytest.importorskip("ddgs.engines.duckduckgo").Duckduckgo
    monkeypatch.setattr(engine, "search_url", httpserver.url_for("/html/"))
    api = Api(httpserver, "duckduckgo", tmp_path)
    assert api.source.search(QUERY, 3) == [api.wanted]
    count = len(httpserver.log)
    assert api.source.search(QUERY, 3) == [api.wanted]
    assert len(httpserver.log) == count
    for fault in ("forbidden", "limited", "broken", "nonsense", "cut", "bad-gzip"):
        api.fault = fault
        with pytest.raises(SourceError) as caught:
            api.source.search(Query(culture="japan", text=fault), 3)
        assert caught.value.reason in {"rate limited", "timed out"}
    assert any("waiting" in line for line in api.said)


def test_the_example_of_the_readme(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(web_module.__file__).with_name("README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 60
    path = tmp_path / "opensearch.py"
    path.write_text(code)
    spec = spec_from_file_location("cmgr.sources.opensearch", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cmgr.sources.opensearch", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(SOURCES, "opensearch", "url")
    document = {"url": "https://example.org/a", "title": "A", "text": "# A\n\nText."}
    answer = {"hits": {"total": {"value": 1}, "hits": [{"_id": "1", "_source": document}]}}
    httpserver.expect_request("/archive/_search", method="POST").respond_with_json(answer)
    place = Place([JAPAN], tmp_path, tmp_path, Web(Settings(delay=0), tmp_path / "c"), print)
    url = httpserver.url_for("/archive")
    source = open_source(Source(kind="opensearch", url=url, license="CC0-1.0"), place)
    assert source.search(QUERY, 3) == [
        Result("https://example.org/a", "A", markdown="# A\n\nText.", license="CC0-1.0")
    ]
    files = {p.name for p in Path(web_module.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert all(f"`{name}`" in text for name in files)


def test_every_kind_has_a_file() -> None:
    folder = Path(web_module.__file__).parent
    assert all((folder / f"{kind}.py").is_file() for kind in SOURCES)
