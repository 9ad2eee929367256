"""The batch runtime's answers, each computed once: kept by model, adapters, prompt and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cmgr.base import Base
from cmgr.evaluate.methods import Ask
from cmgr.records import Record, make_id
from cmgr.runtime.batch import Batch, Job
from cmgr.runtime.choices import encode_choices
from cmgr.runtime.llama import Model
from cmgr.scoring import Turn, messages_of
from cmgr.workspace import Workspace

VERSION = 3
FILE = "eval/scores"
PROMPTS = 64  # computed and kept together: so much is lost by a kill


class Score(Record):
    """What came of one prompt under adapters: a score per option, or a text, or an error.

    `tokens` are those of each option.
    """

    id: str
    options: list[float] = []
    tokens: list[int] = []
    text: str = ""
    error: str = ""


class Question(NamedTuple):
    """An ask with what is scored: options, or an answer of so many tokens."""

    ask: Ask
    options: tuple[str, ...]
    tokens: int = 0


class Scores:
    """Scores of questions, from the disk or from the runtime.

    An option's score is the mean log-probability of its tokens. `adapters` are hashes by name, so
    that an adapter trained again is another one. Errors are not kept, nor is what the context has
    cut: a larger context asks these again.
    """

    def __init__(self, ws: Workspace, base: Base, adapters: Mapping[str, str]) -> None:
        self._ws, self._base, self._adapters = ws, base, adapters
        if not ws.read_only:
            ws.path("eval").mkdir(exist_ok=True)
        # earlier versions kept errors too
        self._known = {score.id: score for score in ws.read(FILE, Score) if not score.error}
        self._keys: dict[Question, str] = {}

    def key(self, question: Question) -> str:
        """What a question's score is kept under."""
        if question not in self._keys:
            self._keys[question] = make_id(
                VERSION,
                self._base.fingerprint,
                [[self._adapters[name], scale] for name, scale in question.ask.scales],
                question.ask.turns,
                question.options,
                question.tokens,
                *(["thinking"] if self._base.thinking else []),
            )
        return self._keys[question]

    def __getitem__(self, question: Question) -> Score:
        return self._known[self.key(question)]

    def compute(
        self,
        questions: Sequence[Question],
        progress: Callable[[int, int], None] | None = None,
        force: bool = False,
    ) -> int:
        """Score what is not known yet; returns how many were computed.

        Prompts are computed in a fixed order, some together, and kept when all of these are done:
        a run that was killed and goes on gives the same numbers to the last bit.
        """
        unique = {self.key(q): q for q in questions}
        by_prompt: dict[tuple[Turn, ...], list[str]] = {}
        for key, question in unique.items():
            by_prompt.setdefault(question.ask.turns, []).append(key)
        prompts = sorted(by_prompt)
        chunks = [prompts[i : i + PROMPTS] for i in range(0, len(prompts), PROMPTS)]
        known = set() if force else self._known.keys()
        todo = [
            [k for p in chunk for k in sorted(by_prompt[p]) if k not in known] for chunk in chunks
        ]
        total = sum(map(len, todo))
        if not total:
            return 0
        model = Model(self._base)
        batch = None
        done = 0
        try:
            for name in sorted({n for q in questions for n, _ in q.ask.scales}):
                model.load_adapter(name, self._ws.path("adapters", name))
            settings = self._ws.recipe.base
            batch = Batch(model, settings.context, settings.cache_mb)
            for keys in filter(None, todo):
                made = self._run(model, batch, [(key, unique[key]) for key in keys])
                if not self._ws.read_only:
                    self._ws.append(FILE, [score for score, whole in made if whole])
                self._known.update((score.id, score) for score, _ in made)
                done += len(made)
                if progress:
                    progress(done, total)
        finally:
            if batch:
                batch.close()
            model.close()
        return total

    def _run(
        self, model: Model, batch: Batch, questions: Sequence[tuple[str, Question]]
    ) -> list[tuple[Score, bool]]:
        """The scores of questions, each with whether it is the same in any larger context."""
        jobs = [
            Job(
                messages_of(q.ask.turns),
                dict(q.ask.scales),
                q.options,
                max_tokens=max(q.tokens, 1),
            )
            for _, q in questions
        ]
        found: dict[int, tuple[Score, bool]] = {}
        for number, outcome in batch.run(jobs):
            key, question = questions[number]
            sums = outcome.choice_logprobs
            if outcome.error:
                found[number] = Score(id=key, error=outcome.error), False
            elif sums is None:
                used = outcome.usage["prompt_tokens"] + outcome.usage["completion_tokens"]
                ended = used <= batch.limit or outcome.usage["completion_tokens"] >= question.tokens
                found[number] = Score(id=key, text=outcome.response), ended
            else:
                sizes = [*map(len, encode_choices(model, question.options))]
                means = [round(s / n, 6) for s, n in zip(sums, sizes, strict=True)]
                found[number] = Score(id=key, options=means, tokens=sizes), True
        return [found[number] for number in sorted(found)]
