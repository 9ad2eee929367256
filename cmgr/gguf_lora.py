"""A PEFT LoRA folder written as GGUF LoRA, exactly, for llama.cpp.

The layout is the one that llama.cpp's `src/llama-adapter.cpp` reads: `<tensor>.lora_a` (r, in) and
`<tensor>.lora_b` (out, r), `adapter.lora.alpha` (applied as alpha / r) and, for an activated
adapter, `adapter.alora.invocation_tokens`. What it has no place for is refused, by name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmgr import __version__
from cmgr.errors import CmgrError, MissingError

Array = npt.NDArray[np.float32]
Dtype = Literal["f16", "f32", "q8_0"]

# transformers' model_type -> GGUF architecture; the tests compare each with llama.cpp's arithmetic
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
PERMUTED = "llama"  # here q and k rows stand in another order: see `permute`

# settings of PEFT's LoraConfig that change the arithmetic: llama.cpp adds alpha / r * B A, no more
UNFAITHFUL = (
    "use_dora",
    "modules_to_save",
    "alpha_pattern",
    "rank_pattern",
    "trainable_token_indices",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "lora_bias",
)
# initialisations that take something out of the base's own weights: the adapter belongs to what
# is left. PEFT writes `true` in their place where it has converted the adapter
CHANGE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# metadata that GGUF has keys for; all else goes in as cmgr.*
STANDARD = {
    "name": "general.name",
    "license": "general.license",
    "base_name": "general.base_model.0.name",
}
INVOCATION = "adapter.alora.invocation_tokens"
FILE_TYPES = {"f16": "MOSTLY_F16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")


class Told(npt.NDArray[Any]):
    """An array whose writing tells of a full disk: numpy's own loses small ones without a word."""

    def tofile(self, fid: Any, sep: str = "", format: str = "%s") -> None:
        fid.write(self.data)


def check_supported(model_config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a base's text model; its `model_type` is one of ARCHITECTURES.

    `model_config` is the base's Hugging Face configuration. Raises CmgrError, which names the
    architecture and those that are supported.
    """
    found, model_type = model_config, model_config.get("model_type")
    # the text model of mistral3 says mistral, but has an architecture of its own in llama.cpp
    if model_type not in ARCHITECTURES and model_type != "mistral3":
        found = model_config.get("text_config") or model_config
    if found.get("model_type") not in ARCHITECTURES:
        raise CmgrError(
            f"base architecture {model_type!r}: its adapters cannot be written as GGUF LoRA yet "
            f"(supported: {', '.join(ARCHITECTURES)})"
        )
    return found


def refuse_unfaithful(config: dict[str, Any], model_config: dict[str, Any] | None = None) -> None:
    """Raise CmgrError, by name, for what GGUF LoRA cannot say.

    `config` is the adapter_config.json, and may come from before the training; with the base's
    configuration a LoRA on a tied head is found too.
    """
    if config.get("peft_type", "LORA") != "LORA":
        raise _unfaithful(f"peft_type {config['peft_type']}")
    for key in UNFAITHFUL:
        if config.get(key):
            raise _unfaithful(key)
    if config.get("bias", "none") != "none":
        raise _unfaithful("bias (trained biases)")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(CHANGE_BASE):
        raise _unfaithful(f"init_lora_weights {init} (it changes the base's weights)")
    if config.get("invocation_string") and not config.get("alora_invocation_tokens"):
        raise _unfaithful("invocation_string without alora_invocation_tokens")
    for key in ("r", "lora_alpha"):
        if not config.get(key):  # to llama.cpp an alpha of 0 means 1 * B A
            raise _unfaithful(f"{key} {config.get(key)}")
    targets = config.get("target_modules")
    if not isinstance(targets, str):  # a string is a pattern; what it met is seen in the export
        for module in targets or ():
            _refuse_module(module, model_config)


def _unfaithful(what: str) -> CmgrError:
    return CmgrError(f"adapter_config.json: {what} cannot be written to GGUF LoRA faithfully")


def _refuse_module(module: str, model_config: dict[str, Any] | None) -> None:
    """Raise CmgrError for token embeddings, and for a head that is the same tensor as they."""
    leaf = module.rpartition(".")[2]
    if leaf == "embed_tokens":
        raise CmgrError(
            f"{module}: a LoRA on the token embeddings cannot be written. Leave it out of targets"
        )
    if leaf != "lm_head" or model_config is None:
        return
    text = check_supported(model_config)
    tied = {**text, **model_config}.get("tie_word_embeddings", True)
    if tied or text["model_type"] == "gemma2":  # llama.cpp's gemma2 knows no head of its own
        raise CmgrError(
            f"{module}: this base's head is its token embeddings (tie_word_embeddings), and "
            "llama.cpp has no output.weight to adapt. Leave it out of targets"
        )


def effective_alpha(config: dict[str, Any]) -> float:
    """The alpha that llama.cpp, which applies alpha / r, must be told (rsLoRA: alpha * sqrt(r))."""
    alpha, rank = float(config["lora_alpha"]), int(config["r"])
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def permute(weights: Array, heads: int) -> Array:
    """Rows of q_proj or k_proj, (heads * 2 * half, n), from Hugging Face's order to GGUF's.

    What rotary embedding pairs are rows i and i + half of a head there, 2i and 2i + 1 here.
    """
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, half, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def head_size(text: dict[str, Any]) -> int:
    """The size of an attention head by a text model's configuration; 0 where it does not say.

    Qwen3 and Gemma set their own (`head_dim`); others divide the hidden size among the heads.
    """
    own = text.get("head_dim")
    return int(own or text.get("hidden_size", 0) // int(text["num_attention_heads"]))


def _permuted(key: str, weights: Array, text: dict[str, Any]) -> Array:
    """`lora_B` of q_proj or k_proj in GGUF's order. Raises CmgrError when the heads do not fit."""
    heads = int(text["num_attention_heads"])
    if ".k_proj." in key:
        heads = int(text.get("num_key_value_heads") or heads)
    rows = weights.shape[0]
    size = head_size(text) or rows // heads
    if rows != heads * size or size % 2:
        raise CmgrError(f"adapter tensor {key} has {rows} rows, not {heads} heads of {size}")
    return permute(weights, heads)


def tensors(folder: Path, rank: int, model_config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """Each tensor of the adapter as (its name in GGUF, its weights as they stand there)."""
    import gguf
    from safetensors import safe_open

    text = check_supported(model_config)
    arch = ARCHITECTURES[text["model_type"]]
    ids = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(ids[arch], int(text["num_hidden_layers"]))
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise MissingError(f"no {path}: a PEFT folder with safetensors weights is needed")
    with safe_open(path, "pt") as file:  # by torch: numpy has no bfloat16
        keys = sorted(file.keys())
        if not keys:
            raise CmgrError(f"{path} holds no tensors")
        for key in keys:
            match = KEY.fullmatch(key)
            _refuse_module(match[1] if match else key.partition(".lora_")[0], model_config)
            # models of text and images nest the text model's names
            name = names.get_name(match[1].replace("language_model.", "")) if match else None
            if match is None or name is None:
                raise CmgrError(f"adapter tensor {key} has no place in a {arch} GGUF")
            is_b = match[2] == "B"
            if f"base_model.model.{match[1]}.lora_{'A' if is_b else 'B'}.weight" not in keys:
                raise CmgrError(f"adapter tensor {key} is without the other of A and B")
            weights: Array = file.get_tensor(key).float().numpy()
            if weights.ndim != 2 or weights.shape[is_b] != rank:
                raise CmgrError(
                    f"adapter tensor {key} has shape {weights.shape}, which is not of rank {rank}"
                )
            if not np.isfinite(weights).all():
                raise CmgrError(f"adapter tensor {key} holds values that are not finite")
            if arch == PERMUTED and is_b and match[1].endswith(("q_proj", "k_proj")):
                weights = _permuted(key, weights, text)
            yield f"{name}.weight.lora_{match[2].lower()}", weights


def export(
    folder: Path,
    out: Path,
    model_config: dict[str, Any],
    *,
    dtype: Dtype = "f16",
    **metadata: str,
) -> int:
    """Write `folder`'s adapter to `out`, whole or not at all; returns the number of tensors.

    `model_config` is the base's Hugging Face configuration. Of `metadata`, `name`, `license` and
    `base_name` go to GGUF's own keys, all else in as `cmgr.*`. With q8_0 the rows that are no
    multiple of 32 long stay f16 (as in llama.cpp's own files): lora_b of smaller ranks.
    Raises CmgrError for what cannot be written faithfully, and for a full disk.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    refuse_unfaithful(config, model_config)
    return write(
        out,
        ARCHITECTURES[check_supported(model_config)["model_type"]],
        effective_alpha(config),
        tensors(folder, int(config["r"]), model_config),
        config.get("alora_invocation_tokens") or [],
        dtype,
        metadata,
    )


def write(
    out: Path,
    arch: str,
    alpha: float,
    tensors: Iterable[tuple[str, Array]],
    invocation: Sequence[int] = (),
    dtype: Dtype = "f16",
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a GGUF LoRA of these tensors (name, weights) whole or not at all; returns how many.

    With `invocation` tokens it is an activated one. `metadata` and q8_0: see `export`. Raises
    CmgrError for values too large for the type, and for a full disk.
    """
    import gguf

    metadata = metadata or {}
    part = out.with_name(f".{out.name}.part")
    writer = gguf.GGUFWriter(part, arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if invocation:
        writer.add_key_value(
            INVOCATION,
            list(invocation),
            gguf.GGUFValueType.ARRAY,
            sub_type=gguf.GGUFValueType.UINT32,  # llama.cpp takes no other
        )
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if "base_name" in metadata:
        writer.add_base_model_count(1)
    for key, value in {"version": __version__, **metadata}.items():
        writer.add_string(STANDARD.get(key, f"cmgr.{key}"), value)
    count = size = 0
    for name, weights in tensors:
        kind = gguf.GGMLQuantizationType[dtype.upper()]
        if dtype == "q8_0" and weights.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F16
        if dtype != "f32" and np.abs(weights).max() > np.finfo(np.float16).max:
            raise CmgrError(f"{name} holds values too large for {dtype}: export as f32")
        data = gguf.quants.quantize(np.ascontiguousarray(weights), kind)
        writer.add_tensor(name, data.view(Told), raw_dtype=kind)
        count, size = count + 1, size + data.nbytes
    _write(writer, part, out, size)
    return count


def _write(writer: Any, part: Path, out: Path, size: int) -> None:
    """Put the file in place, or leave nothing. Raises CmgrError on a full disk."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CmgrError(
            f"{out}: the disk is full. About {size / 2**20:.1f} MB are needed in {out.parent}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        part.unlink(missing_ok=True)
