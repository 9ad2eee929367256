"""The session of `cmgr chat`: a line to write on, and slash commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmgr.cli.console import emit_json, escaped, is_terminal, is_tty, out, plain, say, valid
from cmgr.conversation import MODES, adapter_name, parse_blend
from cmgr.errors import CmgrError, UsageError, unless_read_only
from cmgr.records import Answer, json_lines

if TYPE_CHECKING:
    from cmgr.cli.chat import Asker

# command -> what follows it, what it does
COMMANDS = {
    "culture": ("NAME", "this culture's adapter answers from now on"),
    "auto": ("", "the router decides each turn"),
    "base": ("", "the bare base answers"),
    "blend": ("[LIST]", "several at once: japan=0.6,brazil=0.4; or the router's"),
    "compare": ("[TEXT]", "base and likely cultures side by side; or the last turn"),
    "choose": ("A | B", "how likely each of these answers is to the last turn"),
    "why": ("", "the n-grams that decided the last turn"),
    "system": ("[TEXT]", "set the system message, or take it away"),
    "undo": ("", "take the last turn back"),
    "save": ("FILE", "write the thread (.jsonl: records, else Markdown)"),
    "status": ("", "what is loaded and kept in memory"),
    "help": ("", "this list"),
    "quit": ("", "leave (or Ctrl-D)"),
}
NARROW = 26  # columns: side by side only where each answer has at least so many


def run(ask: Asker, keep_history: bool) -> None:
    """Read turns until Ctrl-D. Ctrl-C stops an answer, or clears the line."""
    talk = ask.talk
    capable = is_terminal(sys.stderr) and os.environ.get("TERM", "") != ""
    read = _editor(ask, keep_history) if capable else _line
    mode = f"mode {talk.routes}"
    say(f"cmgr chat over {talk.ws.recipe.base.model}, {mode}. /help; Ctrl-D leaves", faint=True)
    with _silent_keys(capable):
        while True:
            try:
                text = valid(read()).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    slash(ask, text)
                elif text:
                    ask(text)
            except KeyboardInterrupt:
                say("[stopped]", faint=True)
            except CmgrError as error:
                say(f"cmgr: {error}")
            except OSError as error:  # a full disk, say: the thread in memory goes on
                say(f"cmgr: {error.filename or 'the system'}: {error.strerror}")


@contextmanager
def _silent_keys(wanted: bool) -> Iterator[None]:
    """What is typed while an answer is written waits for the next line, and does not mix into it.

    prompt_toolkit comes back to this state of the terminal after each line.
    """
    if not wanted or sys.platform == "win32":
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = before[:]
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _line() -> str:
    """A line from a terminal that can do nothing else. Raises EOFError."""
    print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.buffer.readline()
    except KeyboardInterrupt:
        say()
        raise
    if not line:
        say()
        raise EOFError
    return line.decode("utf-8", "replace")


def _editor(ask: Asker, keep_history: bool) -> Callable[[], str]:
    """A line to edit, with history and completion. It writes to stderr."""

    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent
    from prompt_toolkit.output import create_output

    cultures = [culture.id for culture in ask.talk.ws.recipe.cultures]

    class Slash(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            for word, start, meta in complete(document.text_before_cursor, cultures):
                yield Completion(word, start, display_meta=meta)

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with unless_read_only():  # of such a place the thread's log speaks
                path.parent.mkdir(parents=True, exist_ok=True)
                super().store_string(valid(string))

    path = ask.talk.ws.path("logs", "chat", "history")
    history: History = Kept(path) if keep_history else InMemoryHistory()
    session: PromptSession[str] = PromptSession(
        "> ",
        prompt_continuation="  ",
        history=history,
        completer=Slash(),
        complete_while_typing=False,
        search_ignore_case=True,
        enable_suspend=True,
        key_bindings=keys,
        output=create_output(stdout=sys.stderr),
    )
    return session.prompt


def complete(text: str, cultures: list[str]) -> Iterator[tuple[str, int, str]]:
    """What can follow `text`: (word, where it begins counted back from the end, a remark)."""
    if not text.startswith("/") or "\n" in text:
        return
    word, space, rest = text[1:].partition(" ")
    if not space:
        for name, (_, what) in COMMANDS.items():
            if name.startswith(word):
                yield name, -len(word), what
    elif word in {"culture", "blend"}:
        last = (rest.rpartition(",")[2] if word == "blend" else rest).lstrip()
        for culture in cultures:
            if culture.startswith(last) and culture != last:
                yield culture + ("=" if word == "blend" else ""), -len(last), ""


def slash(ask: Asker, text: str) -> None:
    """Do one slash command. Raises UsageError for one that does not exist."""
    word, _, argument = text[1:].partition(" ")
    argument = argument.strip()
    if word not in COMMANDS:
        raise UsageError(f"no command {'/' + word!r}: see /help; a turn does not begin with /")
    if COMMANDS[word][0] in {"NAME", "FILE"} and not argument:
        raise UsageError(f"/{word} wants {COMMANDS[word][0]}: see /help")
    if argument and not COMMANDS[word][0]:
        raise UsageError(f"/{word} takes nothing after it: see /help")
    talk = ask.talk
    if word == "help":
        _help()
    elif word == "culture":
        if argument in MODES:
            raise UsageError(f"{argument} is no culture: /{argument}")
        talk.set_mode(argument)
    elif word in {"auto", "base"}:
        talk.set_mode(word)
    elif word == "blend":
        talk.set_mode("blend", parse_blend(argument) if argument not in {"", "auto"} else None)
    elif word == "compare":
        _compare(ask, argument)
    elif word == "choose":
        _choose(ask, argument)
    elif word == "why":
        _why(ask)
    elif word == "system":
        talk.system = argument
        say("system message set" if argument else "no system message", faint=True)
    elif word == "undo":
        undone = talk.undo()
        say("the last turn is taken back" if undone else "there is no turn to take back", True)
    elif word == "save":
        _save(ask, Path(argument).expanduser())
    elif word == "status":
        _status(ask)
    if word in {"culture", "auto", "base", "blend"}:
        say(f"mode {talk.routes}", faint=True)


def _help() -> None:
    for name, (argument, what) in COMMANDS.items():
        say(f"  {f'/{name} {argument}'.strip():<18} {what}")
    say("  Alt-Enter: a new line; Ctrl-R: search the history; Ctrl-C: stop an answer")


def _compare(ask: Asker, text: str) -> None:
    talk = ask.talk
    text = text or (talk.last.prompt if talk.last else "")
    if not text:
        raise UsageError("/compare wants TEXT: there is no turn yet")
    # the last turn is asked anew as if it had not been answered yet
    again = [talk.answers.pop()] if talk.answers and talk.answers[-1].prompt == text else []
    try:
        answers = list(
            talk.compare(
                text, max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed
            )
        )
    finally:
        talk.answers += again
    if ask.json:
        for answer in answers:
            emit_json(answer.model_dump())
    else:
        show_side_by_side(answers)


def _choose(ask: Asker, text: str) -> None:
    """The options on stdout, the likeliest first."""
    found = ask.talk.choose([option.strip() for option in text.split("|")])
    if ask.json:
        emit_json({"choice_probabilities": found})
        return
    for option in sorted(found, key=lambda o: -found[o]):
        out(plain(f"{found[option]:.2f}  {option}"))


def show_side_by_side(answers: list[Answer]) -> None:
    """Columns where the terminal is wide enough, else one below the other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if is_tty(sys.stdout) else 120)
    heads = []
    for answer in answers:
        probability = (answer.probabilities or {}).get(answer.culture or "")
        heads.append(f"{answer.culture or 'base'} {probability or 0:.2f}".removesuffix(" 0.00"))
    if console.width // max(len(answers), 1) < NARROW:
        for head, answer in zip(heads, answers, strict=True):
            console.print(Text(f"[{head}]\n{plain(answer.response)}\n"))
        return
    view = Table(expand=True)
    for head in heads:
        view.add_column(head, ratio=1, overflow="fold")
    view.add_row(*(Text(plain(answer.response)) for answer in answers))
    console.print(view)


def _why(ask: Asker) -> None:
    last = ask.talk.last
    if last is None:
        raise UsageError("/why explains the last turn: there is none yet")
    router = ask.talk.routes.router()
    decision = router.decide(last.prompt)
    shown = ", ".join(f"{c} {p:.2f}" for c, p in decision.probabilities.items())
    say(f"the router: {decision.culture or 'abstains'} ({shown})")
    for culture, gram, weight in router.explain(last.prompt):
        say(f"  {weight:+.2f}  {culture:<12} {gram!r}")
    reasons = {
        "thread": f"it names no other culture clearly: the thread stays with {last.culture}",
        "user": f"you chose {last.adapter or 'base'}",
        "router": "the router decided",
    }
    say(reasons.get(str(last.decided_by), ""))
    for source in last.sources:
        say(f"  [{source.number}] {source.score:.2f}  {source.text}")
    for claim in last.claims:
        says = f"is in [{claim.source}]" if claim.source else "is in none of them"
        say(f"  “{claim.sentence}” {says}")


def _save(ask: Asker, path: Path) -> None:
    talk = ask.talk
    if path.suffix == ".jsonl":
        text = "".join(escaped(json_lines([answer]).rstrip()) + "\n" for answer in talk.answers)
    else:
        parts = [f"*{talk.system}*\n"] if talk.system else []
        for answer in talk.answers:
            parts.append(f"**you:** {answer.prompt}\n")
            parts.append(f"**{answer.adapter or 'base'}:** {answer.response}\n")
            parts += [f"> [{s.number}] {s.title}, {s.url}\n" for s in answer.sources if s.sentence]
        text = plain("\n".join(parts))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists: choose another name") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    say(f"{len(talk.answers)} turn(s) written to {path}", faint=True)


def _status(ask: Asker) -> None:
    talk = ask.talk
    loaded = ", ".join(
        f"{name} ({talk.runtime.model.kind(name)})" for name in talk.runtime.model.adapters
    )
    say(f"base      {talk.ws.recipe.base.model}, context {talk.runtime.context} tokens")
    say(f"mode      {talk.routes}")
    say(f"adapters  {loaded or 'none loaded yet'}")
    say(f"thread    {len(talk.answers)} turn(s)" + (", a system message" if talk.system else ""))
    for kept in talk.runtime.kept():
        reader = adapter_name(kept["adapters"]) or "the base"
        say(f"kept      {kept['tokens']} tokens read by {reader}, {kept['mb']} MB")
    last: Any = talk.last
    if last is not None and last.usage:
        say(
            f"last      {last.usage['prompt_tokens']} prompt tokens, "
            f"{last.usage['cached_tokens']} kept, {last.usage['completion_tokens']} written; "
            f"first token after {last.timings['first_token_ms']:.0f} ms"
        )
