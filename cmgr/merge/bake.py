"""An adapter baked into its base: one GGUF that runs wherever llama.cpp does, or HF weights."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmgr import __version__
from cmgr.base import Base
from cmgr.errors import CmgrError, UsageError
from cmgr.gguf_lora import Told
from cmgr.merge.deltas import Adapter
from cmgr.workspace import put_back, put_in_place

# what `gguf` can write, and for what it cannot (llama.cpp's k-quants, i-quants) the nearest kind
WRITABLE = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
NEAREST = {
    **{"Q2_K": "q4_0", "Q3_K": "q4_0", "Q4_K": "q4_1", "Q5_K": "q5_1", "Q6_K": "q8_0"},
    **{"Q8_K": "q8_0", "Q8_1": "q8_0"},
}
# keys that the writer sets itself, or that are those of the new file
_OWN = {
    *("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"),
    *("general.file_type", "general.quantization_version", "general.alignment"),
}
FILE_TYPES = {
    **{"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"},
    **{"q5_1": "MOSTLY_Q5_1", "q5_0": "MOSTLY_Q5_0", "q4_1": "MOSTLY_Q4_1", "q4_0": "MOSTLY_Q4_0"},
}
Array = npt.NDArray[np.float32]


def into_gguf(
    base: Base,
    adapter: Path | None,
    out: Path,
    quantize: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    tick: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the base with an adapter's delta in it as one GGUF, whole or not at all.

    Tensors are read, changed and written one at a time; all metadata, tokeniser and chat template
    among it, are kept. `quantize` is the kind of all matrices; without it each keeps its own, or
    the nearest that can be written, which is said. Without an adapter the base is only written
    again. Raises UsageError for an activated adapter or a target that exists, CmgrError for an
    adapter of another base, or a full disk.
    """
    import gguf

    if quantize is not None and quantize not in WRITABLE:
        raise UsageError(
            f"--quantize {quantize}: can be written are {', '.join(WRITABLE)} (llama.cpp's own "
            "llama-quantize makes k-quants of an f16 file)"
        )
    if out.exists() and not force:
        raise UsageError(f"{out} exists. Choose another file, or --force to replace it")
    if out.exists() and out.samefile(base.gguf):
        raise UsageError(f"{out} is the base itself")
    reader = gguf.GGUFReader(base.gguf)
    deltas = _deltas(base, adapter) if adapter else {}
    missing = deltas.keys() - {t.name for t in reader.tensors}
    if missing:
        raise CmgrError(f"{adapter}: the base has no tensor {', '.join(sorted(missing)[:3])}")
    kinds = {t.name: _kind(t, quantize, t.name in deltas) for t in reader.tensors}
    _tell_changes(reader, kinds, quantize, say)
    part = out.with_name(f".{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    arch = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(part, arch)
    most = Counter(kinds[t.name] for t in reader.tensors if len(t.shape) > 1).most_common(1)[0][0]
    try:
        _metadata(writer, reader, most, adapter)
        for tensor in reader.tensors:
            kind = gguf.GGMLQuantizationType[kinds[tensor.name].upper()]
            shape = tuple(int(n) for n in reversed(tensor.shape))
            block, size = gguf.GGML_QUANT_SIZES[kind]
            plain = kind in {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}
            writer.add_tensor_info(
                tensor.name,
                shape if plain else (*shape[:-1], shape[-1] // block * size),
                np.dtype({"f32": np.float32, "f16": np.float16}.get(kinds[tensor.name], np.uint8)),
                int(np.prod(shape)) // block * size,
                raw_dtype=kind,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, tensor in enumerate(reader.tensors, 1):
            data = _data(tensor, kinds[tensor.name], deltas.get(tensor.name))
            writer.write_tensor_data(data.view(Told))
            if tick:
                tick(number, len(reader.tensors))
        writer.close()
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(out)
    except OSError as error:
        raise _not_written(out, error) from None
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        part.unlink(missing_ok=True)
    return {"file": str(out), "bytes": out.stat().st_size, "kind": most, "changed": len(deltas)}


def into_folder(
    weights: Path, adapter: Path, out: Path, force: bool = False, base: Base | None = None
) -> dict[str, Any]:
    """Write HF weights with an adapter's delta in them, through PEFT's `merge_and_unload`.

    The folder is there whole or not at all. Raises UsageError for an activated adapter or a target
    that exists, CmgrError for a full disk, or an adapter of another base than `base`, whose
    weights these are.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = Adapter(adapter)
    refuse_activated(found)
    if base:
        found.check_base(base)
    put_back(out)
    if out.exists() and not force:
        raise UsageError(f"{out} exists. Choose another folder, or --force to replace it")
    if out.exists() and out.samefile(weights):
        raise UsageError(f"{out} is the base itself")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(weights, dtype="auto")
    whole = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    try:
        whole.save_pretrained(part)
        AutoTokenizer.from_pretrained(weights).save_pretrained(part)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        put_in_place(part, out)
    except OSError as error:
        raise _not_written(out, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {"file": str(out), "changed": len(found.modules())}


def _not_written(out: Path, error: OSError) -> CmgrError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CmgrError(f"{out}: the disk is full")
    return CmgrError(f"{out}: cannot be written: {error.strerror or error}")


def refuse_activated(adapter: Adapter) -> None:
    """Raise UsageError for an adapter that must not act on the prompt."""
    if adapter.kind == "activated":
        raise UsageError(
            f"{adapter.name} is activated: it acts from the answer on, and in the base it would "
            "act on the prompt too. Train a standard one: cmgr train --kind standard"
        )


def _deltas(base: Base, folder: Path) -> dict[str, tuple[Array, Array]]:
    """For each of the base's tensors that changes: (b, a), in the GGUF's order, scale in b."""
    from cmgr.gguf_lora import tensors
    from cmgr.merge import model_config

    adapter = Adapter(folder)
    refuse_activated(adapter)
    adapter.check_base(base)
    halves: dict[str, dict[str, Array]] = {}
    for name, values in tensors(folder, int(adapter.config["r"]), model_config(base)):
        target, _, side = name.rpartition(".lora_")
        halves.setdefault(target, {})[side] = values
    scale = np.float32(adapter.scale)
    return {target: (sides["b"] * scale, sides["a"]) for target, sides in halves.items()}


def _kind(tensor: Any, wanted: str | None, changed: bool) -> str:
    """The kind that a tensor is written as; vectors (norms, biases) stay as they are."""
    own = tensor.tensor_type.name
    if len(tensor.shape) < 2:
        return str(own).lower()
    kind = wanted or NEAREST.get(own, own.lower())
    if kind not in WRITABLE:  # an i-quant, a ternary kind: with what is near in size
        kind = "q4_1"
    block = 32 if kind.startswith("q") else 1
    return kind if int(tensor.shape[0]) % block == 0 else "f16"


def _data(tensor: Any, kind: str, delta: tuple[Array, Array] | None) -> Any:
    """A tensor's bytes as they are to be written."""
    import gguf
    from gguf.quants import dequantize, quantize

    target = gguf.GGMLQuantizationType[kind.upper()]
    if delta is None and tensor.tensor_type == target:
        return np.ascontiguousarray(tensor.data)  # bit for bit
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if delta is not None:
        values = values + delta[0] @ delta[1]
    if kind == "f16" and np.abs(values).max() > np.finfo(np.float16).max:
        raise CmgrError(f"{tensor.name} holds values too large for f16: --quantize f32 or bf16")
    return np.ascontiguousarray(quantize(np.ascontiguousarray(values), target))


def _metadata(writer: Any, reader: Any, kind: str, adapter: Path | None) -> None:
    import gguf

    for name, field in reader.fields.items():
        if name in _OWN or name.startswith("cmgr."):
            continue
        value = field.contents()
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        if field.types[0] == gguf.GGUFValueType.ARRAY and not len(value):
            continue  # GGUF's writer knows no empty array
        writer.add_key_value(name, value, field.types[0], sub_type=sub)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(kind, "GUESSED")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("cmgr.version", __version__)
    if adapter is not None:
        found = Adapter(adapter)
        writer.add_string("cmgr.culture", found.name)
        parents: Mapping[str, float] = found.manifest.get("parents") or {found.name: 1.0}
        writer.add_string("cmgr.parents", ", ".join(f"{p}={w:g}" for p, w in parents.items()))


def _tell_changes(
    reader: Any, kinds: Mapping[str, str], quantize: str | None, say: Callable[[str], None]
) -> None:
    """Say which kinds of tensors cannot be written as they are."""
    if quantize:
        return
    changed = Counter(
        (t.tensor_type.name.lower(), kinds[t.name])
        for t in reader.tensors
        if t.tensor_type.name.lower() != kinds[t.name]
    )
    for (own, kind), n in changed.items():
        say(f"{n} tensors of kind {own} are written as {kind}: gguf cannot write {own}")
