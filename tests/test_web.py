"""cmgr/sources/web.py, fetch.py: every fault is told, nothing hangs or is fetched twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import faulty
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from cmgr.recipe import Web as Settings
from cmgr.sources import requesting as net
from cmgr.sources.fetch import Page, Pages
from cmgr.sources.web import SourceError, Web


def settings(server: HTTPServer, **changes: object) -> Settings:
    quick = {"delay": 0, "timeout": 1, "backoff": 0.01, "max_mb": 2, "patience": 5}
    return Settings.model_validate({**quick, "allow": [f"localhost:{server.port}"], **changes})


@pytest.fixture
def server(httpserver: HTTPServer) -> HTTPServer:
    faulty.serve(httpserver)
    return httpserver


class Reader:
    """Pages over one cache, as a run has them."""

    def __init__(self, server: HTTPServer, folder: Path, **changes: object) -> None:
        self.server = server
        self.said: list[str] = []
        refresh = bool(changes.pop("refresh", False))
        self.web = Web(settings(server, **changes), folder / "cache", self.said.append, refresh)
        self.pages = Pages(self.web)

    def read(self, path: str) -> Page:
        url = path if "://" in path else self.server.url_for(path)
        return self.pages.read(self.pages.fetch(url).result(timeout=60))

    def reason(self, path: str) -> str:
        with pytest.raises(SourceError) as caught:
            self.read(path)
        return caught.value.reason

    def close(self) -> None:
        self.web.close()
        self.pages.close()


@pytest.fixture
def reader(server: HTTPServer, tmp_path: Path) -> Iterator[Reader]:
    made = Reader(server, tmp_path)
    yield made
    made.close()


def asked(server: HTTPServer, path: str) -> int:
    return sum(request.path == path for request, _ in server.log)


def test_a_page_becomes_its_text(reader: Reader) -> None:
    page = reader.read("/page")
    assert page.text.title == "Bowing in Japan"
    assert page.text.license == "CC-BY-SA-4.0"
    assert "## How deep?" in page.text.markdown
    assert "a light handshake" in page.text.markdown
    assert "script" not in page.text.markdown and "Home" not in page.text.markdown
    agent = reader.server.log[-1][0].headers["User-Agent"]
    assert agent.startswith("cmgr/") and "Mozilla" not in agent


def test_every_fault_is_told_and_none_hangs(reader: Reader) -> None:
    began = time.monotonic()
    futures = {f: reader.pages.fetch(reader.server.url_for(f"/{f}")) for f in faulty.FAULTS}
    told = {
        f: getattr(future.exception(timeout=60), "reason", None) for f, future in futures.items()
    }
    assert told == faulty.FAULTS
    assert time.monotonic() - began < 50
    assert reader.read("/page").text.markdown  # and the rest goes on


def test_what_fails_once_is_asked_again(reader: Reader) -> None:
    assert reader.read("/once").text.markdown
    assert asked(reader.server, "/once") == 2
    assert reader.reason("/broken-server") == "status 500"
    assert asked(reader.server, "/broken-server") == 3
    assert reader.reason("/missing") == "no such page (404)"
    assert asked(reader.server, "/missing") == 1


def test_what_is_tried_again_later_keeps_no_other_page_waiting(
    server: HTTPServer, tmp_path: Path
) -> None:
    reader = Reader(server, tmp_path, backoff=30)
    later = reader.pages.fetch(server.url_for("/broken-server"))
    while not any(job.tries for host in reader.web._hosts.values() for job in host.jobs):
        time.sleep(0.01)
    assert reader.read("/page").text.markdown
    assert not later.done()
    reader.close()


def test_what_the_server_says_of_its_charset_may_be_wrong(reader: Reader) -> None:
    assert "会釈" in reader.read("/charset").text.markdown
    assert "会釈" in reader.read("/sjis").text.markdown


def test_nothing_is_fetched_twice_in_this_run_or_the_next(
    server: HTTPServer, tmp_path: Path
) -> None:
    for turn in range(2):
        reader = Reader(server, tmp_path)
        for _ in range(2):
            assert reader.read("/page").text.markdown
            assert reader.read("/page#part").text.markdown
            assert reader.reason("/missing") == "no such page (404)"
            assert reader.reason("/zip") == "not text"
        reader.close()
        assert len(server.log) == 3, turn  # the server is the user's own: no robots.txt
    reader = Reader(server, tmp_path, refresh=True)
    assert reader.read("/page").text.markdown
    reader.close()
    assert asked(server, "/page") == 2


def test_a_damaged_cache_is_fetched_again(server: HTTPServer, tmp_path: Path) -> None:
    reader = Reader(server, tmp_path)
    assert reader.read("/page").text.markdown
    for path in tmp_path.rglob("*.gz"):
        path.write_bytes(path.read_bytes()[:20])
    reader.close()
    reader = Reader(server, tmp_path)
    assert reader.read("/page").text.markdown
    reader.close()
    assert asked(server, "/page") == 2


def test_nobody_listens(reader: Reader) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reader.web.requester.allowed.add(("127.0.0.1", port))
    assert reader.reason(f"http://127.0.0.1:{port}/") == "no connection"
    assert reader.reason("http://nowhere.invalid/") == "unknown host"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/page",
        "http://localhost:{port}/page",
        "http://[::1]:{port}/page",
        "http://[::ffff:127.0.0.1]:{port}/page",
        "http://2130706433:{port}/page",
        "http://0.0.0.0:{port}/page",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
    ],
)
def test_private_addresses_are_never_connected_to(
    server: HTTPServer, tmp_path: Path, url: str
) -> None:
    reader = Reader(server, tmp_path, allow=[])
    assert reader.reason(url.format(port=server.port)) == "private address"
    reader.close()
    assert server.log == []


def test_a_name_that_turns_private_between_two_look_ups(
    server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that was checked is the address that is connected to."""
    answers = [("93.184.216.34", 80), ("127.0.0.1", server.port)]
    connected: list[object] = []

    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers.pop(0))]

    def connect(self: socket.socket, address: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", connect)
    reader = Reader(server, tmp_path, allow=[], retries=0)
    assert reader.reason("http://rebinding.example/") == "no connection"
    assert reader.reason("http://rebinding.example/2") == "private address"
    assert connected == [("93.184.216.34", 80)]
    reader.close()


@pytest.mark.parametrize(
    "url", ["ftp://x.org/", "file:///etc/passwd", "http://", "javascript:1", "http://u:p@x.org/"]
)
def test_other_schemes_are_refused(reader: Reader, url: str) -> None:
    with pytest.raises(SourceError) as caught:
        reader.web.page(url).result()
    assert caught.value.reason == "not http"


def test_robots_txt_counts(server: HTTPServer, tmp_path: Path) -> None:
    reader = Reader(server, tmp_path)
    reader.web.requester.allowed.clear()  # no longer a server of the user's own ...
    monkey = net.is_public
    net.is_public = lambda address: True  # ... but one of the internet
    try:
        assert reader.reason("/closed/page") == "robots.txt forbids it"
        assert reader.read("/page").text.markdown
        assert asked(server, "/robots.txt") == 1
        assert asked(server, "/closed/page") == 0
    finally:
        net.is_public = monkey
        reader.close()


def test_robots_txt_is_read_again_after_a_day(
    server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9309, 2.4: kept for 24 hours, and longer only where it cannot be reached."""
    monkeypatch.setattr(net, "is_public", lambda address: True)
    rules = {"text": "User-agent: *\nDisallow: /closed\n", "status": 200}

    def robots(_: Request) -> Response:
        return Response(str(rules["text"]), int(rules["status"]))

    server.clear()
    server.expect_request("/robots.txt").respond_with_handler(robots)
    faulty.serve(server)

    def outcome(path: str, **changes: object) -> str:
        reader = Reader(server, tmp_path, **changes)
        reader.web.requester.allowed.clear()
        try:
            reader.read(path)
            return "read"
        except SourceError as error:
            return error.reason
        finally:
            reader.close()

    assert outcome("/closed/page") == outcome("/closed/page") == "robots.txt forbids it"
    assert asked(server, "/robots.txt") == 1
    rules["text"] = "User-agent: *\nDisallow: /page\n"
    later = time.time() + 25 * 3600
    monkeypatch.setattr("cmgr.sources.web.clock", lambda: later)
    rules["status"] = 503
    assert outcome("/closed/page", retries=0) == "robots.txt forbids it"  # by the old ones
    rules["status"] = 200
    assert outcome("/closed/page") == "read"
    assert outcome("/page/2") == "robots.txt forbids it"
    # in one run too, where that goes on for days
    reader = Reader(server, tmp_path)
    reader.web.requester.allowed.clear()
    assert reader.reason("/page/3") == "robots.txt forbids it"
    rules["text"] = ""
    monkeypatch.setattr("cmgr.sources.web.clock", lambda: later + 25 * 3600)
    assert reader.read("/page/4").text.markdown
    reader.close()


def test_two_requests_to_a_host_are_apart(server: HTTPServer, tmp_path: Path) -> None:
    reader = Reader(server, tmp_path, delay=0.2, timeout=5)
    times: list[float] = []
    server.clear()
    faulty.serve(server)
    began = time.monotonic()
    for future in [reader.pages.fetch(server.url_for(f"/page/{n}")) for n in range(5)]:
        future.result(timeout=30)
        times.append(time.monotonic() - began)
    reader.close()
    assert times[-1] >= 0.8


def test_an_api_gets_its_key_and_nobody_else(reader: Reader) -> None:
    headers = {"X-Key": "a-secret"}
    url = reader.server.url_for("/page")
    assert reader.web.get(url, bytes, {"q": "a"}, headers)
    assert reader.server.log[-1][0].headers["X-Key"] == "a-secret"
    kept = b"".join(p.read_bytes() for p in Path(reader.web._cache).rglob("*") if p.is_file())
    assert b"a-secret" not in kept
    with pytest.raises(SourceError, match="elsewhere") as caught:
        reader.web.get(reader.server.url_for("/away"), bytes, None, headers)
    assert "a-secret" not in str(caught.value)


def test_closing_lets_everybody_go(server: HTTPServer, tmp_path: Path) -> None:
    reader = Reader(server, tmp_path, delay=60)
    futures = [reader.pages.fetch(server.url_for(f"/page/{n}")) for n in range(3)]
    futures[0].result(timeout=30)
    reader.close()
    assert [f.exception(timeout=5) is not None for f in futures[1:]] == [True, True]


@given(st.ip_addresses())
def test_public_means_global(address: object) -> None:
    public = net.is_public(str(address))
    if public:
        assert getattr(address, "is_global", False)
        assert not getattr(address, "is_private", True)
