"""llama.cpp with many adapters over one base.

KV of tokens belongs to whoever read them. A prompt is read by the bare base and the standard
adapters of its set, never by activated ones (aLoRA), which act from the invocation tokens on.
So each set of standard adapters has a reader, a context of its own with its own kept tokens, and
all activated adapters share the bare base's. An answer continues a copy of the reader's sequence
(no computing); the copy is dropped where activated adapters wrote it. KV that one adapter has made
is so never reused under another (ggml-org/llama.cpp#26207 is what happens otherwise).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmgr.base import Base
from cmgr.errors import CmgrError, UsageError
from cmgr.records import Message
from cmgr.runtime.choices import Branch, weigh
from cmgr.runtime.llama import NOT_FINITE, Logits, Model, Reader, Scales, too_long
from cmgr.runtime.text import Writer

ANSWER = 1  # the sequence of the answer being written; choices take those after it
SEQUENCES = 16
CACHE_MB = 1024


class Runtime:
    """One loaded base, its adapters, and one conversation's KV under each set of them.

    `cache_mb` bounds the KV of standard adapters' readers: the one used longest ago goes first.
    Raises CmgrError when llama.cpp cannot load the file.
    """

    def __init__(self, base: Base, context: int = 2048, cache_mb: int = CACHE_MB) -> None:
        self.model = Model(base)
        self.context = context
        self.cache_mb = cache_mb
        self._readers: OrderedDict[Scales, Reader] = OrderedDict()
        self._reader(())

    def close(self) -> None:
        """Free the contexts and the model (adapters go with it)."""
        for reader in self._readers.values():
            reader.context.close()
        self._readers.clear()
        self.model.close()

    def load_adapter(self, name: str, folder: Path) -> None:
        """Initialise an adapter once; see `Model.load_adapter`."""
        self.model.load_adapter(name, folder)

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a prompt up to, and without, the invocation tokens."""
        return self.model.prompt_tokens(messages)

    # -- readers -----------------------------------------------------------------------------

    def _reader(self, scales: Scales) -> Reader:
        """The reader of a set of adapters: kept, or new in place of the one unused longest."""
        key = self.model.read_by(scales)
        if key not in self._readers:
            # the base's stays: it serves every activated adapter
            others = [k for k in self._readers if k]
            room = self.cache_mb * 2**20 // (self.context * self.model.cell_bytes)
            while key and len(others) >= max(1, room):
                self._readers.pop(others.pop(0)).context.close()
            self._readers[key] = Reader(self.model, self.context, key, SEQUENCES)
        self._readers.move_to_end(key)
        return self._readers[key]

    def kept(self) -> list[dict[str, Any]]:
        """What is kept, most recently used last: who read it, its tokens and KV megabytes."""
        return [
            {
                "adapters": dict(key),
                "tokens": len(reader.kept),
                "mb": round(reader.context.nbytes / 2**20, 1),
            }
            for key, reader in self._readers.items()
        ]

    def forget(self) -> None:
        """Drop all KV; the next prompt is read from its start."""
        for reader in self._readers.values():
            reader.forget()

    # -- computing ---------------------------------------------------------------------------

    def _invoke(self, reader: Reader, scales: Scales) -> Logits:
        """Copy the conversation, switch all adapters on, read the invocation: next logits."""
        context, invocation = reader.context, self.model.invocation
        context.drop(ANSWER)
        context.copy(0, ANSWER)
        context.use(scales)
        start, last = len(reader.kept), len(invocation) - 1
        rows = context.decode([(t, start + i, ANSWER, i == last) for i, t in enumerate(invocation)])
        logits: Logits = rows[0]
        return logits

    def next_logits(self, messages: Sequence[Message], scales: Mapping[str, float]) -> Logits:
        """Logits of the answer's first token, shape (vocabulary,)."""
        wanted = self.model.scales(scales)
        reader = self._reader(wanted)
        reader.read(self.prompt_tokens(messages))
        logits = self._invoke(reader, wanted)
        reader.context.drop(ANSWER)
        return logits

    def score(
        self, messages: Sequence[Message], choices: Sequence[str], scales: Mapping[str, float]
    ) -> list[float]:
        """The mean log-probability of each choice's tokens as the answer. Nothing is sampled."""
        if not choices or any(not choice for choice in choices):
            raise UsageError("choices must be one or more texts that are not empty")
        wanted = self.model.scales(scales)
        reader = self._reader(wanted)
        reader.read(self.prompt_tokens(messages))
        logits = self._invoke(reader, wanted)
        start = len(reader.kept) + len(self.model.invocation)
        encoded = [self.model.chat.answer(choice) for choice in choices]
        need = start + max(map(len, encoded))
        if need > self.context:
            raise too_long(need, self.context)
        branch = Branch(ANSWER, start, logits, encoded)
        (totals,) = weigh(reader.context, [branch], ANSWER + 1, self.context - start)
        reader.context.drop(ANSWER)
        if not np.isfinite(totals).all():
            raise CmgrError(NOT_FINITE)
        return [total / len(tokens) for total, tokens in zip(totals, encoded, strict=True)]

    def generate(
        self,
        messages: Sequence[Message],
        scales: Mapping[str, float],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        usage: Callable[[dict[str, int], dict[str, float]], None] | None = None,
    ) -> Generator[str, None, None]:
        """Stream an answer; `usage` is told tokens and milliseconds at the end.

        Temperature 0 takes the likeliest token each time; a text of `stop` ends the answer and is
        left out. Stopping the iteration early is safe.
        """
        began = time.perf_counter()
        wanted = self.model.scales(scales)
        reader = self._reader(wanted)
        tokens = self.prompt_tokens(messages)
        kept = reader.read(tokens)
        logits = self._invoke(reader, wanted)
        first_ms = (time.perf_counter() - began) * 1000
        position = start = len(tokens) + len(self.model.invocation)
        fed = [*tokens, *self.model.invocation]
        writer = Writer(self.model, max_tokens, temperature, seed, stop)
        try:
            while True:
                token, text = writer.next(logits)
                if text:
                    yield text
                if token is None or position >= self.context:
                    break
                logits = reader.context.decode([(token, position, ANSWER, True)])[0]
                fed.append(token)
                position += 1
            rest = writer.rest()
            if rest:
                yield rest
        finally:
            if wanted == reader.scales:  # no activated adapter: the answer is the reader's own
                reader.context.copy(ANSWER, 0, len(tokens))
                reader.kept = fed
            reader.context.drop(ANSWER)
            if usage:
                usage(
                    {
                        "prompt_tokens": start,
                        "cached_tokens": kept,
                        "completion_tokens": writer.made,
                    },
                    {
                        "first_token_ms": round(first_ms, 1),
                        "total_ms": round((time.perf_counter() - began) * 1000, 1),
                    },
                )
