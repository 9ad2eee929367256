"""`cmgr review`: accept, edit or reject examples, one at a time, with the passage beside."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmgr.cli.console import (
    CultureOption,
    JsonOption,
    WorkspaceOption,
    emit_json,
    is_terminal,
    plain,
    say,
    table,
)

if TYPE_CHECKING:
    from cmgr.records import Example
    from cmgr.review import Item
    from cmgr.workspace import Workspace

KEYS = "[a]ccept  [r]eject  [e]dit  [s]kip  [u]ndo  [q]uit"


def command(
    workspace: WorkspaceOption = None,
    culture: CultureOption = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many, drawn at random (the same for everybody)")
    ] = None,
    by_risk: Annotated[
        bool, typer.Option("--by-risk", help="Likely faults first, instead of at random")
    ] = False,
    reviewer: Annotated[
        str | None, typer.Option(help="Who looks [default: the user's name]")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write a sheet (CSV) to be filled in elsewhere")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", help="Take the verdicts of a sheet")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Only show counts, agreement, error rate")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Look at examples: what is rejected is not used, what is edited replaces the example."""
    from cmgr import locks, review
    from cmgr.errors import UsageError
    from cmgr.workspace import Workspace

    ws = Workspace.find(workspace, say)
    who = reviewer or getpass.getuser()
    how: Literal["random", "risk"] = "risk" if by_risk else "random"
    found = review.items(ws, culture)
    if export:
        wanted = review.queue(found, {}, how, sample)
        with locks.output(export, "cmgr review --export"):
            review.export(wanted, export, how)
        say(f"{export}: {len(wanted)} examples. Fill in `verdict`: accept, edit, reject")
        return
    if import_:
        with ws.lock("cmgr review"):
            counts = review.read_sheet(ws, import_, who)
        say(f"{import_}: " + (", ".join(f"{n} {v}" for v, n in counts.items()) or "nothing new"))
    elif not report:
        if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
            raise UsageError(
                "cmgr review asks a person at a terminal. Elsewhere: --export sheet.csv, "
                "then --import sheet.csv; or --report"
            )
        waiting = review.queue(found, review.of_reviewer(ws, who), how, sample)
        with ws.lock("cmgr review"):
            _session(ws, waiting, who, how)
    _report(ws, review.items(ws, culture), json)


def _session(ws: Workspace, waiting: list[Item], who: str, how: Literal["random", "risk"]) -> None:
    """One example after the other, until they end or the person does."""
    from cmgr import review
    from cmgr.errors import UsageError

    done: list[int] = []
    at = 0
    while at < len(waiting):
        item = waiting[at]
        _show(item, at + 1, len(waiting))
        try:
            key = typer.getchar().lower()
        except EOFError:  # Ctrl-D
            key = "q"
        if key in ("q", "", "\x04"):  # nothing: the terminal is gone
            break
        if key == "s":
            at += 1
        elif key == "u":
            if not done:
                say("nothing to undo")
                continue
            at = done.pop()
            review.give(ws, waiting[at].example, "pending", who, how)
        elif key == "a":
            review.give(ws, item.example, "accepted", who, how)
            done.append(at)
            at += 1
        elif key == "r":
            review.give(ws, item.example, "rejected", who, how, _line("reason (may be empty): "))
            done.append(at)
            at += 1
        elif key == "e":
            try:
                changed = _edit(ws, item.example)
            except UsageError as error:
                say(f"{error}; nothing is changed")
                continue
            if changed is None:
                say("nothing is changed")
                continue
            review.give(ws, changed, "edited", who, how)
            done.append(at)
            at += 1
    say(f"{len(done)} reviewed by {who}; {len(waiting) - at} left of this sample")


def _show(item: Item, number: int, total: int) -> None:
    """The example, and its passage beside it where there is room, the quote marked."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from cmgr.checks import answer_text

    console = Console()
    example, passage = item.example, item.passage
    left = Text(plain(example.messages[-1].content) + "\n\n")
    left.append(plain(example.answer), style="bold")
    if answer_text(example) != example.answer:
        left.append(f" ({plain(answer_text(example))})", style="bold")
    options = example.inputs.get("options")
    if options and "texts" not in example.inputs:
        left.append("\n\noptions: " + plain(" | ".join(map(str, options))), style="dim")
    right = Text(plain(passage.text if passage else "the passage is no longer there"))
    quote = plain(example.quote)
    marked = right.highlight_words([quote], style="reverse", case_sensitive=False)
    if not marked:
        right.append(f"\n\nquote: {quote}", style="italic")
    if passage:
        right.append(f"\n\n{plain(passage.title)}\n{plain(passage.url)}", style="dim")
    head = f"{number}/{total} · {example.culture} · {example.task or 'broad'} · {example.split}"
    risk = f"risk {item.risk:.2f}" + (f" · judge {example.judge}" if example.judge else "")
    console.rule(f"{head} · {risk}")
    if console.width >= 100:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(Panel(left, title="example"), Panel(right, title="passage"))
        console.print(grid)
    else:
        console.print(Panel(left, title="example"))
        console.print(Panel(right, title="passage"))
    console.print(Text(KEYS, style="dim"))


def _edit(ws: Workspace, example: Example) -> Example | None:
    """The example as the person has changed it, in $EDITOR or line by line; None for no change.

    Raises UsageError where it no longer stands its checks.
    """
    import yaml

    from cmgr import review
    from cmgr.errors import UsageError

    prompt, answer = example.messages[-1].content, example.answer
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if editor:
        value = {"prompt": prompt, "answer": answer}
        told = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
        try:
            value = yaml.safe_load(_in_editor(editor, told))
            new_prompt, new_answer = str(value["prompt"]), str(value["answer"])
        except (yaml.YAMLError, KeyError, TypeError):
            raise UsageError("the text has no longer `prompt` and `answer`") from None
    else:
        new_prompt, new_answer = prompt, _line("answer: ", answer)
    if (new_prompt.strip(), new_answer.strip()) == (prompt.strip(), answer.strip()):
        return None
    return review.edited(ws, example, new_prompt, new_answer)


def _in_editor(editor: str, text: str) -> str:
    """A text as it is after the person's editor. Raises UsageError where the editor fails."""
    from cmgr.errors import UsageError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise UsageError(f"the editor {editor!r} failed: {error}") from None
        return path.read_text(encoding="utf-8")


def _line(ask: str, old: str = "") -> str:
    from prompt_toolkit import prompt

    try:
        return str(prompt(ask, default=old)).strip()
    except (EOFError, KeyboardInterrupt):
        return old


def _report(ws: Workspace, found: list[Item], json: bool) -> None:
    from cmgr import review

    counts: dict[str, dict[str, int]] = {}
    for item in found:
        of = counts.setdefault(item.example.culture, {})
        of[item.example.review] = of.get(item.example.review, 0) + 1
    rates: dict[str, Any] = {
        culture: review.error_rate(ws, [i.example for i in found if i.example.culture == culture])
        for culture in counts
    }
    agreed = review.agreement(ws)
    if json:
        for culture, of in counts.items():
            emit_json({"culture": culture, **of, "unreviewed_error_rate": rates[culture]})
        for row in agreed:
            emit_json(row)
        return
    names = ("pending", "accepted", "edited", "rejected")
    rows = [
        (culture, *(of.get(name, 0) for name in names), review.told(rates[culture]))
        for culture, of in counts.items()
    ]
    table("Review", ("culture", *names, "faulty among the rest"), rows)
    for row in agreed:
        value = "-" if row["kappa"] is None else f"{row['kappa']:.2f}"
        say(
            f"{' and '.join(row['reviewers'])}: {row['examples']} examples of both, "
            f"{row['agreed']:.0%} alike, Cohen's kappa {value}"
        )
