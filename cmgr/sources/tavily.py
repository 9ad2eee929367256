"""Evidence through the Tavily Search API (docs.tavily.com, Search)."""

from __future__ import annotations

from cmgr.records import Query
from cmgr.sources.keyed import Keyed, results
from cmgr.sources.passages import Result


class Searcher(Keyed):
    """What Tavily finds, with the text of the pages where it has it."""

    kind, url, delay = "tavily", "https://api.tavily.com/search", 0.6

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
