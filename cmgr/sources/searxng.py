"""Evidence through a SearXNG of one's own: its JSON API (docs.searxng.org, Search API)."""

from __future__ import annotations

import json

from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError


class Searcher:
    """What a SearXNG instance finds; the pages are to be fetched."""

    def __init__(self, source: Source, place: Place) -> None:
        self._web = place.web
        self._url = place.web.name(source.url or "") + "/search"
        self._engines = ",".join(source.engines)
        self._delay = source.delay or 0.0

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results; raises SourceError, on 403 with the setting to change."""
        wanted = {"q": query.text, "format": "json", "language": query.language}
        if self._engines:
            wanted["engines"] = self._engines
        try:
            return self._web.get(self._url, self._read, wanted, delay=self._delay)[:limit]
        except SourceError as error:
            if error.status != 403:
                raise
            raise SourceError(
                error.reason,
                f"{self._url} refuses JSON (403): add `json` to `search.formats` in its "
                "settings.yml and restart it",
                error.status,
            ) from None

    def _read(self, body: bytes) -> list[Result]:
        answer = json.loads(body)
        results = [
            Result(r["url"], r.get("title") or "") for r in answer["results"] if r.get("url")
        ]
        if not results and answer.get("unresponsive_engines"):
            silent = ", ".join(" ".join(map(str, e)) for e in answer["unresponsive_engines"])
            raise SourceError("engines failed", f"{self._url}: its engines failed: {silent[:200]}")
        return results
