"""Evidence from ZIM files (an offline Wikipedia, Wikivoyage) through one's own kiwix-serve."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urljoin
from xml.etree import ElementTree

from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError


class Searcher:
    """What kiwix-serve's full-text search finds in each book; the pages are to be fetched."""

    def __init__(self, source: Source, place: Place) -> None:
        self._web = place.web
        self._url = place.web.name(source.url or "", pages=True)
        self._books = source.books
        self._license = source.license
        self._delay = source.delay or 0.0

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results of every book, in turns; raises SourceError."""
        found = [self._in_book(book, query.text, limit) for book in self._books or self._all()]
        turns = [r for rank in range(limit) for book in found for r in book[rank : rank + 1]]
        return turns[:limit]

    def _in_book(self, book: str, text: str, limit: int) -> list[Result]:
        wanted = {"books.name": book, "pattern": text, "pageLength": limit, "format": "xml"}
        url = f"{self._url}/search"
        try:
            root = self._xml(url, wanted)
        except SourceError as error:
            if error.status in {400, 404}:
                raise SourceError(
                    f"no such book: {book}",
                    f"{self._url} has no book {book!r} with a full-text index. "
                    f"It has: {', '.join(self._all())}",
                    error.status,
                ) from None
            raise
        return [
            Result(
                url=quote(urljoin(url, item.findtext("link") or ""), safe=":/?&=%#~"),
                title=item.findtext("title") or "",
                license=self._license,
            )
            for item in root.iter("item")
            if item.findtext("link")
        ]

    def _all(self) -> list[str]:
        """The names of the books that the server has (OPDS)."""
        root = self._xml(f"{self._url}/catalog/v2/entries", {"count": -1})
        return [e.text or "" for e in root.iter("{http://www.w3.org/2005/Atom}name")]

    def _xml(self, url: str, wanted: dict[str, Any]) -> Any:
        body = self._web.get(url, wanted, delay=self._delay).body
        if b"<!ENTITY" in body or b"<!DOCTYPE" in body:  # neither is in what kiwix-serve writes
            raise SourceError("invalid XML", f"{url}: not kiwix-serve's answer")
        try:
            return ElementTree.fromstring(body)
        except ElementTree.ParseError:
            raise SourceError("invalid XML", f"{url}: not kiwix-serve's answer") from None
