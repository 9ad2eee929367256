"""`cmgr route`: texts in, one decision each out; also fits the router, teaches and scores it."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmgr.cli import console
from cmgr.cli.console import ForceOption, JsonOption, WorkspaceOption
from cmgr.errors import PartialError, UsageError

if TYPE_CHECKING:
    from cmgr.recipe import Culture
    from cmgr.records import Decision
    from cmgr.router import Router
    from cmgr.router.scoring import Labelled
    from cmgr.workspace import Workspace

SHADES = " ░▒▓█"


def command(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to route; - or none: lines of stdin")
    ] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    file: Annotated[Path | None, typer.Option("--file", help="Route the lines of a file")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the n-grams that spoke for and against")
    ] = False,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Show the most probable cultures only")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least probability [default: recipe]")
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", help="Least lead over the second [default: recipe]")
    ] = None,
    eval_file: Annotated[
        Path | None,
        typer.Option("--eval", help='Score JSON lines of {"text", "culture": an id or null}'),
    ] = None,
    learn: Annotated[
        Path | None,
        typer.Option("--learn", help="Keep such lines as labels, and fit the router again"),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the router, where it is stale")] = False,
    force: ForceOption = False,
) -> None:
    """Say which culture each text is of, or that it is of none.

    Raises UsageError on options that are wrong, MissingError without a router, PartialError when
    some lines could not be read.
    """
    given = [
        what for what, there in (("texts", texts), ("--file", file), ("--eval", eval_file)) if there
    ]
    if len(given) > 1:
        raise UsageError(f"give one of {' and '.join(given)}, not both")
    if explain and eval_file:
        raise UsageError("--explain shows single texts; it does not go with --eval")
    if force and not fit:
        raise UsageError("--force goes with --fit")
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"--threshold {threshold}: give a number between 0 and 1")
    if margin is not None and not 0 <= margin < 1:
        raise UsageError(f"--margin {margin}: give a number from 0 to below 1")
    if not given and not fit and not learn and sys.stdin.isatty():
        raise UsageError(
            "nothing to route. Give a text, lines on stdin, or --file: "
            'cmgr route "Is it rude to tip?"'
        )

    from cmgr.router import Router
    from cmgr.workspace import Workspace

    ws = Workspace.find(workspace, console.say)
    if fit or learn:
        _fit(ws, force, learn)
        if not given:
            return
    # a stream is opened before the router is read, so that a wrong name is told first
    lines = _lines(texts, file) if eval_file is None else None
    rows = _labelled(eval_file) if eval_file else []
    router = Router.of(ws)
    changes = {"threshold": threshold, "margin": margin}
    router.settings = router.settings.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    if eval_file:
        _check(rows, router.cultures, eval_file)
        _score(router, [row for _, row in rows], ws.recipe.cultures, json)
    elif lines is not None:
        _route(router, lines, json, explain, top)


def _fit(ws: Workspace, force: bool, learn: Path | None) -> None:
    from cmgr.records import Label, make_id
    from cmgr.router.fitting import build
    from cmgr.workspace import read_json

    rows = _labelled(learn) if learn else []
    _check(rows, [c.id for c in ws.recipe.cultures], learn)
    with ws.lock("cmgr route --fit"), console.progress() as progress:
        if rows:
            kept = [
                Label(id=make_id("label", row.text), text=row.text, cultures=sorted(row.cultures))
                for _, row in rows
            ]
            ws.append("labels", kept)
            console.say(f"{ws.path('labels.jsonl')}: {len(kept)} labels added")
        made = build(ws, force, progress)
    console.say(f"{ws.path('router')}: {'fitted' if made else 'up to date'}")
    facts = read_json(ws.manifest_path("route")) or {}
    for culture, country in facts.get("countries", {}).items():
        if country is None:
            console.say(
                f"{culture}: no country is called so; its places and languages are not known. "
                "Name it in the recipe: country: JP"
            )


def _lines(texts: list[str] | None, file: Path | None) -> Iterator[bytes]:
    """The texts as bytes, from the arguments, a file or stdin. Raises UsageError."""
    if file is not None and str(file) != "-":
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
        return iter(data.removesuffix(b"\n").split(b"\n") if data else [])
    if texts and texts != ["-"]:
        # what was no UTF-8 on the command line comes back as the bytes it was
        return iter([text.encode("utf-8", "surrogateescape") for text in texts])
    return (line.removesuffix(b"\n") for line in sys.stdin.buffer)


def _route(
    router: Router, lines: Iterable[bytes], json: bool, explain: bool, top: int | None
) -> None:
    from cmgr.records import Decision

    width = max(len("abstain"), *(len(c) for c in router.cultures))
    total = failed = 0
    for number, raw in enumerate(lines, 1):
        total += 1
        problem, text = None, raw.removesuffix(b"\r").decode("utf-8", "replace")
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"not valid UTF-8 at byte {error.start + 1}"
        if not text.strip():
            problem = "empty text"
        if problem:
            failed += 1
            if json:
                nothing = Decision(
                    text=text,
                    culture=None,
                    probability=0.0,
                    probabilities={},
                    cultures=[],
                    abstained=True,
                )
                console.emit_json({**nothing.model_dump(), "line": number, "error": problem})
            else:
                console.say(f"line {number}: {problem}")
            continue
        decision = router.decide(text)
        why = router.explain(text) if explain else None
        if json:
            _emit(decision, why, top)
        else:
            _show(decision, why, top, width)
    if failed:
        raise PartialError(f"{failed} of {total} texts could not be routed")


def _emit(decision: Decision, why: list[tuple[str, str, float]] | None, top: int | None) -> None:
    value = decision.model_dump()
    if top:
        value["probabilities"] = dict(list(decision.probabilities.items())[:top])
        value["cultures"] = decision.cultures[:top]
    if why is not None:
        value["explain"] = [{"culture": c, "ngram": g, "weight": w} for c, g, w in why]
    console.emit_json(value)


def _show(
    decision: Decision, why: list[tuple[str, str, float]] | None, top: int | None, width: int
) -> None:
    named = ", ".join(decision.cultures[:top]) or "abstain"
    shown = " ".join(console.plain(decision.text).split())
    console.out(f"{named:<{width}}  {decision.probability:.2f}   ({shown})")
    for culture, probability in list(decision.probabilities.items())[: top or 0]:
        console.out(f"  {culture:<{width}}  {probability:.2f}")
    if why is not None and not why:
        console.out("  nothing in it is a cue")
    for culture, gram, weight in why or []:
        name = f"{gram[1:].lower()} script" if gram.startswith("\0") else repr(console.plain(gram))
        console.out(f"  {culture:<{width}}  {weight:+.2f}  {name}")


def _labelled(path: Path) -> list[tuple[int, Labelled]]:
    """Each line's number and label. Raises UsageError."""
    from cmgr.router.scoring import Labelled

    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    rows: list[tuple[int, Labelled]] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = jsonlib.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise UsageError(f'{path}:{number}: a line is {{"text": "...", "culture": ID or null}}')
        several = value.get("cultures")
        if several is None:
            if "culture" not in value or not isinstance(value["culture"], str | None):
                raise UsageError(f'{path}:{number}: "culture" must be there: an id, or null')
            several = [value["culture"]] if value["culture"] else []
        if not isinstance(several, list) or not all(isinstance(c, str) for c in several):
            raise UsageError(f'{path}:{number}: "cultures" must be a list of ids')
        if not value["text"].strip():
            raise UsageError(f"{path}:{number}: the text is empty")
        rows.append((number, Labelled(value["text"], frozenset(several))))
    if not rows:
        raise UsageError(f"{path}: no labelled lines in it")
    return rows


def _check(rows: list[tuple[int, Labelled]], known: list[str], path: Path | None) -> None:
    for number, row in rows:
        for culture in sorted(row.cultures - set(known)):
            raise UsageError(
                f"{path}:{number}: culture {culture!r} is none of the router's "
                f"({', '.join(known)}). Write null where it should abstain."
            )


def _score(router: Router, rows: list[Labelled], cultures: list[Culture], json: bool) -> None:
    from cmgr.router.scoring import score

    found = score(router, rows, cultures)
    if json:
        console.emit_json(found)
        return
    columns = {"all texts": found}
    if "unnamed" in found:
        columns["that name no culture"] = found["unnamed"]
    table = [["n", *(part["n"] for part in columns.values())]]
    for name in found["intervals"]:
        cells = (
            _cell(part.get(name), part["intervals"].get(name, (0, 1))) for part in columns.values()
        )
        table.append([name.replace("_", " "), *cells])
    console.table("Router (95% intervals)", ["", *columns], table)
    console.table(
        "Each class",
        ["", "n", "precision", "recall"],
        [
            [
                label,
                part["n"],
                _cell(part["precision"], part["precision_interval"]),
                _cell(part["recall"], part["recall_interval"]),
            ]
            for label, part in found["classes"].items()
        ],
    )
    console.table(
        "Accuracy of the surest decisions",
        ["share of the texts", *(f"{p['coverage']:.0%}" for p in found["coverage"])],
        [["accuracy", *(f"{p['accuracy']:.2f}" for p in found["coverage"])]],
    )
    _picture(found["confusion"])


def _cell(value: float | None, interval: tuple[float, float]) -> str:
    return "" if value is None else f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _picture(confusion: dict[str, dict[str, int]]) -> None:
    """Rows are the truth, columns what the router said; the darker, the larger a row's share."""
    said = sorted({s for row in confusion.values() for s in row} | set(confusion))
    cells = []
    for truth, row in confusion.items():
        total = sum(row.values())
        counts = [row.get(s, 0) for s in said]
        shades = [SHADES[-(-4 * n // total)] for n in counts]
        cells.append([truth, *(f"{2 * a}{n:>5}" for a, n in zip(shades, counts, strict=True))])
    console.table("Confusion: rows are the truth, columns what the router said", ["", *said], cells)
