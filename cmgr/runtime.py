"""llama.cpp with many adapters over one base.

Sequence 0 holds tokens that the bare base has read, and nothing else: an answer continues a copy
of it (no computing) under its adapter and the copy is dropped. KV that an adapter has made is so
never reused under another (see ggml-org/llama.cpp#26207 for what happens otherwise), and a switch
of culture computes nothing again. This is the two-phase form of an activated adapter (aLoRA).
"""

from __future__ import annotations

import codecs
import ctypes
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmgr.base import Base, generation_prompt, segments, template_hash, threads
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.records import Message
from cmgr.workspace import read_json

Logits = npt.NDArray[np.float32]

BASE_SEQ, ANSWER_SEQ = 0, 1
MAX_SEQ = 16
BATCH = 512


def _library() -> Any:
    import llama_cpp

    if not hasattr(llama_cpp, "_cmgr_log"):
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp._cmgr_log = quiet  # kept: llama.cpp holds only the pointer
        llama_cpp.llama_backend_init()
    return llama_cpp


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return result


class Runtime:
    """One loaded base, its adapters, and one conversation's KV.

    Raises CmgrError when llama.cpp cannot load the file.
    """

    def __init__(self, base: Base, context: int = 2048) -> None:
        self.lib = _library()
        self.base = base
        self.context = context
        parameters = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(str(base.gguf).encode(), parameters)
        if not self.model:
            raise CmgrError(f"llama.cpp cannot load {base.gguf}: damaged, or an unknown kind")
        settings = self.lib.llama_context_default_params()
        settings.n_ctx = context
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = MAX_SEQ
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = threads()
        self.ctx = self.lib.llama_init_from_model(self.model, settings)
        if not self.ctx:
            raise CmgrError(f"llama.cpp cannot make a context of {context} tokens: too large?")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.vocab)
        self.memory = self.lib.llama_get_memory(self.ctx)
        raw = self.lib.llama_model_chat_template(self.model, None)
        if not raw:
            raise UsageError(f"{base.gguf} carries no chat template: choose an instruct model")
        self.template = raw.decode()
        self._bos = self._token_text(self.lib.llama_vocab_bos(self.vocab))
        self._eos = self._token_text(self.lib.llama_vocab_eos(self.vocab))
        self.invocation = self.tokenize(
            generation_prompt(self.template, self._bos, self._eos), control=True
        )
        self.adapters: dict[str, Any] = {}
        self._active: tuple[tuple[str, float], ...] = ()
        self._kept: list[int] = []
        self.batch = self.lib.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        """Free the context and the model (adapters go with it)."""
        if self.ctx:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.ctx)
            self.lib.llama_model_free(self.model)
            self.ctx = self.model = None

    # -- tokens ------------------------------------------------------------------------------

    def _token_text(self, token: int) -> str:
        raw = self.lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return raw.decode(errors="replace") if raw else ""

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids; only with `control` are special tokens read as such."""
        data = text.encode()
        room = len(data) + 8
        buffer = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), buffer, room, False, control)
        if count < 0:
            raise CmgrError(f"llama.cpp cannot tokenise {len(data)} bytes of text")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one token (control tokens give none)."""
        buffer = ctypes.create_string_buffer(256)
        count = self.lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        return buffer.raw[: max(count, 0)]

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that the base reads: all up to, and without, the invocation tokens."""
        parts = segments(
            self.template, list(messages), generation=True, bos=self._bos, eos=self._eos
        )
        tokens = [t for part in parts for t in self.tokenize(part.text, control=part.control)]
        if tokens[-len(self.invocation) :] != self.invocation:
            raise UsageError("the chat template does not end in its own generation prompt")
        return tokens[: -len(self.invocation)]

    # -- adapters ----------------------------------------------------------------------------

    def load_adapter(self, name: str, folder: Path) -> None:
        """Initialise an adapter once, from its folder (`adapter.gguf`, `manifest.json`).

        Raises MissingError where it is absent, CmgrError where the template lock refuses it.
        """
        if name in self.adapters:
            return
        path = folder / "adapter.gguf"
        manifest = read_json(folder / "manifest.json")
        if not path.is_file() or manifest is None:
            raise MissingError(f"no adapter for {name} in {folder}. Make it: cmgr train")
        for what, made, here in (
            ("base", manifest.get("base_fingerprint"), self.base.fingerprint),
            ("chat template", manifest.get("template_hash"), template_hash(self.template)),
        ):
            if made != here:
                raise CmgrError(
                    f"the adapter {name} was made for another {what}: it says {made}, this base "
                    f"has {here}. Train it again: cmgr train --culture {name} --force"
                )
        adapter = self.lib.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise CmgrError(f"llama.cpp refuses {path}. Make it again: cmgr train --force")
        self.adapters[name] = adapter

    def _use(self, scales: dict[str, float]) -> None:
        wanted = tuple(sorted(scales.items()))
        if wanted == self._active:
            return
        missing = [name for name in scales if name not in self.adapters]
        if missing:
            raise MissingError(f"adapter not loaded: {', '.join(missing)}")
        count = len(wanted)
        pointers = (self.lib.llama_adapter_lora_p_ctypes * max(count, 1))(
            *(self.adapters[name] for name, _ in wanted)
        )
        values = (ctypes.c_float * max(count, 1))(*(scale for _, scale in wanted))
        if self.lib.llama_set_adapters_lora(self.ctx, pointers, count, values):
            raise CmgrError("llama.cpp refused the adapters")
        self._active = wanted

    # -- computing ---------------------------------------------------------------------------

    def _decode(self, items: list[tuple[int, int, int, bool]]) -> Logits:
        """Decode (token, position, sequence, wants logits); the wanted logits, in order."""
        rows: list[Logits] = []
        for start in range(0, len(items), BATCH):
            chunk = items[start : start + BATCH]
            batch = self.batch
            batch.n_tokens = len(chunk)
            for i, (token, position, sequence, wanted) in enumerate(chunk):
                batch.token[i] = token
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = wanted
            code = self.lib.llama_decode(self.ctx, batch)
            if code:
                self.forget()
                raise CmgrError(
                    f"the context of {self.context} tokens is full. Ask for less at once, or "
                    "raise base.context in the recipe"
                    if code == 1
                    else f"llama.cpp failed to decode (code {code})"
                )
            for i, item in enumerate(chunk):
                if item[3]:
                    row = self.lib.llama_get_logits_ith(self.ctx, i)
                    rows.append(np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy())
        return np.stack(rows) if rows else np.empty((0, self.n_vocab), np.float32)

    def forget(self) -> None:
        """Drop all KV; the next prompt is read from its start."""
        self.lib.llama_memory_clear(self.memory, True)
        self._kept = []

    def read(self, tokens: Sequence[int]) -> int:
        """Let the bare base read `tokens` into the conversation; returns how many were kept."""
        if len(tokens) + len(self.invocation) >= self.context:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens, the context holds {self.context}. "
                "Shorten it, or raise base.context in the recipe"
            )
        same = 0
        for old, new in zip(self._kept, tokens, strict=False):
            if old != new:
                break
            same += 1
        self.lib.llama_memory_seq_rm(self.memory, BASE_SEQ, same, -1)
        self._kept = list(tokens[:same])
        self._use({})
        self._decode([(t, i, BASE_SEQ, False) for i, t in enumerate(tokens) if i >= same])
        self._kept = list(tokens)
        return same

    def _invoke(self, scales: dict[str, float]) -> Logits:
        """Copy the conversation, switch the adapters on, read the invocation: next logits."""
        self._drop(ANSWER_SEQ)
        self.lib.llama_memory_seq_cp(self.memory, BASE_SEQ, ANSWER_SEQ, -1, -1)
        self._use(scales)
        start, last = len(self._kept), len(self.invocation) - 1
        rows = self._decode(
            [(t, start + i, ANSWER_SEQ, i == last) for i, t in enumerate(self.invocation)]
        )
        logits: Logits = rows[0]
        return logits

    def _drop(self, sequence: int) -> None:
        self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def next_logits(self, messages: Sequence[Message], scales: dict[str, float]) -> Logits:
        """Logits of the answer's first token, shape (vocabulary,)."""
        self.read(self.prompt_tokens(messages))
        logits = self._invoke(scales)
        self._drop(ANSWER_SEQ)
        return logits

    def score(
        self, messages: Sequence[Message], choices: Sequence[str], scales: dict[str, float]
    ) -> list[float]:
        """The mean log-probability of each choice's tokens as the answer. Nothing is sampled."""
        if not choices or any(not choice for choice in choices):
            raise UsageError("choices must be one or more texts that are not empty")
        self.read(self.prompt_tokens(messages))
        first = log_softmax(self._invoke(scales))
        encoded = [self.tokenize(choice, control=False) for choice in choices]
        start = len(self._kept) + len(self.invocation)
        scores: list[float] = []
        room = MAX_SEQ - 2
        for offset in range(0, len(encoded), room):
            group = encoded[offset : offset + room]
            items = []
            for number, tokens in enumerate(group):
                sequence = ANSWER_SEQ + 1 + number
                self._drop(sequence)
                self.lib.llama_memory_seq_cp(self.memory, ANSWER_SEQ, sequence, -1, -1)
                items += [(t, start + i, sequence, True) for i, t in enumerate(tokens[:-1])]
            rows = iter(log_softmax(self._decode(items)))
            for number, tokens in enumerate(group):
                total = float(first[tokens[0]])
                total += sum(float(next(rows)[token]) for token in tokens[1:])
                scores.append(total / len(tokens))
                self._drop(ANSWER_SEQ + 1 + number)
        self._drop(ANSWER_SEQ)
        return scores

    def generate(
        self,
        messages: Sequence[Message],
        scales: dict[str, float],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        usage: Callable[[dict[str, int], dict[str, float]], None] | None = None,
    ) -> Generator[str, None, None]:
        """Stream an answer; `usage` is told tokens and milliseconds at the end.

        Temperature 0 takes the likeliest token each time. Stopping the iteration early is safe.
        """
        began = time.perf_counter()
        tokens = self.prompt_tokens(messages)
        kept = self.read(tokens)
        logits = self._invoke(scales)
        first_ms = (time.perf_counter() - began) * 1000
        position = len(tokens) + len(self.invocation)
        random = np.random.default_rng(seed)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        made = 0
        try:
            while made < max_tokens and position < self.context:
                token = _sample(logits, temperature, random)
                if self.lib.llama_vocab_is_eog(self.vocab, token):
                    break
                made += 1
                text = decoder.decode(self.piece(token))
                if text:
                    yield text
                if made == max_tokens:
                    break
                logits = self._decode([(token, position, ANSWER_SEQ, True)])[0]
                position += 1
            rest = decoder.decode(b"", final=True)
            if rest:
                yield rest
        finally:
            self._drop(ANSWER_SEQ)
            if usage:
                usage(
                    {
                        "prompt_tokens": len(tokens) + len(self.invocation),
                        "cached_tokens": kept,
                        "completion_tokens": made,
                    },
                    {
                        "first_token_ms": round(first_ms, 1),
                        "total_ms": round((time.perf_counter() - began) * 1000, 1),
                    },
                )


def _sample(logits: Logits, temperature: float, random: np.random.Generator) -> int:
    if temperature <= 0:
        return int(np.argmax(logits))
    probabilities = np.exp(log_softmax(logits / np.float32(temperature)))
    return int(random.choice(len(probabilities), p=probabilities / probabilities.sum()))
