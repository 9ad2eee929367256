"""`cmgr run`: every stage of a recipe, in order; what is up to date is skipped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cmgr.cli.console import JsonOption, WorkspaceOption, emit_json, out, plain, progress, say
from cmgr.workspace import Workspace, read_json


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe file or a bundled name [default: this workspace's]"),
    ] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Make the workspace if it is not there, then search, synthesize, train, route, evaluate."""
    if recipe is None:
        ws = Workspace.find(workspace, say)
    else:
        ws, new = Workspace.init(recipe, workspace)
        ws.say = say
        say(f"{'made' if new else 'going on in'} {ws.folder}")
    began = time.perf_counter()
    with ws.lock("cmgr run"), progress() as tell:
        for name, build in _stages():
            start = time.perf_counter()
            made = build(ws, progress=tell)
            took = f"done in {time.perf_counter() - start:.1f} s" if made else "up to date"
            say(f"{name}: {took}")
    say(f"all stages: {time.perf_counter() - began:.1f} s")
    manifest = read_json(ws.manifest_path("eval")) or {}
    if json:
        emit_json(manifest)
    else:
        _show(ws, manifest)


def show_tried(item: dict[str, Any]) -> None:
    """A prompt answered by the base and by the routed culture, with what that answer rests on."""
    from cmgr.cli.chat import sources
    from cmgr.records import Answer

    marks = {True: " (right)", False: " (wrong)", None: ""}
    out(f"\n> {plain(item['prompt'])}")
    if "gold" in item:
        out(f"  right answer: {plain(item['gold'])}")
    out(f"  base{marks[item.get('base_right')]}: {plain(item['base'])}")
    who = item["culture"] or "routed to the base"
    out(f"  {who}{marks[item.get('right')]}: {plain(item['routed'])}")
    rests = {key: item.get(key, []) for key in ("sources", "claims")}
    record = Answer(id="", prompt="", culture=None, adapter=None, **rests)
    for line in sources(record):
        out(f"  {line}")


def _stages() -> list[tuple[str, Any]]:
    from cmgr import evaluate, search, synthesize, train
    from cmgr.router import fitting

    return [
        ("search", search.build),
        ("synthesize", synthesize.build),
        ("train", train.build),
        ("route", fitting.build),
        ("eval", evaluate.build),
    ]


def _show(ws: Workspace, manifest: dict[str, Any]) -> None:
    from cmgr import status
    from cmgr.cli.evaluate import show_table
    from cmgr.cli.status import show_cultures

    show_cultures(status.of(ws))
    show_table(manifest["table"])
    for item in manifest["tried"]:
        show_tried(item)
    where = "" if ws.folder.resolve() == Path.cwd() else f" -w {ws.folder}"
    say(f"\nNext: cmgr chat{where}   ·   cmgr status{where}")
