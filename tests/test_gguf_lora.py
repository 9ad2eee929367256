"""What cannot be written faithfully is refused; what can, is written exactly.

The bases are tiny random models of transformers' own classes; PEFT and llama.cpp are real.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr import gguf_lora
from cmgr.errors import CmgrError, MissingError

CONFIG = {"r": 4, "lora_alpha": 8, "bias": "none"}
RANK = 4
HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCABULARY = 64, 96, 4, 2, 2, 96
# model_type -> transformers' configuration class, the size of a head (not always hidden / heads)
KINDS = {
    "llama": ("LlamaConfig", 32),
    "mistral": ("MistralConfig", 32),
    "qwen2": ("Qwen2Config", 16),
    "qwen3": ("Qwen3Config", 32),
    "gemma2": ("Gemma2Config", 32),
    "gemma3_text": ("Gemma3TextConfig", 32),
    "phi3": ("Phi3Config", 16),
}
# in one block: tensor of the GGUF -> PEFT's module, rows, columns
WIDE = {
    "attn_q": ("self_attn.q_proj", 128, 64),
    "attn_k": ("self_attn.k_proj", 64, 64),
    "attn_v": ("self_attn.v_proj", 64, 64),
    "attn_output": ("self_attn.o_proj", 64, 128),
    "ffn_gate": ("mlp.gate_proj", 96, 64),
    "ffn_up": ("mlp.up_proj", 96, 64),
    "ffn_down": ("mlp.down_proj", 64, 96),
}
BLOCKS = {kind: WIDE for kind in KINDS}
BLOCKS["qwen2"] = WIDE | {
    "attn_q": ("self_attn.q_proj", 64, 64),
    "attn_k": ("self_attn.k_proj", 32, 64),
    "attn_v": ("self_attn.v_proj", 32, 64),
    "attn_output": ("self_attn.o_proj", 64, 64),
}
BLOCKS["phi3"] = {
    "attn_qkv": ("self_attn.qkv_proj", 128, 64),
    "attn_output": ("self_attn.o_proj", 64, 64),
    "ffn_up": ("mlp.gate_up_proj", 192, 64),
    "ffn_down": ("mlp.down_proj", 64, 96),
}


def tiny(kind: str, **settings: Any) -> Any:
    """A random model of a kind: of transformers' real class, a few hundred kilobytes large."""
    import torch
    import transformers

    name, size = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        sliding_window=64,
        initializer_range=0.1,
        pad_token_id=0,
        **({} if size == HIDDEN // HEADS else {"head_dim": size}),
        **({"query_pre_attn_scalar": size} if kind.startswith("gemma") else {}),
        **settings,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def adapt(model: Any, folder: Path, **settings: Any) -> Any:
    """A LoRA of random A and B over a model, saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings = {"target_modules": "all-linear", "r": RANK, "lora_alpha": 8, **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, weights in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


def saved(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a PEFT folder by their short names: `layers.0.mlp.up_proj.lora_A`."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model.model."
    return {key.removeprefix(prefix).removesuffix(".weight"): t for key, t in tensors.items()}


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a GGUF, as numbers."""
    import gguf

    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors
    }


def reordered(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of heads of a size in GGUF's order: i and i + size / 2 of a head stand together."""
    order = [
        head + part * (size // 2) + i
        for head in range(0, len(rows), size)
        for i in range(size // 2)
        for part in (0, 1)
    ]
    return rows[order]


# -- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_values_are_those_of_the_architecture(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    adapt(model, tmp_path)
    out = tmp_path / "a.gguf"
    count = gguf_lora.export(tmp_path, out, model.config.to_dict(), dtype="f32")
    found, weights = read(out), saved(tmp_path)
    assert count == len(found) == len(weights) == LAYERS * len(BLOCKS[kind]) * 2
    for layer in range(LAYERS):
        for tensor, (module, rows, columns) in BLOCKS[kind].items():
            a = found.pop(f"blk.{layer}.{tensor}.weight.lora_a")
            b = found.pop(f"blk.{layer}.{tensor}.weight.lora_b")
            assert (a.shape, b.shape) == ((RANK, columns), (rows, RANK))
            assert np.array_equal(a, weights[f"layers.{layer}.{module}.lora_A"])
            expected = weights[f"layers.{layer}.{module}.lora_B"]
            if kind in ("llama", "mistral") and tensor in ("attn_q", "attn_k"):
                assert not np.array_equal(b, expected)
                expected = reordered(expected, KINDS[kind][1])
            assert np.array_equal(b, expected)
    assert not found


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(kind, {}) for kind in KINDS]
    + [
        ("llama", {"use_rslora": True}),
        ("qwen3", {"target_modules": ["q_proj", "lm_head"]}),
    ],
)
def test_llama_cpp_computes_what_peft_computes(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    model = tiny(kind)
    write_base(model, tmp_path / "base.gguf")
    tokens = [1, 17, 5, 80, 33, 9, 64, 2]
    bar = 1e-3 if kind.startswith("gemma") else 1e-5  # llama.cpp looks GELU up in a table of f16
    with torch.no_grad():
        bare = model(torch.tensor([tokens])).logits[0].numpy()
        adapted = adapt(model, tmp_path, **settings)
        ours = adapted(torch.tensor([tokens])).logits[0].numpy()
    gguf_lora.export(tmp_path, tmp_path / "a.gguf", model.config.to_dict(), dtype="f32")
    with llama_cpp_logits(tmp_path / "base.gguf", tokens) as logits:
        assert distance(logits(None), bare) < bar
        assert distance(logits(tmp_path / "a.gguf"), ours) < bar
    assert distance(ours, bare) > 0.1


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def write_base(model: Any, path: Path) -> None:
    """A tiny model as GGUF, without a vocabulary."""
    import gguf

    config = model.config
    arch = gguf_lora.ARCHITECTURES[config.model_type]
    size = KINDS[config.model_type][1]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(64)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch.startswith("gemma"):
        writer.add_sliding_window(64)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    ids = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(ids[arch], LAYERS)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            data = data + 1
        if arch == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            data = reordered(data, size)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_cpp_logits(base: Path, tokens: list[int]) -> Iterator[Any]:
    """A function from an adapter's file (or None) to the logits behind each token."""
    from cmgr.loading import library

    lib = library()
    model = lib.llama_model_load_from_file(str(base).encode(), lib.llama_model_default_params())
    assert model
    settings = lib.llama_context_default_params()
    settings.n_ctx = 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # f32
    settings.flash_attn_type = 0  # none: it would round to f16

    def logits(path: Path | None) -> np.ndarray:
        context = lib.llama_init_from_model(model, settings)
        if path:
            adapter = lib.llama_adapter_lora_init(model, str(path).encode())
            assert adapter
            pointers = (lib.llama_adapter_lora_p_ctypes * 1)(adapter)
            assert not lib.llama_set_adapters_lora(context, pointers, 1, (ctypes.c_float * 1)(1.0))
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, True
        assert not lib.llama_decode(context, batch)
        rows = [
            np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (VOCABULARY,)).copy()
            for i in range(len(tokens))
        ]
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        return np.stack(rows)

    yield logits
    lib.llama_model_free(model)


# -- the file ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PEFT folder over a tiny Llama; its configuration stands beside it in model.json."""
    model = tiny("llama")
    adapt(model, tmp_path, alora_invocation_tokens=[1, 52])
    (tmp_path / "model.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return tmp_path


def base_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return config


def rewrite(folder: Path, changed: dict[str, Any]) -> None:
    """Tensors replaced or added; None takes one away."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | changed
    save_file({key: t for key, t in tensors.items() if t is not None}, path)


def test_the_header_says_what_it_is_and_where_it_comes_from(folder: Path) -> None:
    import gguf

    about = {"culture": "日本", "base_fingerprint": "f00", "template_hash": "7e3"}
    standard = {"name": "Japan (small)", "base_name": "smollm2", "license": "cc-by-4.0"}
    gguf_lora.export(folder, folder / "a.gguf", base_of(folder), **about, **standard)
    found = gguf.GGUFReader(folder / "a.gguf").fields
    header = {key: field.contents() for key, field in found.items() if "." in key}
    assert header.pop("cmgr.version")
    assert header.pop("general.quantization_version") == 2
    assert {k: header.pop(k) for k in list(header) if "GGUF." in k}
    assert header == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "Japan (small)",
        "general.license": "cc-by-4.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "smollm2",
        "general.file_type": 1,
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
        "adapter.alora.invocation_tokens": [1, 52],
        **{f"cmgr.{key}": value for key, value in about.items()},
    }
    tokens = found["adapter.alora.invocation_tokens"].types
    assert tokens == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32]


def test_numbers_are_rounded_as_little_as_the_type_asks(folder: Path) -> None:
    import gguf

    def written(dtype: gguf_lora.Dtype) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        gguf_lora.export(folder, folder / "a.gguf", base_of(folder), dtype=dtype)
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(folder / "a.gguf").tensors}
        return read(folder / "a.gguf"), types

    exact, types = written("f32")
    assert set(types.values()) == {"F32"}
    half, types = written("f16")
    assert set(types.values()) == {"F16"}
    eighth, types = written("q8_0")
    for name, weights in exact.items():
        assert np.array_equal(half[name], weights.astype(np.float16))
        if name.endswith("lora_a"):  # rows of 64 or 128
            assert types[name] == "Q8_0"
            step = np.abs(weights.reshape(-1, 32)).max(1, keepdims=True) / 127  # kept as f16
            assert (np.abs(eighth[name] - weights).reshape(-1, 32) <= 0.57 * step).all()
        else:  # rows of 4
            assert types[name] == "F16"
            assert np.array_equal(eighth[name], half[name])


def test_an_adapter_in_bfloat16_is_read(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    rewrite(folder, {key: t.bfloat16() for key, t in tensors.items()})
    gguf_lora.export(folder, folder / "a.gguf", base_of(folder), dtype="f32")
    a = tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
    found = read(folder / "a.gguf")["blk.1.ffn_up.weight.lora_a"]
    assert np.array_equal(found, a.to(torch.bfloat16).float().numpy())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_leaves_the_file_before(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"before")
    (folder / ".a.gguf.part").symlink_to("/dev/full")
    with pytest.raises(CmgrError, match=rf"disk is full.*MB.*{folder}"):
        gguf_lora.export(folder, folder / "a.gguf", base_of(folder))
    assert (folder / "a.gguf").read_bytes() == b"before"
    assert not (folder / ".a.gguf.part").is_symlink()


def test_a_write_that_stops_midway_leaves_nothing(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):  # in the middle of the tensors
            gguf_lora.export(folder, folder / "a.gguf", base_of(folder), dtype="f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.glob("*.gguf")) + list(folder.glob(".*.part"))


# -- refusals ----------------------------------------------------------------------------------

HARMLESS = {  # of PEFT's settings: they choose modules, begin or speed up the training, or inform
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config", "qalora_group_size", "runtime_config"),
    "ensure_weight_tying",
}
WRITTEN = {"r", "lora_alpha", "use_rslora", "alora_invocation_tokens"}
JUDGED = {"peft_type", "bias", "init_lora_weights", "target_modules"}


def test_every_setting_of_this_peft_has_been_decided_upon() -> None:
    """A new version's settings stand here first: do they change the arithmetic?"""
    from peft import LoraConfig

    names = {field.name for field in fields(LoraConfig)}
    assert names <= HARMLESS | WRITTEN | JUDGED | set(gguf_lora.UNFAITHFUL)
    gguf_lora.refuse_unfaithful(LoraConfig(target_modules=["q_proj", "lm_head"]).to_dict())


@pytest.mark.parametrize("key", gguf_lora.UNFAITHFUL)
def test_unfaithful_settings_are_refused_by_name(key: str) -> None:
    with pytest.raises(CmgrError, match=key):
        gguf_lora.refuse_unfaithful({**CONFIG, key: {"x": 1}})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bias": "lora_only"}, "bias"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"invocation_string": "<|im_start|>assistant"}, "invocation_string"),
        ({"lora_alpha": 0}, "lora_alpha 0"),
        ({"r": None}, "r None"),
        ({"target_modules": ["q_proj", "model.embed_tokens"]}, "embed_tokens"),
    ],
)
def test_what_else_changes_the_arithmetic_is_refused_by_name(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CmgrError, match=named):
        gguf_lora.refuse_unfaithful({**CONFIG, **settings})


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone_are_written(init: bool | str) -> None:
    gguf_lora.refuse_unfaithful({**CONFIG, "init_lora_weights": init})


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_such_an_initialisation_does_change_the_base(init: str) -> None:
    """The reason why they are refused, seen in PEFT itself."""
    from peft import LoraConfig, get_peft_model

    model = tiny("llama")
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    config = LoraConfig(r=RANK, target_modules=["q_proj"], init_lora_weights=init)
    after = get_peft_model(model, config).base_model.model.model.layers[0].self_attn.q_proj
    assert not np.allclose(after.base_layer.weight.detach(), before.detach())


@given(st.integers(1, 256), st.floats(0.5, 512), st.booleans())
def test_llama_cpp_scales_as_peft_does(rank: int, alpha: float, rslora: bool) -> None:
    """llama.cpp divides what it is told by the rank; rsLoRA means alpha / sqrt(rank)."""
    told = gguf_lora.effective_alpha({"r": rank, "lora_alpha": alpha, "use_rslora": rslora})
    assert told / rank == pytest.approx(alpha / (rank**0.5 if rslora else rank))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_permutation_interleaves_the_halves_of_each_head(heads: int, half: int, n: int) -> None:
    """Row (head, part, i) of Hugging Face stands at (head, i, part) in GGUF."""
    rows = np.arange(heads * 2 * half * n, dtype=np.float32).reshape(-1, n)
    got = gguf_lora.permute(rows, heads)
    for head in range(heads):
        for part in range(2):
            for i in range(half):
                source = head * 2 * half + part * half + i
                assert (got[head * 2 * half + i * 2 + part] == rows[source]).all()


def test_an_unknown_architecture_is_named_before_any_training(folder: Path) -> None:
    with pytest.raises(CmgrError, match=r"'mamba'.*llama, mistral, qwen2"):
        gguf_lora.check_supported({"model_type": "mamba"})
    with pytest.raises(CmgrError, match="'mamba'"):
        gguf_lora.export(folder, folder / "a.gguf", {"model_type": "mamba"})
    # its text model says mistral; llama.cpp has an architecture of its own for it
    with pytest.raises(CmgrError, match="'mistral3'"):
        gguf_lora.check_supported({"model_type": "mistral3", "text_config": base_of(folder)})


def test_a_model_of_text_and_images_is_adapted_in_its_text(tmp_path: Path) -> None:
    import transformers

    text = tiny("gemma3_text").config
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sight |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=sight)
    assert gguf_lora.check_supported(config.to_dict())["model_type"] == "gemma3_text"
    model = transformers.Gemma3ForConditionalGeneration(config)
    adapt(model, tmp_path, target_modules=r".*language_model.*\.v_proj")
    count = gguf_lora.export(tmp_path, tmp_path / "a.gguf", config.to_dict())
    assert count == 2 * LAYERS
    assert "blk.1.attn_v.weight.lora_a" in read(tmp_path / "a.gguf")
    adapt(transformers.Gemma3ForConditionalGeneration(config), tmp_path)  # the eye's layers too
    with pytest.raises(CmgrError, match="vision_tower"):
        gguf_lora.export(tmp_path, tmp_path / "a.gguf", config.to_dict())


@pytest.mark.parametrize(
    ("kind", "tied"), [("qwen3", True), ("gemma3_text", True), ("gemma2", False)]
)
def test_a_head_that_is_the_embeddings_is_refused(kind: str, tied: bool, tmp_path: Path) -> None:
    """To llama.cpp every gemma2 is tied."""
    model = tiny(kind, tie_word_embeddings=tied)
    adapt(model, tmp_path, target_modules="lm_head|.*q_proj")
    with pytest.raises(CmgrError, match=r"lm_head.*tie_word_embeddings"):
        gguf_lora.export(tmp_path, tmp_path / "a.gguf", model.config.to_dict())
    with pytest.raises(CmgrError, match="lm_head"):
        settings = {**CONFIG, "target_modules": ["lm_head"]}
        gguf_lora.refuse_unfaithful(settings, model.config.to_dict())


def test_token_embeddings_are_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    adapt(model, tmp_path, target_modules=".*embed_tokens|.*q_proj")
    with pytest.raises(CmgrError, match="embed_tokens"):
        gguf_lora.export(tmp_path, tmp_path / "a.gguf", model.config.to_dict())


def test_tensors_that_do_not_fit_are_refused_by_name(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    good = load_file(folder / "adapter_model.safetensors")
    layer = "base_model.model.model.layers.0."
    a, b = f"{layer}mlp.up_proj.lora_A.weight", f"{layer}mlp.up_proj.lora_B.weight"
    q = f"{layer}self_attn.q_proj.lora_B.weight"
    magnitude = f"{layer}mlp.up_proj.lora_magnitude_vector.weight"
    beyond = a.replace("layers.0", "layers.2")
    for changed, named in (
        ({a: good[a] * float("nan")}, r"up_proj\.lora_A.*not finite"),
        ({a: good[a] * 1e9}, r"ffn_up.*too large for f16"),
        ({a: None}, r"up_proj\.lora_B.*is without"),
        ({b: torch.zeros(96, RANK + 1)}, r"up_proj\.lora_B.*rank 4"),
        ({q: torch.zeros(64, RANK)}, r"q_proj.*64 rows, not 4 heads of 32"),
        ({magnitude: torch.zeros(96)}, r"lora_magnitude_vector.*no place"),
        ({beyond: torch.zeros(RANK, 64)}, r"layers\.2.*no place"),
        (dict.fromkeys(good), "holds no tensors"),
    ):
        rewrite(folder, {**good, **changed})
        with pytest.raises(CmgrError, match=named):
            gguf_lora.export(folder, folder / "a.gguf", base_of(folder))
        rewrite(folder, {magnitude: None, beyond: None})
    rewrite(folder, {**good, a: good[a] * 1e9})
    gguf_lora.export(folder, folder / "a.gguf", base_of(folder), dtype="f32")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingError, match="adapter_model"):
        gguf_lora.export(folder, folder / "b.gguf", base_of(folder))
    assert not (folder / "b.gguf").exists()
