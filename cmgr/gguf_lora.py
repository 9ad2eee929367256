"""A PEFT LoRA folder written as GGUF LoRA, exactly, for llama.cpp."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmgr import __version__
from cmgr.errors import CmgrError

Array = npt.NDArray[np.float32]

# transformers' model_type -> GGUF architecture, for those whose export has been checked
ARCHITECTURES = {"llama": "llama"}


UNFAITHFUL = (
    "use_dora",
    "modules_to_save",
    "alpha_pattern",
    "rank_pattern",
    "trainable_token_indices",
)


def refuse_unfaithful(config: dict[str, Any]) -> None:
    """Raise CmgrError, by name, for what GGUF LoRA cannot say: it applies one alpha / r."""
    for key in UNFAITHFUL:
        if config.get(key):
            raise CmgrError(f"adapter_config.json: {key} cannot be written to GGUF LoRA faithfully")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise CmgrError("adapter_config.json: trained biases cannot be written to GGUF LoRA")


def effective_alpha(config: dict[str, Any]) -> float:
    """The alpha that llama.cpp, which applies alpha / r, must be told (rsLoRA: alpha * sqrt(r))."""
    alpha, rank = float(config["lora_alpha"]), int(config["r"])
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def permute(weights: Array, heads: int) -> Array:
    """Rows of q_proj or k_proj, (heads * 2 * half, n), from Hugging Face's order to GGUF's."""
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, half, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def export(folder: Path, out: Path, model_config: dict[str, Any], **metadata: str) -> int:
    """Write `folder`'s adapter to `out` (f16); returns the number of tensors.

    `model_config` is the base's Hugging Face configuration; `metadata` goes in as `cmgr.*`
    strings. Raises CmgrError for an architecture or setting that cannot be written faithfully.
    The layout is that of llama.cpp's `llama-adapter.cpp`: `<tensor>.lora_a` (r, in), `.lora_b`
    (out, r), `adapter.lora.alpha`, `adapter.alora.invocation_tokens`.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    refuse_unfaithful(config)
    model_type = str(model_config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise CmgrError(
            f"base architecture {model_type!r}: export to GGUF LoRA is not supported yet "
            f"(supported: {', '.join(ARCHITECTURES)})"
        )
    arch = ARCHITECTURES[model_type]
    heads = int(model_config["num_attention_heads"])
    kv_heads = int(model_config.get("num_key_value_heads") or heads)
    ids = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(ids[arch], int(model_config["num_hidden_layers"]))
    part = out.with_name(f".{out.name}.part")
    writer = gguf.GGUFWriter(part, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", effective_alpha(config))
    if config.get("alora_invocation_tokens"):
        writer.add_key_value(
            "adapter.alora.invocation_tokens",
            config["alora_invocation_tokens"],
            gguf.GGUFValueType.ARRAY,
            sub_type=gguf.GGUFValueType.UINT32,
        )
    writer.add_string("cmgr.version", __version__)
    for key, value in metadata.items():
        writer.add_string(f"cmgr.{key}", value)
    pattern = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in sorted(tensors):
        match = pattern.fullmatch(key)
        name = names.get_name(match.group(1)) if match else None
        if match is None or name is None:
            raise CmgrError(f"adapter tensor {key} has no place in a {arch} GGUF")
        weights: Array = np.asarray(tensors[key], dtype=np.float32)
        if not np.isfinite(weights).all():
            raise CmgrError(f"adapter tensor {key} holds values that are not finite")
        if match.group(2) == "B" and match.group(1).endswith(("q_proj", "k_proj")):
            weights = permute(weights, heads if match.group(1).endswith("q_proj") else kv_heads)
        suffix = f"weight.lora_{match.group(2).lower()}"
        writer.add_tensor(f"{name}.{suffix}", np.ascontiguousarray(weights.astype(np.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)
    return len(tensors)
