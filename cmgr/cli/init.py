"""`cmgr init`: a workspace from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmgr.cli.console import out, say
from cmgr.workspace import Workspace


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or a bundled name: quickstart")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where [default: a folder of the recipe's name]")
    ] = None,
) -> None:
    """Make the folder, print its path."""
    ws, new = Workspace.init(recipe, folder)
    say(f"{'made' if new else 'already there:'} {ws.folder}")
    out(str(ws.folder))
