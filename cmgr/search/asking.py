"""All queries of all cultures under way at once; their pages are fetched meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cmgr.recipe import Culture, Source
from cmgr.records import Query
from cmgr.sources import Searchable
from cmgr.sources.fetch import Pages
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError, Web
from cmgr.workspace import Progress, Workspace

ASKING = 16  # queries that are asked at once
ENOUGH = 5  # failures in a row after which a source is asked no more
REFUSED = {401, 402, 403}  # one of these is enough


@dataclass
class Counts:
    """What became of a culture's pages and passages, by reason."""

    pages: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    failed: dict[str, Counter[str]] = field(default_factory=dict)
    passages: int = 0


@dataclass
class Answered:
    """What the sources answered to one query, and why some did not."""

    query: Query
    hits: list[tuple[Source, Result, Future[str] | None]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Asking:
    """All queries of all cultures under way at once; their pages are fetched meanwhile."""

    def __init__(
        self,
        ws: Workspace,
        web: Web,
        opened: list[tuple[Source, Searchable]],
        asked: Sequence[Query],
        cultures: list[str],
    ) -> None:
        self._ws = ws
        self._search = ws.recipe.search
        self._opened = opened
        self._web = web
        self._lock = threading.Lock()
        self.pages = Pages(web) if any(s.kind != "documents" for s, _ in opened) else None
        self._in_a_row: Counter[int] = Counter()
        self._aside: dict[int, str] = {}
        mine = [q for c in cultures for q in asked if q.culture == c]
        self._answers: dict[str, list[Future[Answered]]] = {c: [] for c in cultures}
        todo: list[tuple[Query, Future[Answered]]] = []
        for query in mine:
            future: Future[Answered] = Future()
            self._answers[query.culture].append(future)
            todo.append((query, future))
        self._total = len(mine)
        self._todo = iter(todo)
        self._shown = (0, 0)
        self._pages: set[Future[str]] = set()
        for _ in range(min(ASKING, len(mine)) if self.pages else 1):
            threading.Thread(target=self._ask, daemon=True).start()

    def collect(
        self, culture: Culture, counts: Counts, progress: Progress | None
    ) -> list[Answered]:
        """What was answered for a culture, once its queries and pages are done."""
        answers: set[Future[Answered]] = set(self._answers[culture.id])
        pages: set[Future[str]] = set()
        waiting: set[Future[Any]] = set(answers)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in answers & done:
                new = {page for _, _, page in future.result().hits if page is not None} - pages
                pages |= new
                waiting |= new
            done_now = self._done()
            if progress and done_now != self._shown:
                self._shown = done_now
                progress(f"search · {culture.name}", *done_now)
        found = [future.result() for future in self._answers[culture.id]]
        for answer in found:
            for kind, reason in answer.failed.items():
                counts.failed.setdefault(kind, Counter())[reason] += 1
        for kind, reasons in counts.failed.items():
            told = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
            self._ws.say(f"{culture.name}: {kind} failed for {reasons.total()} queries: {told}")
        for page in pages:
            error = page.exception()
            counts.pages[getattr(error, "reason", "unreadable") if error else "read"] += 1
        return found

    def _done(self) -> tuple[int, int]:
        with self._lock:
            answered = sum(f.done() for fs in self._answers.values() for f in fs)
            fetched = sum(f.done() for f in self._pages)
            return answered + fetched, self._total + len(self._pages)

    def _ask(self) -> None:
        while True:
            with self._lock:
                query, future = next(self._todo, (None, None))
            if query is None or future is None:
                return
            try:
                future.set_result(self._answer(query))
            except Exception as error:  # told to the one who waits
                future.set_exception(error)

    def _answer(self, query: Query) -> Answered:
        answer = Answered(query)
        for number, (source, searcher) in enumerate(self._opened):
            if number in self._aside:
                answer.failed[source.kind] = self._aside[number]
                continue
            own = source.kind == "documents"
            limit = self._search.per_query if own else self._search.pages
            try:
                results = searcher.search(query, limit)
            except SourceError as error:
                answer.failed[source.kind] = error.reason
                self._failed(number, source, error)
                continue
            self._in_a_row[number] = 0
            for result in results:
                page = None
                if self.pages and result.passage is None and result.markdown is None:
                    page = self.pages.fetch(result.url)
                    with self._lock:
                        self._pages.add(page)
                answer.hits.append((source, result, page))
            if self._search.order == "first" and len(answer.hits) >= self._search.pages:
                break
        return answer

    def _failed(self, number: int, source: Source, error: SourceError) -> None:
        with self._lock:
            self._in_a_row[number] += 1
            first = self._in_a_row[number] == 1
            if number not in self._aside and (
                self._in_a_row[number] >= ENOUGH or error.status in REFUSED
            ):
                self._aside[number] = error.reason
                self._ws.say(f"{source.kind}: {error}. It is asked no more in this run.")
            elif first:
                self._ws.say(f"{source.kind}: {error}")


@contextmanager
def asking(
    ws: Workspace,
    web: Web,
    opened: list[tuple[Source, Searchable]],
    asked: Sequence[Query],
    cultures: list[str],
) -> Iterator[Asking]:
    under_way = Asking(ws, web, opened, asked, cultures)
    try:
        yield under_way
    finally:
        web.close()
        if under_way.pages:
            under_way.pages.close()
