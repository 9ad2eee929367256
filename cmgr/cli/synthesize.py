"""`cmgr synthesize`: stage 2, checked examples for every culture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmgr.cli.console import (
    CultureOption,
    ForceOption,
    JsonOption,
    WorkspaceOption,
    columns_of,
    emit_json,
    out,
    plain,
    progress,
    say,
    table,
)

if TYPE_CHECKING:
    from cmgr.workspace import Workspace


def command(
    workspace: WorkspaceOption = None,
    culture: CultureOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show calls, tokens, cost and time; ask nobody")
    ] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Show what the model reads, of each kind once")
    ] = False,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="US dollars that may be spent in this run")
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option(min=0, help="Calls that may be made in this run")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", help="Take examples of your own: CSV, JSONL, Parquet")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task that they are of")] = None,
    map_: Annotated[
        str, typer.Option("--map", help="COLUMN=FIELD,... (text=situation,label=answer)")
    ] = "",
    loader: Annotated[
        str | None, typer.Option(help="The file is a benchmark's own (names: cmgr eval --help)")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="With --loader: only this part, by hash")
    ] = None,
    no_evidence: Annotated[
        bool,
        typer.Option("--no-evidence", help="From memory alone, for train --variant no-evidence"),
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Write examples from the evidence, and check each."""
    from cmgr import synthesize
    from cmgr.errors import PartialError
    from cmgr.workspace import Workspace

    ws = Workspace.find(workspace, say)
    if show_prompt:
        _show_prompts(ws)
        return
    if dry_run:
        _forecast(ws, culture, json)
        return
    if import_:
        _import(ws, import_, task, map_, culture, loader, part, json)
        return
    with ws.lock("cmgr synthesize"), progress() as show:
        if no_evidence:
            synthesize.build_bare(ws, show, max_cost, max_calls)
        elif not synthesize.build(ws, force, show, culture, max_cost, max_calls):
            say("synthesize: up to date")
    parts = ws.parts("bare" if no_evidence else "synthesize")
    mine = {c.id: parts[c.id] for c in ws.recipe.pick(culture) if c.id in parts}
    if json:
        for culture_id, entry in mine.items():
            facts = {k: v for k, v in entry.items() if k not in {"inputs", "ids", "examples"}}
            emit_json({"culture": culture_id, **entry.get("examples", {}), **facts})
    elif no_evidence:
        _show_yield(mine)
    else:
        _show_tables(mine)
    lacking = {i: entry["unanswered"] for i, entry in mine.items() if entry["unanswered"]}
    if lacking:  # a contrast counts for both its cultures, so there is no sum
        told = ", ".join(f"{ws.recipe.culture(i).name}: {n}" for i, n in lacking.items())
        raise PartialError(
            f"calls with no answer yet: {told}. `cmgr synthesize` makes them; "
            "what was written is kept."
        )


def _import(
    ws: Workspace,
    path: Path,
    task: str | None,
    mapped: str,
    culture: list[str] | None,
    loader: str | None,
    part: str | None,
    json: bool,
) -> None:
    from cmgr import synthesize
    from cmgr.errors import UsageError
    from cmgr.stats import counted

    if task is None:
        known = ", ".join(t.id for t in ws.recipe.tasks)
        raise UsageError(f"--import needs --task, one of: {known}")
    columns = columns_of(mapped)
    if culture and len(culture) > 1:
        raise UsageError("--import takes one --culture; of several, map a column to culture")
    if part and not loader:
        raise UsageError("--part goes with --loader (table: a plain one)")
    with ws.lock("cmgr synthesize"):
        whose = culture[0] if culture else None
        found = synthesize.import_file(ws, path, task, columns, whose, loader, part)
    if json:
        for culture_id, counts in found.items():
            emit_json({"culture": culture_id, "task": task, **counts})
    else:
        rows = [
            (culture_id or "?", counts["came"], counts["kept"], counted(counts["left_out"]))
            for culture_id, counts in found.items()
        ]
        table("Imported", ("culture", "came", "passed", "why the others did not"), rows)


def _show_tables(parts: dict[str, dict[str, Any]]) -> None:
    kinds = ("broad/fit", "task/fit", "task/wording", "task/fact")
    rows = [
        (culture, *(part["examples"].get(kind, 0) for kind in kinds), part["quarantined"])
        for culture, part in parts.items()
    ]
    table("Examples", ("culture", *kinds, "quarantined"), rows)
    if any(part["quarantined"] for part in parts.values()):
        _show_yield(parts)


def _show_yield(parts: dict[str, dict[str, Any]]) -> None:
    from cmgr.stats import counted

    rows = [
        (culture, task, counts["came"], counts["kept"], counted(counts["left_out"]))
        for culture, part in parts.items()
        for task, counts in part["yield"].items()
    ]
    table("Yield", ("culture", "task", "came", "passed", "why the others did not"), rows)


def _show_prompts(ws: Workspace) -> None:
    """The first call of each kind and task, as it is sent."""
    from cmgr import search
    from cmgr.errors import MissingError
    from cmgr.generators import writing

    shown = set()
    for request in writing.requests(ws.recipe, search.current_evidence(ws)):
        if (request.kind, request.task) not in shown:
            shown.add((request.kind, request.task))
            for message in request.messages:
                out(f"--- {request.kind} {request.task} · {message.role}".replace("  ", " "))
                out(plain(message.content))
    if not shown:
        raise MissingError("no evidence to show a prompt with. Find some: cmgr search")


def _forecast(ws: Workspace, culture: list[str] | None, json: bool) -> None:
    from cmgr import synthesize
    from cmgr.generators.calls import prices_of_day
    from cmgr.synthesize.asking import forecast

    generator = ws.recipe.generator
    if generator.kind == "extractive":
        say("generator: extractive: no calls, no cost; seconds")
        return
    calls = synthesize.planned(ws, culture)
    facts = forecast(ws, calls)
    if json:
        emit_json({"model": generator.model, **facts})
        return
    cost = f"${facts['cost']:.2f}" if facts["cost"] is not None else "unknown"
    rows = [
        ("model", generator.model),
        ("calls", facts["calls"]),
        ("tokens in, about", facts["input_tokens"]),
        ("tokens out, about", facts["output_tokens"]),
        ("cost, about", cost),
        ("minutes, about", f"{facts['minutes']:.1f}"),
    ]
    table("Dry run", ("", ""), rows)
    if facts["cost"] is None:
        say(f"no price is known for {generator.model}: set generator.price in recipe.yaml")
    elif generator.price is None and generator.base_url is None and facts["cost"]:
        say(f"prices of {prices_of_day()}; generator.price goes before them")
