"""`cmgr eval`: did it help, for whom, at which task, by how much, and is it noise?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmgr.cli.console import (
    CultureOption,
    JsonOption,
    WorkspaceOption,
    columns_of,
    emit_json,
    out,
    progress,
    say,
    table,
)
from cmgr.workspace import Workspace, read_json

if TYPE_CHECKING:
    from cmgr.evaluate.items import Item

WIDTH = 20  # of a bar, in columns


def command(
    workspace: WorkspaceOption = None,
    task: Annotated[
        str | None, typer.Option(help="Only this task; with --data also a bundled one")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A benchmark's file or folder, as it is published")
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(
            help="How to read --data: normad, culturalbench, blend, fork, crehate, offenseval, "
            "cali, globalopinionqa, normdial, safeworld, table [default: as the card says]"
        ),
    ] = None,
    map_: Annotated[
        str, typer.Option("--map", help="COLUMN=FIELD,... of a plain table (--loader table)")
    ] = "",
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this part of --data, by hash of groups")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="With commas, or all [default: those that are here]"),
    ] = None,
    culture: CultureOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items per culture, task and split")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what --limit picks, and of the intervals")] = 1,
    interference: Annotated[
        bool, typer.Option("--interference", help="Each culture's adapter on each culture's items")
    ] = False,
    judge: Annotated[
        bool, typer.Option("--judge", help="Let the recipe's model judge free answers")
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD.METRIC[@SPLIT]=X",
            help="Exit 1 where a task's accuracy or macro_f1 is below X (repeatable). SPLIT: fit, "
            "wording, fact, test, contested [default: test with --data, else wording]",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="How options are scored: mean, sum, pmi, contrast [default: the recipe's]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute every score again")] = False,
    json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="A LaTeX table")] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="All tables: intervals, cultures, tasks, router, calibration"),
    ] = False,
) -> None:
    """Score methods on held-out items, or on a benchmark's own files; run it again to go on."""
    from cmgr import evaluate
    from cmgr.errors import CmgrError, PartialError, UsageError
    from cmgr.evaluate import bounds
    from cmgr.scoring import check_score

    if sum((json, csv, markdown, latex)) > 1:
        raise UsageError("one of --json, --csv, --markdown, --latex")
    check_score(score)
    if data is None and (loader or map_ or part):
        raise UsageError("--loader, --map and --part go with --data")
    if data is not None and task is None:
        raise UsageError("--data needs --task: what its items ask")
    least = [bounds.parse(text) for text in fail_under or []]
    ws = Workspace.find(workspace, say)
    _check_names(methods)
    other = (data, task, methods, culture, limit, seed != 1, interference, judge, score)
    own = not any(other)
    # without the lock where nothing can be written: scores that are kept can be read
    with ws.lock("cmgr eval", needed=False), progress() as tell:
        if own and (not ws.read_only or (evaluate.is_current(ws) and not force)):
            bounds.check_methods(least, evaluate.default_methods(ws, evaluate.own_items(ws)))
            if not evaluate.build(ws, force, tell):
                say("eval: up to date")
            manifest = read_json(ws.manifest_path("eval")) or {}
            rows, shown = manifest["table"], manifest["methods"]
            troubled = _tell(manifest.get("lacking", {}), manifest.get("notes", []))
        else:
            name, items, notes = _items(ws, task, data, loader, map_, part, culture)
            wanted = _methods(ws, methods, items)
            bounds.check_methods(least, wanted)
            from cmgr.evaluate.items import limited

            found = evaluate.run(
                ws,
                name,
                limited(items, limit, seed),
                wanted,
                seed=seed,
                interference=interference,
                judge=judge,
                force=force,
                score=score,
                progress=tell,
            )
            rows, shown = found.rows, found.methods
            troubled = _tell(found.lacking, [*notes, *found.notes])
    _show(rows, shown, json, csv, markdown, latex, every)
    checked = bounds.check(rows, least)
    for one in checked:
        if one.holds:
            say(f"--fail-under: {one.text}")
    if failing := [one.text for one in checked if not one.holds]:
        raise CmgrError("--fail-under: " + "\n".join(failing))
    if troubled:
        raise PartialError(
            "methods or items were left out (they are named above); the table has the rest"
        )


def _check_names(text: str | None) -> None:
    """Raise UsageError where --methods names one that is none."""
    from cmgr import evaluate
    from cmgr.errors import UsageError

    named = _split(text or "all")
    unknown = [name for name in named if name not in (*evaluate.METHODS, "all")]
    if unknown or not named:
        known = ", ".join(evaluate.METHODS)
        raise UsageError(f"no method {', '.join(unknown) or 'given'}: there are {known}")


def _methods(ws: Workspace, text: str | None, items: list[Item]) -> list[str]:
    """The methods that --methods names, or those that fit these items."""
    from cmgr import evaluate

    if text is None:
        return evaluate.default_methods(ws, items)
    fitting = {*evaluate.baselines_of(items)}
    every = [m for m in evaluate.METHODS if m in fitting or m not in evaluate.BASELINES]
    return list(
        dict.fromkeys(n for name in _split(text) for n in (every if name == "all" else [name]))
    )


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _items(
    ws: Workspace,
    task: str | None,
    data: Path | None,
    loader: str | None,
    mapped: str,
    part: str | None,
    cultures: list[str] | None,
) -> tuple[str, list[Item], list[str]]:
    """(a name for the evaluation, its items, what was left out)."""
    from cmgr import evaluate
    from cmgr.evaluate import items

    if data is None:
        whose = {c.id for c in ws.recipe.pick(cultures)}
        wanted = items.task_named(ws.recipe, task).id if task else None
        found = evaluate.own_items(ws)
        kept = [i for i in found if i.culture in whose and wanted in (None, i.task)]
        name = "-".join([evaluate.OWN, *([wanted] if wanted else []), *(cultures or [])])
        return name, kept, []
    named = items.task_named(ws.recipe, task or "")
    kind = loader or items.loader_of(named.id)
    columns = columns_of(mapped)
    found, left_out = items.of_file(ws.recipe, named, data, kind, columns, part, cultures)
    stem = re.sub(r"[^a-z0-9]+", "-", data.stem.lower()).strip("-")
    name = "-".join(filter(None, [named.id, stem, part and f"part-{part.replace('/', '-of-')}"]))
    return name, found, [f"{count} rows left out: {why}" for why, count in left_out.most_common()]


def _tell(lacking: dict[str, str], notes: list[str]) -> bool:
    """Say what could not be evaluated; returns whether there was any."""
    lines = [*(f"{method} left out: {why}" for method, why in lacking.items()), *notes]
    for line in lines:
        say(line)
    return bool(lines)


def _show(
    rows: list[dict[str, Any]],
    methods: list[str],
    json: bool,
    csv: bool,
    markdown: bool,
    latex: bool,
    every: bool,
) -> None:
    from cmgr.evaluate import tables

    if json:
        for row in rows:
            emit_json(row)
    elif csv:
        out(tables.csv(rows).rstrip())
    elif markdown:
        out(tables.markdown(rows, methods).rstrip())
    elif latex:
        out(tables.latex(rows, methods).rstrip())
    else:
        show_table(rows, every)


def show_table(rows: list[dict[str, Any]], every: bool = False) -> None:
    """What came of it in a sentence, one table, and whether routing is ahead; or all tables."""
    from cmgr.evaluate import tables

    if found := tables.verdict(rows):
        out(found)
    heads, cells = tables.overview(rows)
    table("Share right, of free answers and of options", heads, cells)
    for line in tables.gains(rows):
        out(line)
    if every:
        _show_all(rows)
    else:
        _show_matrix(rows)  # it was asked for
    for row in rows:
        if row["kind"] == "judge":
            agreed = f"{row['agreement']:.2f}, kappa {row['kappa'] or 0:.2f}"
            say(f"{row['task']}: {row['n']} answers judged by {row['model']}; with match {agreed}")


def _show_all(rows: list[dict[str, Any]]) -> None:
    """Bars per method, the cultures apart, what differs and by how much, the router, the matrix."""
    scores = [row for row in rows if row.get("kind") == "score"]
    methods = list(dict.fromkeys(row["method"] for row in scores))
    tasks = list(dict.fromkeys(row["task"] for row in scores))
    for split in dict.fromkeys(row["split"] for row in scores):
        mine = [r for r in scores if r["split"] == split]
        whole = tasks[-1] if len(tasks) > 1 else tasks[0]  # all tasks together come last
        _bars([r for r in mine if r["task"] == whole and r["culture"] == "all"], rows)
        by_culture = [r for r in mine if r["task"] == whole and r["culture"] != "all"]
        _cross("culture", by_culture, methods)
        if len(tasks) > 1:
            apart = [r for r in mine if r["task"] != whole and r["culture"] == "all"]
            _cross("task", apart, methods)
    _show_router(rows)
    _show_calibration(rows)
    _show_coverage(rows)
    _show_matrix(rows)


def _bars(whole: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """A method a line, over all cultures."""
    if not whole:
        return
    from cmgr.evaluate.tables import SPLITS

    task, split, n = (whole[0][key] for key in ("task", "split", "n"))
    paired = {
        row["against"]: row
        for row in rows
        if row["kind"] == "paired"
        and (row["task"], row["split"], row["method"]) == (task, split, "routed")
        and row.get("what", "options") == "options"
    }
    f1 = any("macro_f1" in row for row in whole)
    heads = ["method", "accuracy", "95% interval", "0 to 1", *(["macro-F1"] if f1 else [])]
    cells = []
    for row in whole:
        low, high = row["interval"]
        cells.append([row["method"], f"{row['accuracy']:.3f}", f"{low:.2f} to {high:.2f}"])
        cells[-1].append(_bar(row["accuracy"], low, high))
        cells[-1] += [f"{row['macro_f1']:.3f}"] if f1 else []
        if paired:
            against = paired.get(row["method"])
            cells[-1].append(_difference(against) if against else "")
    title = f"{'All tasks' if task == 'all' else task}: {SPLITS.get(split, split)} (n {n})"
    table(title, [*heads, *(["routed against it"] if paired else [])], cells)


def _cross(what: str, rows: list[dict[str, Any]], methods: list[str]) -> None:
    """Accuracy per culture or task (a line each) and method."""
    names = list(dict.fromkeys(row[what] for row in rows))
    at = {(row[what], row["method"]): row for row in rows}
    if len(names) > 1:
        table(
            f"Accuracy per {what}",
            [what, "n", *methods],
            [
                [c, at[c, methods[0]]["n"], *(f"{at[c, m]['accuracy']:.2f}" for m in methods)]
                for c in names
            ],
        )


def _bar(value: float, low: float, high: float) -> str:
    """A bar with its interval: full up to the lower bound, light up to the upper one."""
    sure, at, may = (round(v * WIDTH) for v in (low, value, high))
    return "█" * sure + "▓" * (at - sure) + "░" * (may - at) + "·" * (WIDTH - may)


def _difference(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    p = "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.3f}"
    return f"{row['difference']:+.3f} [{low:+.2f}, {high:+.2f}] {p}"


def _show_router(rows: list[dict[str, Any]]) -> None:
    mine = [row for row in rows if row["kind"] == "router" and row["culture"] == "all"]
    if mine:
        table(
            "The router, and what its errors cost (oracle - routed)",
            ["task", "items", "n", "right", "abstained", "cost"],
            [
                [
                    *(r["task"], r["split"], r["n"], f"{r['accuracy']:.3f}"),
                    f"{r['abstained']:.3f}",
                    f"{r['cost']:+.3f}" if "cost" in r else "",
                ]
                for r in mine
            ],
        )


def _show_calibration(rows: list[dict[str, Any]]) -> None:
    mine = [row for row in rows if row["kind"] == "calibration"]
    if mine:
        table(
            f"Probabilities of options ({mine[0]['rule'][0]}): how far they err",
            ["method", "n", "temperature", "calibration error"],
            [[r["method"], r["n"], f"{r['temperature']:.2f}", f"{r['ece']:.3f}"] for r in mine],
        )


def _show_coverage(rows: list[dict[str, Any]]) -> None:
    """What was read before answering, and what it did."""
    mine = [row for row in rows if row["kind"] == "coverage"]
    if mine:
        whole = list(dict.fromkeys(row["task"] for row in mine))[-1]
        share = "{:.2f}".format
        table(
            "Passages: shown at all, the right one, the right answer's words; right with and "
            "without them",
            ["items", "method", "n", "shown", "right one", "words", "with", "without"],
            [
                [
                    *(r["split"], r["method"], r["n"]),
                    *(share(r[k]) for k in ("shown", "passage", "words")),
                    *("" if r[k] is None else share(r[k]) for k in ("right_with", "right_without")),
                ]
                for r in mine
                if r["task"] == whole
            ],
        )


def _show_matrix(rows: list[dict[str, Any]]) -> None:
    found = {(r["adapter"], r["culture"]): r for r in rows if r["kind"] == "interference"}
    if found:
        adapters = list(dict.fromkeys(a for a, _ in found))
        cultures = list(dict.fromkeys(c for _, c in found))
        table(
            "Interference: accuracy of an adapter (row) on a culture's items (column)",
            ["adapter", *cultures],
            [[a, *(f"{found[a, c]['accuracy']:.2f}" for c in cultures)] for a in adapters],
        )
