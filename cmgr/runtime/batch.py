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

from cmgr.errors import CmgrError, UsageError
from cmgr.records import Message
from cmgr.runtime.choices import Branch, encode_choices, weigh
from cmgr.runtime.llama import (
    NOT_FINITE,
    Context,
    Logits,
    Model,
    Scales,
    Token,
    common_prefix,
    too_long,
)
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
    """A prompt read once, with the tasks that want it, by adapter set."""

    tokens: list[int]
    tasks: dict[Scales, list[_Task]] = field(default_factory=dict)
    cached: int = 0


@dataclass(frozen=True)
class _Task:
    """A job with its number, its prompt, and the tokens of its choices."""

    number: int
    job: Job
    prompt: _Prompt
    encoded: list[list[int]]


@dataclass
class _Answer:
    """A task's answer in the making, in a sequence of its own."""

    task: _Task
    writer: Writer
    sequence: int
    position: int
    logits: Logits
    text: str = ""


class Batch:
    """Answers jobs over a model, in a context of its own.

    `context` bounds a prompt with its answer, in tokens; `cache_mb` bounds the KV of all.
    """

    def __init__(self, model: Model, context: int = 2048, cache_mb: int = 1024) -> None:
        self.model = model
        self.limit = context
        cells = max(context, min(CELLS, cache_mb * 2**20 // model.cell_bytes))
        self.context = Context(model, -(-cells // 256) * 256, SEQUENCES)
        self._used = 0  # cells of the prompts that are in
        self._prefix: list[int] = []  # what the sequence PREFIX holds, read under `_reader`
        self._reader: Scales = ()

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Yield (index of the job, its outcome) as each is finished.

        Each call begins with an empty context: what is kept of an earlier one would change the
        shapes of what is computed, and with them the last bits of the numbers.
        """
        self._forget()
        prompts: dict[tuple[Scales, tuple[int, ...]], _Prompt] = {}
        tokens_of: dict[tuple[tuple[str, str], ...], list[int]] = {}
        for number, job in enumerate(jobs):
            try:
                scales = self.model.scales(job.scales)
                said = tuple((m.role, m.content) for m in job.messages)
                if said not in tokens_of:
                    tokens_of[said] = self.model.prompt_tokens(job.messages)
                tokens = tokens_of[said]
                encoded = self._checked(job, tokens)
            except UsageError as error:
                yield number, Outcome(error=str(error))
                continue
            key = (self.model.read_by(scales), tuple(tokens))
            prompt = prompts.setdefault(key, _Prompt(tokens))
            prompt.tasks.setdefault(scales, []).append(_Task(number, job, prompt, encoded))
        # one reader after the other; within it, prompts of the same adapters stand together
        ordered = sorted(
            prompts.items(), key=lambda item: (item[0][0], sorted(item[1].tasks), item[1].tokens)
        )
        group: list[_Prompt] = []
        reader: Scales = ()
        for (wanted, _), prompt in ordered:
            if group and (wanted != reader or not self._fits(reader, [*group, prompt])):
                yield from self._group(reader, group)
                group = []
            reader = wanted
            group.append(prompt)
        if group:
            yield from self._group(reader, group)

    def _forget(self) -> None:
        self.context.clear()
        self._prefix, self._reader = [], ()

    # -- how much at once --------------------------------------------------------------------

    def _checked(self, job: Job, tokens: Sequence[int]) -> list[list[int]]:
        """The tokens of a job's choices. Raises UsageError where it cannot be answered."""
        if not all(job.choices):
            raise UsageError("choices must be texts that are not empty")
        encoded = encode_choices(self.model, job.choices)
        need = len(tokens) + len(self.model.invocation) + max(map(len, encoded), default=1)
        if need > self.limit:
            raise too_long(need, self.limit)
        return encoded

    def _room(self, task: _Task) -> int:
        """Cells that a task needs beside its prompt."""
        invocation = len(self.model.invocation)
        if task.encoded:
            return invocation
        return min(invocation + task.job.max_tokens, self.limit - len(task.prompt.tokens))

    def _prefix_of(self, reader: Scales, group: Sequence[_Prompt]) -> tuple[int, list[int]]:
        """For a group: how many tokens of the kept prefix serve it, and the prefix to read it by.

        The prefix is what all its prompts begin with, where that is long enough to be read apart,
        and otherwise what they share with the prefix of the group before.
        """
        kept = self._prefix if reader == self._reader else []
        # what the smallest and the largest list begin with, all between them begin with
        first, last = min(p.tokens for p in group), max(p.tokens for p in group)
        shared = first[: common_prefix(first, last)]
        same = common_prefix(kept, shared)
        apart = len(group) > 1 and len(shared) - same >= WORTH
        return same, shared if apart else shared[:same]

    def _fits(self, reader: Scales, group: Sequence[_Prompt]) -> bool:
        """Whether the cells hold a group's prompts and, beside them, the longest answer."""
        if len(group) > PROMPTS:
            return False
        _, prefix = self._prefix_of(reader, group)
        read = len(prefix) + sum(len(p.tokens) - len(prefix) for p in group)
        return read + self.limit <= self.context.cells

    # -- one group ---------------------------------------------------------------------------

    def _group(self, reader: Scales, group: list[_Prompt]) -> Iterator[tuple[int, Outcome]]:
        context = self.context
        places = {id(prompt): place for place, prompt in enumerate(group, PREFIX + 1)}
        try:
            self._read(reader, group)
            for scales in sorted({s for prompt in group for s in prompt.tasks}):
                todo = [task for prompt in group for task in prompt.tasks.get(scales, ())]
                while todo:
                    free = len(group) + 1
                    count = self._portion(todo, free)
                    yield from self._answer(scales, places, todo[:count], free)
                    todo = todo[count:]
        except BaseException:
            self._forget()
            raise
        for place in places.values():
            context.drop(place)

    def _read(self, reader: Scales, group: list[_Prompt]) -> None:
        """Read a group's prompts into sequences 1.., what they share only once.

        What all begin with is read apart and kept for the next group; what a prompt and the one
        before it begin with is one token in both their sequences.
        """
        context = self.context
        same, prefix = self._prefix_of(reader, group)
        if reader != self._reader:
            self._forget()
            self._reader = reader
        context.use(reader)
        context.drop(PREFIX, same)
        self._prefix = prefix[:same]
        context.decode([(t, i, PREFIX, False) for i, t in enumerate(prefix) if i >= same])
        self._prefix = prefix
        start = len(self._prefix)
        read: list[tuple[int, int, list[int]]] = []  # token, position, the sequences that have it
        path: list[list[int]] = []  # those of the last prompt's tokens, from `start` on
        before: list[int] = []
        for place, prompt in enumerate(group, PREFIX + 1):
            context.copy(PREFIX, place)
            there = max(start, common_prefix(before, prompt.tokens)) if before else start
            prompt.cached = there if before else same
            path = path[: there - start]
            for sequences in path:
                sequences.append(place)
            for i in range(there, len(prompt.tokens)):
                path.append([place])
                read.append((prompt.tokens[i], i, path[-1]))
            before = prompt.tokens
        context.decode([(token, i, tuple(sequences), False) for token, i, sequences in read])
        self._used = start + len(read)

    def _portion(self, todo: Sequence[_Task], free: int) -> int:
        """How many of these answers there is room for at once, one at least.

        `free`: the first free sequence. Choices are computed in copies: half of the sequences, and
        the cells of the longest choice, are kept for them.
        """
        sequences = SEQUENCES - free
        cells = self.context.cells - self._used
        copies = 0  # cells that the longest choice takes
        for count, task in enumerate(todo):
            cells -= self._room(task)
            copies = max(copies, *(len(tokens) - 1 for tokens in task.encoded), 0)
            places = sequences // 2 if copies else sequences
            if count and (count >= places or cells < copies):
                return count
        return len(todo)

    def _answer(
        self, scales: Scales, places: dict[int, int], tasks: list[_Task], free: int
    ) -> Iterator[tuple[int, Outcome]]:
        """Answers under one adapter set, in lockstep, in sequences from `free` on."""
        context, invocation = self.context, self.model.invocation
        context.use(scales)
        items: list[Token] = []
        answers = []
        for sequence, task in enumerate(tasks, free):
            context.copy(places[id(task.prompt)], sequence)
            start = len(task.prompt.tokens)
            last = start + len(invocation) - 1
            items += [(t, i, sequence, i == last) for i, t in enumerate(invocation, start)]
            job = task.job
            writer = Writer(self.model, job.max_tokens, job.temperature, job.seed, job.stop)
            answers.append(_Answer(task, writer, sequence, last + 1, np.empty(0, np.float32)))
        for answer, logits in zip(answers, context.decode(items), strict=True):
            answer.logits = logits
        yield from self._weigh([a for a in answers if a.task.encoded], free + len(answers))
        going = [answer for answer in answers if not answer.task.encoded]
        while going:
            items, rest = [], []
            for answer in going:
                try:
                    token, text = answer.writer.next(answer.logits)
                except CmgrError as error:
                    context.drop(answer.sequence)
                    yield answer.task.number, Outcome(error=str(error))
                    continue
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
        """The outcomes of those that have choices."""
        cells = self.context.cells - self._used - len(answers) * len(self.model.invocation)
        branches = [Branch(a.sequence, a.position, a.logits, a.task.encoded) for a in answers]
        totals = weigh(self.context, branches, free, cells)
        for answer, sums in zip(answers, totals, strict=True):
            self.context.drop(answer.sequence)
            number, outcome = self._outcome(answer)
            if np.isfinite(sums).all():
                outcome.choice_logprobs = sums
            else:
                outcome.error = NOT_FINITE
            yield number, outcome

    def _outcome(self, answer: _Answer) -> tuple[int, Outcome]:
        prompt = answer.task.prompt
        usage = {
            "prompt_tokens": len(prompt.tokens) + len(self.model.invocation),
            "cached_tokens": prompt.cached,
            "completion_tokens": answer.writer.made,
        }
        prompt.cached = len(prompt.tokens)  # read once: the next task reads nothing
        return answer.task.number, Outcome(answer.text.strip(), usage=usage)
