"""Evidence through Serper, an API for Google's results (serper.dev)."""

from __future__ import annotations

from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.keyed import key, results
from cmgr.sources.passages import Result

URL = "https://google.serper.dev/search"


class Searcher:
    """What Serper finds; the pages are to be fetched."""

    def __init__(self, source: Source, place: Place) -> None:
        self._web = place.web
        self._key = key("serper")
        self._url = place.web.name(source.url) if source.url else URL
        self._delay = 0.2 if source.delay is None else source.delay

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results; raises SourceError."""
        wanted = {"q": query.text, "num": min(limit, 100), "hl": query.language}
        headers = {"X-API-KEY": self._key}
        return self._web.get(self._url, _read, None, headers, self._delay, wanted)


def _read(body: bytes) -> list[Result]:
    return results(body, "organic", link="link")
