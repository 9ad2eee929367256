"""A web server whose pages go wrong in every way that a page can."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

PAGE = (
    "<html lang=en><head><title>Bowing in Japan</title>"
    '<link rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/"></head><body>'
    "<nav><a href=/>Home</a></nav><article><h1>Bowing in Japan</h1><h2>How deep?</h2><p>In Japan "
    "people bow when they meet, and the depth of a bow follows from rank and occasion: a nod among "
    "friends, a deep one before a customer or an elder, and hands stay at one's sides.</p>"
    "<h2>Handshakes</h2><p>With guests from abroad many people in Japan offer a light handshake "
    "instead, sometimes together with a short bow, and nobody minds a mistake in it.</p></article>"
    "<script>document.write('made by a script')</script></body></html>"
)
# fault -> the reason that is told
FAULTS = {
    "forbidden": "forbidden (403)",
    "missing": "no such page (404)",
    "limited": "rate limited (429)",
    "limited-long": "rate limited (429)",
    "broken-server": "status 500",
    "slow": "timed out",
    "drip": "timed out",
    "huge": "too large",
    "huge-said": "too large",
    "bomb": "too large",
    "bad-gzip": "broken encoding",
    "empty": "empty",
    "binary": "binary",
    "zip": "not text",
    "private": "private address",
    "metadata": "private address",
    "file": "not http",
    "loop": "too many redirects",
    "cut": "broken connection",
}


def serve(server: HTTPServer) -> None:
    """/page is sound, /charset says the wrong one, /once fails at first, /FAULT goes wrong."""
    calls: dict[str, int] = {}

    def drip() -> Iterator[bytes]:
        for _ in range(200):
            yield b"<p>"
            time.sleep(0.05)

    def much(megabytes: int) -> Iterator[bytes]:
        for _ in range(megabytes):
            yield b"a " * (512 * 1024)

    def answer(request: Request) -> Response:
        name = urlsplit(request.path).path.strip("/").split("/")[0]
        calls[name] = calls.get(name, 0) + 1
        if name == "once" and calls[name] == 1:
            return Response("busy", 503, headers={"Retry-After": "0"})
        moved = {
            "private": "http://127.0.0.1:1/",
            "metadata": "http://169.254.169.254/latest/meta-data/",
            "file": "file:///etc/passwd",
            "loop": "/loop",
            "moved": "/page",
            "away": "http://other.example/",
        }
        if name in moved:
            return Response("", 301, headers={"Location": moved[name]})
        status = {"forbidden": 403, "missing": 404, "broken-server": 500}
        if name in status:
            return Response(PAGE, status[name], content_type="text/html")
        if name == "limited":
            return Response("", 429)
        if name == "limited-long":
            return Response("", 429, headers={"Retry-After": "86400"})
        if name == "slow":
            time.sleep(1.5)
        if name == "drip":
            return Response(drip(), content_type="text/html")
        if name == "huge":
            return Response(much(100), content_type="text/html")
        if name == "huge-said":
            headers = {"Content-Length": str(100 * 1024**2)}
            return Response(much(100), content_type="text/html", headers=headers)
        if name in {"bomb", "bad-gzip"}:
            body = gzip.compress(b"a" * 64 * 1024**2) if name == "bomb" else b"\x1f\x8bnot gzip"
            headers = {"Content-Encoding": "gzip"}
            return Response(body, content_type="text/html", headers=headers)
        if name == "empty":
            return Response("", content_type="text/html")
        if name == "binary":
            return Response(bytes(range(256)) * 50, content_type="text/html")
        if name == "zip":
            return Response(b"PK\3\4", content_type="application/zip")
        if name == "cut":
            return Response(
                iter([b"<p>"]), content_type="text/html", headers={"Content-Length": "5000"}
            )
        if name == "charset":
            text = PAGE.replace("a nod", "a nod (会釈)")
            return Response(text.encode(), content_type="text/html; charset=iso-8859-1")
        if name == "sjis":
            text = PAGE.replace("a nod", "a nod (会釈)")
            return Response(text.encode("shift_jis"), content_type="text/html; charset=shift_jis")
        return Response(PAGE, content_type="text/html; charset=utf-8")

    server.expect_request("/robots.txt").respond_with_data("User-agent: *\nDisallow: /closed\n")
    server.expect_request(re.compile("/.*")).respond_with_handler(answer)
