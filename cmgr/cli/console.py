"""The one place that knows the terminal: stdout is for data, stderr for people."""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

# characters that turn the direction of what follows (Unicode Bidirectional Algorithm)
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
EVERY = 30  # seconds between lines of progress where there is no terminal

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("-w", "--workspace", help="Workspace folder [default: found from here upwards]"),
]
CultureOption = Annotated[
    list[str] | None, typer.Option("--culture", help="Only this culture (repeatable)")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines on stdout")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make it again even if up to date")]


def say(text: str = "") -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def out(text: str) -> None:
    """A line of data, on stdout."""
    print(text, flush=True)


def emit_json(value: Any) -> None:
    """One JSON line on stdout."""
    emit_line(json.dumps(value, ensure_ascii=False))


def emit_line(text: str) -> None:
    """A JSON line on stdout; control characters that JSON lets through are escaped too."""
    out("".join(f"\\u{ord(c):04x}" if "\x7f" <= c <= "\x9f" else c for c in text))


def is_terminal(stream: Any) -> bool:
    """Whether colour and live progress are welcome on a stream."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    """A remark for a person on stderr: dim where colour is welcome."""
    coloured = is_terminal(sys.stderr) and not os.environ.get("NO_COLOR")
    return f"\x1b[2m{text}\x1b[0m" if coloured else text


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of data on stdout; the first column is text, the others are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        view.add_column(column, justify="right" if number else "left")
    for row in rows:
        view.add_row(*(Text(str(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(view)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of long work on stderr: a live bar on a terminal, else a line now and then."""
    if is_terminal(sys.stderr):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars
        from rich.text import Text

        class Rate(TextColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.1f}/s" if task.speed else "")

        with Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Rate(""),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bars:
            tasks: dict[str, Any] = {}

            def show(label: str, done: int, total: int) -> None:
                name = label.partition(" · ")[0]
                if name not in tasks:
                    tasks[name] = bars.add_task(label, total=total)
                bars.update(tasks[name], completed=done, total=total, description=label)

            yield show
    else:
        began: dict[str, tuple[float, int]] = {}
        said: dict[str, float] = {}

        def tell(label: str, done: int, total: int) -> None:
            now = time.monotonic()
            name = label.partition(" · ")[0]
            start, first = began.setdefault(name, (now, done))
            if done == total:
                say(f"{label}: {done}/{total}")
            elif done > first and now - said.setdefault(name, start) >= EVERY:
                said[name] = now
                rate = (done - first) / (now - start)
                say(f"{label}: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")

        yield tell


def plain(text: str) -> str:
    """Text with control characters and escape sequences made harmless for a terminal.

    Joiners and spaces of other scripts stay; what turns the direction of a whole line does not.
    """
    return "".join("�" if _harmful(c) else c for c in text)


def _harmful(c: str) -> bool:
    if c in "\n\t":
        return False
    return unicodedata.category(c) in {"Cc", "Cs"} or c in TURNING
