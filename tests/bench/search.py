"""How well and how fast search is: retrieval over real passages, and a crawl of a local web.

    python tests/bench/search.py --data FOLDER       # a folder that holds factbook.jsonl
    python tests/bench/search.py --crawl [--kill]    # 10 cultures x 40 queries x 5 pages

The questions name a country and a section; questions.jsonl are a practitioner's, questions_hard
avoid every word of four letters that stands in the passage. The web of the crawl is 40 hosts of
this machine (127.0.0.x), 100 ms a page; the bound is the pages of the busiest host times the delay.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

HERE = Path(__file__).parent
CULTURES = {
    **{"japan": "Japan", "brazil": "Brazil", "germany": "Germany", "india": "India"},
    **{"kenya": "Kenya", "mexico": "Mexico", "turkey": "Turkey", "china": "China"},
    **{"egypt": "Egypt", "france": "France"},
}
HOSTS = [f"127.0.0.{n}" for n in range(2, 42)]
QUERIES, PAGES, LATENCY, DELAY, PORT = 40, 5, 0.1, 1.0, 8765


# -- retrieval ------------------------------------------------------------------------------------


def retrieval(data: Path) -> None:
    """The right passage among the first five, per set of questions; times of index and query."""
    from cmgr.recipe import Culture, Source
    from cmgr.recipe import Web as Settings
    from cmgr.records import Query
    from cmgr.sources import Place
    from cmgr.sources.documents import Searcher
    from cmgr.sources.web import Web

    rows = [json.loads(line) for line in (data / "factbook.jsonl").open()]
    at: dict[tuple[str, str], set[int]] = {}
    for number, row in enumerate(rows, 1):
        at.setdefault((row["country"], row["section"]), set()).add(number)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "documents").mkdir()
        shutil.copy(data / "factbook.jsonl", folder / "documents")
        for questions in ("questions.jsonl", "questions_hard.jsonl"):
            asked = [json.loads(line) for line in (HERE / questions).open()]
            names = sorted({q["country"] for q in asked})
            cultures = [Culture(id=f"c{n}", name=country) for n, country in enumerate(names)]
            ids = {culture.name: culture.id for culture in cultures}
            shutil.rmtree(folder / "cache", ignore_errors=True)
            web = Web(Settings(), folder / "cache")
            start = time.perf_counter()
            place = Place(cultures, folder, folder / "cache", web, print)
            source = Searcher(Source(kind="documents", path="documents"), place)
            read = time.perf_counter() - start
            for culture in cultures:
                source.search(Query(culture=culture.id, text="warm"), 5)
            found, first, took = 0, 0, []
            for q in asked:
                start = time.perf_counter()
                results = source.search(Query(culture=ids[q["country"]], text=q["question"]), 5)
                took.append(time.perf_counter() - start)
                lines = [int(r.url.rpartition("#L")[2].partition("~")[0]) for r in results]
                right = at[q["country"], q["section"]]
                found += any(line in right for line in lines)
                first += bool(lines) and lines[0] in right
            print(
                f"{questions}: {found} of {len(asked)} among the first five, {first} first; "
                f"{max(took) * 1000:.1f} ms a query at most"
            )
        from cmgr.sources.documents import _searched
        from cmgr.sources.ranking import Ranking, terms

        start = time.perf_counter()
        every = [p for _, _, found_there in source._files for p in found_there]
        ranking = Ranking(lambda: [terms(_searched(p)) for p in every], [False] * len(every))
        index = time.perf_counter() - start
        start = time.perf_counter()
        for q in asked:
            ranking.best(q["question"], 5)
        query = (time.perf_counter() - start) / len(asked)
        print(
            f"{len(every)} passages in one index: read {read:.2f} s, indexed {index:.2f} s, "
            f"a query {query * 1000:.1f} ms"
        )


# -- a web on this machine ------------------------------------------------------------------------

_WORDS = (HERE.parent.parent / "cmgr/sources/rings.txt").read_text(encoding="utf-8").split()
_SMALL = ["the", "a", "of", "in", "and", "is", "are", "to", "when", "with", "from", "by", "who"]


def _page(host: str, path: str) -> str:
    """A page of some 20 kB: furniture around 40 paragraphs of English words on one culture."""
    name = parse_qs(urlsplit(path).query)["c"][0]
    rng = random.Random(f"{host}{path}")

    body = ""
    for number in range(40):
        words = " ".join(rng.choice(_SMALL if n % 2 else _WORDS) for n in range(60))
        body += f"<h2>Custom {number}</h2><p>In {name} {words}.</p>"
    menu = "".join(f"<li><a href='/{n}'>Menu entry {n}</a></li>" for n in range(60))
    return (
        f"<html lang=en><head><title>Customs of {name}</title></head><body><nav><ul>{menu}</ul>"
        f"</nav><article><h1>Customs of {name}</h1>{body}</article><footer>All rights reserved"
        "</footer></body></html>"
    )


def _serve(ready: Any) -> None:
    asked: Counter[str] = Counter()
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host, path = str(self.server.server_address[0]), self.path
            if path == "/stats":
                self.reply(json.dumps(asked), "application/json")
            elif path.startswith("/search"):
                self.reply(self.results(path), "application/json")
            else:
                with lock:
                    asked[f"{host}{path}"] += 1
                time.sleep(LATENCY)
                self.reply(_page(host, path), "text/html; charset=utf-8")

        def results(self, path: str) -> str:
            text = parse_qs(urlsplit(path).query)["q"][0]
            number, name = int(text.split()[1]), text.split()[-1]
            start = (list(CULTURES.values()).index(name) * QUERIES + number) * PAGES
            urls = [
                f"http://{HOSTS[n % len(HOSTS)]}:{PORT}/p/{n}?c={name}"
                for n in range(start, start + PAGES)
            ]
            return json.dumps({"results": [{"url": url, "title": url} for url in urls]})

        def reply(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    for host in ("127.0.0.1", *HOSTS):
        server = ThreadingHTTPServer((host, PORT), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
    ready.set()
    time.sleep(1800)  # it ends by itself, whatever becomes of the one who asked


def _stats() -> Counter[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/stats", timeout=10) as answer:
        return Counter(json.loads(answer.read()))


def crawl(kill: bool) -> None:
    """The whole search, timed against its bound; with `kill`, killed half-way and run again."""
    ready = multiprocessing.Event()
    server = multiprocessing.Process(target=_serve, args=(ready,), daemon=True)
    server.start()
    ready.wait()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe: dict[str, Any] = {
            "name": "crawl",
            "cultures": [{"id": i, "name": n} for i, n in CULTURES.items()],
            "tasks": [
                {"id": "t", "name": "T", "queries": [], "wordings": [{"text": "{question}"}]}
            ],
            "sources": [{"kind": "searxng", "url": f"http://127.0.0.1:{PORT}"}],
            "search": {
                "topics": [f"custom {n}" for n in range(QUERIES)],
                "queries": ["{topic} in {culture}"],
                "languages": "english",
                "pages": PAGES,
            },
            "web": {"delay": DELAY, "allow": [f"{host}:{PORT}" for host in HOSTS]},
        }
        recipe["tasks"][0]["queries"] = ["custom 0 in {culture}"]
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "cmgr", "search", "-w", name]
        start = time.perf_counter()
        if kill:
            first = subprocess.Popen(command)
            time.sleep(25)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            print(f"killed after {sum(_stats().values())} pages")
        subprocess.run(command, check=True)
        took = time.perf_counter() - start
        asked = _stats()
        hosts = Counter(url.partition("/")[0] for url in asked.elements())
        bound = max(hosts.values()) * DELAY
        print(
            f"{sum(asked.values())} pages, {sum(n - 1 for n in asked.values())} fetched twice; "
            f"{took:.1f} s, bound {bound:.0f} s: {took / bound:.2f}"
        )
    server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder that holds factbook.jsonl")
    parser.add_argument("--crawl", action="store_true")
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    if options.data:
        retrieval(options.data)
    if options.crawl or options.kill:
        crawl(options.kill)
