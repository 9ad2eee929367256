"""Which passages become a culture's evidence, and why the others do not."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from cmgr.overlap import Excluded, NearDuplicates
from cmgr.recipe import Culture, Recipe, Source
from cmgr.records import Evidence, Query, make_id, now
from cmgr.search.asking import Answered, Counts
from cmgr.search.queries import country_name
from cmgr.sources import hygiene
from cmgr.sources.fetch import Pages
from cmgr.sources.markdown import passages
from cmgr.sources.passages import Passage, Result, mentions, names_of
from cmgr.sources.ranking import Ranking, terms


@dataclass(frozen=True)
class _Candidate:
    """A passage that has stood the checks, and where it comes from."""

    passage: Passage
    source: Source
    result: Result
    language: str
    retrieved_at: str
    flags: list[str]

    @property
    def identity(self) -> tuple[str, str | None, Passage]:
        """What makes it another passage than those of the same words."""
        license = self.result.license or self.source.license
        return self.source.kind, license, replace(self.passage, score=0.0)


def choose(
    recipe: Recipe,
    culture: Culture,
    answers: Sequence[Answered],
    pages: Pages | None,
    excluded: Excluded,
    counts: Counts,
) -> list[Evidence]:
    """The evidence of a culture, best first; `counts` learns of every passage left out, and why.

    Its `passages` are those kept and those left out, each counted once.
    """
    choice = _Choice(recipe, culture, pages, excluded, counts)
    best: dict[str, Evidence] = {}
    for item in (*choice.of_folders(answers), *choice.of_pages(answers)):
        if item.id not in best or item.score > best[item.id].score:
            best[item.id] = item
    return _without_copies(list(best.values()), counts)


class _Choice:
    def __init__(
        self,
        recipe: Recipe,
        culture: Culture,
        pages: Pages | None,
        excluded: Excluded,
        counts: Counts,
    ) -> None:
        self._recipe = recipe
        self._pages = pages
        self._excluded = excluded
        self._counts = counts
        self._names = names_of(culture)
        self._spoken = {"en", *culture.languages}
        self._all_names = {
            *self._names,
            *(country_name(culture, language) for language in culture.languages),
        }

    def of_folders(self, answers: Sequence[Answered]) -> Iterator[Evidence]:
        """Passages that a folder's own index has found and ranked."""
        seen: set[str] = set()
        for answer in answers:
            for source, result, _ in answer.hits:
                passage = result.passage
                if passage is None:
                    continue
                flags = self._flags(passage)
                language = hygiene.language_of(passage.text) or answer.query.language
                found = _Candidate(passage, source, result, language, now(), flags)
                item = _evidence(found, answer.query, passage.score)
                new = item.id not in seen
                seen.add(item.id)
                self._counts.passages += new
                if reason := self._forbidden(passage, flags):
                    self._counts.dropped[reason] += new
                else:
                    yield item

    def of_pages(self, answers: Sequence[Answered]) -> Iterator[Evidence]:
        """Passages cut from pages, ranked against query, task, topic and culture."""
        pool: list[_Candidate] = []
        places: dict[Any, int] = {}  # what makes a passage another one -> its place in the pool
        of_page: dict[str, list[int]] = {}
        for answer in answers:
            for source, result, page in answer.hits:
                if result.passage is None and result.url not in of_page:
                    mine = of_page[result.url] = []
                    for found in self._candidates(source, result, page):
                        place = places.setdefault(found.identity, len(pool))
                        if place == len(pool):
                            pool.append(found)
                        else:  # twice in a page, or an address that leads to the same one
                            self._counts.dropped["duplicate"] += 1
                        if place not in mine:
                            mine.append(place)
        ranking = Ranking(
            lambda: [
                terms(f"{c.passage.title} {c.passage.heading} {c.passage.text}", c.language)
                for c in pool
            ],
            [mentions(c.passage.title, self._all_names) is not None for c in pool],
        )
        tasks = {task.id: f"{task.name} {task.instruction}" for task in self._recipe.tasks}
        chosen: set[int] = set()
        for answer in answers:
            query = answer.query
            beside = " ".join((tasks.get(query.task or "", ""), query.topic, *self._names))
            by_source: dict[str, list[int]] = defaultdict(list)
            for source, result, _ in answer.hits:
                by_source[source.kind] += of_page.get(result.url, [])
            for among in by_source.values():
                ranked = ranking.best(query.text, len(pool), query.language, among, beside)
                for i, score in self._top(pool, ranked):
                    chosen.add(i)
                    yield _evidence(pool[i], query, score)
        self._counts.dropped["not among the best"] += len(pool) - len(chosen)

    def _top(
        self, pool: list[_Candidate], ranked: list[tuple[int, float]]
    ) -> list[tuple[int, float]]:
        """The best of a query, not too many of them from one page."""
        taken: Counter[str] = Counter()
        kept = []
        for i, score in ranked:
            page = pool[i].result.url
            if taken[page] < self._recipe.search.per_page:
                taken[page] += 1
                kept.append((i, score))
        return kept[: self._recipe.search.per_query]

    def _candidates(
        self, source: Source, result: Result, page: Future[str] | None
    ) -> Iterator[_Candidate]:
        at, markdown = now(), result.markdown or ""
        if page is not None:
            if self._pages is None or page.exception():
                return
            found = self._pages.read(page.result())
            at, markdown = found.retrieved_at, found.text.markdown
            result = replace(
                result,
                url=found.url,
                title=found.text.title or result.title,
                license=found.text.license or result.license,
            )
        text, furniture = hygiene.without_furniture(hygiene.clean(markdown))
        self._counts.passages += furniture
        self._counts.dropped["boilerplate"] += furniture
        whole = hygiene.language_of(text)
        for passage in passages(text, result.url, result.title):
            self._counts.passages += 1
            sure = len(passage.text) >= 200
            language = (hygiene.language_of(passage.text) if sure else "") or whole
            flags = self._flags(passage)
            reason = self._forbidden(passage, flags) or hygiene.fault(passage.text)
            if reason is None and not {whole, language} <= self._spoken:
                reason = "another language"
            if reason is None:
                over = f"{result.title}\n{passage.title}\n{passage.heading}\n"
                # in its own language a passage need not say which country it is about
                body = passage.text if language == "en" else text
                if not mentions(over + body, self._names if language == "en" else self._all_names):
                    reason = "not about the culture"
            if reason:
                self._counts.dropped[reason] += 1
            else:
                title = result.title or passage.title
                kept = replace(passage, url=result.url, title=title)
                yield _Candidate(kept, source, result, language, at, flags)

    def _flags(self, passage: Passage) -> list[str]:
        told = hygiene.addresses_a_model(f"{passage.title}\n{passage.heading}\n{passage.text}")
        return ["instructions"] if told else []

    def _forbidden(self, passage: Passage, flags: list[str]) -> str | None:
        if flags and self._recipe.search.instructions == "drop":
            return "instructions to a model"
        return "evaluation item" if self._excluded.holds(passage.text) else None


def _evidence(found: _Candidate, query: Query, score: float) -> Evidence:
    passage = found.passage
    content: dict[str, Any] = {
        "culture": query.culture,
        "url": passage.url,
        "title": passage.title,
        "text": passage.text,
        "topic": passage.topic or query.topic,
        "heading": passage.heading,
        "also_asked": list(passage.also_asked),
        "source": found.source.kind,
        "license": found.result.license or found.source.license,
    }
    return Evidence(
        **content,
        # a page's passage is the same one for whatever topic it was found
        id=make_id("evidence", {**content, "topic": passage.topic}),
        query_id=query.id,
        language=found.language,
        retrieved_at=found.retrieved_at,
        score=score,
        sha256=hashlib.sha256(passage.text.encode()).hexdigest(),
        revision=found.result.revision,
        flags=found.flags,
    )


def _without_copies(found: list[Evidence], counts: Counts) -> list[Evidence]:
    """Best first, each text once: of a folder under each of its headings, of pages anywhere.

    A folder's documents are a person's own, and are never dropped for resembling each other.
    """
    order = sorted(found, key=lambda e: (e.source != "documents", -e.score, e.id))
    near: NearDuplicates[str] = NearDuplicates()
    seen = set()
    kept = []
    for item in order:
        own = item.source == "documents"
        key = (item.topic, item.heading, item.sha256) if own else item.sha256
        if key in seen:
            counts.dropped["duplicate"] += 1
        elif not own and near.of(item.text):
            counts.dropped["near-duplicate"] += 1
        else:
            seen |= {key, item.sha256}
            near.add(item.id, item.text)
            kept.append(item)
    return sorted(kept, key=lambda e: (-e.score, e.id))


class Others:
    """The evidence of the other cultures: a passage that serves several teaches interference."""

    def __init__(
        self, have: dict[str, Evidence], parts: dict[str, dict[str, Any]], todo: dict[str, str]
    ) -> None:
        self._near: NearDuplicates[str] = NearDuplicates()
        self._kept: dict[str, Evidence] = {}
        for culture, part in parts.items():
            if culture not in todo:
                self._add(have[i] for i in part["ids"] if i in have)

    def mark(self, culture: str, kept: list[Evidence]) -> list[Evidence]:
        """Note in these records whom else they serve; returns those of others that now change."""
        changed: dict[str, Evidence] = {}
        for item in kept:
            found = [self._kept[key] for key in self._near.of(item.text)]
            item.shared_with = sorted({other.culture for other in found} - {culture})
            for other in found:
                if culture not in other.shared_with and other.culture != culture:
                    other.shared_with = sorted({*other.shared_with, culture})
                    changed[other.id] = other
        self._add(kept)
        return list(changed.values())

    def _add(self, items: Iterator[Evidence] | list[Evidence]) -> None:
        for item in items:
            self._kept[item.id] = item
            self._near.add(item.id, item.text)
