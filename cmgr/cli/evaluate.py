"""`cmgr eval`: base, prompted base and routed on held-out items."""

from __future__ import annotations

from typing import Any

from cmgr.cli.console import (
    ForceOption,
    JsonOption,
    WorkspaceOption,
    emit_json,
    progress,
    say,
    table,
)
from cmgr.workspace import Workspace, read_json

SPLITS = {
    "fit": "items as trained",
    "wording": "other wordings of trained facts",
    "fact": "facts never trained",
}


def show_table(rows: list[dict[str, Any]]) -> None:
    """The accuracy table on stdout, one part per split, with 95% Wilson intervals."""
    for split, title in SPLITS.items():
        part = [row for row in rows if row["split"] == split]
        if not part:
            continue
        cells = []
        for row in part:
            cells.append([row["culture"], row["n"], f"{row['router']:.2f}"])
            for method in ("base", "prompt", "routed"):
                low, high = row[f"{method}_interval"]
                cells[-1].append(f"{row[method]:.2f} [{low:.2f}, {high:.2f}]")
        table(
            f"Accuracy on {title} (95% interval)",
            ["culture", "n", "router", "base", "prompted base", "routed"],
            cells,
        )


def command(
    workspace: WorkspaceOption = None, force: ForceOption = False, json: JsonOption = False
) -> None:
    """Score and show; run again to see the same table at once."""
    from cmgr import evaluate

    ws = Workspace.find(workspace, say)
    with ws.lock("cmgr eval"), progress() as tell:
        if not evaluate.build(ws, force, tell):
            say("eval: up to date")
    rows = (read_json(ws.manifest_path("eval")) or {})["table"]
    if json:
        for row in rows:
            emit_json(row)
    else:
        show_table(rows)
