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

from cmgr.errors import UsageError

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


def columns_of(mapped: str) -> dict[str, str]:
    """What `--map COLUMN=FIELD,...` says, by field. Raises UsageError."""
    pairs = [pair.partition("=") for pair in mapped.split(",") if pair.strip()]
    if any(not (column.strip() and field.strip()) for column, _, field in pairs):
        raise UsageError(f"--map {mapped!r}: write COLUMN=FIELD,COLUMN=FIELD")
    return {field.strip(): column.strip() for column, _, field in pairs}


def say(text: str = "", faint: bool = False) -> None:
    """A line for a person, on stderr: harmless for a terminal; dim where colour is welcome."""
    shown = plain(text)
    if faint and is_terminal(sys.stderr) and not os.environ.get("NO_COLOR"):
        shown = f"\x1b[2m{shown}\x1b[0m"
    print(shown, file=sys.stderr, flush=True)


def out(text: str) -> None:
    """A line of data, on stdout."""
    print(text, flush=True)


def emit_json(value: Any) -> None:
    """One JSON line on stdout."""
    emit_line(json.dumps(value, ensure_ascii=False))


def emit_line(text: str) -> None:
    """A JSON line on stdout, escaped."""
    out(escaped(text))


def escaped(json_text: str) -> str:
    """JSON in which what `plain` replaces, and JSON lets through, is escaped too."""
    return "".join(f"\\u{ord(c):04x}" if _harmful(c) else c for c in json_text)


def is_tty(stream: Any) -> bool:
    """Whether a person may sit at a stream (None where the shell has closed it)."""
    return stream is not None and bool(stream.isatty())


def is_terminal(stream: Any) -> bool:
    """Whether colour and live progress are welcome on a stream."""
    return is_tty(stream) and os.environ.get("TERM") != "dumb"


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


def valid(text: str) -> str:
    """Typed text without the surrogates that stand for bytes that were no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Wrap:
    """Streamed text made `plain`, and broken between words at the terminal's edge.

    A word is held back until its end is known. Characters two columns wide are words of their own.
    """

    def __init__(self) -> None:
        self._column = 0
        self._gap = self._word = ""  # not shown yet: spaces, and the word after them

    def __call__(self, piece: str) -> str:
        """What can be shown once `piece` is there."""
        shown = ""
        for c in plain(piece.replace("\t", "    ")):
            wide = _cells(c) == 2
            if wide or c.isspace():
                shown += self.rest()
            if c == "\n":
                shown, self._gap, self._column = shown + c, "", 0
            elif c.isspace():
                self._gap += c
            else:
                self._word += c
            if wide:
                shown += self.rest()
        return shown

    def rest(self) -> str:
        """The word that was held back, on a line of its own where this one is full."""
        if not self._word:
            return ""
        width, between = _cells(self._word), self._gap
        if self._column and self._column + len(between) + width > _columns():
            between, self._column = "\n", 0
        else:
            self._column += len(between)
        text = between + self._word
        self._column += width
        self._gap = self._word = ""
        return text


def _columns() -> int:
    """The terminal's width now; endless where it is not known."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or sys.maxsize
    except OSError:
        return sys.maxsize


def _cells(text: str) -> int:
    """How many columns a text takes: 2 for a wide character, none for a mark over another."""
    wide = sum(unicodedata.east_asian_width(c) in {"W", "F"} for c in text)
    return wide + sum(unicodedata.category(c) not in {"Mn", "Me", "Cf"} for c in text)


def _harmful(c: str) -> bool:
    if c in "\n\t":
        return False
    return unicodedata.category(c) in {"Cc", "Cs"} or c in TURNING
