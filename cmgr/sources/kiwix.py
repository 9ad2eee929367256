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
        self._names = {culture.id: culture.name for culture in place.cultures}
        self._license = source.license
        self._delay = source.delay or 0.0

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results of every book, in turns; raises SourceError.

        kiwix-serve wants every word in a page: where there is none, topic and culture are asked.
        """
        found = []
        short = f"{query.topic} {self._names[query.culture]}" if query.topic else ""
        for book in self._books or self._all():
            hits = self._in_book(book, query.text, limit)
            found.append(hits or (self._in_book(book, short, limit) if short else []))
        turns = [r for rank in range(limit) for book in found for r in book[rank : rank + 1]]
        return turns[:limit]

    def _in_book(self, book: str, text: str, limit: int) -> list[Result]:
        wanted = {"books.name": book, "pattern": text, "pageLength": limit, "format": "xml"}
        url = f"{self._url}/search"
        try:
            return self._web.get(url, self._found, wanted, delay=self._delay)
        except SourceError as error:
            if error.status not in {400, 404}:
                raise
            raise SourceError(
                f"no such book: {book}",
                f"{self._url} has no book {book!r} with a full-text index. "
                f"It has: {', '.join(self._all())}",
                error.status,
            ) from None

    def _found(self, body: bytes) -> list[Result]:
        return [
            Result(
                url=quote(urljoin(self._url, item.findtext("link") or ""), safe=":/?&=%#~"),
                title=item.findtext("title") or "",
                license=self._license,
            )
            for item in _xml(body).iter("item")
            if item.findtext("link")
        ]

    def _all(self) -> list[str]:
        """The names of the books that the server has (OPDS)."""
        url = f"{self._url}/catalog/v2/entries"
        return self._web.get(url, _names, {"count": -1}, delay=self._delay)


def _names(body: bytes) -> list[str]:
    atom = "{http://www.w3.org/2005/Atom}"
    return [entry.findtext(f"{atom}name") or "" for entry in _xml(body).iter(f"{atom}entry")]


def _xml(body: bytes) -> Any:
    if b"<!ENTITY" in body or b"<!DOCTYPE" in body:
        raise ValueError("neither is in what kiwix-serve writes")
    return ElementTree.fromstring(body)
