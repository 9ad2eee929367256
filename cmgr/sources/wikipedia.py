"""Evidence from Wikipedia, or another MediaWiki: its Action API (mediawiki.org, API:Search)."""

from __future__ import annotations

import re
from typing import Any

from cmgr.recipe import Source
from cmgr.records import Query
from cmgr.sources import Place
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError

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
        try:
            found = self._ask(query.language, wanted)["query"]["search"]
            results = [self._article(query.language, int(hit["pageid"])) for hit in found]
        except (KeyError, TypeError, ValueError, IndexError):
            raise SourceError("invalid JSON", f"{self._url}: not MediaWiki's answer") from None
        return [r for r in results if r.markdown]

    def _article(self, language: str, page: int) -> Result:
        wanted = {
            **{"prop": "extracts|info|revisions", "pageids": page, "explaintext": 1},
            **{"exsectionformat": "wiki", "inprop": "url", "rvprop": "ids"},
        }
        article = self._ask(language, wanted)["query"]["pages"][0]
        text = re.sub(r"^(={2,6})\s*(.*?)\s*\1\s*$", _heading, article["extract"], flags=re.M)
        return Result(
            url=article["fullurl"],
            title=article["title"],
            markdown=_TAIL.sub("", text).replace("\n", "\n\n"),
            language=language,
            license=self._license,
            revision=str(article["revisions"][0]["revid"]),
        )

    def _ask(self, language: str, wanted: dict[str, Any]) -> Any:
        url = self._url.replace("{language}", language)
        wanted = {"action": "query", "format": "json", "formatversion": 2, "maxlag": 5, **wanted}
        answer = self._web.get(url, wanted, delay=self._delay).json()
        if "error" in answer:
            code, info = answer["error"].get("code"), answer["error"].get("info")
            raise SourceError(f"refused ({code})", f"{url}: {info}")
        return answer


def _heading(match: re.Match[str]) -> str:
    return f"{'#' * len(match[1])} {match[2]}"
