"""A base of any shape in a few megabytes: random weights behind SmolLM2's own vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmgr.base import Base, resolve

EMBEDDING, INNER, HEADS = 32, 48, 4


def write(path: Path, arch: str, head: int, kv_heads: list[int]) -> Base:
    """A GGUF of `arch` (llama, qwen3, gemma3, deci): heads of size `head`, `kv_heads` a layer.

    With different numbers of them the metadata holds a list, as published files do.
    """
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    for field in gguf.GGUFReader(resolve("smollm2").gguf).fields.values():
        if field.name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    vocabulary = len(gguf.GGUFReader(resolve("smollm2").gguf).fields["tokenizer.ggml.tokens"].data)
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(512)
    writer.add_block_count(len(kv_heads))
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads[0] if len(set(kv_heads)) == 1 else kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-6)
    if arch == "gemma3":
        writer.add_sliding_window(64)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        data = random.normal(0, 0.1, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", data.astype(np.float32))

    add("token_embd", vocabulary, EMBEDDING)
    add("output_norm", EMBEDDING)
    for number, kv in enumerate(kv_heads):
        block = f"blk.{number}"
        norms = {"attn_norm": EMBEDDING, "ffn_norm": EMBEDDING}
        if arch in {"qwen3", "gemma3"}:
            norms |= {"attn_q_norm": head, "attn_k_norm": head}
        if arch == "gemma3":
            norms |= {"post_attention_norm": EMBEDDING, "post_ffw_norm": EMBEDDING}
        for name, size in norms.items():
            add(f"{block}.{name}", size)
        add(f"{block}.attn_q", HEADS * head, EMBEDDING)
        add(f"{block}.attn_k", kv * head, EMBEDDING)
        add(f"{block}.attn_v", kv * head, EMBEDDING)
        add(f"{block}.attn_output", EMBEDDING, HEADS * head)
        add(f"{block}.ffn_gate", INNER, EMBEDDING)
        add(f"{block}.ffn_up", INNER, EMBEDDING)
        add(f"{block}.ffn_down", EMBEDDING, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Base(str(path), path)
