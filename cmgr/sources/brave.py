"""Evidence through the Brave Search API (api-dashboard.search.brave.com, Web search)."""

from __future__ import annotations

import json

from cmgr.records import Query
from cmgr.sources.keyed import Keyed, results
from cmgr.sources.passages import Result

# codes that differ from ISO 639-1
_LANGUAGES = {"ja": "jp", "pt": "pt-br", "zh": "zh-hans"}


class Searcher(Keyed):
    """What Brave finds; the pages are to be fetched."""

    kind, url, delay = "brave", "https://api.search.brave.com/res/v1/web/search", 1.0

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results; raises SourceError."""
        wanted = {
            **{"q": query.text[:400], "count": min(limit, 20), "result_filter": "web"},
            "search_lang": _LANGUAGES.get(query.language, query.language),
        }
        headers = {"X-Subscription-Token": self._key, "Accept": "application/json"}
        return self._web.get(self._url, _read, wanted, headers, self._delay)


def _read(body: bytes) -> list[Result]:
    # an answer without results has no "web" at all
    return results(body, "web", "results") if "web" in json.loads(body) else []
