"""Evidence through DuckDuckGo, by the package `ddgs`: no account, and little patience."""

from __future__ import annotations

import hashlib
import json
import threading
import time

from cmgr.errors import missing_extra
from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError

# `kl` of DuckDuckGo where it is not the language twice
_REGIONS = {
    **{"en": "us-en", "ja": "jp-jp", "pt": "br-pt", "zh": "cn-zh", "ko": "kr-kr", "ar": "xa-ar"},
    **{"hi": "in-en", "sv": "se-sv", "da": "dk-da", "el": "gr-el", "uk": "ua-uk", "cs": "cz-cs"},
    **{"vi": "vn-vi", "et": "ee-et", "he": "il-he", "sl": "sl-sl", "fa": "wt-wt"},
}


class Searcher:
    """What DuckDuckGo finds; one query at a time, the pages are to be fetched.

    `ddgs` presents itself as a browser, unlike cmgr's own requests.
    """

    def __init__(self, source: Source, place: Place) -> None:
        try:
            import ddgs
        except ImportError:
            raise missing_extra("duckduckgo", "the source duckduckgo") from None
        self._engine = ddgs.DDGS(timeout=int(max(1, place.web.settings.timeout)))
        self._web = place.web
        self._say = place.say
        self._delay = 2.0 if source.delay is None else source.delay
        self._turn = threading.Lock()
        self._last = 0.0

    def search(self, query: Query, limit: int) -> list[Result]:
        """The first results; raises SourceError where it stays closed after all retries."""
        key = hashlib.sha256(f"ddgs {query.language} {limit} {query.text}".encode()).hexdigest()
        if found := self._web.kept(key):
            return [Result(url, title) for url, title in json.loads(found[1])]
        with self._turn:
            hits = self._patiently(query, limit)
        results = [Result(h["href"], h.get("title") or "") for h in hits if h.get("href")]
        self._web.keep(key, {}, json.dumps([(r.url, r.title) for r in results]).encode())
        return results

    def _patiently(self, query: Query, limit: int) -> list[dict[str, str]]:
        from ddgs.exceptions import DDGSException, TimeoutException

        language = query.language
        settings = self._web.settings
        for tried in range(settings.retries + 1):
            time.sleep(max(0.0, self._last + self._delay - time.monotonic()))
            try:
                return self._engine.text(
                    query.text,
                    region=_REGIONS.get(language, f"{language}-{language}"),
                    max_results=limit,
                    backend="duckduckgo",
                )
            except DDGSException as error:
                # ddgs says the same of no result and of DuckDuckGo's refusal (202, 403)
                reason = "timed out" if isinstance(error, TimeoutException) else "rate limited"
                detail = f"DuckDuckGo answered nothing, or limits the rate: {str(error)[:200]}"
            finally:
                self._last = time.monotonic()
            if tried < settings.retries:
                pause = min(settings.patience, settings.backoff * 5 * 2**tried)
                self._say(f"{detail}: waiting {pause:.0f} s")
                time.sleep(pause)
        raise SourceError(reason, detail)
