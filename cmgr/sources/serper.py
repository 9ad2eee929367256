"""Evidence through Serper, an API for Google's results (serper.dev)."""

from __future__ import annotations

from cmgr.records import Query
from cmgr.sources.keyed import Keyed, results
from cmgr.sources.passages import Result


class Searcher(Keyed):
    """What Serper finds; the pages are to be fetched."""

    kind, url, delay = "serper", "https://google.serper.dev/search", 0.2

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results; raises SourceError."""
        wanted = {"q": query.text, "num": min(limit, 100), "hl": query.language}
        headers = {"X-API-KEY": self._key}
        return self._web.get(self._url, _read, None, headers, self._delay, wanted)


def _read(body: bytes) -> list[Result]:
    return results(body, "organic", link="link")
