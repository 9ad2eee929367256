"""`cmgr chat`: one prompt, piped prompts, or a session."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cmgr.cli.console import JsonOption, WorkspaceOption, emit_json, out, plain, say
from cmgr.errors import CmgrError, UsageError
from cmgr.workspace import Workspace

if TYPE_CHECKING:
    from cmgr.conversation import Conversation

HELP = "/culture NAME, /auto, /base, /help; Ctrl-C stops an answer, Ctrl-D leaves"


def command(
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="One prompt ('-' reads stdin)")
    ] = None,
    culture: Annotated[
        str | None, typer.Option("--culture", help="This culture's adapter answers")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="The bare base answers")] = False,
    auto_route: Annotated[
        bool, typer.Option("--auto-route", help="The router decides [default when there is one]")
    ] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="The answer's length at most")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="For a temperature above 0")] = 0,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask the base and its adapters."""
    from cmgr.conversation import Conversation

    if (culture is not None) + base + auto_route > 1:
        raise UsageError("choose one of --culture, --base and --auto-route")
    ws = Workspace.find(workspace, say)
    if culture:
        mode = culture
    elif base:
        mode = "base"
    elif auto_route or ws.path("router", "router.json").exists():
        mode = "auto"
    else:
        say("no router yet (cmgr route --fit): the base answers")
        mode = "base"
    if prompt is None and sys.stdin.isatty():
        _session(Conversation(ws, mode), max_tokens, temperature, seed)
        return
    if prompt is None or prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if not prompt:
        raise UsageError("an empty prompt: give -p TEXT, or text on stdin")
    _answer(Conversation(ws, mode), prompt, max_tokens, temperature, seed, json)


def _answer(
    talk: Conversation, text: str, max_tokens: int, temperature: float, seed: int, json: bool
) -> None:
    live = sys.stdout.isatty() and not json
    pieces = []
    for piece in talk.ask(text, max_tokens=max_tokens, temperature=temperature, seed=seed):
        pieces.append(piece)
        if live:
            print(plain(piece), end="", flush=True)
    assert talk.last is not None
    if json:
        emit_json(talk.last.model_dump())
        return
    if live:
        print(flush=True)
    else:
        out("".join(pieces).strip())
    who = talk.last.adapter or "base"
    sure = f" {talk.last.probability:.2f}" if talk.last.probability is not None else ""
    say(f"[{who}{sure}]")


def _session(talk: Conversation, max_tokens: int, temperature: float, seed: int) -> None:
    say(f"cmgr chat over {talk.ws.recipe.base.model}, mode {talk.mode}. {HELP}")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say()
            continue
        if not text:
            continue
        try:
            if text.startswith("/"):
                _slash(talk, text)
            else:
                _answer(talk, text, max_tokens, temperature, seed, json=False)
        except KeyboardInterrupt:
            say("\n[stopped]")
        except CmgrError as error:
            say(f"cmgr: {error}")


def _slash(talk: Conversation, text: str) -> None:
    word, _, argument = text[1:].partition(" ")
    if word == "culture" and argument.strip():
        talk.set_mode(argument.strip())
    elif word in {"auto", "base"}:
        talk.set_mode(word)
    elif word == "help":
        say(HELP)
        return
    else:
        raise UsageError(f"no command {text!r}. {HELP}")
    say(f"mode {talk.mode}")
