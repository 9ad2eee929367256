"""A file of prompts answered: routed first, read together, appended as finished, in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cmgr.base import resolve
from cmgr.conversation import Routes, adapter_name, describe
from cmgr.errors import CmgrError
from cmgr.records import Answer, Decision, Message, json_lines, make_id
from cmgr.runtime.batch import Batch, Job, Outcome
from cmgr.runtime.llama import Model
from cmgr.workspace import Progress, Workspace, append_lines, write_atomic

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

    A line without an id gets one from what it says, and its number among equal ones.
    """
    found: list[tuple[str, Line | str]] = []
    seen: dict[str, int] = {}
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
            seen[digest] = seen.get(digest, 0) + 1
            name = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        elif name in seen:
            seen[name] += 1
            line = f"line {number}: the id {name!r} stands twice"
            name = f"{name}-{seen[name]}"
        else:
            seen[name] = 1
        found.append((name, line))
    return found


def run(
    ws: Workspace,
    lines: Iterable[bytes],
    out: Path | Callable[[str], None],
    routes: Routes,
    *,
    max_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Answer each line; returns how many lines there are, and how many failed.

    `out` is a file, to which each answer is appended as it is finished, whose answers (without
    error) are kept by id, and which at the end is in the order of the input; or a function that
    is given each answer's JSON in that order.
    """
    items = parse(lines)
    kept = _kept(out) if isinstance(out, Path) else {}
    todo: list[tuple[str, Line]] = []
    failed = 0
    store = _Store(out, [name for name, _ in items])
    for name, line in items:
        old = kept.get(name)
        if isinstance(line, str):
            store.put(Answer(id=name, prompt="", culture=None, adapter=None, error=line))
            failed += 1
        elif old is not None and not old.error and _answers_it(old, line, routes):
            store.have(old)
        else:
            todo.append((name, line))
    if kept and isinstance(out, Path) and todo:
        ws.say(f"{out}: {len(items) - len(todo) - failed} answers are there, {len(todo)} to go")
    done = len(items) - len(todo)
    if progress and items:
        progress("chat", done, len(items))
    for answer in _answers(ws, todo, routes, max_tokens, temperature, seed):
        store.put(answer)
        failed += answer.error is not None
        done += 1
        if progress:
            progress("chat", done, len(items))
    store.finish(kept)
    return len(items), failed


def _answers_it(old: Answer, line: Line, routes: Routes) -> bool:
    """Whether a kept answer is to this very line: its prompt, its choices, and who was to answer.

    What the router decided stands, as long as the router is still to decide.
    """
    if old.prompt != line.text or set(old.choice_probabilities or {}) != set(line.choices):
        return False
    wanted = _wanted(line)
    if wanted is None and routes.routed:
        return old.decided_by == "router"
    scales = routes.scales(None) if wanted is None else wanted
    return old.decided_by == "user" and old.adapter == adapter_name(scales)


def _wanted(line: Line) -> dict[str, float] | None:
    """The adapters that a line names itself; None where the command's mode decides."""
    if line.blend:
        return line.blend
    if "culture" not in line.model_fields_set:
        return None
    return {line.culture: 1.0} if line.culture not in {None, "base"} else {}


def _answers(
    ws: Workspace,
    todo: list[tuple[str, Line]],
    routes: Routes,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[Answer]:
    """The answers of lines, in whatever order they are finished."""
    if not todo:
        return
    settings = ws.recipe.base
    model = Model(resolve(settings.model, ws.folder))
    batch: Batch | None = None
    decisions: dict[str, Decision | None] = {}
    try:
        for start in range(0, len(todo), WINDOW):
            jobs: list[Job] = []
            records: list[Answer] = []
            lines: list[Line] = []
            for name, line in todo[start : start + WINDOW]:
                record = Answer(id=name, prompt=line.text, culture=None, adapter=None)
                try:
                    scales = _scales(model, routes, line, record, decisions)
                except CmgrError as error:
                    record.error = str(error)
                    yield record
                    continue
                stop = [line.stop] if isinstance(line.stop, str) else line.stop
                messages = line.messages or [Message(role="user", content=line.text)]
                jobs.append(
                    Job(
                        messages,
                        scales,
                        line.choices,
                        line.max_tokens or max_tokens,
                        temperature if line.temperature is None else line.temperature,
                        seed if line.seed is None else line.seed,
                        stop,
                    )
                )
                records.append(record)
                lines.append(line)
            if jobs:
                batch = batch or Batch(model, settings.context, settings.cache_mb)
                for number, outcome in batch.run(jobs):
                    yield _finished(records[number], lines[number], outcome)
    finally:
        if batch is not None:
            batch.close()
        model.close()


def _scales(
    model: Model,
    routes: Routes,
    line: Line,
    record: Answer,
    decisions: dict[str, Decision | None],
) -> dict[str, float]:
    """Who answers a line; what was decided goes into its record. Raises CmgrError."""
    scales = _wanted(line)
    if scales is not None:
        describe(record, scales)
        record.decided_by = "user"
    else:
        if line.text not in decisions:
            decisions[line.text] = routes.decide(line.text)
        scales = routes.choose(record, decisions[line.text])
    routes.load(model, scales)
    return scales


def _finished(record: Answer, line: Line, outcome: Outcome) -> Answer:
    record.response, record.usage, record.error = outcome.response, outcome.usage, outcome.error
    if outcome.choice_logprobs is not None:
        sums = np.array(outcome.choice_logprobs)
        shares = np.exp(sums - sums.max())
        shares /= shares.sum()
        record.choice = record.response = line.choices[int(sums.argmax())]
        record.choice_probabilities = {
            c: round(float(p), 6) for c, p in zip(line.choices, shares, strict=True)
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
