"""The one door to the network: polite, bounded, cached, and shut to private addresses."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time as clock
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests

from cmgr.recipe import Web as Settings
from cmgr.records import now
from cmgr.sources.requesting import (
    Request,
    Requester,
    Response,
    RetryError,
    SourceError,
    bare,
    check_url,
    host_of,
    host_port,
)
from cmgr.workspace import write_atomic

__all__ = ["Response", "SourceError", "Value", "Web"]

Value = TypeVar("Value")

HOPS = 5  # redirects that are followed
CRAWL_DELAY = 30.0  # seconds; a robots.txt that asks for more gets this much
ROBOTS_AGE, ROBOTS_AGAIN = 24 * 3600.0, 600.0  # seconds: kept so long; then tried so often
FORBIDDEN = "robots.txt forbids it"
ROBOTS_BYTES = 500 * 1024  # RFC 9309: at least this much of a robots.txt is read


@dataclass(kw_only=True, eq=False)
class _Job(Request):
    key: str
    future: Future[Response]
    delay: float | None = None
    tries: int = 0
    hops: int = 0
    not_before: float = 0.0


@dataclass
class _Host:
    jobs: deque[_Job] = field(default_factory=deque)
    ready_at: float = 0.0
    active: int = 0
    crawl_delay: float = 0.0
    # origin -> its rules, and until when they hold
    robots: dict[str, tuple[Any, float]] = field(default_factory=dict)
    reading: threading.Lock = field(default_factory=threading.Lock)


class Web:
    """Requests of many hosts at once, each host served with patience.

    Two requests to one host start at least `delay` seconds apart. Pages obey robots.txt (RFC 9309),
    which is read again after a day. What came back is kept on disk, refusals too, so that nothing
    is fetched twice; `refresh` fetches again what was kept before this object was made. Redirects
    are followed hop by hop.
    """

    def __init__(
        self,
        settings: Settings,
        cache: Path,
        say: Callable[[str], None] = lambda _: None,
        refresh: bool = False,
    ) -> None:
        self.settings = settings
        self._cache = cache
        self._say = say
        self._fresh: set[str] | None = set() if refresh else None  # what this run has fetched
        self.requester = Requester(settings)
        self._hosts: dict[str, _Host] = {}
        self._open: set[Future[Response]] = set()
        self._wake = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    # -- what sources and search ask for ------------------------------------------------------

    def name(self, url: str, pages: bool = False) -> str:
        """Say that the user named this server: it may be on a private network.

        With `pages`, pages on it are read too. Returns the address without a trailing slash.
        """
        self.requester.named.add(host_port(urlsplit(url).netloc, urlsplit(url).scheme))
        if pages:
            self.requester.allowed.add(host_port(urlsplit(url).netloc, urlsplit(url).scheme))
        return url.rstrip("/")

    def get(
        self,
        url: str,
        read: Callable[[bytes], Value],
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        delay: float | None = None,
        body: dict[str, Any] | None = None,
    ) -> Value:
        """What `read` makes of an API's answer (to a POST where `body` is given, as JSON).

        An answer that `read` does not understand is not kept. Headers are not part of what it is
        kept under, and are never written. Raises SourceError.
        """
        address = requests.Request("GET", url, params=params).prepare().url or url
        method = "GET" if body is None else "POST"
        job = _Job(
            url=address,
            key=_key(method, address, body),
            future=Future(),
            named=True,
            method=method,
            headers=headers or {},
            body=body,
            delay=delay,
        )
        self._submit(job)
        answer = job.future.result()
        try:
            value = read(answer.body)
        except (LookupError, TypeError, AttributeError, ValueError, SyntaxError):
            raise SourceError("invalid answer", f"{bare(url)}: not what it should answer") from None
        if not answer.kept:
            self._keep(job, answer)
        return value

    def page(self, url: str) -> Future[Response]:
        """A page, as a future; it ends in a Response or a SourceError."""
        address = urlunsplit(urlsplit(url)._replace(fragment=""))
        job = _Job(url=address, key=_key("PAGE", address), page=True, future=Future())
        self._submit(job)
        return job.future

    def close(self) -> None:
        """Stop: what waits is given up, what is kept stays."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            waiting = list(self._open)
        for future in waiting:
            _settle(future, SourceError("stopped"))

    def kept(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """What lies in the cache under a key: its facts and its bytes."""
        if self._fresh is not None and key not in self._fresh:
            return None
        try:
            data = gzip.decompress(self._path(key).read_bytes())
            head, _, body = data.partition(b"\n")
            facts = json.loads(head)
        except (OSError, ValueError, EOFError):
            return None
        return facts, body

    def keep(self, key: str, facts: dict[str, Any], body: bytes = b"") -> None:
        """Put something into the cache, whole or not at all."""
        head = json.dumps({"at": now(), **facts}, ensure_ascii=False).encode()
        write_atomic(self._path(key), gzip.compress(head + b"\n" + body, compresslevel=1))
        if self._fresh is not None:
            self._fresh.add(key)

    # -- the queue -----------------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        try:
            check_url(job.url)
        except SourceError as error:
            job.future.set_exception(error)
            return
        with self._wake:
            self._open.add(job.future)
        job.future.add_done_callback(self._open.discard)
        if found := self.kept(job.key):
            facts, body = found
            if "reason" in facts:
                job.future.set_exception(SourceError(facts["reason"], facts["detail"]))
            else:
                kept = Response(facts["url"], facts["content_type"], body, facts["at"], kept=True)
                job.future.set_result(kept)
            return
        self._queue(job)

    def _queue(self, job: _Job) -> None:
        with self._wake:
            if self._closed:
                return  # `close` has told the caller
            self._hosts.setdefault(host_of(job.url), _Host()).jobs.append(job)
            if (
                len(self._threads) < self.settings.workers
                and len(self._threads) < len(self._hosts) * self.settings.per_host
            ):
                thread = threading.Thread(target=self._work, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify()

    def _next(self) -> tuple[_Host, _Job] | None:
        """The next job whose turn it is, waited for; None when closed."""
        with self._wake:
            while not self._closed:
                at = time.monotonic()
                soonest = at + 60
                for host in self._hosts.values():
                    if not host.jobs or host.active >= self.settings.per_host:
                        continue
                    if host.ready_at > at:
                        soonest = min(soonest, host.ready_at)
                        continue
                    # one that is to be tried again later keeps no other waiting
                    job = next((j for j in host.jobs if j.not_before <= at), None)
                    if job is None:
                        soonest = min(soonest, *(j.not_before for j in host.jobs))
                        continue
                    host.active += 1
                    host.jobs.remove(job)
                    delay = self.settings.delay if job.delay is None else job.delay
                    host.ready_at = at + max(delay, host.crawl_delay if job.page else 0)
                    return host, job
                self._wake.wait(max(0.001, soonest - at))
            return None

    def _work(self) -> None:
        while turn := self._next():
            host, job = turn
            again: _Job | None = None
            try:
                again = self._once(host, job)
            except SourceError as error:
                _settle(job.future, error)
            except Exception as error:  # a fault of ours must not leave a caller waiting
                _settle(job.future, SourceError("failed", f"{bare(job.url)}: {error!r}"))
            with self._wake:
                host.active -= 1
                self._wake.notify_all()
            if again:
                self._queue(again)

    def _once(self, host: _Host, job: _Job) -> _Job | None:
        """One request; a job to be queued (again) where that was not the end of it."""
        answer: Response | str = ""
        try:
            if job.page and self._waits_for_robots(host, job):
                return job
            answer = self.requester.send(job)
        except RetryError as retry:
            job.tries += 1
            if job.tries > self.settings.retries or retry.wait > self.settings.patience:
                raise SourceError(retry.reason, retry.detail) from None
            backoff = self.settings.backoff * 2 ** (job.tries - 1)
            pause = retry.wait or backoff * random.uniform(1, 1.3)
            job.not_before = time.monotonic() + pause
            if retry.wait:
                with self._wake:
                    host.ready_at = max(host.ready_at, job.not_before)
            if pause >= 10:
                self._say(f"{bare(job.url)}: {retry.reason}: waiting {pause:.0f} s")
            return job
        except SourceError as error:
            self._refuse(job, error)
        if isinstance(answer, str):
            return self._redirected(job, answer)
        if job.page:
            self._keep(job, answer)
        _settle(job.future, answer)
        return None

    def _keep(self, job: _Job, answer: Response) -> None:
        facts = {"url": answer.url, "content_type": answer.content_type, "at": answer.fetched_at}
        self.keep(job.key, facts, answer.body)

    def _redirected(self, job: _Job, location: str) -> _Job:
        target = urljoin(job.url, location)
        try:
            check_url(target)
            job.hops += 1
            if job.hops > HOPS:
                raise SourceError("too many redirects")
            if not job.page and host_of(target) != host_of(job.url):
                raise SourceError(
                    "redirected", f"{bare(job.url)} sends its requests elsewhere: {bare(target)}"
                )
        except SourceError as error:
            self._refuse(job, error)
        job.url = urlunsplit(urlsplit(target)._replace(fragment=""))
        job.tries = 0
        return job

    def _refuse(self, job: _Job, error: SourceError) -> None:
        """Raise a refusal that will not change by asking again soon; a page's is kept.

        What robots.txt forbids is not: its rules are, for their time.
        """
        if job.page and error.reason != FORBIDDEN:
            self.keep(job.key, {"reason": error.reason, "detail": str(error), "url": job.url})
        raise error

    # -- robots.txt ----------------------------------------------------------------------------

    def _waits_for_robots(self, host: _Host, job: _Job) -> bool:
        """Whether the rules have just been fetched, so that the page waits for its next turn.

        Raises SourceError where they forbid it, and, as RFC 9309 wants, whatever keeps them from
        being read (but an answer that there are none).
        """
        parts = urlsplit(job.url)
        if host_port(parts.netloc, parts.scheme) in self.requester.allowed:
            return False  # a server of the user's own
        origin = f"{parts.scheme}://{parts.netloc}"
        with host.reading:
            rules, until = host.robots.get(origin, (None, 0.0))
            fresh = until <= clock()
            if fresh:
                rules, until = self._robots(origin)
                host.crawl_delay = max(host.crawl_delay, min(_crawl_delay(rules), CRAWL_DELAY))
                host.robots[origin] = rules, until
        if not rules.can_fetch(job.url, "cmgr"):
            raise SourceError(FORBIDDEN)
        return fresh

    def _robots(self, origin: str) -> tuple[Any, float]:
        """The rules of a host and until when they hold: a day (RFC 9309, 2.4).

        Those that are older hold for as long as the host's own cannot be read.
        """
        from protego import Protego

        key = _key("ROBOTS", origin)
        old = self.kept(key)
        until = float(old[0].get("read", 0)) + ROBOTS_AGE if old else 0.0
        if old and clock() < until <= clock() + ROBOTS_AGE:
            text = old[1]
        else:
            try:
                text, until = self._read_robots(origin), clock() + ROBOTS_AGE
                self.keep(key, {"url": origin, "read": clock()}, text)
            except (RetryError, SourceError):
                if old is None:
                    raise
                text, until = old[1], clock() + ROBOTS_AGAIN
        return Protego.parse(text.decode(errors="replace")), until

    def _read_robots(self, origin: str) -> bytes:
        """What robots.txt says; nothing where there is none. Raises RetryError, SourceError."""
        url = f"{origin}/robots.txt"
        for _ in range(HOPS):
            try:
                answer = self.requester.send(Request(url), ROBOTS_BYTES)
            except SourceError as error:
                if not error.status:
                    raise
                return b""  # an answer that there are none
            if isinstance(answer, Response):
                return answer.body
            url = urljoin(url, answer)
            check_url(url)
        return b""

    def _path(self, key: str) -> Path:
        return self._cache / key[:2] / f"{key}.gz"


def _settle(future: Future[Response], outcome: Response | SourceError) -> None:
    """End a future, unless `close` was faster."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Response):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


def _crawl_delay(rules: Any) -> float:
    try:
        return float(rules.crawl_delay("cmgr") or 0)
    except (TypeError, ValueError):
        return 0.0


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
