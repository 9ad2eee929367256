"""Many prompts under many adapters: read together, answered by adapter set.

A prompt wanted under several activated adapters is read once, and what prompts begin with in
common is computed once. Answers of one adapter set are written in lockstep, many sequences per
`llama_decode` (llama.cpp cannot mix adapters in one). Results come as they are finished, not in
the order of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cmgr.errors import UsageError
from cmgr.records import Message
from cmgr.runtime.llama import Context, Logits, Model, Scales, Token, common_prefix, log_softmax
from cmgr.runtime.text import Writer

# llama.cpp has 256 sequences: one for the shared prefix, the rest for prompts and their copies
SEQUENCES = 256
PROMPTS = 32  # more make the attention of CPU kernels scan more of the others' cells
CELLS = 16384
WORTH = 32  # tokens: a longer common beginning is computed apart, once per group
PREFIX = 0


@dataclass(frozen=True)
class Job:
    """One prompt to answer, or whose `choices` to weigh, under adapters at `scales`."""

    messages: Sequence[Message]
    scales: Mapping[str, float] = field(default_factory=dict)
    choices: Sequence[str] = ()
    max_tokens: int = 200
    temperature: float = 0.0
    seed: int = 0
    stop: Sequence[str] = ()


@dataclass
class Outcome:
    """What came of a job: a response, or log-probabilities of its choices, or an error."""

    response: str = ""
    choice_logprobs: list[float] | None = None
    usage: dict[str, int] = field(default_factory=dict)
    error: str | None = None


@dataclass
class _Prompt:
    """A prompt read once, with the jobs that want it, by adapter set."""

    tokens: list[int]
    jobs: dict[Scales, list[int]] = field(default_factory=dict)
    cached: int = 0


@dataclass
class _Answer:
    """A job's answer in the making, in a sequence of its own."""

    number: int
    job: Job
    prompt: _Prompt
    writer: Writer
    sequence: int
    position: int
    logits: Logits
    text: str = ""


class Batch:
    """Answers jobs over a model; its context is made on first use and kept.

    `context` bounds a prompt with its answer, in tokens; `cache_mb` bounds the KV of all.
    """

    def __init__(self, model: Model, context: int = 2048, cache_mb: int = 1024) -> None:
        self.model = model
        self.limit = context
        cells = max(context, min(CELLS, cache_mb * 2**20 // model.cell_bytes))
        self.context = Context(model, cells // 256 * 256 or 256, SEQUENCES)
        self._used = 0  # cells of the prompts that are in
        self._prefix: list[int] = []
        self._reader: Scales = ()

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Yield (index of the job, its outcome) as each is finished."""
        prompts: dict[tuple[Scales, tuple[int, ...]], _Prompt] = {}
        for number, job in enumerate(jobs):
            try:
                scales = self.model.scales(job.scales)
                tokens = self.model.prompt_tokens(job.messages)
                self._check(job, tokens)
            except UsageError as error:
                yield number, Outcome(error=str(error))
                continue
            key = (self.model.read_by(scales), tuple(tokens))
            prompt = prompts.setdefault(key, _Prompt(tokens))
            prompt.jobs.setdefault(scales, []).append(number)
        # one reader after the other; within it, prompts of the same adapters stand together
        ordered = sorted(
            prompts.items(), key=lambda item: (item[0][0], sorted(item[1].jobs), item[1].tokens)
        )
        group: list[_Prompt] = []
        reader: Scales = ()
        for (wanted, _), prompt in ordered:
            if group and (wanted != reader or not self._fits(jobs, [*group, prompt])):
                yield from self._group(jobs, reader, group)
                group = []
            reader = wanted
            group.append(prompt)
        if group:
            yield from self._group(jobs, reader, group)

    # -- how much at once --------------------------------------------------------------------

    def _check(self, job: Job, tokens: Sequence[int]) -> None:
        if job.choices and not all(job.choices):
            raise UsageError("choices must be texts that are not empty")
        need = len(tokens) + len(self.model.invocation) + 1
        if job.choices:
            need += max(len(self.model.tokenize(c, control=False)) for c in job.choices)
        if need > self.limit:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens, the context holds {self.limit}. "
                "Shorten it, or raise base.context in the recipe"
            )

    def _room(self, job: Job, prompt: _Prompt) -> int:
        """Cells that a job needs beside its prompt."""
        invocation = len(self.model.invocation)
        if job.choices:
            return invocation
        return min(invocation + job.max_tokens, self.limit - len(prompt.tokens))

    def _fits(self, jobs: Sequence[Job], group: Sequence[_Prompt]) -> bool:
        if len(group) > PROMPTS:
            return False
        read = sum(len(p.tokens) for p in group) - len(group) * len(self._prefix)
        return read + len(self._prefix) + self.limit <= self.context.cells

    # -- one group ---------------------------------------------------------------------------

    def _group(
        self, jobs: Sequence[Job], reader: Scales, group: list[_Prompt]
    ) -> Iterator[tuple[int, Outcome]]:
        context = self.context
        places = {id(prompt): place for place, prompt in enumerate(group, PREFIX + 1)}
        try:
            self._read(reader, group)
            for scales in sorted({s for prompt in group for s in prompt.jobs}):
                todo = [(p, n) for p in group for n in p.jobs.get(scales, ())]
                while todo:
                    now, todo = self._portion(jobs, group, todo)
                    yield from self._answer(jobs, scales, places, now, len(group) + 1)
        except BaseException:
            context.clear()
            self._prefix = []
            raise
        for place in places.values():
            context.drop(place)

    def _read(self, reader: Scales, group: list[_Prompt]) -> None:
        """Read a group's prompts into sequences 1.., what they share only once."""
        context = self.context
        if reader != self._reader:
            context.clear()
            self._prefix, self._reader = [], reader
        context.use(reader)
        first, last = min(p.tokens for p in group), max(p.tokens for p in group)
        shared = first[: common_prefix(first, last)]
        same = common_prefix(self._prefix, shared)
        context.drop(PREFIX, same)
        self._prefix = self._prefix[:same]
        if len(shared) - same >= WORTH and len(group) > 1:
            context.decode([(t, i, PREFIX, False) for i, t in enumerate(shared) if i >= same])
            self._prefix = shared
        items: list[Token] = []
        start = len(self._prefix)
        for place, prompt in enumerate(group, PREFIX + 1):
            prompt.cached = start if place > PREFIX + 1 else same
            context.copy(PREFIX, place)
            items += [(t, i, place, False) for i, t in enumerate(prompt.tokens) if i >= start]
        context.decode(items)
        self._used = start + len(items)

    def _portion(
        self, jobs: Sequence[Job], group: list[_Prompt], todo: list[tuple[_Prompt, int]]
    ) -> tuple[list[tuple[_Prompt, int]], list[tuple[_Prompt, int]]]:
        """Of the answers to write, those for which there are cells and sequences; and the rest."""
        free = self.context.cells - self._used
        count = 0
        for prompt, number in todo[: SEQUENCES - 1 - len(group)]:
            free -= self._room(jobs[number], prompt)
            if free < 0 and count:
                break
            count += 1
        return todo[:count], todo[count:]

    def _answer(
        self,
        jobs: Sequence[Job],
        scales: Scales,
        places: dict[int, int],
        now: list[tuple[_Prompt, int]],
        free: int,
    ) -> Iterator[tuple[int, Outcome]]:
        """Answers under one adapter set, in lockstep, in sequences from `free` on."""
        context, invocation = self.context, self.model.invocation
        context.use(scales)
        items: list[Token] = []
        answers = []
        for sequence, (prompt, number) in enumerate(now, free):
            context.copy(places[id(prompt)], sequence)
            start = len(prompt.tokens)
            last = start + len(invocation) - 1
            items += [(t, i, sequence, i == last) for i, t in enumerate(invocation, start)]
            job = jobs[number]
            writer = Writer(self.model, job.max_tokens, job.temperature, job.seed, job.stop)
            answers.append(
                _Answer(number, job, prompt, writer, sequence, last + 1, np.empty(0, np.float32))
            )
        for answer, logits in zip(answers, context.decode(items), strict=True):
            answer.logits = logits
        weighed = [answer for answer in answers if answer.job.choices]
        if weighed:
            yield from self._weigh(weighed, free + len(answers))
        going = [answer for answer in answers if not answer.job.choices]
        while going:
            items, rest = [], []
            for answer in going:
                token, text = answer.writer.next(answer.logits)
                answer.text += text
                if token is None or answer.position >= self.limit:
                    context.drop(answer.sequence)
                    answer.text += answer.writer.rest()
                    yield self._outcome(answer)
                else:
                    items.append((token, answer.position, answer.sequence, True))
                    answer.position += 1
                    rest.append(answer)
            for answer, logits in zip(rest, context.decode(items), strict=True):
                answer.logits = logits
            going = rest

    def _weigh(self, answers: list[_Answer], free: int) -> Iterator[tuple[int, Outcome]]:
        """Log-probabilities of choices: the first tokens' are there, the others' are computed."""
        context = self.context
        waiting: list[tuple[list[float], int, list[int], _Answer]] = []
        totals: dict[int, list[float]] = {}
        for answer in answers:
            first = log_softmax(answer.logits)
            encoded = encode_choices(self.model, answer.job.choices)
            totals[answer.number] = [float(first[tokens[0]]) for tokens in encoded]
            waiting += [
                (totals[answer.number], number, tokens, answer)
                for number, tokens in enumerate(encoded)
                if len(tokens) > 1
            ]
        cells = context.cells - self._used - len(answers) * len(self.model.invocation)
        while waiting:
            count, size = 0, 0
            for _, _, tokens, _ in waiting[: max(1, SEQUENCES - free)]:
                size += len(tokens) - 1
                if count and size > cells:
                    break
                count += 1
            now, waiting = waiting[:count], waiting[count:]
            items: list[Token] = []
            for place, (_, _, tokens, answer) in enumerate(now, free):
                context.copy(answer.sequence, place)
                items += [(t, answer.position + i, place, True) for i, t in enumerate(tokens[:-1])]
            rows = iter(context.decode(items))
            for place, (sums, number, tokens, _) in enumerate(now, free):
                for token in tokens[1:]:
                    sums[number] += float(log_softmax(next(rows))[token])
                context.drop(place)
        for answer in answers:
            context.drop(answer.sequence)
            number, outcome = self._outcome(answer)
            outcome.choice_logprobs = totals[number]
            yield number, outcome

    def _outcome(self, answer: _Answer) -> tuple[int, Outcome]:
        tokens = len(answer.prompt.tokens) + len(self.model.invocation)
        usage = {
            "prompt_tokens": tokens,
            "cached_tokens": answer.prompt.cached,
            "completion_tokens": answer.writer.made,
        }
        answer.prompt.cached = len(answer.prompt.tokens)  # read once: the next job reads nothing
        return answer.number, Outcome(answer.text.strip(), usage=usage)


def encode_choices(model: Model, choices: Sequence[str]) -> list[list[int]]:
    """The tokens of each choice; with the end token where one choice begins another.

    Without it "5" would always be at least as likely as "50".
    """
    encoded = [model.tokenize(choice, control=False) for choice in choices]
    nested = any(
        a is not b and len(a) < len(b) and b[: len(a)] == a for a in encoded for b in encoded
    )
    return [[*tokens, model.eot] for tokens in encoded] if nested else encoded
