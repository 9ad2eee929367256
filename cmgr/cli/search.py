"""`cmgr search`: stage 1, evidence for every culture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmgr.cli.console import (
    CultureOption,
    ForceOption,
    JsonOption,
    WorkspaceOption,
    emit_json,
    emit_line,
    out,
    plain,
    progress,
    say,
    table,
)

if TYPE_CHECKING:
    from cmgr.workspace import Workspace


FEW = 6  # cultures that a table of reasons shows one by one


def command(
    workspace: WorkspaceOption = None,
    culture: CultureOption = None,
    queries: Annotated[
        list[Path] | None,
        typer.Option(help="Add these queries: JSON lines, or a line each with {culture}"),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation items that no evidence may hold (JSON lines, CSV, text)"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the queries; ask nobody")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Fetch again what was fetched before")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Ask the recipe's queries and keep the passages found."""
    from cmgr import search
    from cmgr.errors import PartialError
    from cmgr.search import queries as asking
    from cmgr.workspace import Workspace, read_json

    ws = Workspace.find(workspace, say)
    if dry_run:
        _show_queries(ws, culture, json)
        return
    with ws.lock("cmgr search"), progress() as show:
        for path in queries or []:
            say(f"{path}: {asking.add(ws, path)} new queries")
        made = search.build(ws, force, show, culture, refresh, exclude or [])
    if not made:
        say("search: up to date")
    parts = (read_json(ws.manifest_path("search")) or {}).get("cultures", {})
    mine = {c.id: parts[c.id] for c in ws.recipe.pick(culture) if c.id in parts}
    if json:
        for culture_id, part in mine.items():
            emit_json({"culture": culture_id, **_facts(part)})
    else:
        _show_tables(mine)
    failed = [culture_id for culture_id, part in mine.items() if part["failed"]]
    if failed:
        raise PartialError(
            f"a source failed for {', '.join(failed)}. What was found is kept; "
            "`cmgr search` asks again what failed."
        )


def _facts(part: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in part.items() if k not in {"inputs", "ids"}}
    return {**kept, "evidence": len(part["ids"])}


def _show_tables(parts: dict[str, dict[str, Any]]) -> None:
    names = ("culture", "queries", "pages", "passages", "evidence", "left out", "shared")
    rows = [
        (
            culture,
            part["queries"],
            part["pages"].get("read", 0),
            part["passages"],
            len(part["ids"]),
            sum(part["dropped"].values()),
            part["shared"],
        )
        for culture, part in parts.items()
    ]
    table("Evidence", names, rows)
    for title, key in (("Passages left out", "dropped"), ("Pages", "pages")):
        reasons: Counter[str] = Counter()
        for part in parts.values():
            reasons.update(part[key])
        if reasons:
            shown = parts if len(parts) <= FEW else {}
            cells = [
                (reason, *(part[key].get(reason, 0) for part in shown.values()), total)
                for reason, total in reasons.most_common()
            ]
            table(title, ("reason" if key == "dropped" else "", *shown, "all"), cells)


def _show_queries(ws: Workspace, cultures: list[str] | None, json: bool) -> None:
    """What would be asked, as it stands in queries.jsonl or as the templates make it."""
    from cmgr.search import queries

    wanted = {c.id for c in ws.recipe.pick(cultures)}
    search = ws.recipe.search
    fresh = queries.is_current(ws)
    if not fresh and search.writer == "generator":
        calls = [c for c in queries.calls(ws.recipe) if c[0].id in wanted]
        say(
            f"{ws.recipe.generator.model} would be asked {len(calls)} times for "
            f"{sum(len(topics) * search.per_topic for *_, topics in calls)} queries, such as:"
        )
        say(queries.SYSTEM)
        say(queries.prompt(ws.recipe, *calls[0]))
    asked = queries.current(ws) if fresh else queries.planned(ws)
    mine = [q for q in asked if q.culture in wanted]
    for query in mine:
        if json:
            emit_line(query.model_dump_json())
        else:
            out(plain(f"{query.culture}\t{query.language}\t{query.kind}\t{query.text}"))
    per_culture = Counter(q.culture for q in mine)
    say(", ".join(f"{culture}: {n} queries" for culture, n in per_culture.items()))
    for source in ws.recipe.sources:
        if source.kind != "documents":
            say(f"{source.kind}: {len(mine)} requests, up to {len(mine) * search.pages} pages")
