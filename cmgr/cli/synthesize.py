"""`cmgr synthesize`: stage 2, checked examples for every culture."""

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
    """Write examples from the evidence, and check each."""
    from cmgr import synthesize
    from cmgr.workspace import Workspace, read_json

    ws = Workspace.find(workspace, say)
    with ws.lock("cmgr synthesize"), progress() as show:
        made = synthesize.build(ws, force, show, culture)
    if not made:
        say("synthesize: up to date")
    parts = (read_json(ws.manifest_path("synthesize")) or {}).get("cultures", {})
    kinds = ("broad/fit", "task/fit", "task/wording", "task/fact")
    rows = [
        (
            c.id,
            *(parts[c.id]["examples"].get(kind, 0) for kind in kinds),
            parts[c.id]["quarantined"],
        )
        for c in ws.recipe.pick(culture)
        if c.id in parts
    ]
    names = ("culture", *kinds, "quarantined")
    if json:
        for row in rows:
            emit_json(dict(zip(names, row, strict=True)))
    else:
        table("Examples", names, rows)
