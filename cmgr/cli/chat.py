"""`cmgr chat`: one prompt, a batch of prompts, or a session."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmgr.cli.console import (
    JsonOption,
    WorkspaceOption,
    Wrap,
    emit_json,
    emit_line,
    is_tty,
    out,
    plain,
    progress,
    say,
    valid,
)
from cmgr.errors import MissingError, PartialError, UsageError

if TYPE_CHECKING:
    from cmgr.conversation import Conversation
    from cmgr.records import Answer
    from cmgr.workspace import Workspace


def command(
    text: Annotated[str | None, typer.Argument(help="One prompt, as -p")] = None,
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
    blend: Annotated[
        str | None,
        typer.Option("--blend", help="Several at once: japan=0.6,brazil=0.4, or auto (the router)"),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message")] = None,
    go_on: Annotated[
        bool, typer.Option("-c", "--continue", help="Go on with the last thread")
    ] = False,
    no_log: Annotated[bool, typer.Option("--no-log", help="Keep nothing of this thread")] = False,
    batch: Annotated[
        str | None,
        typer.Option("--batch", help="Answer a file of JSON lines ('-' is stdin); see README"),
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="Where a batch's answers go ('-' is stdout)")
    ] = "-",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="The answer's length at most")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="For a temperature above 0")] = 0,
    passages: Annotated[
        int | None,
        typer.Option(
            "--passages",
            min=0,
            max=10,
            help="Passages of a culture before a question [default: answer.passages]",
        ),
    ] = None,
    no_passages: Annotated[
        bool, typer.Option("--no-passages", help="None: the adapters answer from their weights")
    ] = False,
    several: Annotated[
        str | None,
        typer.Option(
            help="A prompt of several cultures: parts (each answers), blend (together), best "
            "(the likeliest) [default: answer.several]"
        ),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option("--from", help="With --to: the culture that a message comes from"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--to", help="Explain a message of --from, and write it for this culture"),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="How choices are scored: mean, sum, pmi, contrast [default: answer.score]"
        ),
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask the base and its adapters."""
    from cmgr.conversation import parse_blend
    from cmgr.workspace import Workspace

    if (culture is not None) + base + auto_route + (blend is not None) > 1:
        raise UsageError("choose one of --culture, --base, --auto-route and --blend")
    if text is not None and prompt is not None:
        raise UsageError("one prompt: TEXT or -p, not both")
    prompt = text if prompt is None else prompt
    if (origin is None) != (target is None):
        raise UsageError("--from and --to go together: whose the message is, and who shall read it")
    if origin and origin == target:
        raise UsageError("--from and --to name two cultures")
    if origin and (batch is not None or go_on or culture or base or auto_route or blend):
        raise UsageError("--from and --to take one message: leave other modes, --batch and -c out")
    if batch is not None and (prompt is not None or go_on or system is not None):
        raise UsageError("--batch takes its prompts from a file: leave -p, -c and --system out")
    if output != "-" and batch is None:
        raise UsageError("-o is for --batch; a single answer goes to stdout: cmgr chat -p ... > F")
    if passages and no_passages:
        raise UsageError("choose one of --passages and --no-passages")
    if score is not None:
        from cmgr.scoring import check_score

        check_score(score)
    if several is not None:
        from cmgr.several import check_several

        check_several(several)
    count = 0 if no_passages else passages
    ws = Workspace.find(workspace, say)
    scales = parse_blend(blend) if blend not in {None, "auto"} else None
    if culture:
        mode = culture
    elif base:
        mode = "base"
    elif origin:
        mode = origin
    elif blend:
        mode = "blend"
    elif auto_route or ws.path("router", "router.json").exists():
        mode = "auto"
    else:
        say("no router yet (cmgr route --fit): the base answers")
        mode = "base"
    if batch is not None:
        _batch(
            ws, batch, output, mode, scales, max_tokens, temperature, seed, count, score, several
        )
        return
    session = prompt is None and is_tty(sys.stdin) and not origin
    if not session and prompt in {None, "-"}:
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if not session and not (prompt or "").strip():
        raise UsageError("an empty prompt: give -p TEXT, or text on stdin")

    from cmgr.conversation import Conversation

    with closing(Conversation(ws, mode, scales, not no_log, count, several)) as talk:
        if go_on:
            say(f"going on after {talk.resume()} turn(s)")
        talk.system = talk.system if system is None else valid(system)
        ask = Asker(talk, max_tokens, temperature, seed, json)
        if origin and target:
            ask.carry(prompt or "", origin, target)
        elif session:
            from cmgr.cli.session import run

            run(ask, keep_history=not no_log)
        else:
            ask(prompt or "")


class Asker:
    """Asks one turn of a thread and shows its answer."""

    def __init__(
        self, talk: Conversation, max_tokens: int, temperature: float, seed: int, json: bool
    ) -> None:
        self.talk = talk
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        self.json = json

    def __call__(self, text: str) -> None:
        """The answer on stdout (live on a terminal); who gave it on stderr."""
        live = is_tty(sys.stdout) and not self.json
        wrap, said = Wrap(), ""
        stream = self.talk.ask(
            valid(text), max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed
        )
        try:
            with closing(stream):
                for piece in stream:
                    piece = piece if said else piece.lstrip()
                    said += piece
                    if live:
                        print(wrap(piece), end="", flush=True)
        finally:
            if live and said:  # also what was said of an answer that is stopped
                print(wrap.rest(), flush=True)
        assert self.talk.last is not None
        if self.json:
            emit_json(self.talk.last.model_dump())
            return
        if not live:
            out(plain(said.strip()))
        say(who(self.talk.last), faint=True)
        for line in sources(self.talk.last):
            say(line, faint=True)

    def carry(self, text: str, origin: str, target: str) -> None:
        """A message for another culture on stdout; on stderr what it means where it comes from."""
        settings = {"max_tokens": self.max_tokens, "seed": self.seed}
        stream = self.talk.carry(
            valid(text), origin, target, temperature=self.temperature, **settings
        )
        for answer in stream:
            if self.json:
                emit_json(answer.model_dump())
                continue
            if answer.culture == origin:
                name = self.talk.ws.recipe.culture(origin).name
                say(f"What it means in {name}: {plain(answer.response)}")
            else:
                out(plain(answer.response))
            say(who(answer), faint=True)


def who(answer: Answer) -> str:
    """Who answered, and how sure the router was: `[japan 0.93]`, `[base; nearest: japan 0.31]`."""
    name = answer.adapter or "base"
    if answer.decided_by == "thread":
        return f"[{name}, as before]"
    if answer.probability is None:
        return f"[{name}]"
    if answer.culture is None and answer.probabilities:
        name += f"; nearest: {max(answer.probabilities, key=answer.probabilities.__getitem__)}"
    return f"[{name} {answer.probability:.2f}]"


def sources(answer: Answer) -> list[str]:
    """What an answer rests on, a line each: the passages it follows, what it read besides, and

    what it says that is in none of them.
    """
    if not answer.sources:
        return []
    lines = []
    for source in answer.sources:
        if source.sentence:
            lines.append(f"  [{source.number}] {source.title} · {source.url}")
            lines.append(f"      “{source.sentence}”")
    besides = [f"[{s.number}] {s.title}" for s in answer.sources if not s.sentence]
    if besides:
        lines.append(f"  {'also read' if lines else 'read'}: {'; '.join(besides)}")
    own = [claim.sentence for claim in answer.claims if claim.source is None]
    if own:
        lines.append("  in none of them: " + " ".join(f"“{sentence}”" for sentence in own))
    return lines


def _batch(
    ws: Workspace,
    source: str,
    target: str,
    mode: str,
    scales: dict[str, float] | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    passages: int | None,
    score: str | None,
    several: str | None,
) -> None:
    from cmgr.batch import read_lines, run
    from cmgr.conversation import Routes

    asked, answers = Path(source), Path(target)
    if source != "-" and not asked.exists():
        raise MissingError(f"{source}: no such file")
    if source != "-" and target != "-" and answers.exists() and answers.samefile(asked):
        raise UsageError(f"--batch and -o both name {source}: give the answers another file")
    if target != "-" and answers.exists() and not answers.is_file():
        # it would be replaced at the end, be it /dev/null
        raise UsageError(f"-o {target}: not a file; -o - writes to stdout")
    routes = Routes(ws, mode, scales, several)
    lines = read_lines(None if source == "-" else asked)
    with progress() as show:
        total, failed = run(
            ws,
            lines,
            emit_line if target == "-" else answers,
            routes,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            passages=passages,
            score=score,
            progress=show,
        )
    if failed:
        where = "its answer" if target == "-" else target
        raise PartialError(f"{failed} of {total} lines failed; each says why in `error` ({where})")
