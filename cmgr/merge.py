"""Adapters combined into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
    reader = next(iter(readers.values()))
    out.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out / "adapter.gguf", reader.fields["general.architecture"].contents())
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    tokens = reader.fields.get("adapter.alora.invocation_tokens")
    if tokens is not None:
        kind, uint32 = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        writer.add_key_value(tokens.name, list(tokens.contents()), kind, sub_type=uint32)
    # llama.cpp applies alpha / r, r being each tensor's own: one alpha, and the rest in A
    alpha = float(max(sum(map(len, s)) for n, s in stacks.items() if n.endswith(".lora_a")))
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, parts in stacks.items():
        if name.endswith(".lora_a"):
            joined = np.concatenate(parts)
            joined *= np.float32(len(joined) / alpha)
        else:
            joined = np.concatenate(parts, axis=1)
        writer.add_tensor(name, joined.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_json(out / "manifest.json", {**first, "parents": {f.name: w for f, w in parents.items()}})
    return out
