"""Stage 1: queries -> sources -> ranked evidence, each passage once per culture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from cmgr.recipe import Culture, Recipe, Source
from cmgr.records import Evidence, Query, make_id, now
from cmgr.sources import Searchable, open_source
from cmgr.sources.passages import Passage
from cmgr.workspace import Progress, Workspace, read_json

Sources = list[tuple[Source, Searchable]]


def queries(recipe: Recipe) -> list[Query]:
    """Every query of a recipe: task-agnostic and task-specific ones, per culture and topic."""
    found: dict[str, Query] = {}
    for culture in recipe.cultures:
        templates: list[tuple[str | None, str]] = [(None, text) for text in recipe.search.queries]
        templates += [(task.id, text) for task in recipe.tasks for text in task.queries]
        for task_id, template in templates:
            for topic in recipe.search.topics:
                text = template.replace("{topic}", topic).replace("{culture}", culture.name)
                query = Query(
                    id=make_id("query", culture.id, task_id, text),
                    culture=culture.id,
                    kind="task-specific" if task_id else "task-agnostic",
                    task=task_id,
                    text=text,
                )
                found.setdefault(query.id, query)
    return list(found.values())


def wanted_inputs(ws: Workspace) -> str:
    """The hash that the stage's manifest has when every culture is up to date.

    Raises MissingError where a source is not there.
    """
    return _joined(
        {
            culture.id: _inputs(ws.recipe, culture, _open(ws, culture, report=False))
            for culture in ws.recipe.cultures
        }
    )


def current_evidence(ws: Workspace) -> list[Evidence]:
    """The evidence of the last search: what has vanished from the sources is not in it."""
    parts = _parts(ws)
    wanted = {i for c in ws.recipe.cultures for i in parts.get(c.id, {}).get("ids", [])}
    return [e for e in ws.read("evidence", Evidence) if e.id in wanted] if wanted else []


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
    cultures: Sequence[str] | None = None,
) -> bool:
    """Search for these cultures (or all), where out of date; returns whether it was.

    Only new queries and evidence are appended, culture by culture, and nothing is removed; the
    manifest names the evidence that counts. Raises MissingError where a source is not there.
    """
    recipe = ws.recipe
    have = {e.id for e in ws.read("evidence", Evidence)}
    parts = {c.id: part for c in recipe.cultures if (part := _parts(ws).get(c.id))}
    todo: list[tuple[Culture, Sources, str]] = []
    for culture in recipe.pick(list(cultures) if cultures else None):
        opened = _open(ws, culture)
        inputs = _inputs(recipe, culture, opened)
        part = parts.get(culture.id, {})
        if force or part.get("inputs") != inputs or not have.issuperset(part["ids"]):
            todo.append((culture, opened, inputs))
    if not todo and ws.is_current("search", _joined_parts(parts)):
        return False

    asked = {q.id for q in ws.read("queries", Query)}
    by_culture: dict[str, list[Query]] = {}
    for query in queries(recipe):
        by_culture.setdefault(query.culture, []).append(query)
    total = sum(len(by_culture[culture.id]) for culture, _, _ in todo)
    done = 0
    for culture, opened, inputs in todo:
        mine = by_culture[culture.id]
        ws.append("queries", [q for q in mine if q.id not in asked])
        best: dict[str, Evidence] = {}
        for query in mine:
            for source, searchable in opened:
                for passage in searchable.search(query.text, recipe.search.per_query):
                    item = _evidence(passage, query, source)
                    if item.id not in best or item.score > best[item.id].score:
                        best[item.id] = item
            done += 1
            if progress:
                progress(f"search · {culture.name}", done, total)
        kept = _without_duplicates(list(best.values()))
        if not kept:
            ws.say(
                f"{culture.name}: nothing found. Add documents, or topics and queries, to the "
                "sources that recipe.yaml names."
            )
        ws.append("evidence", [e for e in kept if e.id not in have])
        parts[culture.id] = {
            "inputs": inputs,
            "queries": len(mine),
            "dropped": len(best) - len(kept),
            "ids": [e.id for e in kept],
        }
        _finish(ws, parts)
    if not todo:
        _finish(ws, parts)
    return bool(todo)


def _finish(ws: Workspace, parts: dict[str, dict[str, Any]]) -> None:
    ws.finish(
        "search",
        _joined_parts(parts),
        queries=sum(part["queries"] for part in parts.values()),
        evidence={culture: len(part["ids"]) for culture, part in parts.items()},
        dropped=sum(part["dropped"] for part in parts.values()),
        cultures=parts,
    )


def _parts(ws: Workspace) -> dict[str, dict[str, Any]]:
    """What the manifest holds per culture."""
    manifest = read_json(ws.manifest_path("search")) or {}
    parts: dict[str, dict[str, Any]] = manifest.get("cultures", {})
    return parts


def _joined(inputs: dict[str, str]) -> str:
    return make_id("search", inputs)


def _joined_parts(parts: dict[str, dict[str, Any]]) -> str:
    return _joined({culture: part["inputs"] for culture, part in parts.items()})


def _open(ws: Workspace, culture: Culture, report: bool = True) -> Sources:
    def quiet(_: str) -> None:
        pass

    say = ws.say if report else quiet
    return [
        (source, open_source(source, culture, ws.recipe, ws.folder, say))
        for source in ws.recipe.sources
    ]


def _inputs(recipe: Recipe, culture: Culture, opened: Sources) -> str:
    return make_id(
        recipe.search.model_dump(),
        culture.model_dump(),
        [(task.id, task.queries) for task in recipe.tasks],
        [(source.model_dump(), searchable.fingerprint) for source, searchable in opened],
    )


def _evidence(passage: Passage, query: Query, source: Source) -> Evidence:
    content = {
        "culture": query.culture,
        "url": passage.url,
        "title": passage.title,
        "text": passage.text,
        "topic": passage.topic,
        "heading": passage.heading,
        "also_asked": list(passage.also_asked),
        "source": source.kind,
        "license": source.license,
    }
    return Evidence.model_validate(
        {
            **content,
            "id": make_id("evidence", content),
            "query_id": query.id,
            "language": query.language,
            "retrieved_at": now(),
            "score": passage.score,
            "sha256": hashlib.sha256(passage.text.encode()).hexdigest(),
        }
    )


def _without_duplicates(found: list[Evidence]) -> list[Evidence]:
    """Best first; a text that stands in several places under one heading is kept once."""
    seen = set()
    kept = []
    for item in sorted(found, key=lambda e: (-e.score, e.id)):
        key = (item.topic, item.heading, item.sha256)
        if key not in seen:
            seen.add(key)
            kept.append(item)
    return kept
