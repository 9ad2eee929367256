"""The one door to the network: polite, bounded, cached, and shut to private addresses."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
)

from cmgr import __version__
from cmgr.errors import CmgrError
from cmgr.recipe import Web as Settings
from cmgr.records import now

Value = TypeVar("Value")

HOPS = 5  # redirects that are followed
CRAWL_DELAY = 30.0  # seconds; a robots.txt that asks for more gets this much
ROBOTS_BYTES = 500 * 1024  # RFC 9309: at least this much of a robots.txt is read
AGAIN = {408, 429, 500, 502, 503, 504}
READABLE = {
    *("text/html", "application/xhtml+xml", "text/plain", "text/markdown", "application/pdf"),
}


class SourceError(CmgrError):
    """A source or a page could not be read: a short `reason`, to be counted, and HTTP's status."""

    def __init__(self, reason: str, detail: str = "", status: int = 0) -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.status = status


class _PrivateAddressError(OSError):
    pass


@dataclass(frozen=True)
class Response:
    """What came back: the final address, the type as the server says it, the body (decoded)."""

    url: str
    content_type: str
    body: bytes
    fetched_at: str
    kept: bool = False


@dataclass
class _Job:
    url: str
    key: str
    page: bool
    future: Future[Response]
    named: bool = False  # a host that the user named
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
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
    robots: dict[str, Any] = field(default_factory=dict)  # origin -> rules
    reading: threading.Lock = field(default_factory=threading.Lock)


class Web:
    """Requests of many hosts at once, each host served with patience.

    Two requests to one host start at least `delay` seconds apart. Pages obey robots.txt (RFC 9309).
    What came back is kept on disk, refusals too, so that nothing is fetched twice; `refresh`
    fetches again what was kept before this object was made. Redirects are followed hop by hop.
    Every address is checked when it is connected to: a name that resolves to an address that is
    not public is refused, unless the user named that host.
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
        self._allowed = {_host_port(entry) for entry in settings.allow}
        self._named: set[tuple[str, int | None]] = set()
        self._hosts: dict[str, _Host] = {}
        self._open: set[Future[Response]] = set()
        self._wake = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._local = threading.local()
        contact = settings.contact or "no contact given"
        self.agent = f"cmgr/{__version__} (searches for cultural evidence; {contact})"

    # -- what sources and search ask for ------------------------------------------------------

    def name(self, url: str, pages: bool = False) -> str:
        """Say that the user named this server: it may be on a private network.

        With `pages`, pages on it are read too. Returns the address without a trailing slash.
        """
        self._named.add(_host_port(urlsplit(url).netloc, urlsplit(url).scheme))
        if pages:
            self._allowed.add(_host_port(urlsplit(url).netloc, urlsplit(url).scheme))
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
            address,
            _key(method, address, body),
            page=False,
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
            raise SourceError(
                "invalid answer", f"{_bare(url)}: not what it should answer"
            ) from None
        if not answer.kept:
            self._keep(job, answer)
        return value

    def page(self, url: str) -> Future[Response]:
        """A page, as a future; it ends in a Response or a SourceError."""
        address = urlunsplit(urlsplit(url)._replace(fragment=""))
        job = _Job(address, _key("PAGE", address), page=True, future=Future())
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
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{threading.get_ident()}.part")
        head = json.dumps({"at": now(), **facts}, ensure_ascii=False).encode()
        part.write_bytes(gzip.compress(head + b"\n" + body, compresslevel=1))
        part.replace(path)
        if self._fresh is not None:
            self._fresh.add(key)

    # -- the queue -----------------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        try:
            _check_url(job.url)
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
            self._hosts.setdefault(_host(job.url), _Host()).jobs.append(job)
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
                    turn = max(host.ready_at, host.jobs[0].not_before)
                    if turn <= at:
                        host.active += 1
                        job = host.jobs.popleft()
                        delay = self.settings.delay if job.delay is None else job.delay
                        host.ready_at = at + max(delay, host.crawl_delay if job.page else 0)
                        return host, job
                    soonest = min(soonest, turn)
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
                _settle(job.future, SourceError("failed", f"{_bare(job.url)}: {error!r}"))
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
            answer = self._request(job)
        except _RetryError as retry:
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
                self._say(f"{_bare(job.url)}: {retry.reason}: waiting {pause:.0f} s")
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
            _check_url(target)
            job.hops += 1
            if job.hops > HOPS:
                raise SourceError("too many redirects")
            if not job.page and _host(target) != _host(job.url):
                raise SourceError(
                    "redirected", f"{_bare(job.url)} sends its requests elsewhere: {_bare(target)}"
                )
        except SourceError as error:
            self._refuse(job, error)
        job.url = urlunsplit(urlsplit(target)._replace(fragment=""))
        job.tries = 0
        return job

    def _refuse(self, job: _Job, error: SourceError) -> None:
        """Raise a refusal that will not change by asking again soon; a page's is kept."""
        if job.page:
            self.keep(job.key, {"reason": error.reason, "detail": str(error), "url": job.url})
        raise error

    # -- robots.txt ----------------------------------------------------------------------------

    def _waits_for_robots(self, host: _Host, job: _Job) -> bool:
        """Whether the rules have just been fetched, so that the page waits for its next turn.

        Raises SourceError where they forbid it, and, as RFC 9309 wants, whatever keeps them from
        being read (but an answer that there are none).
        """
        parts = urlsplit(job.url)
        if _host_port(parts.netloc, parts.scheme) in self._allowed:
            return False  # a server of the user's own
        origin = f"{parts.scheme}://{parts.netloc}"
        with host.reading:
            fresh = origin not in host.robots
            if fresh:
                rules = self._read_robots(origin)
                host.crawl_delay = max(host.crawl_delay, min(_crawl_delay(rules), CRAWL_DELAY))
                host.robots[origin] = rules
        if not host.robots[origin].can_fetch(job.url, "cmgr"):
            raise SourceError("robots.txt forbids it")
        return fresh

    def _read_robots(self, origin: str) -> Any:
        from protego import Protego

        url = f"{origin}/robots.txt"
        key = _key("ROBOTS", url)
        if found := self.kept(key):
            return Protego.parse(found[1].decode(errors="replace"))
        text = b""
        for _ in range(HOPS):
            try:
                answer = self._request(_Job(url, key, page=False, future=Future()), ROBOTS_BYTES)
            except SourceError as error:
                if not error.status:
                    raise
                break  # an answer that there are none
            if isinstance(answer, Response):
                text = answer.body
                break
            url = urljoin(url, answer)
            _check_url(url)
        self.keep(key, {"url": url}, text)
        return Protego.parse(text.decode(errors="replace"))

    # -- one request ---------------------------------------------------------------------------

    def _request(self, job: _Job, limit: int | None = None) -> Response | str:
        """The answer, or where it redirects to. Raises SourceError, _RetryError."""
        session = self._session(job.named)
        proxies = requests.utils.get_environ_proxies(job.url)
        if any(proxies.get(k) for k in (urlsplit(job.url).scheme, "all")):
            self._check_behind_proxy(job)
        where = _bare(job.url)
        watch = _Watch(self.settings.timeout)
        _current.watch = watch
        try:
            with session.request(
                job.method,
                job.url,
                headers={"User-Agent": self.agent, **job.headers},
                json=job.body,
                timeout=self.settings.timeout,
                proxies=proxies,
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.is_redirect:
                    return str(response.headers["location"])
                self._check_status(response, where)
                if job.page:
                    _check_type(response.headers.get("content-type", ""))
                body = _read(response, watch, limit or int(self.settings.max_mb * 1024**2))
            return Response(job.url, response.headers.get("content-type", ""), body, now())
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise _fault(error, watch, where) from None
        finally:
            watch.stop()

    def _session(self, named: bool) -> requests.Session:
        """One per thread and kind: requests' sessions are not made to be shared."""
        name = "named" if named else "strict"
        session: requests.Session | None = getattr(self._local, name, None)
        if session is None:
            session = requests.Session()
            session.trust_env = False  # neither .netrc nor its cookies go anywhere
            session.cookies.set_policy(_NoCookies())
            session.headers.clear()
            session.headers.update({"Accept": "*/*", "Accept-Encoding": "gzip, deflate"})
            allowed = (self._allowed, self._named) if named else (self._allowed,)
            adapter = _Guard(lambda host, port: _listed(host, port, allowed))
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            setattr(self._local, name, session)
        return session

    def _check_behind_proxy(self, job: _Job) -> None:
        """A proxy of the user's resolves names itself: what can be seen from here is checked."""
        host = urlsplit(job.url).hostname or ""
        if _listed(host, urlsplit(job.url).port, (self._allowed, self._named)):
            return
        with suppress(OSError):
            for *_, address in socket.getaddrinfo(host, None):
                if not _public(str(address[0])):
                    raise SourceError("private address")

    def _check_status(self, response: requests.Response, where: str) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        reason = {
            **{401: "key refused (401)", 403: "forbidden (403)", 404: "no such page (404)"},
            **{410: "no such page (410)", 429: "rate limited (429)"},
        }.get(status, f"status {status}")
        detail = f"{where} answered {status} {response.reason or ''}".rstrip()
        if status in AGAIN:
            raise _RetryError(reason, detail, _retry_after(response.headers.get("retry-after")))
        raise SourceError(reason, detail, status)

    def _path(self, key: str) -> Path:
        return self._cache / key[:2] / f"{key}.gz"


class _RetryError(Exception):
    """This may go better later; `wait`: seconds that the server asked for."""

    def __init__(self, reason: str, detail: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.wait = reason, detail, wait


def _fault(error: Exception, watch: _Watch, where: str) -> Exception:
    """What an error of requests, urllib3 or the system means."""
    causes: list[BaseException] = []
    todo: list[Any] = [error]
    while todo and len(causes) < 20:
        cause = todo.pop()
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            todo += [cause.__cause__, cause.__context__, *cause.args]
            todo.append(getattr(cause, "reason", None))

    def found(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if found(_PrivateAddressError):
        return SourceError("private address", f"{where} is on a private network")
    if found(DecodeError):
        return SourceError("broken encoding", f"{where}: its body cannot be decompressed")
    if watch.over or found(TimeoutError):
        return _RetryError("timed out", f"{where}: no answer within {watch.seconds:g} s")
    if found(NameResolutionError):
        return _RetryError("unknown host", f"{where}: no such host")
    if found(requests.exceptions.SSLError):
        return SourceError("bad certificate", f"{where}: its certificate is not valid")
    if found(NewConnectionError):
        return _RetryError("no connection", f"{where}: nothing answers there")
    if found(ConnectTimeoutError, requests.Timeout):
        return _RetryError("timed out", f"{where}: no answer within {watch.seconds:g} s")
    if found(OSError, HTTPError):  # requests' errors are OSErrors
        return _RetryError("broken connection", f"{where}: the connection broke")
    return SourceError("bad answer", f"{where}: {error}")


def _settle(future: Future[Response], outcome: Response | SourceError) -> None:
    """End a future, unless `close` was faster."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Response):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


def _read(response: requests.Response, watch: _Watch, limit: int) -> bytes:
    """The body, decompressed, up to a limit."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        raise SourceError("broken encoding", f"an encoding that was not asked for: {encoding[:40]}")
    length = response.headers.get("content-length", "")
    too_large = SourceError("too large", f"more than {limit / 1024**2:g} MB")
    if length.isdigit() and int(length) > limit:
        raise too_large
    parts, size = [], 0
    for part in response.raw.stream(16 * 1024, decode_content=True):
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
        watch.check()
    watch.check()
    return b"".join(parts)


def _crawl_delay(rules: Any) -> float:
    try:
        return float(rules.crawl_delay("cmgr") or 0)
    except (TypeError, ValueError):
        return 0.0


def _check_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind not in READABLE:
        raise SourceError("not text", f"not text: {kind[:60]}")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        sound = False
    if not sound:
        raise SourceError("not http", f"{url[:100]!r} is no http or https address")
    if parts.username or parts.password:
        raise SourceError("not http", f"{_bare(url)}: an address with a password in it")


def _retry_after(value: str | None) -> float:
    """Seconds, from seconds or a date (RFC 9110); 0 where it says nothing."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    with suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def _bare(url: str) -> str:
    """An address for a message: without user, query (some hold keys) and fragment."""
    return f"{urlsplit(url).scheme}://{_host(url)}{urlsplit(url).path}"[:200]


def _host_port(entry: str, scheme: str = "") -> tuple[str, int | None]:
    parts = urlsplit(f"//{entry}")
    default = {"http": 80, "https": 443}.get(scheme)
    return (parts.hostname or "").lower(), parts.port or default


def _listed(host: str, port: int | None, lists: tuple[set[tuple[str, int | None]], ...]) -> bool:
    return any((host.lower(), p) in entries for entries in lists for p in (port, None))


# -- connections -----------------------------------------------------------------------------


class _NoCookies(DefaultCookiePolicy):
    """No page sets a cookie."""

    def set_ok(self, cookie: Any, request: Any) -> bool:
        return False


class _Watch:
    """Ends a request that takes too long, however slowly it still drips."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.over = False
        self.connection: HTTPConnection | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()

    def check(self) -> None:
        if self.over:
            raise TimeoutError

    def _end(self) -> None:
        self.over = True
        sock = getattr(self.connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


_current = threading.local()


def _public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it wraps another."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip.sixtofour:
            ip = ip.sixtofour
        elif ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.teredo:
            return False
    return ip.is_global and not ip.is_multicast


def _connect(connection: HTTPConnection, allowed: Callable[[str, int | None], bool]) -> Any:
    """A socket to the first address of a name that answers, each checked before."""
    host, port = connection.host.strip("[]"), connection.port
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NameResolutionError(host, connection, socket.gaierror(str(error))) from error
    if not allowed(host, port):
        found = [entry for entry in found if _public(str(entry[4][0]))]
        if not found:
            raise _PrivateAddressError(host)
    timeout = connection.timeout if isinstance(connection.timeout, int | float) else None
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            last = error
    if isinstance(last, TimeoutError):
        raise ConnectTimeoutError(connection, f"{host} timed out") from last
    raise NewConnectionError(connection, f"{host}: {last}") from last


class _Guard(HTTPAdapter):
    """requests' adapter over connections that check the address they connect to."""

    def __init__(self, allowed: Callable[[str, int | None], bool]) -> None:
        class Checked:
            """What both kinds of connection do otherwise than urllib3's."""

            def _new_conn(self: Any) -> Any:
                return _connect(self, allowed)

            def request(self: Any, *args: Any, **kwargs: Any) -> None:
                _current.watch.connection = self
                super().request(*args, **kwargs)  # type: ignore[misc]  # a mixin

        class Plain(Checked, HTTPConnection):
            pass

        class Secure(Checked, HTTPSConnection):
            pass

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self._pools = {"http": PlainPool, "https": SecurePool}
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As requests does, over the checking connections."""
        super().init_poolmanager(*args, **kwargs)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = self._pools
