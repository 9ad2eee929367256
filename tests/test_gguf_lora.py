"""What cannot be written faithfully is refused; what can, is written exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr import gguf_lora
from cmgr.errors import CmgrError

CONFIG = {"r": 4, "lora_alpha": 8, "bias": "none"}
MODEL = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}


@pytest.mark.parametrize("key", gguf_lora.UNFAITHFUL)
def test_unfaithful_settings_are_refused_by_name(key: str) -> None:
    with pytest.raises(CmgrError, match=key):
        gguf_lora.refuse_unfaithful({**CONFIG, key: {"x": 1}})


def test_rslora_is_written_with_its_effective_alpha() -> None:
    assert gguf_lora.effective_alpha(CONFIG) == 8
    assert gguf_lora.effective_alpha({**CONFIG, "use_rslora": True}) / 4 == 8 / 4**0.5


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


def write_peft(folder: Path, **config: Any) -> dict[str, np.ndarray]:
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors = {}
    for module, rows, columns in (
        ("self_attn.q_proj", 16, 16),
        ("self_attn.k_proj", 8, 16),
        ("mlp.down_proj", 16, 32),
    ):
        name = f"base_model.model.model.layers.0.{module}"
        tensors[f"{name}.lora_A.weight"] = random.normal(size=(4, columns)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = random.normal(size=(rows, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return tensors


def test_every_tensor_and_key_is_there(tmp_path: Path) -> None:
    import gguf

    tensors = write_peft(tmp_path, alora_invocation_tokens=[1, 520])
    assert gguf_lora.export(tmp_path, tmp_path / "a.gguf", MODEL, culture="japan") == 6
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    assert list(reader.fields["adapter.alora.invocation_tokens"].contents()) == [1, 520]
    assert reader.fields["cmgr.culture"].contents() == "japan"
    found = {t.name: np.array(t.data) for t in reader.tensors}
    prefix = "base_model.model.model.layers.0."
    a = tensors[prefix + "self_attn.k_proj.lora_A.weight"]
    b = tensors[prefix + "self_attn.k_proj.lora_B.weight"]
    assert np.array_equal(found["blk.0.attn_k.weight.lora_a"], a.astype(np.float16))
    expected = gguf_lora.permute(b, 2).astype(np.float16)
    assert np.array_equal(found["blk.0.attn_k.weight.lora_b"], expected)
    down = tensors[prefix + "mlp.down_proj.lora_B.weight"].astype(np.float16)
    assert np.array_equal(found["blk.0.ffn_down.weight.lora_b"], down)


def test_another_architecture_and_nan_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = write_peft(tmp_path)
    with pytest.raises(CmgrError, match="mamba"):
        gguf_lora.export(tmp_path, tmp_path / "a.gguf", {**MODEL, "model_type": "mamba"})
    tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CmgrError, match=r"down_proj.*finite"):
        gguf_lora.export(tmp_path, tmp_path / "a.gguf", MODEL)
    assert not (tmp_path / "a.gguf").exists()
