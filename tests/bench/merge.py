"""What a merge of large adapters costs, and what baking wins.

    python tests/bench/merge.py                 # ten rank-16 adapters of a 7B-shaped model, by svd
    python tests/bench/merge.py --baked -w WS   # decode speed of base, base + adapter, baked base

The large adapters have random weights in the shape of Llama 2 7B; nothing of a base is read but the
metadata of its GGUF, made here too.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

from cmgr.base import Base, resolve
from cmgr.bench import rates
from cmgr.merge import bake, combine
from cmgr.runtime import Runtime
from cmgr.workspace import Workspace, write_json

LAYERS, WIDTH, INNER, RANK, ADAPTERS = 32, 4096, 11008, 16, 10
SHAPES = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj"), (WIDTH, WIDTH)),
    **dict.fromkeys(("self_attn.v_proj", "self_attn.o_proj"), (WIDTH, WIDTH)),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (INNER, WIDTH)),
    "mlp.down_proj": (WIDTH, INNER),
}


def large(folder: Path) -> None:
    """Time and peak memory of one merge."""
    base = folder / "base.gguf"
    writer = gguf.GGUFWriter(base, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(32)
    writer.add_head_count_kv(32)
    writer.add_tensor("output.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rng = np.random.default_rng(1)
    for number in range(ADAPTERS):
        parent = folder / f"a{number}"
        parent.mkdir()
        tensors = {}
        for layer in range(LAYERS):
            for name, (rows, columns) in SHAPES.items():
                key = f"base_model.model.model.layers.{layer}.{name}.lora_"
                a = rng.standard_normal((RANK, columns), np.float32) / 50
                b = rng.standard_normal((rows, RANK), np.float32) / 50
                tensors[f"{key}A.weight"] = a.astype(np.float16)
                tensors[f"{key}B.weight"] = b.astype(np.float16)
        save_file(tensors, parent / "adapter_model.safetensors")
        targets = sorted(name.rpartition(".")[2] for name in SHAPES)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": targets}
        write_json(parent / "adapter_config.json", config)
        del tensors
    # in a process of its own, whose memory is that of the merge alone
    subprocess.run([sys.executable, __file__, "--merge", str(folder)], check=True)


def merge(folder: Path) -> None:
    """The merge that is measured."""
    start = time.perf_counter()
    parents = [folder / f"a{number}" for number in range(ADAPTERS)]
    facts = combine(parents, folder / "out", Base("7b", folder / "base.gguf"), "svd", None, RANK)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took = time.perf_counter() - start
    print(f"{ADAPTERS} adapters: {took:.1f} s, peak {peak:.2f} GiB, error {facts['error']:.3f}")


def baked(ws: Workspace, folder: Path) -> None:
    """Decode tokens/s of a standard adapter beside the base, and baked into it."""
    base = resolve(ws.recipe.base.model, ws.folder)
    name = ws.recipe.cultures[0].id
    adapter = ws.path("adapters", name)
    bake.into_gguf(base, adapter, folder / "baked.gguf")
    for label, model, one in (
        ("base", base, None),
        ("base and adapter", base, adapter),
        ("baked", Base("baked", folder / "baked.gguf"), None),
    ):
        runtime = Runtime(model)
        if one:
            runtime.load_adapter(name, one)
        print(f"{label}: {rates(runtime, {name: 1.0} if one else {})} tokens/s")
        runtime.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--baked", action="store_true")
    parser.add_argument("-w", "--workspace", type=Path, default=Path("quickstart"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.merge:
            merge(options.merge)
        elif options.baked:
            baked(Workspace(options.workspace), Path(scratch))
        else:
            large(Path(scratch))
