"""A thread of turns: route each one, keep the thread, stream the answer."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cmgr.base import base_of
from cmgr.errors import READ_ONLY, MissingError, UsageError
from cmgr.records import Answer, Decision, Message, Source, json_lines, make_id
from cmgr.retrieval import answering
from cmgr.runtime import Runtime
from cmgr.runtime.choices import encode_choices
from cmgr.runtime.llama import Model
from cmgr.scoring import Scorer, messages_of, probabilities, temperatures, turns_of
from cmgr.several import explain, head, join, prompts, rewrite
from cmgr.workspace import Workspace, append_lines, blank, parsed

if TYPE_CHECKING:
    from cmgr.router import Router

MODES = ("auto", "base", "blend")
_BASE_ANSWERS = "the base answers"
SWITCH = 0.2  # how far another culture must lead the thread's own to take it over


class Routes:
    """Who answers a turn: the adapters' scales by a mode, and the router's decision.

    `mode` is "auto" (the router names one culture), "blend" (its cultures above the bar, scaled by
    probability; or the fixed `blend`), "base", or a culture's id. `several` says, in place of the
    recipe, who answers what means several cultures (cmgr/several.py). Raises MissingError where the
    router is needed and absent, UsageError for a culture that the recipe does not have.
    """

    def __init__(
        self,
        ws: Workspace,
        mode: str,
        blend: Mapping[str, float] | None = None,
        several: str | None = None,
    ) -> None:
        self.ws = ws
        self.several = several or ws.recipe.answer.several
        self._router: Router | None = None
        self._told: set[str] = set()
        self.set(mode, blend)

    def set(self, mode: str, blend: Mapping[str, float] | None = None) -> None:
        """Change who answers from the next turn on."""
        for culture in named(mode, blend):
            self.ws.check_adapter(culture)
        if mode == "auto" or (mode == "blend" and not blend):
            self.router()
        self.mode, self.blend = mode, dict(blend or {})

    def __str__(self) -> str:
        return adapter_name(self.blend) or self.mode

    def router(self) -> Router:
        """The workspace's router, read on first use."""
        if self._router is None:
            from cmgr.router import Router

            self._router = Router.of(self.ws)
        return self._router

    @property
    def routed(self) -> bool:
        """Whether the router decides, and not the user."""
        return self.mode == "auto" or (self.mode == "blend" and not self.blend)

    def decide(self, text: str) -> Decision | None:
        """The router's decision on a turn; None where the user has decided."""
        return self.router().decide(text) if self.routed else None

    def scales(self, decision: Decision | None, thread: str | None = None) -> dict[str, float]:
        """The adapters for a turn; {} is the bare base.

        A routed culture that has no adapter yet is left out (said once), and the rest of a blend is
        scaled to 1. `thread` is the culture that answered before: a turn that names none stays with
        it, and another one takes over only with a lead of 0.2.
        """
        if self.mode == "base":
            return {}
        if decision is None:
            return self.blend or {self.mode: 1.0}
        if self.mode == "blend" or (self.several == "blend" and len(decision.cultures) > 1):
            there = [c for c in decision.cultures if self.has_adapter(c)]
            self._tell_missing(decision.cultures, "the others answer" if there else _BASE_ANSWERS)
            total = sum(decision.probabilities[c] for c in there)
            return {c: round(decision.probabilities[c] / total, 4) for c in there}
        culture = decision.culture
        if thread in decision.probabilities and culture != thread:
            lead = decision.probability - decision.probabilities[thread]
            if culture is None or lead < SWITCH:
                culture = thread
        if culture and not self.has_adapter(culture):
            self._tell_missing([culture], _BASE_ANSWERS)
            culture = None
        return {culture: 1.0} if culture else {}

    def parts(self, decision: Decision | None) -> list[str]:
        """The cultures that each answer a turn for themselves; none where it means one."""
        if decision is None or self.mode != "auto" or self.several != "parts":
            return []
        there = [c for c in decision.cultures if self.has_adapter(c)]
        if len(there) < len(decision.cultures):
            self._tell_missing(decision.cultures, "the others answer" if there else _BASE_ANSWERS)
        return there if len(there) > 1 else []

    def choose(
        self, answer: Answer, decision: Decision | None, thread: str | None = None
    ) -> dict[str, float]:
        """The scales for a turn; what was decided goes into `answer`."""
        scales = self.scales(decision, thread)
        describe(answer, scales)
        answer.decided_by = "user"
        if decision is not None:
            best = answer.culture
            answer.probability = decision.probabilities[best] if best else decision.probability
            answer.probabilities = decision.probabilities
            stays = best is not None and best == thread != decision.culture
            answer.decided_by = "thread" if stays else "router"
        return scales

    def load(self, model: Model, cultures: Iterable[str]) -> None:
        """Initialise the adapters of cultures. Raises UsageError, MissingError, CmgrError."""
        for culture in cultures:
            if culture in model.adapters:
                continue
            self.ws.check_adapter(culture)
            model.load_adapter(culture, self.ws.path("adapters", culture))

    def has_adapter(self, culture: str) -> bool:
        """Whether a culture's adapter has been trained."""
        return self.ws.path("adapters", culture, "adapter.gguf").is_file()

    def with_adapter(self, cultures: Iterable[str]) -> list[str]:
        """Those of these cultures that can be asked; the others are said, once."""
        asked = list(cultures)
        self._tell_missing(asked, "it is left out")
        return [culture for culture in asked if self.has_adapter(culture)]

    def _tell_missing(self, cultures: Iterable[str], instead: str) -> None:
        for culture in cultures:
            if culture not in self._told and not self.has_adapter(culture):
                self._told.add(culture)
                self.ws.say(f"no adapter for {culture} yet (cmgr train); {instead}")


def named(mode: str, blend: Mapping[str, float] | None) -> list[str]:
    """The cultures that a mode fixes by name, whatever the router says."""
    return list(blend or ([] if mode in MODES else [mode]))


def describe(answer: Answer, scales: Mapping[str, float]) -> None:
    """Note in a record which adapters are on, and the strongest of them."""
    answer.adapter = adapter_name(scales)
    answer.culture = max(scales, key=lambda c: scales[c]) if scales else None


def adapter_name(scales: Mapping[str, float]) -> str | None:
    """How a record names adapters: `japan`, or `japan=0.6,brazil=0.4`; None for the base."""
    if not scales:
        return None
    if list(scales.values()) == [1.0]:
        return next(iter(scales))
    return ",".join(f"{name}={scale:g}" for name, scale in scales.items())


def _scales_of(name: str | None) -> dict[str, float]:
    """The scales that `adapter_name` has named so."""
    if name is None:
        return {}
    return parse_blend(name) if "=" in name else {name: 1.0}


def parse_blend(text: str) -> dict[str, float]:
    """`japan=0.6,brazil=0.4` as scales. Raises UsageError."""
    scales: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            scale = float(value)
            if not math.isfinite(scale):
                raise ValueError
            scales[name.strip()] = scale
        except ValueError:
            raise UsageError(
                f"blend {text!r}: write NAME=SCALE,NAME=SCALE such as japan=0.6,brazil=0.4"
            ) from None
    return scales


def _append(log: Path, answer: Answer) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    append_lines(log, json_lines([answer]))


def _forget(log: Path, answer_id: str) -> None:
    """Take an answer out of a log; what another session has appended stays."""
    at = 0
    for line in log.read_bytes().split(b"\n") if log.exists() else []:
        found = parsed(line)
        if found and found.get("id") == answer_id:
            blank(log, [(at, line)])
        at += len(line) + 1


class Conversation:
    """One thread over a workspace's base and adapters, kept in `logs/chat/` unless `log` is off.

    `mode`, `blend` and `several`: see Routes. `passages` of a culture go before each question, in
    place of the recipe's number. Raises MissingError (the command that makes what is missing) for
    an adapter, a router or a base that is not there.
    """

    def __init__(
        self,
        ws: Workspace,
        mode: str = "auto",
        blend: Mapping[str, float] | None = None,
        log: bool = True,
        passages: int | None = None,
        several: str | None = None,
    ) -> None:
        self.ws = ws
        self.sources = answering.Sources(ws, passages)
        self._cultures = {culture.id: culture for culture in ws.recipe.cultures}
        self._names = {culture.id: culture.name for culture in ws.recipe.cultures}
        self.system = ""
        self.answers: list[Answer] = []
        self.last: Answer | None = None
        self._first = 0  # the first answer that is still in the context
        self._log: Path | None = None
        if log:
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}.jsonl"
            self._log = ws.path("logs", "chat", name)
        settings = ws.recipe.base
        base = base_of(ws)
        self.routes = Routes(ws, mode, blend, several)
        self.runtime = Runtime(base, settings.context, settings.cache_mb)
        try:
            self.routes.load(self.runtime.model, named(mode, blend))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the model and the index."""
        self.sources.close()
        self.runtime.close()

    def set_mode(self, mode: str, blend: Mapping[str, float] | None = None) -> None:
        """Change who answers from the next turn on; nothing changes when it raises."""
        self.routes.load(self.runtime.model, named(mode, blend))
        self.routes.set(mode, blend)

    # -- the thread --------------------------------------------------------------------------

    def messages(self) -> list[Message]:
        """The thread as the model sees it: the system message and the turns in the context."""
        return self._messages(self._first)

    def _messages(self, first: int) -> list[Message]:
        turns = [message for answer in self.answers[first:] for message in self._turn(answer)]
        return [*self._system(), *turns]

    def _system(self) -> list[Message]:
        return [Message(role="system", content=self.system)] if self.system else []

    def _turn(self, answer: Answer) -> list[Message]:
        """A turn of the thread: what was asked, and the answer."""
        said = Message(role="assistant", content=answer.response)
        return [*self._asked(answer.prompt, answer.sources), said]

    def _asked(self, text: str, sources: Sequence[Source]) -> list[Message]:
        """A turn of the user as the model sees it: what it rests on, then the question."""
        return answering.before([Message(role="user", content=text)], sources, self._names)

    def undo(self) -> bool:
        """Take the last turn back; False where there is none."""
        if not self.answers:
            return False
        gone = self.answers.pop()
        self._first = min(self._first, len(self.answers))
        self.last = self.answers[-1] if self.answers else None
        if self._log:
            self._keep(lambda log: _forget(log, gone.id))
        return True

    def _keep(self, write: Callable[[Path], None]) -> None:
        """Write to the log; where nothing can be written it is left out from now on (said once)."""
        if self._log is None:
            return
        try:
            write(self._log)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            self.ws.say(f"{self._log.parent}: {error.strerror}: this thread is not kept")
            self._log = None

    def resume(self) -> int:
        """Go on with the last thread that was kept; returns how many turns it has.

        Raises MissingError where there is none.
        """
        kept = sorted(self.ws.path("logs", "chat").glob("*.jsonl"))
        if not kept:
            raise MissingError("no thread to go on with yet: start one with cmgr chat")
        self.answers = self.ws.read(f"logs/chat/{kept[-1].stem}", Answer)
        if self._log:
            self._log = kept[-1]
        self.last = self.answers[-1] if self.answers else None
        self.system = str(getattr(self.last, "system", "") or "")
        return len(self.answers)

    def _fitted(self, answer: Answer, max_tokens: int) -> tuple[list[Message], int]:
        """The prompt of the next turn, and the first turn that is in it.

        Where it is too long the oldest turns go first, and then passages, the last ones first.
        """
        room = self.ws.recipe.base.context
        room -= min(max_tokens, room // 4) + len(self.runtime.model.invocation)

        def fits() -> bool:
            asked = self._asked(answer.prompt, answer.sources)
            alone = [*self._messages(len(self.answers)), *asked]
            return len(self.runtime.prompt_tokens(alone)) <= room

        answering.leave_out(answer.sources, fits)
        turn = self._asked(answer.prompt, answer.sources)
        first = self._first
        prompt = [*self._messages(first), *turn]
        if len(self.runtime.prompt_tokens(prompt)) > room:
            # some slack, so that the next turn need not drop (and read again) at once
            while (
                first < len(self.answers)
                and len(self.runtime.prompt_tokens(prompt)) > room * 3 // 4
            ):
                first += 1
                prompt = [*self._messages(first), *turn]
        return prompt, first

    def _leave_out(self, first: int) -> None:
        """From now on the thread begins with this turn, as far as the model sees it."""
        if first > self._first:
            self._first = first
            self.ws.say(
                f"the context of {self.ws.recipe.base.context} tokens is full: the oldest "
                f"{first} turn(s) are left out from now on"
            )

    # -- asking ------------------------------------------------------------------------------

    def _thread_culture(self) -> str | None:
        """The culture that answered the turn before, where the router may keep it."""
        return self.last.culture if self.last and self.last.adapter else None

    def ask(
        self, text: str, *, max_tokens: int = 200, temperature: float = 0.0, seed: int = 0
    ) -> Generator[str, None, None]:
        """Stream the answer to the next turn; afterwards `last` holds the Answer record.

        A turn whose answer is stopped early stays in the thread with what was said.
        """
        answer = self._record(text)
        decision = self.routes.decide(text)
        scales = self.routes.choose(answer, decision, self._thread_culture())
        parts = self.routes.parts(decision)
        try:
            if parts:
                yield from self._in_parts(answer, parts, max_tokens, temperature, seed)
            else:
                yield from self._stream(answer, scales, max_tokens, temperature, seed)
        finally:
            if answer.response:
                self.answers.append(answer)
                self._keep(lambda log: _append(log, answer))
            self.last = answer

    def _in_parts(
        self,
        answer: Answer,
        cultures: Sequence[str],
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Iterator[str]:
        """Each culture's answer under its head; what was said of the last is kept when stopped."""
        made: list[Answer] = []
        try:
            for culture, text in prompts(self.ws.recipe, answer.prompt, cultures).items():
                part = self._record(text)
                describe(part, {culture: 1.0})
                apart, scales = bool(made), {culture: 1.0}
                made.append(part)
                before = ("\n\n" if apart else "") + head(self._cultures[culture])
                with closing(
                    self._stream(part, scales, max_tokens, temperature, seed, apart)
                ) as stream:
                    for number, piece in enumerate(stream):
                        yield piece if number else before + piece.lstrip()
        finally:
            join(answer, [part for part in made if part.response], self._cultures)
            answer.decided_by = "router"

    def compare(
        self, text: str, *, max_tokens: int = 200, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[Answer]:
        """The same turn by the base and by every culture above the bar (all, where none is).

        Where it means several, each is asked about itself, and the base as it was written. The
        thread stays as it is.
        """
        decision = self.routes.router().decide(text)
        cultures = decision.cultures or [c.id for c in self.ws.recipe.cultures]
        several = len(decision.cultures) > 1
        asked = prompts(self.ws.recipe, text, decision.cultures) if several else {}
        for culture in [None, *self.routes.with_adapter(cultures)]:
            scales = {culture: 1.0} if culture else {}
            put = asked.get(culture or "", text)
            answer = self._apart(put, scales, max_tokens, temperature, seed)
            answer.probability = decision.probabilities.get(culture or "", decision.probability)
            answer.probabilities = decision.probabilities
            yield answer

    def _apart(
        self, text: str, scales: dict[str, float], max_tokens: int, temperature: float, seed: int
    ) -> Answer:
        """A turn answered as if it came next; the thread stays as it is."""
        answer = self._record(text)
        describe(answer, scales)
        for _ in self._stream(answer, scales, max_tokens, temperature, seed, apart=True):
            pass
        return answer

    def carry(
        self,
        text: str,
        origin: str,
        target: str,
        *,
        max_tokens: int = 200,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[Answer]:
        """A message of one culture for people of another: what it means, then the message anew.

        The first answer explains it under the adapter of `origin`, the second writes it again
        under that of `target`. The thread stays as it is. Raises as `set_mode` does.
        """
        for culture in (origin, target):
            self.ws.check_adapter(culture)
        meaning = ""
        for culture in (origin, target):
            known = self._cultures[culture]
            asked = explain(known, text) if culture == origin else rewrite(known, text, meaning)
            answer = self._apart(asked, {culture: 1.0}, max_tokens, temperature, seed)
            answer.decided_by = "user"
            meaning = answer.response
            yield answer

    def choose(self, options: Sequence[str]) -> dict[str, float]:
        """How likely each of these answers is to the last turn, by who answered it.

        Scored as the choices of a batch are (cmgr/scoring.py). The thread stays as it is. Raises
        UsageError without a turn, or without two different options.
        """
        if self.last is None:
            raise UsageError("/choose asks about the last turn: there is none yet")
        if len(set(options)) < max(2, len(options)) or not all(options):
            raise UsageError("/choose wants two or more different answers: /choose yes | no")
        last, scorer = self.last, Scorer(self.ws.recipe)
        scales = {str(last.culture): 1.0} if last.parts else _scales_of(last.adapter)
        there = bool(self.answers) and self.answers[-1] is last
        kept = self.answers[self._first : -1 if there else None]
        before = [*self._system(), *(m for answer in kept for m in self._turn(answer))]
        asked = [*before, *self._asked(last.prompt, last.sources)]
        plain = [*before, *self._asked(last.prompt, [])]
        readings = scorer.readings(
            turns_of(asked), tuple(scales.items()), last.culture, plain=turns_of(plain)
        )
        means = [
            self.runtime.score(messages_of(one.turns), options, dict(one.scales))
            for one in readings
        ]
        sizes = [len(tokens) for tokens in encode_choices(self.runtime.model, options)]
        known = temperatures(self.ws, scorer, self.runtime.model.base.fingerprint)
        sharpness = known[bool(scales), bool(last.sources)]
        shares = probabilities(scorer.combine(readings, means, sizes), sharpness)
        return {o: round(float(p), 6) for o, p in zip(options, shares, strict=True)}

    def _record(self, text: str) -> Answer:
        return Answer(
            id=make_id(text, len(self.answers), secrets.token_hex(4)),
            prompt=text,
            culture=None,
            adapter=None,
            system=self.system or None,
        )

    def _stream(
        self,
        answer: Answer,
        scales: dict[str, float],
        max_tokens: int,
        temperature: float,
        seed: int,
        apart: bool = False,
    ) -> Generator[str, None, None]:
        """Write an answer; one that is `apart` from the thread does not move what is in context."""
        self.routes.load(self.runtime.model, scales)

        def usage(tokens: dict[str, int], timings: dict[str, float]) -> None:
            answer.usage, answer.timings = tokens, timings

        said: list[str] = []
        last = self.answers[-1].prompt if self.answers else ""
        answer.sources = self.sources.of(scales, answer.prompt, last)
        prompt, first = self._fitted(answer, max_tokens)
        stream = self.runtime.generate(
            prompt,
            scales,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            usage=usage,
        )
        try:
            for piece in stream:
                if not said and not apart:  # a turn that is refused moves nothing
                    self._leave_out(first)
                said.append(piece)
                yield piece
        finally:
            stream.close()
            answer.response = "".join(said).strip()
            answering.check(answer)
