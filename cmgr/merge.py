"""Adapters combined into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmgr import gguf_lora
from cmgr.errors import CmgrError
from cmgr.workspace import read_json, write_json


def cat(parents: Mapping[Path, float], out: Path) -> Path:
    """Write the sum of adapters, exact up to f16, to `out` (`adapter.gguf`, `manifest.json`).

    The delta of an adapter is `weight * alpha / r * B @ A`; side by side,
    `[B1 B2] @ [s1 A1; s2 A2]` is their sum, of a rank that adds up. `parents` are adapter folders
    with their weights. Raises CmgrError where they are not of one base, template and kind.
    """
    import gguf
    from gguf.quants import dequantize

    readers = {folder: gguf.GGUFReader(folder / "adapter.gguf") for folder in parents}
    first, *others = (read_json(folder / "manifest.json") or {} for folder in parents)
    for key in ("base_fingerprint", "template_hash", "kind"):
        if any(other.get(key) != first.get(key) for other in others):
            raise CmgrError(
                f"adapters of another {key} cannot be merged: {', '.join(map(str, parents))}"
            )
    stacks: dict[str, list[Any]] = {}
    for folder, reader in readers.items():
        tensors = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        for name, values in tensors.items():
            side = name.endswith(".lora_a")
            scale = parents[folder] * alpha / len(values) if side else 1.0
            stacks.setdefault(name, []).append(values * np.float32(scale))
    # llama.cpp applies alpha / r, r being each tensor's own: one alpha, and the rest in A
    alpha = float(max(sum(map(len, s)) for n, s in stacks.items() if n.endswith(".lora_a")))
    fields = next(iter(readers.values())).fields
    tokens = fields.get(gguf_lora.INVOCATION)
    out.mkdir(parents=True, exist_ok=True)
    gguf_lora.write(
        out / "adapter.gguf",
        fields["general.architecture"].contents(),
        alpha,
        ((name, _joined(name, parts, alpha)) for name, parts in stacks.items()),
        tokens.contents() if tokens else (),
    )
    write_json(out / "manifest.json", {**first, "parents": {f.name: w for f, w in parents.items()}})
    return out


def _joined(name: str, parts: list[Any], alpha: float) -> Any:
    """The halves of several adapters side by side; A so scaled that `alpha / r` takes it back."""
    if name.endswith(".lora_b"):
        return np.concatenate(parts, axis=1)
    joined = np.concatenate(parts)
    return joined * np.float32(len(joined) / alpha)
