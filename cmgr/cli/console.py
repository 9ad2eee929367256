"""The one place that knows the terminal: stdout is for data, stderr for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

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
    out(json.dumps(value, ensure_ascii=False))


def is_terminal(stream: Any) -> bool:
    """Whether colour and live progress are welcome on a stream."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


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
    """Progress of long work on stderr: a live bar on a terminal, else a line per finished part."""
    if is_terminal(sys.stderr):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        with Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
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

        def tell(label: str, done: int, total: int) -> None:
            if done == total:
                say(f"{label}: {done}/{total}")

        yield tell


def plain(text: str) -> str:
    """Text with control characters and escape sequences made harmless for a terminal."""
    return "".join(c if c in "\n\t" or (c.isprintable()) else "�" for c in text)
