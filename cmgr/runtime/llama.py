"""llama.cpp through its own calls: a model with its adapters, and contexts over it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmgr.base import Base, threads
from cmgr.chat_template import template_hash
from cmgr.chat_tokens import ChatTokens, Kind
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.gguf_lora import head_size
from cmgr.loading import library, open_file
from cmgr.records import Message
from cmgr.template_rendering import Rules
from cmgr.threads import Pace
from cmgr.workspace import read_json

Logits = npt.NDArray[np.float32]
Scales = tuple[tuple[str, float], ...]  # adapters at work, sorted by name; () is the bare base
# token, position, the sequence that it is in (or all that share it), whether its logits are wanted
Token = tuple[int, int, int | tuple[int, ...], bool]

BATCH = 512
NOT_FINITE = "the model computes no finite numbers under these adapters. Give them lower scales"


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return result


class Model:
    """A base, memory-mapped, and the adapters that have been initialised over it.

    Raises CmgrError when llama.cpp cannot load the file, UsageError when it has no chat template,
    or one that writes nothing before an answer.
    """

    def __init__(self, base: Base) -> None:
        self.lib = library()
        self.base = base
        self.handle = open_file(base.gguf)
        if not self.handle:
            raise CmgrError(f"llama.cpp cannot load {base.gguf}: damaged, or an unknown kind")
        self.vocab = self.lib.llama_model_get_vocab(self.handle)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))
        raw = self.lib.llama_model_chat_template(self.handle, None)
        if not raw:
            raise UsageError(f"{base.gguf} carries no chat template: choose an instruct model")
        self.template: str = raw.decode()
        lib, vocab = self.lib, self.vocab
        bos, eos = int(lib.llama_vocab_bos(vocab)), int(lib.llama_vocab_eos(vocab))
        rules = Rules(self.template, self.token_text(bos), self.token_text(eos), base.thinking)
        eot = int(lib.llama_vocab_eot(vocab))
        self.chat = ChatTokens(rules, self, eot if eot >= 0 else eos)
        self.invocation = self.chat.invocation
        self.eot = self.chat.end[-1]
        self.adapters: dict[str, Any] = {}
        self.activated: set[str] = set()
        self.threads = threads()
        self.pace = Pace(self.threads, self._use_threads)

    def _use_threads(self, count: int) -> None:
        self.threads = count

    @cached_property
    def cell_bytes(self) -> int:
        """How much memory the KV of one token takes: f16 keys and values of all layers.

        Heads have the size that the model's metadata gives them (Qwen3's and Gemma's are not
        embedding / heads), and each layer its own number where it is a list.
        """
        lib, handle = self.lib, self.handle
        arch = self.metadata("general.architecture")
        embedding, heads = lib.llama_model_n_embd(handle), lib.llama_model_n_head(handle)
        head = head_size({"hidden_size": embedding, "num_attention_heads": heads or 1})
        sizes = [
            int(self.metadata(f"{arch}.attention.{part}_length") or head)
            for part in ("key", "value")
        ]
        heads = lib.llama_model_n_layer(handle) * lib.llama_model_n_head_kv(handle)
        if self.metadata(f"{arch}.attention.head_count_kv") is None:
            heads = sum(self._listed(f"{arch}.attention.head_count_kv")) or heads
        return int(max(1, 2 * heads * sum(sizes)))

    def _listed(self, key: str) -> list[int]:
        """The numbers of a list in the GGUF's header; llama.cpp tells of single values only."""
        import gguf

        field = gguf.GGUFReader(self.base.gguf).fields.get(key)
        return list(field.contents()) if field else []

    @property
    def template_hash(self) -> str:
        """The chat template's hash, as the template lock compares it."""
        return template_hash(self.template, self.base.thinking)

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's header, as text (the first 255 bytes); None where it is absent."""
        buffer = ctypes.create_string_buffer(256)
        size = self.lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, 256)
        return buffer.value.decode(errors="replace") if size >= 0 else None

    def close(self) -> None:
        """Free the model; its adapters go with it."""
        if self.handle:
            self.lib.llama_model_free(self.handle)
            self.handle = None

    # -- tokens ------------------------------------------------------------------------------

    def token_text(self, token: int) -> str:
        """How a token is written; "" for one that the vocabulary does not have."""
        raw = self.lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return raw.decode(errors="replace") if raw else ""

    def token_kind(self, token: int) -> Kind:
        """Whether a token is special, defined by a user but read in any text, or neither."""
        attributes = int(self.lib.llama_vocab_get_attr(self.vocab, token))
        if attributes & (self.lib.LLAMA_TOKEN_ATTR_CONTROL | self.lib.LLAMA_TOKEN_ATTR_UNKNOWN):
            return "control"
        return "defined" if attributes & self.lib.LLAMA_TOKEN_ATTR_USER_DEFINED else "plain"

    def control_words(self) -> list[str]:
        """How all control tokens are written."""
        return [self.token_text(t) for t in range(self.n_vocab) if self.token_kind(t) == "control"]

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids; only with `control` are special tokens read as such."""
        data = text.encode("utf-8", "replace")
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

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer: the file says so, or the chat template ends one by it."""
        return token == self.eot or bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a prompt up to, and without, the invocation tokens."""
        return self.chat.prompt(messages)

    # -- adapters ----------------------------------------------------------------------------

    def load_adapter(self, name: str, folder: Path) -> None:
        """Initialise an adapter once, from its folder (`adapter.gguf`, `manifest.json`).

        Whether it is an activated one is read from the file itself. Raises MissingError where it
        is absent, CmgrError where the template lock refuses it.
        """
        if name in self.adapters:
            return
        path = folder / "adapter.gguf"
        manifest = read_json(folder / "manifest.json")
        if not path.is_file() or manifest is None:
            raise MissingError(f"no adapter for {name} in {folder}. Make it: cmgr train")
        again = f"Train it again: cmgr train --culture {name} --force"
        for what, made, here in (
            ("base", manifest.get("base_fingerprint"), self.base.fingerprint),
            ("chat template", manifest.get("template_hash"), self.template_hash),
        ):
            if made != here:
                raise CmgrError(
                    f"the adapter {name} was made for another {what}: it says {made}, this base "
                    f"has {here}. {again}"
                )
        adapter = self.lib.llama_adapter_lora_init(self.handle, str(path).encode())
        if not adapter:
            raise CmgrError(f"llama.cpp refuses {path}. Make it again: cmgr train --force")
        count = int(self.lib.llama_adapter_get_alora_n_invocation_tokens(adapter))
        if count:
            tokens = self.lib.llama_adapter_get_alora_invocation_tokens(adapter)[:count]
            if list(tokens) != self.invocation:
                raise CmgrError(
                    f"the adapter {name} is invoked by tokens {list(tokens)}, this base's prompt "
                    f"ends in {self.invocation}. {again}"
                )
            self.activated.add(name)
        self.adapters[name] = adapter

    def kind(self, name: str) -> str:
        """Whether a loaded adapter is an activated or a standard one."""
        return "activated" if name in self.activated else "standard"

    def scales(self, wanted: Mapping[str, float]) -> Scales:
        """Scales in one form: sorted, without zeros.

        Raises MissingError for an adapter not loaded, UsageError for a scale not finite.
        """
        missing = [name for name in wanted if name not in self.adapters]
        if missing:
            raise MissingError(f"adapter not loaded: {', '.join(missing)}")
        if not all(math.isfinite(scale) for scale in wanted.values()):
            raise UsageError(f"the scales of a blend must be finite numbers: {dict(wanted)}")
        return tuple(sorted((name, float(scale)) for name, scale in wanted.items() if scale))

    def read_by(self, scales: Scales) -> Scales:
        """Who reads the prompt: of `scales`, the standard adapters (activated ones never do)."""
        return tuple(pair for pair in scales if pair[0] not in self.activated)


class Context:
    """A llama.cpp context over a model: `cells` tokens of KV, shared by `sequences` sequences."""

    def __init__(self, model: Model, cells: int, sequences: int) -> None:
        lib = self.lib = model.lib
        self.model = model
        settings = lib.llama_context_default_params()
        settings.n_ctx = cells
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = sequences
        settings.kv_unified = True  # one pool of cells: a copied prefix takes no memory
        self._threads = settings.n_threads = settings.n_threads_batch = model.threads
        self.cells = cells
        self.sequences = sequences
        self.handle = lib.llama_init_from_model(model.handle, settings)
        if not self.handle:
            raise CmgrError(f"llama.cpp cannot make a context of {cells} tokens: too large?")
        self.memory = lib.llama_get_memory(self.handle)
        self._batch = lib.llama_batch_init(BATCH, 0, sequences)
        self._active: Scales = ()

    @property
    def nbytes(self) -> int:
        """About how much memory its KV takes."""
        return self.cells * self.model.cell_bytes

    def close(self) -> None:
        """Free the context."""
        if self.handle:
            self.lib.llama_batch_free(self._batch)
            self.lib.llama_free(self.handle)
            self.handle = None

    def use(self, scales: Scales) -> None:
        """Let these adapters, and no others, act on what is decoded next."""
        if scales == self._active:
            return
        count = len(scales)
        pointers = (self.lib.llama_adapter_lora_p_ctypes * max(count, 1))(
            *(self.model.adapters[name] for name, _ in scales)
        )
        values = (ctypes.c_float * max(count, 1))(*(scale for _, scale in scales))
        if self.lib.llama_set_adapters_lora(self.handle, pointers, count, values):
            raise CmgrError("llama.cpp refused the adapters")
        self._active = scales

    def decode(self, items: Sequence[Token]) -> Logits:
        """Compute tokens, 512 at a time; the wanted logits, shape (wanted, vocabulary).

        Raises CmgrError when the cells are used up.
        """
        self._check(*{sequence for item in items for sequence in _sequences(item)})
        rows: list[Logits] = []
        batch, shape = self._batch, (self.model.n_vocab,)
        for start in range(0, len(items), BATCH):
            chunk = items[start : start + BATCH]
            batch.n_tokens = len(chunk)
            for i, item in enumerate(chunk):
                batch.token[i], batch.pos[i], _, wanted = item
                sequences = _sequences(item)
                batch.n_seq_id[i] = len(sequences)
                for n, sequence in enumerate(sequences):
                    batch.seq_id[i][n] = sequence
                batch.logits[i] = wanted
            with self.model.pace.step(len(chunk), "adapted" if self._active else ""):
                if self._threads != self.model.threads:
                    self._threads = self.model.threads
                    self.lib.llama_set_n_threads(self.handle, self._threads, self._threads)
                code = self.lib.llama_decode(self.handle, batch)
            if code:
                raise CmgrError(
                    f"the context of {self.cells} tokens is full. Ask for less at once, or "
                    "raise base.context in the recipe"
                    if code == 1
                    else f"llama.cpp failed to decode (code {code})"
                )
            for i, item in enumerate(chunk):
                if item[3]:
                    row = self.lib.llama_get_logits_ith(self.handle, i)
                    rows.append(np.ctypeslib.as_array(row, shape=shape).copy())
        return np.stack(rows) if rows else np.empty((0, *shape), np.float32)

    def _check(self, *sequences: int) -> None:
        """Raise CmgrError for a sequence that is not there: llama.cpp would end the process."""
        if any(not 0 <= sequence < self.sequences for sequence in sequences):
            raise CmgrError(f"no sequence {max(sequences)}: this context has {self.sequences}")

    def copy(self, source: int, target: int, start: int = -1) -> None:
        """Let `target` share the KV of `source` from position `start` on: nothing is computed."""
        self._check(source, target)
        self.lib.llama_memory_seq_cp(self.memory, source, target, start, -1)

    def drop(self, sequence: int, start: int = 0) -> bool:
        """Forget a sequence from position `start` on; False where the model cannot do that."""
        self._check(sequence)
        return bool(self.lib.llama_memory_seq_rm(self.memory, sequence, start, -1))

    def clear(self) -> None:
        """Forget everything."""
        self.lib.llama_memory_clear(self.memory, True)


def _sequences(item: Token) -> tuple[int, ...]:
    return item[2] if isinstance(item[2], tuple) else (item[2],)


class Reader:
    """A context whose kept tokens have been read under one set of standard adapters, always.

    Sequence 0 is the conversation; an answer goes on from a copy of it.
    """

    def __init__(self, model: Model, cells: int, scales: Scales, sequences: int) -> None:
        self.context = Context(model, cells, sequences)
        self.model = model
        self.scales = scales
        self.kept: list[int] = []

    def read(self, tokens: Sequence[int]) -> int:
        """Make `tokens` the conversation, computing only what is new; returns how many were kept.

        Raises UsageError when they leave no room for an answer.
        """
        need = len(tokens) + len(self.model.invocation) + 1
        if need > self.context.cells:
            raise too_long(need, self.context.cells)
        same = common_prefix(self.kept, tokens)
        self.kept = self.kept[:same]
        if not self.context.drop(0, same):  # memory that cannot be cut, as in recurrent models
            self.context.clear()
            self.kept, same = [], 0
        self.context.use(self.scales)
        try:
            self.context.decode([(t, i, 0, False) for i, t in enumerate(tokens) if i >= same])
        except BaseException:
            self.forget()
            raise
        self.kept = list(tokens)
        return same

    def forget(self) -> None:
        """Drop all KV; the next prompt is read from its start."""
        self.context.clear()
        self.kept = []


def too_long(need: int, context: int) -> UsageError:
    """The error for a prompt that, with its answer, needs more tokens than there are."""
    return UsageError(
        f"the prompt needs {need} tokens with its answer, the context holds {context}. "
        "Shorten it, or raise base.context in the recipe"
    )


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same
