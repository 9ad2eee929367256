"""One request: bounded in time and size, without cookies, shut to private addresses."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

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


@dataclass(eq=False)
class Request:
    """What is asked for: a `page`, which must be text, or an API's answer.

    A `named` one is of a host that the user named.
    """

    url: str
    page: bool = False
    named: bool = False
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None


class Requester:
    """Sends requests, from any thread.

    Every address is checked when it is connected to: a name that resolves to an address that is
    not public is refused, unless its host and port are `allowed`, or `named` and the request is to
    a named one.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.allowed = {host_port(entry) for entry in settings.allow}
        self.named: set[tuple[str, int | None]] = set()
        self._local = threading.local()
        contact = settings.contact or "no contact given"
        self.agent = f"cmgr/{__version__} (searches for cultural evidence; {contact})"

    def send(self, request: Request, limit: int | None = None) -> Response | str:
        """The answer, or where it redirects to; at most `limit` bytes.

        Raises SourceError, RetryError.
        """
        session = self._session(request.named)
        proxies = requests.utils.get_environ_proxies(request.url)
        if any(proxies.get(k) for k in (urlsplit(request.url).scheme, "all")):
            self._check_behind_proxy(request)
        where = bare(request.url)
        watch = _Watch(self.settings.timeout)
        _current.watch = watch
        try:
            with session.request(
                request.method,
                request.url,
                headers={"User-Agent": self.agent, **request.headers},
                json=request.body,
                timeout=self.settings.timeout,
                proxies=proxies,
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.is_redirect:
                    return str(response.headers["location"])
                self._check_status(response, where)
                if request.page:
                    _check_type(response.headers.get("content-type", ""))
                body = _read(response, watch, limit or int(self.settings.max_mb * 1024**2))
            return Response(request.url, response.headers.get("content-type", ""), body, now())
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
            allowed = (self.allowed, self.named) if named else (self.allowed,)
            adapter = _Guard(lambda host, port: _listed(host, port, allowed))
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            setattr(self._local, name, session)
        return session

    def _check_behind_proxy(self, request: Request) -> None:
        """A proxy of the user's resolves names itself: what can be seen from here is checked."""
        host = urlsplit(request.url).hostname or ""
        if _listed(host, urlsplit(request.url).port, (self.allowed, self.named)):
            return
        with suppress(OSError):
            for *_, address in socket.getaddrinfo(host, None):
                if not is_public(str(address[0])):
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
            raise RetryError(reason, detail, _retry_after(response.headers.get("retry-after")))
        raise SourceError(reason, detail, status)


class RetryError(Exception):
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
        return RetryError("timed out", f"{where}: no answer within {watch.seconds:g} s")
    if found(NameResolutionError):
        return RetryError("unknown host", f"{where}: no such host")
    if found(requests.exceptions.SSLError):
        return SourceError("bad certificate", f"{where}: its certificate is not valid")
    if found(NewConnectionError):
        return RetryError("no connection", f"{where}: nothing answers there")
    if found(ConnectTimeoutError, requests.Timeout):
        return RetryError("timed out", f"{where}: no answer within {watch.seconds:g} s")
    if found(OSError, HTTPError):  # requests' errors are OSErrors
        return RetryError("broken connection", f"{where}: the connection broke")
    return SourceError("bad answer", f"{where}: {error}")


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


def _check_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind not in READABLE:
        raise SourceError("not text", f"not text: {kind[:60]}")


def check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        sound = False
    if not sound:
        raise SourceError("not http", f"{url[:100]!r} is no http or https address")
    if parts.username or parts.password:
        raise SourceError("not http", f"{bare(url)}: an address with a password in it")


def _retry_after(value: str | None) -> float:
    """Seconds, from seconds or a date (RFC 9110); 0 where it says nothing."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    with suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def bare(url: str) -> str:
    """An address for a message: without user, query (some hold keys) and fragment."""
    return f"{urlsplit(url).scheme}://{host_of(url)}{urlsplit(url).path}"[:200]


def host_port(entry: str, scheme: str = "") -> tuple[str, int | None]:
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


def is_public(address: str) -> bool:
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
        found = [entry for entry in found if is_public(str(entry[4][0]))]
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
