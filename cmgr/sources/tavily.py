"""Evidence through the Tavily Search API (docs.tavily.com, Search)."""

from __future__ import annotations

from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.keyed import key, results
from cmgr.sources.passages import Result

URL = "https://api.tavily.com/search"


class Searcher:
    """What Tavily finds, with the text of the pages where it has it."""

    def __init__(self, source: Source, place: Place) -> None:
        self._web = place.web
        self._key = key("tavily")
        self._url = place.web.name(source.url) if source.url else URL
        self._delay = 0.6 if source.delay is None else source.delay

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results; raises SourceError."""
        wanted = {
            **{"query": query.text[:400], "max_results": min(limit, 20)},
            "include_raw_content": "markdown",
        }
        headers = {"Authorization": f"Bearer {self._key}"}
        return self._web.get(self._url, _read, None, headers, self._delay, wanted)


def _read(body: bytes) -> list[Result]:
    return results(body, "results")
