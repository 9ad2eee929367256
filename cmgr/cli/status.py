"""`cmgr status`: what has been made, what is missing or out of date."""

from __future__ import annotations

from cmgr.cli.console import JsonOption, WorkspaceOption, emit_json, out, say, table
from cmgr.workspace import Workspace, read_json


def command(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """One line per stage and culture; reads only."""
    from cmgr import status

    ws = Workspace.find(workspace, say)
    state = status.of(ws)
    if json:
        emit_json(state)
        return
    out(f"{ws.recipe.name} in {ws.folder} · base {ws.recipe.base.model}")
    table(
        "Stages", ["stage", "state", "next"], [[s["stage"], s["state"], s["next"]] for s in state["stages"]]
    )
    table(
        "Cultures",
        ["culture", "evidence", "examples", "held out", "adapter"],
        [
            [c["culture"], c["evidence"], c["examples"], c["held_out"], c["adapter"]]
            for c in state["cultures"]
        ],
    )
    rows = (read_json(ws.manifest_path("eval")) or {}).get("table")
    if rows:
        from cmgr.cli.evaluate import show_table

        show_table(rows)
