"""Evidence from Wikipedia, or another MediaWiki: its Action API (mediawiki.org, API:Search)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError, Value

URL = "https://{language}.wikipedia.org/w/api.php"
# what stands at the end of an article and says nothing
_TAIL = re.compile(
    r"^## (?:See also|References|Notes|External links|Further reading|Bibliography|Sources"
    r"|Einzelnachweise|Weblinks|Literatur|Siehe auch|Referências|Ver também|Ligações externas"
    r"|Referencias|Véase también|Enlaces externos|Notes et références|Voir aussi|Liens externes"
    r"|脚注|出典|参考文献|関連項目|外部リンク|参考资料|外部链接|각주|같이 보기|외부 링크"
    r"|Примечания|Литература|Ссылки|См. также)\s*$.*",
    re.MULTILINE | re.DOTALL,
)


class Searcher:
    """Articles in the query's language, whole, each with its revision."""

    def __init__(self, source: Source, place: Place) -> None:
        self._web = place.web
        self._url = place.web.name(source.url) if source.url else URL
        self._delay = 0.1 if source.delay is None else source.delay
        self._license = source.license or (None if source.url else "CC-BY-SA-4.0")

    def search(self, query: Query, limit: int) -> list[Result]:
        """The articles that the wiki's own search puts first; raises SourceError."""
        wanted = {"list": "search", "srsearch": query.text, "srlimit": limit, "srprop": ""}
        found = self._ask(query.language, wanted, _hits)
        results = [self._article(query.language, page) for page in found]
        return [r for r in results if r.markdown]

    def _article(self, language: str, page: int) -> Result:
        wanted = {
            **{"prop": "extracts|info|revisions", "pageids": page, "explaintext": 1},
            **{"exsectionformat": "wiki", "inprop": "url", "rvprop": "ids"},
        }
        found = self._ask(language, wanted, _article)
        return replace(found, language=language, license=self._license)

    def _ask(self, language: str, wanted: dict[str, Any], read: Callable[[Any], Value]) -> Value:
        url = self._url.replace("{language}", language)
        wanted = {"action": "query", "format": "json", "formatversion": 2, "maxlag": 5, **wanted}

        def answered(body: bytes) -> Value:
            answer = json.loads(body)
            if "error" in answer:
                code, info = answer["error"]["code"], answer["error"]["info"]
                raise SourceError(f"refused ({code})", f"{url}: {info}")
            return read(answer["query"])

        return self._web.get(url, answered, wanted, delay=self._delay)


def _hits(found: Any) -> list[int]:
    return [int(hit["pageid"]) for hit in found["search"]]


def _article(found: Any) -> Result:
    page = found["pages"][0]
    text = re.sub(r"^(={2,6})\s*(.*?)\s*\1\s*$", _heading, page["extract"], flags=re.MULTILINE)
    return Result(
        url=page["fullurl"],
        title=page["title"],
        markdown=_TAIL.sub("", text).replace("\n", "\n\n"),
        revision=str(page["revisions"][0]["revid"]),
    )


def _heading(match: re.Match[str]) -> str:
    return f"{'#' * len(match[1])} {match[2]}"
