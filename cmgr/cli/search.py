"""`cmgr search`: stage 1, evidence for every culture."""

from __future__ import annotations

from cmgr.cli.console import (
    CultureOption,
    ForceOption,
    JsonOption,
    WorkspaceOption,
    emit_json,
    progress,
    say,
    table,
)


def command(
    workspace: WorkspaceOption = None,
    culture: CultureOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Ask the recipe's queries and keep the passages found."""
    from cmgr import search
    from cmgr.workspace import Workspace, read_json

    ws = Workspace.find(workspace, say)
    with ws.lock("cmgr search"), progress() as show:
        made = search.build(ws, force, show, culture)
    if not made:
        say("search: up to date")
    parts = (read_json(ws.manifest_path("search")) or {}).get("cultures", {})
    rows = [
        (c.id, parts[c.id]["queries"], len(parts[c.id]["ids"]), parts[c.id]["dropped"])
        for c in ws.recipe.pick(culture)
        if c.id in parts
    ]
    names = ("culture", "queries", "evidence", "duplicates")
    if json:
        for row in rows:
            emit_json(dict(zip(names, row, strict=True)))
    else:
        table("Evidence", names, rows)
