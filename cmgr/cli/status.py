"""`cmgr status`: what has been made, what is missing or out of date."""

from __future__ import annotations

from typing import Any

from cmgr.cli.console import JsonOption, WorkspaceOption, emit_json, out, say, table
from cmgr.workspace import Workspace


def show_cultures(state: dict[str, Any]) -> None:
    """The table of cultures on stdout: what each stage has made for them."""
    from cmgr.review import told

    reviewed = any(c["review"] for c in state["cultures"])
    table(
        "Cultures",
        [
            *("culture", "evidence", "examples", "held out"),
            *(["faulty among the unreviewed"] if reviewed else []),
            "adapter",
        ],
        [
            [
                *(c["culture"], c["evidence"], c["examples"], c["held_out"]),
                *([told(c["review"])] if reviewed else []),
                c["adapter"],
            ]
            for c in state["cultures"]
        ],
    )


def command(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Stages, cultures and the last accuracy table."""
    from cmgr import status
    from cmgr.cli.evaluate import show_table

    ws = Workspace.find(workspace, say)
    state = status.of(ws)
    if json:
        emit_json(state)
        return
    out(f"{state['recipe']} in {state['folder']} · base {state['base']}")
    table(
        "Stages",
        ["stage", "state", "next"],
        [[s["stage"], s["state"], s["next"]] for s in state["stages"]],
    )
    show_cultures(state)
    if state["table"]:
        show_table(state["table"])
