"""Search against real servers where they are installed: kiwix-serve over a ZIM, and searx."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import write_recipe
from pytest_httpserver import HTTPServer

from cmgr import search, synthesize
from cmgr.base import resolve
from cmgr.dialects import FORMATS, Taken
from cmgr.llm import Endpoint, RefusedError
from cmgr.records import Message, make_id
from cmgr.workspace import Workspace, read_json

PAGES = {
    "Tipping in Japan": "In Japan nobody leaves a tip. Change is handed back to the last coin, and "
    "money left on a table is carried after the guest by a waiter who thinks it was forgotten.",
    "Gifts in Japan": "In Japan a gift is wrapped, handed over with both hands, and not opened "
    "before the giver's eyes; who receives one gives something of half its worth in return.",
    "Tipping in Brazil": "In Brazil ten percent for service stand on the bill of a restaurant "
    "already, and hardly anybody gives more; a taxi driver is glad when the sum is rounded up.",
}
HTML = "<html><head><title>{0}</title></head><body><article><h1>{0}</h1><p>{1}</p></article></body>"
SYSTEM_PYTHON = "/usr/bin/python3"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, **env: str) -> Iterator[str]:
    """A server of its own process, once it answers."""
    import os

    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **env},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except urllib.error.HTTPError:
                break  # it answers
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, f"{command[0]} ended"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def workspace(folder: Path, source: dict[str, object], **changes: object) -> Workspace:
    folder.mkdir(exist_ok=True)
    write_recipe(
        folder,
        sources=[source],
        search={"topics": ["tipping", "gifts"], "languages": "english"},
        **{"web": {"delay": 0, "backoff": 0.1}, **changes},
    )
    return Workspace(folder)


def found(ws: Workspace) -> dict[str, set[str]]:
    evidence: dict[str, set[str]] = {}
    for item in search.current_evidence(ws):
        evidence.setdefault(item.culture, set()).add(item.text)
    return evidence


def expected(culture: str) -> set[str]:
    return {text for title, text in PAGES.items() if title.endswith(culture)}


def _png() -> bytes:
    """A white picture of 48 x 48, which a ZIM needs."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = b"".join(b"\0" + b"\xff" * 144 for _ in range(48))
    head = struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture(scope="session")
def kiwix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (shutil.which("kiwix-serve") and shutil.which("zimwriterfs")):
        pytest.skip("needs kiwix-tools and zim-tools")
    folder = tmp_path_factory.mktemp("zim")
    (folder / "pages").mkdir()
    for number, (title, text) in enumerate(PAGES.items()):
        (folder / "pages" / f"{number}.html").write_text(HTML.format(title, text))
    links = "".join(f"<a href='{n}.html'>{t}</a>" for n, t in enumerate(PAGES))
    (folder / "pages" / "index.html").write_text(HTML.format("Start", links))
    (folder / "pages" / "icon.png").write_bytes(_png())
    words = {"welcome": "index.html", "illustration": "icon.png", "language": "eng"}
    words |= {"title": "Customs", "description": "Customs", "creator": "us", "publisher": "us"}
    options = [f"--{name}={value}" for name, value in {**words, "name": "customs"}.items()]
    zim = str(folder / "customs.zim")
    subprocess.run(
        ["zimwriterfs", *options, str(folder / "pages"), zim], check=True, capture_output=True
    )
    port = free_port()
    with running(["kiwix-serve", "--address", "127.0.0.1", "--port", str(port), zim], port) as url:
        yield url


def test_kiwix(kiwix: str, tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", {"kind": "kiwix", "url": kiwix, "license": "CC0-1.0"})
    assert search.build(ws)
    evidence = found(ws)
    assert evidence["japan"] == expected("Japan")
    assert evidence["brazil"] == expected("Brazil")
    item = search.current_evidence(ws)[0]
    assert (item.source, item.license, item.language) == ("kiwix", "CC0-1.0", "en")
    assert item.url.startswith(kiwix)
    part = (read_json(ws.manifest_path("search")) or {})["cultures"]["japan"]
    assert part["failed"] == {}
    assert part["pages"]["read"] >= 2
    assert not search.build(ws)


def test_kiwix_without_that_book(kiwix: str, tmp_path: Path) -> None:
    said: list[str] = []
    ws = workspace(tmp_path / "ws", {"kind": "kiwix", "url": kiwix, "books": ["nope"]})
    ws.say = said.append
    assert search.build(ws)
    assert any("no book 'nope'" in line and "customs" in line for line in said)
    part = (read_json(ws.manifest_path("search")) or {})["cultures"]["japan"]
    assert part["failed"]["kiwix"]
    assert not ws.is_current("search", search.wanted_inputs(ws))


@pytest.fixture
def searx(httpserver: HTTPServer, tmp_path: Path) -> Iterator[str]:
    """A searx whose one engine is served here: the origin of SearXNG, with the same JSON API."""
    probe = [SYSTEM_PYTHON, "-c", "import importlib.util as u; assert u.find_spec('searx')"]
    static = Path("/usr/share/python3-searx/static")
    if not static.is_dir() or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs Debian's python3-searx")
    hits = []
    for number, (title, text) in enumerate(PAGES.items()):
        httpserver.expect_request(f"/{number}").respond_with_data(
            HTML.format(title, text), content_type="text/html"
        )
        hits.append({"url": httpserver.url_for(f"/{number}"), "title": title, "text": title})
    httpserver.expect_request("/find").respond_with_json({"hits": hits})
    port = free_port()
    settings = {
        "general": {"debug": False, "instance_name": "searx"},
        "search": {
            **{"safe_search": 0, "autocomplete": "", "default_lang": "", "formats": ["json"]},
            **{"ban_time_on_fail": 1, "max_ban_time_on_fail": 1},
        },
        "server": {
            **{"port": port, "bind_address": "127.0.0.1", "secret_key": "x", "base_url": False},
            **{"image_proxy": False, "http_protocol_version": "1.0", "method": "GET"},
        },
        "ui": {
            **{"static_path": str(static), "templates_path": str(static.parent / "templates")},
            **{"default_theme": "oscar", "default_locale": "", "query_in_title": False},
            "results_on_new_tab": False,
        },
        "outgoing": {"request_timeout": 5.0, "useragent_suffix": ""},
        "engines": [
            {
                **{"name": "local", "engine": "json_engine", "shortcut": "lo"},
                "search_url": httpserver.url_for("/find?q={query}"),
                **{"results_query": "hits", "url_query": "url", "title_query": "title"},
                **{"content_query": "text", "categories": "general", "paging": False},
                **{"disabled": False, "enable_http": True},
            }
        ],
        "locales": {"en": "English"},
        "doi_resolvers": {"x": "https://x.org/"},
        "default_doi_resolver": "x",
    }
    path = tmp_path / "settings.yml"
    path.write_text(yaml.safe_dump(settings))
    command = [SYSTEM_PYTHON, "-m", "searx.webapp"]
    with running(command, port, SEARX_SETTINGS_PATH=str(path)) as url:
        yield url


def test_searx(searx: str, httpserver: HTTPServer, tmp_path: Path) -> None:
    web = {"delay": 0, "allow": [f"localhost:{httpserver.port}"]}
    ws = workspace(tmp_path / "ws", {"kind": "searxng", "url": searx}, web=web)
    said: list[str] = []
    ws.say = said.append
    assert search.build(ws)
    assert found(ws)["japan"] == expected("Japan"), said
    assert found(ws)["brazil"] == expected("Brazil")
    part = (read_json(ws.manifest_path("search")) or {})["cultures"]["japan"]
    assert part["dropped"]["not about the culture"] == 1


def test_pages_of_a_private_network_are_left_alone(
    searx: str, httpserver: HTTPServer, tmp_path: Path
) -> None:
    """An engine that answers with addresses of this machine does not get cmgr to read them."""
    ws = workspace(tmp_path / "ws", {"kind": "searxng", "url": searx})
    search.build(ws)
    assert found(ws) == {}
    part = (read_json(ws.manifest_path("search")) or {})["cultures"]["japan"]
    assert part["pages"] == {"private address": 3}
    assert {request.path for request, _ in httpserver.log} == {"/find"}


# as `python -m llama_cpp.server`, but that it too loads no model into AMX tiles
LLAMA_SERVER = """
import runpy
from cmgr.loading import library
library()
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""


YES = {"type": "object", "properties": {"say": {"enum": ["yes", "no"]}}, "required": ["say"]}


async def asked(ws: Workspace, taken: Taken, *texts: str) -> list[str]:
    """What became of each of these prompts, one after the other."""
    endpoint, told = Endpoint(ws.recipe.generator, taken), []
    for text in texts:
        try:
            await endpoint.complete([Message(role="user", content=text)], YES, 20)
            told.append("answered")
        except RefusedError as error:
            told.append(str(error))
    await endpoint.close()
    return told


@pytest.mark.model
def test_llama_cpp_python_s_own_server_writes_examples(tmp_path: Path) -> None:
    """The real SmolLM2 behind a real OpenAI-compatible server, which answers 500 to json_schema."""
    pytest.importorskip("uvicorn")
    port = free_port()
    model = str(resolve("smollm2").gguf)
    command = [sys.executable, "-c", LLAMA_SERVER, "--model", model, "--n_ctx", "4096"]
    with running([*command, "--port", str(port)], port) as url:
        ws = workspace(
            tmp_path / "ws",
            {"kind": "documents", "path": "documents"},
            generator={
                **{"kind": "openai_compatible", "model": "smollm2", "base_url": f"{url}/v1"},
                **{"per_call": 1, "contrast": False, "most_at_once": 1},
            },
        )
        search.build(ws)
        said: list[str] = []
        ws.say = said.append
        synthesize.build(ws, max_calls=3)
        taken = Taken()
        told = asyncio.run(asked(ws, taken, "Say yes.", "People bow. " * 3000, "Say no."))
        assert told[0] == told[2] == "answered" and "context length is 4096 tokens" in told[1]
        assert FORMATS[taken.form(make_id(YES))] == "json_object"  # as strong as before
        assert not taken.left_out
    parts = (read_json(ws.manifest_path("synthesize")) or {})["cultures"]
    total = len(synthesize._requests(ws, {"japan", "brazil", "germany"}))
    assert len(synthesize.planned(ws)) == total - 3  # three answers came, and were kept
    assert any("3 calls" in line for line in said)
    counts = [c for part in parts.values() for c in part["yield"].values()]
    assert all(c["came"] == c["kept"] + sum(c["left_out"].values()) for c in counts)
