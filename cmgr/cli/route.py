"""`cmgr route`: texts in, one decision each out; also fits and scores the router."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmgr.cli import console
from cmgr.cli.console import ForceOption, JsonOption, WorkspaceOption
from cmgr.errors import PartialError, UsageError

if TYPE_CHECKING:
    from cmgr.router import Router

_NONE = "(none)"  # an abstention among culture ids, which never hold a bracket


def command(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to route; - or none: lines of stdin")
    ] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    eval_file: Annotated[
        Path | None,
        typer.Option("--eval", help='Score JSON lines of {"text", "culture" or null}'),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the n-grams that decided")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least probability [default: recipe]")
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", help="Least lead over the second [default: recipe]")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Route the lines of a file")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the router from the examples")] = False,
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
    if not given and not fit and sys.stdin.isatty():
        raise UsageError(
            "nothing to route. Give a text, lines on stdin, or --file: "
            'cmgr route "Is it rude to tip?"'
        )

    from cmgr.router import Router
    from cmgr.workspace import Workspace

    ws = Workspace.find(workspace, console.say)
    if fit:
        _fit(ws, force)
        if not given:
            return
    # a stream is opened before the router is read, so that a wrong name is told first
    lines = _lines(texts, file) if eval_file is None else None
    rows = _labelled(eval_file) if eval_file else []
    router = Router.load(ws.path("router"))
    changes = {"threshold": threshold, "margin": margin}
    router.settings = router.settings.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    if lines is None:
        _score(router, rows, eval_file or Path(), json)
    else:
        _route(router, lines, json, explain)


def _fit(ws: Any, force: bool) -> None:
    from cmgr.router.fitting import build

    with ws.lock("cmgr route --fit"), console.progress() as progress:
        made = build(ws, force, progress)
    console.say(f"{ws.path('router')}: {'fitted' if made else 'up to date'}")


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


def _route(router: Router, lines: Iterable[bytes], json: bool, explain: bool) -> None:
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
                console.emit_json({"text": text, "line": number, "error": problem})
            else:
                console.say(f"line {number}: {problem}")
            continue
        _show(router, text, width, json, explain)
    if failed:
        raise PartialError(f"{failed} of {total} texts could not be routed")


def _show(router: Router, text: str, width: int, json: bool, explain: bool) -> None:
    decision = router.decide(text)
    why = router.explain(text) if explain else []
    if json:
        value = decision.model_dump()
        if explain:
            value["explain"] = [{"culture": c, "ngram": g, "weight": w} for c, g, w in why]
        console.emit_json(value)
        return
    named = ", ".join(decision.cultures) or "abstain"
    shown = " ".join(console.plain(text).split())
    console.out(f"{named:<{width}}  {decision.probability:.2f}   ({shown})")
    for culture, gram, weight in why:
        console.out(f"  {culture:<{width}}  {weight:+.2f}  {console.plain(gram)!r}")


def _labelled(path: Path) -> list[tuple[int, str, str | None]]:
    """(line, text, culture or null) of each line of a labelled file. Raises UsageError."""
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    rows: list[tuple[int, str, str | None]] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = jsonlib.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise UsageError(f'{path}:{number}: a line is {{"text": "...", "culture": ID or null}}')
        if "culture" not in value or not isinstance(value["culture"], str | None):
            raise UsageError(f'{path}:{number}: "culture" must be there: an id, or null')
        rows.append((number, value["text"], value["culture"]))
    if not rows:
        raise UsageError(f"{path}: no labelled lines in it")
    return rows


def score(router: Router, rows: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """Accuracy, macro-F1, ECE, abstention rate and confusion on labelled texts.

    A null label is a class of its own: abstaining is right there. The confidence that ECE (ten
    equal bins) compares with being right is the best culture's probability, and one less it on
    abstention. Macro-F1 is over the labels that occur, as truth or as prediction.
    """
    import numpy as np

    decisions = router.decide_all(text for text, _ in rows)
    truth = [label or _NONE for _, label in rows]
    said = [d.culture or _NONE for d in decisions]
    labels = [c for c in (*router.cultures, _NONE) if c in {*truth, *said}]
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([labels.index(t) for t in truth], [labels.index(s) for s in said]), 1)
    f1 = 2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))
    sure = np.array([1 - d.probability if d.abstained else d.probability for d in decisions])
    right = np.array([t == s for t, s in zip(truth, said, strict=True)], dtype=np.float64)
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [abs(float((right - sure)[bins == b].sum())) for b in range(10)]
    return {
        "n": len(rows),
        "accuracy": float(right.mean()),
        "macro_f1": float(f1.mean()),
        "ece": sum(gaps) / len(rows),
        "abstention_rate": said.count(_NONE) / len(rows),
        "confusion": {
            t: {s: int(counts[i, j]) for j, s in enumerate(labels) if counts[i, j]}
            for i, t in enumerate(labels)
            if counts[i].any()
        },
    }


def _score(router: Router, rows: list[tuple[int, str, str | None]], path: Path, json: bool) -> None:
    for number, _, culture in rows:
        if culture is not None and culture not in router.cultures:
            raise UsageError(
                f"{path}:{number}: culture {culture!r} is none of the router's "
                f"({', '.join(router.cultures)}). Write null where it should abstain."
            )
    found = score(router, [(text, culture) for _, text, culture in rows])
    if json:
        console.emit_json(found)
        return
    for name in ("n", "accuracy", "macro_f1", "ece", "abstention_rate"):
        value = found[name]
        console.out(f"{name:<16} {value if isinstance(value, int) else format(value, '.3f')}")
    said = sorted({s for row in found["confusion"].values() for s in row})
    console.table(
        "confusion: rows are the truth, columns what the router said",
        ["", *said],
        [[t, *(row.get(s, 0) for s in said)] for t, row in found["confusion"].items()],
    )
