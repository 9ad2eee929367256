"""Adapters combined into one, exactly or at a rank; see methods.py, and bake.py for the base."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmgr import gguf_lora
from cmgr.base import Base
from cmgr.errors import CmgrError, UsageError
from cmgr.merge.deltas import Adapter, Factors, check_fit, layer_of, modules_of, weights_of
from cmgr.merge.methods import DENSE, METHODS, at_rank, error_of, merged, relative
from cmgr.records import now
from cmgr.workspace import put_back, put_in_place, write_atomic, write_json


def combine(
    parents: Sequence[Path],
    out: Path,
    base: Base,
    method: str = "cat",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float = 0.3,
    seed: int = 1,
    force: bool = False,
    tick: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the merge of adapter folders to `out`, an adapter like any other, whole or not at all.

    Returns what its manifest says of it: the parents, and the relative Frobenius error over all
    and per layer, of what was kept of the method's own delta. Without `rank` it is the largest of
    the parents'. Parents are read only. Raises UsageError for weights or a method that do not fit,
    CmgrError for adapters that do not, a target that exists, or a full disk.
    """
    put_back(out)
    adapters = [Adapter(folder) for folder in parents]
    _check(adapters, out, method, weights, density, force)
    share = weights_of(adapters, weights)
    for adapter in adapters:
        adapter.check_base(base)
    modules = modules_of(adapters)
    wanted_rank = rank or max(int(a.config["r"]) for a in adapters)
    made: dict[str, Factors] = {}
    errors: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for number, module in enumerate(modules, 1):
        deltas = {a.name: d for a in adapters if (d := a.delta(module)) is not None}
        whole = merged(method, deltas, share, density, seed, module)
        kept = at_rank(whole, wanted_rank) if method != "cat" else whole
        assert isinstance(kept, Factors)
        made[module] = kept
        size = whole.norm() if isinstance(whole, Factors) else float(np.linalg.norm(whole))
        gap = error_of(kept, whole) * size
        errors[layer_of(module)][0] += gap**2
        errors[layer_of(module)][1] += size**2
        if tick:
            tick(number, len(modules))
    facts = {
        "method": method,
        "parents": {a.name: share[a.name] for a in adapters},
        "rank": max(f.rank for f in made.values()),
        **({"density": density, "seed": seed} if method in DENSE else {}),
        "error": relative(errors.values()),
        "error_per_layer": {layer: relative([sums]) for layer, sums in sorted(errors.items())},
    }
    _write(adapters, out, base, made, facts)
    return facts


def _check(
    adapters: Sequence[Adapter],
    out: Path,
    method: str,
    weights: Sequence[float] | None,
    density: float,
    force: bool,
) -> None:
    names = [a.name for a in adapters]
    if len(set(names)) < len(names):
        raise UsageError(f"each adapter once: {', '.join(names)}")
    if method not in METHODS:
        raise UsageError(f"no method {method!r}: there are {', '.join(METHODS)}")
    if weights is not None and len(weights) != len(adapters):
        raise UsageError(f"{len(weights)} weights for {len(adapters)} adapters")
    if weights is not None and not np.isfinite(weights).all():
        raise UsageError("weights are finite numbers")
    if method == "linear" and weights is not None and abs(sum(weights)) < 1e-9:
        raise UsageError("linear takes an average: its weights must not add up to 0")
    if not 0 < density <= 1:
        raise UsageError(f"density {density:g}: more than 0, at most 1")
    check_fit(adapters)
    if out.exists() and not force:
        raise UsageError(f"{out} exists. Choose another --name, or --force to replace it")
    if out.resolve() in {a.folder.resolve() for a in adapters}:
        raise UsageError(f"{out} is one of those that are merged. Choose another --name")


def _write(
    adapters: Sequence[Adapter],
    out: Path,
    base: Base,
    made: dict[str, Factors],
    facts: dict[str, Any],
) -> None:
    """The PEFT folder and its GGUF, put in place together."""
    from safetensors.numpy import save

    first = adapters[0]
    rank = facts["rank"]
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tensors = {}
        for module, factors in made.items():
            # one rank for all: what a module lacks of it is zeros
            more = rank - factors.rank
            key = f"base_model.model.{module}.lora_"
            tensors[f"{key}A.weight"] = np.pad(factors.a, ((0, more), (0, 0)))
            tensors[f"{key}B.weight"] = np.pad(factors.b, ((0, 0), (0, more)))
        write_atomic(part / "adapter_model.safetensors", save(tensors))
        targets = sorted(made)
        if all(not any("." in str(t) for t in a.config["target_modules"]) for a in adapters):
            targets = sorted({module.rpartition(".")[2] for module in made})
        config = {
            **first.config,
            **{"r": rank, "lora_alpha": rank, "use_rslora": False},  # scale 1: it is in B
            "target_modules": targets,
        }
        write_json(part / "adapter_config.json", config)
        lock = {k: first.manifest.get(k) for k in ("base_fingerprint", "template_hash")}
        read = {a.manifest.get("passages") for a in adapters}
        if len(read) == 1 and None not in read:  # all read passages, in one form
            lock["passages"] = read.pop()
        gguf_lora.export(
            part,
            part / "adapter.gguf",
            model_config(base),
            dtype="f16",
            name=out.name,
            parents=", ".join(f"{name}={weight:g}" for name, weight in facts["parents"].items()),
            **{k: str(v) for k, v in lock.items() if v},
        )
        manifest = {
            "finished_at": now(),
            "culture": out.name,
            "kind": first.kind,
            "base": first.manifest.get("base", base.reference),
            **lock,
            **facts,
        }
        write_json(part / "manifest.json", manifest)
        write_atomic(part / "README.md", _card(out.name, manifest).encode())
        put_in_place(part, out)
    except OSError as error:
        raise CmgrError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _card(name: str, manifest: dict[str, Any]) -> str:
    parents = "\n".join(f"- {p}: {w:g}" for p, w in manifest["parents"].items())
    return (
        f"---\nlibrary_name: peft\nbase_model: {manifest['base']}\ntags: [lora, culture, merge]\n"
        f"---\n\n# {name}\n\nA merge of adapters by `{manifest['method']}` "
        f"({METHODS[manifest['method']]}), of rank {manifest['rank']}; {manifest['kind']}.\n\n"
        f"{parents}\n\nRelative Frobenius error of what was kept: {manifest['error']:.4f}.\n"
        "Norms of several cultures in one adapter interfere: `cmgr merge --analyse` says how far.\n"
    )


def model_config(base: Base) -> dict[str, Any]:
    """What `gguf_lora` needs of a base's configuration, from the metadata of its GGUF."""
    import gguf

    reader = gguf.GGUFReader(base.gguf)
    arch = reader.fields["general.architecture"].contents()
    types = {gguf_arch: hf for hf, gguf_arch in reversed(gguf_lora.ARCHITECTURES.items())}

    def of(key: str) -> Any:
        field = reader.fields.get(f"{arch}.{key}")
        return field.contents() if field else None

    config = {
        "model_type": types.get(arch, arch),
        "num_hidden_layers": of("block_count"),
        "hidden_size": of("embedding_length"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("attention.key_length"),
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
    }
    return {key: value for key, value in config.items() if value is not None}
