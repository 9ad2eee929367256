"""Stage 1: queries -> sources -> ranked evidence, each passage once per culture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmgr.overlap import Excluded
from cmgr.recipe import Culture
from cmgr.records import Evidence, Query, make_id
from cmgr.search import queries
from cmgr.search.asking import Counts, asking
from cmgr.search.choosing import Others, choose
from cmgr.sources import Place, open_source
from cmgr.sources.documents import Searcher as Documents
from cmgr.sources.web import Web
from cmgr.stats import counted
from cmgr.workspace import Progress, Workspace, hash_parts, read_json


def current_evidence(ws: Workspace) -> list[Evidence]:
    """The evidence of the last search: what has vanished from the sources is not in it."""
    parts = ws.parts("search")
    wanted = {i for c in ws.recipe.cultures for i in parts.get(c.id, {}).get("ids", [])}
    return [e for e in ws.read("evidence", Evidence) if e.id in wanted] if wanted else []


def wanted_inputs(ws: Workspace) -> str:
    """The hash that the stage's manifest has when every culture is up to date.

    Raises MissingError where a folder of documents is not there.
    """
    excluded = _excluded_paths(ws, ())
    place = _place(ws, Web(ws.recipe.web, _web_cache(ws)), quiet=True)
    folders = _folders(ws, place)
    if not queries.is_current(ws):
        return make_id("queries are out of date")
    asked = queries.current(ws)
    return _joined({c.id: _inputs(ws, c, asked, folders, excluded) for c in ws.recipe.cultures})


def excluded_items(ws: Workspace) -> Excluded:
    """The evaluation items that no evidence and no example may hold."""
    return Excluded.read(path for path, _ in _excluded_paths(ws, ()))


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
    cultures: Sequence[str] | None = None,
    refresh: bool = False,
    exclude: Sequence[Path] = (),
) -> bool:
    """Search for these cultures (or all), where out of date; returns whether it was.

    Only new queries and evidence are appended, culture by culture, and nothing is removed; the
    manifest names the evidence that counts. `refresh` fetches again what the cache has; `exclude`
    names files of evaluation items, kept out from now on. A culture whose source failed is not up
    to date: the next run asks it again. Raises MissingError where a source or its key is not there.
    """
    recipe = ws.recipe
    queries.build(ws)
    asked = queries.current(ws)
    excluded = _excluded_paths(ws, exclude)
    with _network(ws, refresh) as web:
        place = _place(ws, web)
        folders = _folders(ws, place)
        have = {e.id: e for e in ws.read("evidence", Evidence)}
        parts = {c.id: part for c in recipe.cultures if (part := ws.parts("search").get(c.id))}
        todo: dict[str, str] = {}
        for culture in recipe.pick(list(cultures) if cultures else None):
            inputs = _inputs(ws, culture, asked, folders, excluded)
            part = parts.get(culture.id, {})
            if (
                force
                or refresh
                or part.get("inputs") != inputs
                or part.get("failed")
                or not set(have).issuperset(part["ids"])
            ):
                todo[culture.id] = inputs
        if not todo and ws.is_current("search", hash_parts("search", parts, "failed")):
            return False

        items = Excluded.read(path for path, _ in excluded)
        opened = [
            (s, folders.get(n) or open_source(s, place)) for n, s in enumerate(recipe.sources)
        ]
        with asking(ws, web, opened, asked, list(todo)) as under_way:
            others = Others(have, parts, todo)
            for culture_id, inputs in todo.items():
                culture = recipe.culture(culture_id)
                counts = Counts()
                answers = under_way.collect(culture, counts, progress)
                kept = choose(recipe, culture, answers, under_way.pages, items, counts)
                again = others.mark(culture_id, kept)
                ws.say(_summary(culture.name, len(answers), counts, len(kept)))
                if not kept:
                    ws.say(
                        f"{culture.name}: nothing found. Add documents, or topics and queries, to "
                        "the sources that recipe.yaml names."
                    )
                new = [e for e in kept if _marks(have.get(e.id)) != _marks(e)]
                ws.append("evidence", [*again, *new])
                have |= {e.id: e for e in [*again, *kept]}
                parts[culture_id] = {
                    "inputs": inputs,
                    "queries": len(answers),
                    "pages": dict(counts.pages),
                    "passages": counts.passages,
                    "dropped": dict(+counts.dropped),
                    "shared": sum(bool(e.shared_with) for e in kept),
                    "failed": {kind: dict(c) for kind, c in counts.failed.items()},
                    "ids": [e.id for e in kept],
                }
                _finish(ws, parts, excluded)
    if not todo:
        _finish(ws, parts, excluded)
    return bool(todo)


def _marks(item: Evidence | None) -> tuple[str, ...] | None:
    """What of a record may change while its id stays: it is written again only for these."""
    return None if item is None else (*item.shared_with, "", *item.flags)


def _summary(name: str, asked: int, counts: Counts, kept: int) -> str:
    """A culture's outcome in a line, with the reasons for what was left out."""
    left = counted(+counts.dropped)
    pages = ", ".join(f"{n} {reason}" for reason, n in counts.pages.most_common())
    return (
        f"{name}: {asked} queries"
        + (f", pages: {pages}" if pages else "")
        + f", {kept} of {counts.passages} passages kept"
        + (f" (left out: {left})" if left else "")
    )


# -- what is up to date -------------------------------------------------------------------------


def _finish(
    ws: Workspace, parts: dict[str, dict[str, Any]], excluded: list[tuple[Path, str]]
) -> None:
    ws.finish(
        "search",
        hash_parts("search", parts, "failed"),
        queries=sum(part["queries"] for part in parts.values()),
        evidence={culture: len(part["ids"]) for culture, part in parts.items()},
        exclude=[str(path) for path, _ in excluded],
        cultures=parts,
    )


def _joined(inputs: dict[str, str]) -> str:
    return make_id("search", inputs)


def _inputs(
    ws: Workspace,
    culture: Culture,
    asked: Sequence[Query],
    folders: dict[int, Documents],
    excluded: list[tuple[Path, str]],
) -> str:
    recipe = ws.recipe
    how = {"pages", "per_query", "per_page", "order", "instructions"}
    return make_id(
        recipe.search.model_dump(include=how),
        culture.model_dump(),
        [(task.id, task.name, task.instruction) for task in recipe.tasks],
        sorted(q.id for q in asked if q.culture == culture.id),
        [
            (s.model_dump(), folders[n].fingerprint(culture.id) if n in folders else "")
            for n, s in enumerate(recipe.sources)
        ],
        [digest for _, digest in excluded],
    )


def _excluded_paths(ws: Workspace, more: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files of evaluation items with their hashes: the recipe's, and those named once before."""
    named = [ws.folder / path for path in ws.recipe.search.exclude]
    named += map(Path, (read_json(ws.manifest_path("search")) or {}).get("exclude", []))
    paths = dict.fromkeys(path.resolve() for path in (*named, *more))
    return [(p, hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else "") for p in paths]


def _place(ws: Workspace, web: Web, quiet: bool = False) -> Place:
    def silent(_: str) -> None:
        pass

    say = silent if quiet else ws.say
    return Place(ws.recipe.cultures, ws.folder, ws.path("cache"), web, say)


def _folders(ws: Workspace, place: Place) -> dict[int, Documents]:
    """The recipe's folders of documents, by their place in its list."""
    return {
        n: Documents(s, place) for n, s in enumerate(ws.recipe.sources) if s.kind == "documents"
    }


def _web_cache(ws: Workspace) -> Path:
    return ws.path("cache", "web")


@contextmanager
def _network(ws: Workspace, refresh: bool) -> Iterator[Web]:
    web = Web(ws.recipe.web, _web_cache(ws), ws.say, refresh)
    try:
        yield web
    finally:
        web.close()
