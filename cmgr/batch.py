"""A file of prompts answered: routed first, read together, appended as finished, in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cmgr import locks
from cmgr.base import base_of
from cmgr.conversation import Routes, describe
from cmgr.errors import CmgrError, UsageError
from cmgr.records import Answer, Decision, Message, Source, hash_file, json_lines, make_id
from cmgr.retrieval import answering
from cmgr.runtime.batch import Batch, Job, Outcome
from cmgr.runtime.choices import encode_choices
from cmgr.runtime.llama import Model
from cmgr.scoring import Reading, Scorer, messages_of, probabilities, temperatures, turns_of
from cmgr.several import join, prompts
from cmgr.workspace import Progress, Workspace, append_lines, write_atomic

VERSION = 1  # of what `made_from` is a hash of
WINDOW = 1024  # prompts that are read and answered together


class Line(BaseModel):
    """One line of input: a `prompt` or `messages`, and what overrides the command's options.

    `culture` null is the bare base; absent, the command's mode decides. Other keys are ignored.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | int | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    culture: str | None = None
    blend: dict[str, float] | None = None
    choices: list[str] = []
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=0)
    stop: str | list[str] = []

    @model_validator(mode="after")
    def _one_prompt(self) -> Line:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt, or messages, and not both")
        if not self.text.strip():
            raise ValueError("the prompt is empty")
        if self.choices and (not all(self.choices) or len(set(self.choices)) < len(self.choices)):
            raise ValueError("choices must be different texts that are not empty")
        return self

    @property
    def text(self) -> str:
        """The turn that is routed: the prompt, or the last user message."""
        if self.prompt is not None:
            return self.prompt
        said = [m.content for m in self.messages or [] if m.role == "user"]
        return said[-1] if said else ""


def parse(lines: Iterable[bytes]) -> list[tuple[str, Line | str]]:
    """Each line that is not blank, as (id, line), or (id, what is wrong with it).

    A line without an id gets one from what it says. Of lines with one id the first keeps it, and
    no id that is made is one of the file's own.
    """
    found: list[tuple[str, bool, Line | str]] = []  # id, whether it is the line's own, line
    own: set[str] = set()
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        line: Line | str
        name: str | None = None
        try:
            data = json.loads(raw)
            if isinstance(data, dict) and isinstance(data.get("id"), str | int):
                name = str(data["id"]).encode("utf-8", "replace").decode()
            line = Line.model_validate_json(raw)
        except ValidationError as error:
            what = error.errors()[0]
            key = ".".join(str(p) for p in what["loc"])
            line = f"line {number}: {f'{key}: ' if key else ''}" + what["msg"].removeprefix(
                "Value error, "
            )
        except (ValueError, RecursionError):
            line = f"line {number}: not JSON"
        if name is None:
            digest = make_id("line", raw.decode("utf-8", "replace").strip())
            found.append((digest, False, line))
        elif name in own:
            found.append((name, False, f"line {number}: the id {name!r} is there twice"))
        else:
            own.add(name)
            found.append((name, True, line))
    taken, times = set(own), dict.fromkeys(own, 1)
    named: list[tuple[str, Line | str]] = []
    for name, is_own, line in found:
        unique = name
        while not is_own and unique in taken:
            times[name] = times.get(name, 1) + 1
            unique = f"{name}-{times[name]}"
        taken.add(unique)
        named.append((unique, line))
    return named


def run(
    ws: Workspace,
    lines: Iterable[bytes],
    out: Path | Callable[[str], None],
    routes: Routes,
    *,
    max_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    passages: int | None = None,
    score: str | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Answer each line; returns how many lines there are, and how many failed.

    `out` is a file, to which each answer is appended as it is finished, and which at the end is in
    the order of the input; an answer that it holds (without error) is kept where its `made_from`
    says that all that decides it is the same. Or it is a function that is given each answer's JSON
    in that order. `passages` of a culture go before each question, and `score` says how choices are
    scored, in place of what the recipe says. Raises CmgrError where another command writes to the
    file, and says which.
    """
    with locks.output(out, "cmgr chat --batch") if isinstance(out, Path) else nullcontext():
        sources, scorer = answering.Sources(ws, passages), Scorer(ws.recipe, score)
        settings = _Settings(ws, max_tokens, temperature, seed, sources, scorer)
        try:
            return _run(ws, parse(lines), out, routes, settings, progress)
        finally:
            settings.sources.close()


def _run(
    ws: Workspace,
    items: list[tuple[str, Line | str]],
    out: Path | Callable[[str], None],
    routes: Routes,
    settings: _Settings,
    progress: Progress | None,
) -> tuple[int, int]:
    kept = _kept(out) if isinstance(out, Path) else {}
    decisions: dict[str, Decision | None] = {}
    todo: list[_Turn] = []
    failed = changed = undated = 0
    store = _Store(out, [name for name, _ in items])
    for name, line in items:
        if isinstance(line, str):
            store.put(Answer(id=name, prompt="", culture=None, adapter=None, error=line))
            failed += 1
            continue
        turn = _decided(name, line, routes, decisions)
        settings.find(turn)
        old = kept.get(name)
        if old is None or old.error:
            todo.append(turn)
        elif old.made_from and old.made_from == settings.key_of(turn, old):
            store.have(_said_now(old, turn.record))
        else:
            todo.append(turn)
            changed += old.made_from is not None
            undated += old.made_from is None
    if kept and isinstance(out, Path) and todo:
        there = len(items) - len(todo) - failed
        ws.say(f"{out}: {there} answers are there, {len(todo)} to go{_why(changed, undated)}")
    done = len(items) - len(todo)
    if progress and items:
        progress("chat", done, len(items))
    for answer in _answers(ws, todo, routes, settings):
        store.put(answer)
        failed += answer.error is not None
        done += 1
        if progress:
            progress("chat", done, len(items))
    store.finish(kept)
    return len(items), failed


def _why(changed: int, undated: int) -> str:
    """Why answers that a file holds are made again."""
    found = []
    if changed:
        found.append(f"{changed} of these have other settings now (prompt, adapters, length ...)")
    if undated:
        found.append(f"{undated} of these were answered by a version that noted no settings")
    return "".join(f"; {reason}" for reason in found)


@dataclass
class _Turn:
    """A line, who answers it, and the record of its answer."""

    line: Line
    record: Answer
    scales: dict[str, float]
    found: list[Source] = field(default_factory=list)  # for it; the record has what fits
    parts: list[_Turn] = field(default_factory=list)  # of several cultures, each for itself
    readings: list[Reading] = field(default_factory=list)  # by which its choices are scored

    @property
    def messages(self) -> list[Message]:
        return self.line.messages or [Message(role="user", content=self.line.text)]

    @property
    def stop(self) -> list[str]:
        return [self.line.stop] if isinstance(self.line.stop, str) else self.line.stop


def _decided(name: str, line: Line, routes: Routes, decisions: dict[str, Decision | None]) -> _Turn:
    """Who answers a line; what was decided goes into its record."""
    record = Answer(id=name, prompt=line.text, culture=None, adapter=None)
    scales = _wanted(line)
    if scales is not None:
        describe(record, scales)
        record.decided_by = "user"
    else:
        if line.text not in decisions:
            decisions[line.text] = routes.decide(line.text)
        scales = routes.choose(record, decisions[line.text])
    turn = _Turn(line, record, scales)
    # options are chosen from by the likeliest culture
    routed = record.decided_by == "router" and not line.choices
    cultures = routes.parts(decisions[line.text]) if routed else []
    for culture, text in prompts(routes.ws.recipe, line.text, cultures).items():
        turn.parts.append(_part(turn, culture, text))
    return turn


def _part(turn: _Turn, culture: str, text: str) -> _Turn:
    """A line as it is put to one of the cultures that it means."""
    change: dict[str, object] = {"prompt": text}
    if turn.line.messages:
        at = max(n for n, m in enumerate(turn.line.messages) if m.role == "user")
        asked = Message(role="user", content=text)
        messages = [asked if n == at else m for n, m in enumerate(turn.line.messages)]
        change = {"messages": messages}
    record = Answer(id=turn.record.id, prompt=text, culture=culture, adapter=culture)
    record.decided_by = "router"
    return _Turn(turn.line.model_copy(update=change), record, {culture: 1.0})


def _said_now(old: Answer, record: Answer) -> Answer:
    """A kept answer with what the router says today."""
    said = {"probability", "probabilities"} | ({"culture", "adapter"} if not old.parts else set())
    now = record.model_dump(include=said)
    return old.model_copy(update=now)


class _Settings:
    """What the command says of every line, and the hash of all that decides an answer."""

    def __init__(
        self,
        ws: Workspace,
        max_tokens: int,
        temperature: float,
        seed: int,
        sources: answering.Sources,
        scorer: Scorer,
    ) -> None:
        self.ws = ws
        self.sources, self.scorer = sources, scorer
        self._names = {culture.id: culture.name for culture in ws.recipe.cultures}
        self.base = base_of(ws)
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        self._adapters: dict[str, str | None] = {}
        self._temperatures = temperatures(ws, scorer, self.base.fingerprint)

    def find(self, turn: _Turn) -> None:
        """Find the passages that go before a line's question (of each culture that it means)."""
        for part in turn.parts:
            self.find(part)
        if turn.parts:
            return
        said = [m.content for m in turn.messages[:-1] if m.role == "user"]
        turn.found = self.sources.of(turn.scales, turn.line.text, *said[-1:])
        turn.record.sources = list(turn.found)

    def fit(self, turn: _Turn, model: Model) -> None:
        """Leave passages out, the last ones first, until the prompt fits the context."""
        for part in turn.parts:
            self.fit(part, model)
        line = turn.line
        room = self.ws.recipe.base.context - len(model.invocation)
        room -= 0 if line.choices else min(line.max_tokens or self.max_tokens, room // 4)

        def fits() -> bool:
            try:
                return len(model.prompt_tokens(self.job(turn).messages)) <= room
            except UsageError:  # for the runtime to say
                return True

        answering.leave_out(turn.record.sources, fits)

    def job(self, turn: _Turn) -> Job:
        """A line as the batch runtime takes it."""
        line = turn.line
        return Job(
            answering.before(turn.messages, turn.record.sources, self._names),
            turn.scales,
            line.choices,
            line.max_tokens or self.max_tokens,
            self.temperature if line.temperature is None else line.temperature,
            self.seed if line.seed is None else line.seed,
            turn.stop,
        )

    def jobs(self, turn: _Turn) -> list[Job]:
        """What is computed for a line: an answer, or the readings that its choices take."""
        if turn.parts:
            return [self.job(part) for part in turn.parts]
        job = self.job(turn)
        if not job.choices:
            return [job]
        turn.readings = self.scorer.readings(
            turns_of(job.messages),
            tuple(job.scales.items()),
            turn.record.culture,
            plain=turns_of(turn.messages),
        )
        return [
            replace(job, messages=messages_of(one.turns), scales=dict(one.scales))
            for one in turn.readings
        ]

    def sharpness(self, turn: _Turn) -> float:
        """The temperature at which the scores of a line's choices are probabilities."""
        return self._temperatures[bool(turn.scales), bool(turn.record.sources)]

    def key_of(self, turn: _Turn, answer: Answer) -> str | None:
        """The hash of all that decides an answer to a line: see `key`."""
        if len(turn.parts) != len(answer.parts):
            return None
        if not turn.parts:
            return self.key(turn, answer.usage, len(answer.sources))
        pairs = zip(turn.parts, answer.parts, strict=True)
        keys = [self.key(mine, part.usage, part.sources) for mine, part in pairs]
        return make_id(VERSION, *keys) if None not in keys else None

    def key(self, turn: _Turn, usage: Mapping[str, int], shown: int) -> str | None:
        """The hash of all that decides a line's answer; None where an adapter is not there.

        The context is in it by the room that it leaves after the prompt (`usage`, in tokens): one
        that cuts no answer, and none of the passages (`shown` is how many the model read), changes
        none. A seed counts only where something is sampled.
        """
        adapters = [(self._adapter(name), scale) for name, scale in turn.scales.items()]
        if "prompt_tokens" not in usage or any(digest is None for digest, _ in adapters):
            return None
        job = self.job(turn)
        room = self.ws.recipe.base.context - usage["prompt_tokens"] + 1
        sampled = [job.temperature, job.seed] if job.temperature > 0 else []
        written = [min(job.max_tokens, room), sampled, [text for text in job.stop if text]]
        return make_id(
            VERSION,
            self.base.fingerprint,
            sorted((str(digest), float(scale)) for digest, scale in adapters),
            [(message.role, message.content) for message in turn.messages],
            [*job.choices, *self.scorer.rule, self.sharpness(turn)] if job.choices else written,
            turn.record.decided_by,
            *([source.text for source in turn.found]),
            *([self.ws.recipe.base.context] if shown < len(turn.found) else []),
        )

    def _adapter(self, name: str) -> str | None:
        if name not in self._adapters:
            path = self.ws.path("adapters", name, "adapter.gguf")
            self._adapters[name] = hash_file(path) if path.is_file() else None
        return self._adapters[name]


def _wanted(line: Line) -> dict[str, float] | None:
    """The adapters that a line names itself; None where the command's mode decides."""
    if line.blend:
        return line.blend
    if "culture" not in line.model_fields_set:
        return None
    return {line.culture: 1.0} if line.culture not in {None, "base"} else {}


def _answers(
    ws: Workspace, todo: list[_Turn], routes: Routes, settings: _Settings
) -> Iterator[Answer]:
    """The answers of lines, in whatever order they are finished."""
    if not todo:
        return
    model = Model(settings.base)
    batch: Batch | None = None
    try:
        for start in range(0, len(todo), WINDOW):
            turns: list[_Turn] = []
            for turn in todo[start : start + WINDOW]:
                try:
                    routes.load(model, [*turn.scales, *(c for p in turn.parts for c in p.scales)])
                except CmgrError as error:
                    turn.record.error = str(error)
                    yield turn.record
                else:
                    turns.append(turn)
                    settings.fit(turn, model)
            if turns:
                batch = batch or Batch(model, ws.recipe.base.context, ws.recipe.base.cache_mb)
                for number, outcomes in _of_turns(batch, [settings.jobs(turn) for turn in turns]):
                    turn = turns[number]
                    answer = _finished(turn, outcomes, settings, model)
                    if not answer.error:
                        answer.made_from = settings.key_of(turn, answer)
                    yield answer
    finally:
        if batch is not None:
            batch.close()
        model.close()


def _of_turns(batch: Batch, jobs: Sequence[Sequence[Job]]) -> Iterator[tuple[int, list[Outcome]]]:
    """(number of a turn, the outcomes of its jobs) as each turn is finished."""
    of_job = [number for number, mine in enumerate(jobs) for _ in mine]
    first = {number: at for at, number in reversed([*enumerate(of_job)])}
    found: list[dict[int, Outcome]] = [{} for _ in jobs]
    for at, outcome in batch.run([job for mine in jobs for job in mine]):
        number = of_job[at]
        found[number][at - first[number]] = outcome
        if len(found[number]) == len(jobs[number]):
            yield number, [found[number][n] for n in range(len(jobs[number]))]


def _finished(
    turn: _Turn, outcomes: Sequence[Outcome], settings: _Settings, model: Model
) -> Answer:
    record, choices = turn.record, turn.line.choices
    if turn.parts:
        pairs = zip(turn.parts, outcomes, strict=True)
        parts = [_finished(part, [outcome], settings, model) for part, outcome in pairs]
        join(record, parts, {c.id: c for c in settings.ws.recipe.cultures})
        return record
    outcome = outcomes[0]
    record.response, record.usage = outcome.response, outcome.usage
    record.error = next((one.error for one in outcomes if one.error), None)
    answering.check(record)
    sums = [one.choice_logprobs for one in outcomes if one.choice_logprobs is not None]
    if choices and not record.error:
        sizes = [*map(len, encode_choices(model, choices))]
        means = [[s / n for s, n in zip(mine, sizes, strict=True)] for mine in sums]
        scores = settings.scorer.combine(turn.readings, means, sizes)
        shares = probabilities(scores, settings.sharpness(turn))
        record.choice = record.response = choices[max(range(len(choices)), key=scores.__getitem__)]
        record.choice_probabilities = {
            c: round(float(p), 6) for c, p in zip(choices, shares, strict=True)
        }
    return record


def _kept(path: Path) -> dict[str, Answer]:
    """The answers that a file holds already, the last of each id; damaged lines are passed over."""
    found: dict[str, Answer] = {}
    if path.is_file():
        for raw in path.read_bytes().split(b"\n"):
            try:
                answer = Answer.model_validate_json(raw)
            except ValidationError:
                continue
            found[answer.id] = answer
    return found


class _Store:
    """Where answers go: appended to a file at once, or handed on in the order of the input."""

    def __init__(self, out: Path | Callable[[str], None], order: list[str]) -> None:
        self.out = out
        self.order = order
        self.answers: dict[str, Answer] = {}
        self.given = 0
        if isinstance(out, Path):
            out.parent.mkdir(parents=True, exist_ok=True)
            append_lines(out, "")  # a place that cannot be written to is found out now

    def have(self, answer: Answer) -> None:
        """An answer that the file holds."""
        self.answers[answer.id] = answer

    def put(self, answer: Answer) -> None:
        """A new answer."""
        self.answers[answer.id] = answer
        if isinstance(self.out, Path):
            append_lines(self.out, json_lines([answer]), sync=False)
            return
        while self.given < len(self.order) and self.order[self.given] in self.answers:
            self.out(self.answers.pop(self.order[self.given]).model_dump_json())
            self.given += 1

    def finish(self, kept: dict[str, Answer]) -> None:
        """Put the file in the order of the input; answers of other ids stay, after them."""
        if isinstance(self.out, Path):
            others = [answer for name, answer in kept.items() if name not in self.answers]
            ordered = [self.answers[name] for name in self.order]
            write_atomic(self.out, json_lines([*ordered, *others]).encode())


def read_lines(path: Path | None) -> list[bytes]:
    """The lines of a file, or of stdin for None."""
    data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    return data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
