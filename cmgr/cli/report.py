"""`cmgr report`: a workspace on one page, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmgr.cli.console import JsonOption, WorkspaceOption, emit_json, out, say
from cmgr.workspace import Workspace


def command(
    workspace: WorkspaceOption = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page [default: report/report.html, inside]"),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples that the page holds")] = 200,
    json: JsonOption = False,
) -> None:
    """Write one HTML file that needs nothing else, and each picture as PNG and SVG beside it."""
    from cmgr import locks, report

    ws = Workspace.find(workspace, say)
    path = output or ws.path("report", "report.html")
    with locks.output(path, "cmgr report"):
        written = report.build(ws, path, examples)
    if json:
        emit_json({"page": str(path), "pictures": [str(p) for p in written[1:]]})
    else:
        out(str(path))
        say(
            f"and {len(written) - 1} pictures beside it. Open it in a browser; it needs no network."
        )
