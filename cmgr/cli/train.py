"""`cmgr train`: one adapter per culture."""

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
from cmgr.workspace import Workspace, read_json


def command(
    workspace: WorkspaceOption = None,
    culture: CultureOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train, export, check; finished cultures are skipped."""
    from cmgr import train

    ws = Workspace.find(workspace, say)
    with ws.lock("cmgr train"), progress() as tell:
        if not train.build(ws, force, tell, culture):
            say("train: up to date")
    rows = []
    for name in [c.id for c in ws.recipe.pick(culture)]:
        manifest = read_json(ws.path("adapters", name, "manifest.json")) or {}
        if json:
            emit_json({**manifest, "folder": str(ws.path("adapters", name))})
        done, parity = manifest.get("training", {}), manifest.get("parity", {})
        rows.append(
            [
                name,
                sum(manifest.get("examples", {}).values()),
                done.get("seconds"),
                done.get("loss"),
                parity.get("adapter_cosine"),
                ws.path("adapters", name),
            ]
        )
    if not json:
        table(
            "Adapters",
            ["culture", "examples", "seconds", "last loss", "GGUF parity (cosine)", "folder"],
            rows,
        )
