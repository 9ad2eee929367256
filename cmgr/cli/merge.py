"""`cmgr merge`: adapters into one, or one into the base; how far cultures interfere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmgr.cli.console import (
    JsonOption,
    WorkspaceOption,
    emit_json,
    is_terminal,
    progress,
    say,
    table,
)

if TYPE_CHECKING:
    from cmgr.workspace import Workspace


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Adapters: cultures, or merges made before")
    ] = None,
    workspace: WorkspaceOption = None,
    method: Annotated[
        str,
        typer.Option(
            help="cat, svd (task-arithmetic is another name for it), linear, ties or dare"
        ),
    ] = "cat",
    weights: Annotated[
        str | None, typer.Option(help="One for each, with commas [default: 1 for each]")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of the result [default: the largest parent's]")
    ] = None,
    density: Annotated[float, typer.Option(help="Share of entries that ties and dare keep")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of what dare drops")] = 1,
    name: Annotated[str | None, typer.Option(help="Of the new adapter")] = None,
    into_base: Annotated[
        Path | None, typer.Option("--into-base", help="A .gguf file, or a folder of HF weights")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="With --into-base: f16, q8_0, q4_0 ... [default: as it is]")
    ] = None,
    analyse: Annotated[
        bool, typer.Option("--analyse", help="Cosines and sign conflicts, of all or of these")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there")] = False,
    json: JsonOption = False,
) -> None:
    """Combine adapters, bake one into the base, or see how they interfere."""
    from cmgr.errors import UsageError
    from cmgr.workspace import Workspace

    ws = Workspace.find(workspace, say)
    wanted = names or []
    for one in wanted:
        ws.check_adapter(one)
    if analyse:
        _analyse(ws, wanted, weights, rank, density, seed, json)
    elif into_base:
        if len(wanted) > 1:
            raise UsageError(
                "--into-base takes one adapter. Combine them first: cmgr merge "
                f"{' '.join(wanted)} --name both"
            )
        _bake(ws, wanted[0] if wanted else None, into_base, quantize, force, json)
    else:
        _combine(ws, wanted, method, weights, rank, density, seed, name, force, json)


def _combine(
    ws: Workspace,
    names: list[str],
    method: str,
    weights: str | None,
    rank: int | None,
    density: float,
    seed: int,
    name: str | None,
    force: bool,
    json: bool,
) -> None:
    from cmgr.base import base_of
    from cmgr.errors import UsageError
    from cmgr.merge import combine
    from cmgr.tasks import ID

    if not names or name is None:
        raise UsageError("name the adapters and the result: cmgr merge japan brazil --name jp-br")
    if not ID.fullmatch(name):
        raise UsageError(f"--name {name!r}: lower-case letters, digits and single hyphens")
    if any(culture.id == name for culture in ws.recipe.cultures):
        raise UsageError(f"--name {name}: that is a culture of the recipe. Choose another")
    given = _numbers(weights)
    base = base_of(ws)
    with ws.lock("cmgr merge"), progress() as show:
        facts = combine(
            [ws.path("adapters", one) for one in names],
            ws.path("adapters", name),
            base,
            method,
            given,
            rank,
            density,
            seed,
            force,
            lambda done, total: show("merge", done, total),
        )
    if json:
        emit_json({"name": name, **facts})
        return
    rows = [("all", f"{facts['error']:.4f}")]
    rows += [(str(layer), f"{e:.4f}") for layer, e in facts["error_per_layer"].items()]
    table(f"{name}: {method}, rank {facts['rank']}", ("layer", "relative error"), rows)
    say(f"Try it: cmgr chat --culture {name}")


def _numbers(weights: str | None) -> list[float] | None:
    from cmgr.errors import UsageError

    try:
        return [float(w) for w in weights.split(",")] if weights else None
    except ValueError:
        raise UsageError(f"--weights {weights!r}: numbers with commas, such as 0.7,0.3") from None


def _bake(
    ws: Workspace,
    name: str | None,
    out: Path,
    quantize: str | None,
    force: bool,
    json: bool,
) -> None:
    from cmgr import locks

    adapter = ws.path("adapters", name) if name else None
    with locks.output(out, "cmgr merge --into-base"):
        facts = _baked(ws, adapter, out, quantize, force)
    if json:
        emit_json(facts)
    else:
        size = (
            f", {facts['bytes'] / 2**20:.0f} MB, mostly {facts['kind']}" if "bytes" in facts else ""
        )
        say(f"{facts['file']}: {facts['changed']} tensors changed{size}")


def _baked(
    ws: Workspace, adapter: Path | None, out: Path, quantize: str | None, force: bool
) -> dict[str, Any]:
    from cmgr.base import base_of, weights_folder
    from cmgr.errors import UsageError
    from cmgr.merge import bake

    base = base_of(ws)
    if out.suffix == ".gguf":
        with progress() as show:
            return bake.into_gguf(
                base,
                adapter,
                out,
                quantize,
                force,
                say,
                lambda done, total: show("bake", done, total),
            )
    source = ws.recipe.base.train_from
    if source is None or adapter is None:
        raise UsageError(
            f"--into-base {out}: a folder needs an adapter, and a base of HF weights "
            "(base.train_from). For one file: --into-base model.gguf"
        )
    return bake.into_folder(weights_folder(source, ws.folder), adapter, out, force, base)


def _analyse(
    ws: Workspace,
    names: list[str],
    weights: str | None,
    rank: int | None,
    density: float,
    seed: int,
    json: bool,
) -> None:
    """Cosines and sign conflicts; of named adapters also what each method loses at the rank."""
    from cmgr.errors import MissingError, UsageError, unless_read_only
    from cmgr.merge.analysis import errors, interference
    from cmgr.merge.deltas import Adapter, check_fit, weights_of
    from cmgr.workspace import write_json

    made = [c.id for c in ws.recipe.cultures if ws.path("adapters", c.id).is_dir()]
    chosen = names or made
    adapters = [Adapter(ws.path("adapters", one)) for one in chosen]
    if len(adapters) < 2:
        from cmgr.errors import MissingError

        raise MissingError("two adapters or more are needed. Make them: cmgr train")
    check_fit(adapters)
    given = _numbers(weights)
    if given and len(given) != len(adapters):
        raise UsageError(f"{len(given)} weights for {len(adapters)} adapters")
    largest = rank or max(int(a.config["r"]) for a in adapters)
    lost: list[dict[str, Any]] = []
    with progress() as show:
        rows = interference(adapters, lambda done, total: show("analyse", done, total))
        if names:
            lost = errors(
                adapters,
                weights_of(adapters, given),
                largest,
                density,
                seed,
                lambda done, total: show("methods", done, total),
            )
    with unless_read_only():  # cmgr report shows it
        write_json(ws.path("logs", "analyse.json"), {"adapters": chosen, "rows": rows})
    if json:
        for row in (*rows, *lost):
            emit_json(row)
        return
    _heat_map("Cosine between deltas", chosen, rows, "cosine", 1.0)
    _heat_map("Signs in conflict (0.5: as chance has it)", chosen, rows, "sign_conflict", 0.5)
    layers = sorted({layer for row in rows for layer in row["layers"]})
    cells = [
        (" · ".join(row["adapters"]), *(_number(row["layers"].get(n, 0.0)) for n in _some(layers)))
        for row in rows
    ]
    table("Cosine per layer", ("adapters", *map(str, _some(layers))), cells)
    if lost:
        _methods(lost, largest)


def _methods(lost: list[dict[str, Any]], rank: int) -> None:
    layers = _some(sorted({layer for row in lost for layer in row["layers"]}))
    cells = [
        (
            row["method"],
            f"{row['error']:.3f}",
            f"{row['from_sum']:.3f}",
            *(_number(row["layers"][layer]) for layer in layers),
        )
        for row in lost
    ]
    names = ("method", "error", "from the sum", *map(str, layers))
    table(f"Relative error at rank {rank}, over all and per layer", names, cells)


def _some(layers: list[int]) -> list[int]:
    """Up to ten layers, evenly spread."""
    step = max(1, -(-len(layers) // 10))
    return layers[::step]


def _number(value: float) -> str:
    return f"{value:.2f}"


def _heat_map(
    title: str, names: list[str], rows: list[dict[str, Any]], key: str, most: float
) -> None:
    """A square of numbers; on a terminal the larger ones stand on a warmer ground."""
    import os
    import sys

    values = {frozenset(row["adapters"]): row[key] for row in rows}
    grid = [
        [values.get(frozenset((one, two))) if one != two else None for two in names]
        for one in names
    ]
    if not is_terminal(sys.stdout) or os.environ.get("NO_COLOR"):
        cells = [
            (one, *("" if v is None else _number(v) for v in line))
            for one, line in zip(names, grid, strict=True)
        ]
        table(title, ("", *names), cells)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title, title_justify="left")
    for column in ("", *names):
        view.add_column(column)
    for one, line in zip(names, grid, strict=True):
        shown = [Text(one)]
        for value in line:
            if value is None:
                shown.append(Text(""))
                continue
            heat = int(min(1.0, abs(value) / most) * 5)
            colour = ("grey19", "navy_blue", "dark_green", "orange4", "dark_orange3", "red3")[heat]
            shown.append(Text(_number(value), style=f"on {colour}"))
        view.add_row(*shown)
    Console().print(view)
