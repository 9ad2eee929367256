"""`cmgr chat` on a real terminal: the line, slash commands, keys, and what reaches the screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import cmgr

pytestmark = pytest.mark.model

CHAT = "from cmgr.cli.app import main; main()"
ESSAY = "Write a long essay about festivals in Brazil."
UP, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R = "\x1b[A", "\x1b\r", "\x03", "\x04", "\x12"


def _take_terminal() -> None:
    """What a terminal does for its first process; a job in the background ignores Ctrl-C."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process with a terminal of its own: what it shows, and keys for it."""

    def __init__(
        self, *words: str, cwd: Path, columns: int = 80, term: str = "xterm", code: str = CHAT
    ) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        # no cursor position requests: nobody here would answer them
        env = {**os.environ, "TERM": term, "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={k: v for k, v in env.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}},
        )
        os.close(slave)
        self.raw = b""
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was shown, without the escape sequences of a terminal."""
        shown = self.raw.decode("utf-8", "replace")
        return re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[^\[])|\r", "", shown)

    def _more(self, until: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, until - time.monotonic()))
        try:
            data = os.read(self.master, 65536) if ready else b""
        except OSError:  # the process is gone
            data = b""
        self.raw += data
        return bool(data)

    def until(self, pattern: str) -> str:
        """Wait until a pattern is shown after what was waited for before; returns what came."""
        end = time.monotonic() + 60
        while not (found := re.compile(pattern, re.S).search(self.text, self._seen)):
            assert self._more(end), f"no {pattern!r} in {self.text[self._seen :]!r}"
        came, self._seen = self.text[self._seen : found.end()], found.end()
        return came

    def keys(self, *keys: str | bytes) -> None:
        """Press keys; each argument comes alone, as from a hand."""
        for key in keys:
            os.write(self.master, key if isinstance(key, bytes) else key.encode())
            time.sleep(0.05)

    def leaves(self, code: int = 0) -> str:
        """Wait for the end of the process; returns all that was shown."""
        end = time.monotonic() + 60
        while self._more(end):
            pass
        os.close(self.master)
        assert self.process.wait(timeout=10) == code, self.text
        assert "Traceback" not in self.text and "unexpected" not in self.text
        return self.text


@pytest.fixture
def ws(trained: Path, tmp_path: Path) -> Path:
    """A workspace that nobody else writes to."""
    return Path(shutil.copytree(trained, tmp_path / "small", ignore=shutil.ignore_patterns("logs")))


def prompts(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def test_the_line_completes_searches_and_remembers(ws: Path) -> None:
    """Tab, Alt-Enter, a paste of lines, Ctrl-R then Enter, bytes that are no UTF-8, up arrow."""
    here = Terminal("chat", "--max-tokens", "2", cwd=ws)
    here.until("Ctrl-D leaves")
    here.keys("/cu", "\t", " ja", "\t", "\r")
    here.until(r"mode japan\n")
    here.keys("/blend japan=0.6, br", "\t", "0.4", "\r")
    here.until(r"mode japan=0.6,brazil=0.4\n")
    here.keys("Hello", ALT_ENTER, "you", "\r")
    here.until(r"\[japan=0.6,brazil=0.4\]")
    here.keys("\x1b[200~x /a\npasted\n/quit\x1b[201~", "\r")
    here.until(r"\[japan=0.6,brazil=0.4\]")
    here.keys(CTRL_R, "HELLO", "\r", "\r")
    here.until(r"\[japan=0.6,brazil=0.4\]")
    here.keys(b"\xff no UTF-8", "\r")
    here.until(r"\[japan=0.6,brazil=0.4\]")
    here.keys("/save thread.jsonl", "\r")
    here.until("4 turn.s. written")
    here.keys("half a line", CTRL_C)
    here.keys(CTRL_D)
    here.leaves()
    expected = ["Hello\nyou", "x /a\npasted\n/quit", "Hello\nyou", "� no UTF-8"]
    assert prompts(ws / "thread.jsonl") == expected

    again = Terminal("chat", "--max-tokens", "2", "-c", "--no-log", "--base", cwd=ws)
    again.until(r"going on after 4 turn.*Ctrl-D leaves")
    again.keys(UP, "not kept", "\r")
    again.until(r"\[base\]")
    again.keys("/save again.jsonl", "\r")
    again.until("5 turn.s. written")
    again.keys(CTRL_D)
    again.leaves()
    assert prompts(ws / "again.jsonl")[-1] == "not kept", "--no-log reads no history either"

    third = Terminal("chat", "--max-tokens", "2", "--base", cwd=ws)
    third.until("Ctrl-D leaves")
    third.keys(UP, UP, "\r")  # the last line but one: the first session's, not the second's
    third.until(r"\[base\]")
    third.keys("/save third.jsonl", "\r")
    third.until("1 turn.s. written")
    third.keys("/quit", "\r")
    third.leaves()
    assert prompts(ws / "third.jsonl") == ["� no UTF-8"]


def test_ctrl_c_stops_the_answer_and_typing_does_not_mix_into_it(ws: Path) -> None:
    here = Terminal("chat", "--max-tokens", "400", "--base", cwd=ws)
    here.until("Ctrl-D leaves")
    here.keys(ESSAY, "\r")
    here.until(r"in Brazil\.\s+\w+ \w+ \w+")
    here.keys("TYPED", CTRL_C)
    said = here.until(r"\[stopped\]\n")
    assert "TYPED" not in said and "^C" not in said
    here.keys(CTRL_C)  # at an empty prompt: nothing
    here.keys("/status", "\r")
    here.until(r"1 turn\(s\)")
    here.keys("/compare " + ESSAY, "\r")
    here.keys(CTRL_C, CTRL_C, CTRL_C)
    here.until(r"\[stopped\]\n")
    here.keys(CTRL_D)
    here.leaves()


def test_a_session_on_a_dumb_terminal(ws: Path) -> None:
    """Every kind of wrong command leaves the session as it was; nothing steers the terminal."""
    here = Terminal("chat", "--max-tokens", "4", cwd=ws, term="dumb")
    here.until("Ctrl-D leaves\n> ")
    here.keys("half", CTRL_C)
    here.until(r"\^C\n> ")
    for line, says in (
        ("How do people greet in Brazil?", r"\[brazil \d"),
        ("q", r"\[(base; nearest: \w+ \d|brazil, as before)"),
        ("/culture peru", "cmgr: no culture 'peru'.*japan, brazil, germany"),
        ("/blend japan", "cmgr: blend 'japan': write NAME=SCALE"),
        ("/base What is it?", "cmgr: /base takes nothing after it"),
        ("/quit now", "cmgr: /quit takes nothing after it"),
        ("/save", "cmgr: /save wants FILE"),
        ("/save recipe.yaml", "cmgr: recipe.yaml exists"),
        ("/save /none\x1b[31m\x9b/x.md", "cmgr: /none�.31m�/x.md: No such file"),
        ("/nope", "cmgr: no command '/nope'"),
        ("/culture japan", "\nmode japan"),
        ("Hello\x1b[31m", r"\n\[japan\]"),
        ("/why", "you chose japan"),
        ("/undo", "taken back"),
        ("Hello\x1b[31m", r"\n\[japan\]"),
        ("/save thread.md", "3 turn.s. written"),
    ):
        here.keys(line + "\n")
        here.until(says)
        here.until("\n> ")
    here.keys(b"no UTF-8: \xff\n")
    here.until(r"\n\[japan\]\n> ")
    shutil.rmtree(ws / "logs" / "chat")
    (ws / "logs" / "chat").touch()
    here.keys("Where to?\n")
    here.until(r"\ncmgr: .*logs/chat.*\n> ")
    here.keys("/help\n")
    table = here.until(r"Ctrl-C: stop an answer\n> ")
    assert max(map(len, table.splitlines())) < 80
    here.keys(CTRL_D)
    here.leaves()
    assert b"\x1b" not in here.raw and b"\xc2\x9b" not in here.raw.replace(b"\x9b/x.md\r", b"")
    assert "\x1b" not in (ws / "thread.md").read_text()


def test_an_answer_breaks_between_words(trained: Path) -> None:
    one = ["chat", "-p", ESSAY, "--base", "--max-tokens", "60", "--no-log"]
    whole = cmgr(*one, cwd=trained).stdout
    here = Terminal(*one, cwd=trained, columns=30)
    lines = here.leaves().removesuffix("[base]\n").splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 30
    assert " ".join(lines).split() == whole.split()


def test_wide_characters_break_at_the_edge_too(tmp_path: Path) -> None:
    text = "東京の人は、お辞儀をして挨拶します。 Tokyo e\u0301té 東京タワー 👋🏽 " * 3 + "x" * 50
    code = (
        "import sys\nfrom cmgr.cli.console import Wrap\nwrap = Wrap()\n"
        "print(''.join(map(wrap, sys.argv[1])) + wrap.rest())"
    )
    shown = Terminal(text, cwd=tmp_path, columns=21, code=code).leaves()
    lines = shown.splitlines()
    assert "".join(shown.split()) == "".join(text.split())
    widths = [sum(1 + (c > "\u3000") for c in line if c != "\u0301") for line in lines]
    assert all(w <= 21 for w in widths[:-1]) and min(widths[:-2]) > 13
