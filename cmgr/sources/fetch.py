"""A URL -> the clean text of its page, once, in a process that may be stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import threading
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from cmgr.base import threads
from cmgr.errors import missing_extra
from cmgr.sources.extract import Text, extract
from cmgr.sources.web import Response, SourceError, Web

VERSION = 1  # of what is made from a page's bytes
SECONDS = 30  # that one page may take to read
MEMORY = 2 * 1024**3  # bytes that a process that reads pages may take


@dataclass(frozen=True)
class Page:
    """A page's text, where it was found at last, and when."""

    url: str
    text: Text
    retrieved_at: str


class Pages:
    """Pages by URL, each fetched and read once; their text lies in the cache, not in memory.

    Pages are hostile: they are read in processes of their own, with a bound on time and memory.
    Raises MissingError where the extra `search` is not installed.
    """

    def __init__(self, web: Web) -> None:
        try:
            import pebble
            import protego
            import trafilatura

            del protego, trafilatura
        except ImportError:
            raise missing_extra("search", "reading web pages") from None
        self._web = web
        self._futures: dict[str, Future[str]] = {}
        self._lock = threading.Lock()
        self._pool: Any = None
        self._process_pool: Any = pebble.ProcessPool

    def fetch(self, url: str) -> Future[str]:
        """Start on a page; the future ends in what `read` takes, or in a SourceError."""
        with self._lock:
            if found := self._futures.get(url):
                return found
            future = self._futures[url] = Future()
        self._web.page(url).add_done_callback(lambda fetched: self._fetched(fetched, future))
        return future

    def read(self, key: str) -> Page:
        """The page behind a finished future."""
        found = self._web.kept(key)
        if found is None:
            raise SourceError("lost", "the cache has lost a page. Run again.")
        value = json.loads(found[1])
        return Page(value["url"], Text(**value["text"]), value["retrieved_at"])

    def close(self) -> None:
        """Stop the processes."""
        with self._lock:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()

    def _fetched(self, fetched: Future[Response], future: Future[str]) -> None:
        try:
            future.set_result(self._text_of(fetched.result()))
        except SourceError as error:
            future.set_exception(error)
        except Exception as error:  # a fault of ours must not leave a caller waiting
            future.set_exception(SourceError("unreadable", repr(error)))

    def _text_of(self, answer: Response) -> str:
        about = f"{VERSION} {answer.url} {answer.content_type}".encode()
        key = hashlib.sha256(about + b"\n" + answer.body).hexdigest()[:32]
        found = self._web.kept(key)
        if found is None:
            with self._lock:
                if self._pool is None:
                    self._pool = self._process_pool(
                        max_workers=max(1, min(4, threads() - 1)),
                        max_tasks=500,
                        initializer=_prepare,
                        context=multiprocessing.get_context("spawn"),
                    )
            task = self._pool.schedule(
                _extracted, (answer.body, answer.content_type, answer.url), timeout=SECONDS
            )
            try:
                facts, text = task.result()
            except TimeoutError:
                facts, text = {"reason": "unreadable", "detail": "took too long to read"}, None
            value = {"url": answer.url, "text": text, "retrieved_at": answer.fetched_at}
            self._web.keep(key, facts, json.dumps(value, ensure_ascii=False).encode())
        else:
            facts = found[0]
        if "reason" in facts:
            raise SourceError(facts["reason"], facts["detail"])
        return key


def _prepare() -> None:
    """Of a process that reads pages: deaf to Ctrl-C, bounded in memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:
        return  # no such bound on this system
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _extracted(
    body: bytes, content_type: str, url: str
) -> tuple[dict[str, str], dict[str, Any] | None]:
    try:
        return {}, asdict(extract(body, content_type, url))
    except SourceError as error:
        return {"reason": error.reason, "detail": str(error)}, None
    except (MemoryError, RecursionError, ValueError, AssertionError) as error:
        return {"reason": "unreadable", "detail": f"{type(error).__name__}: {error}"[:200]}, None
