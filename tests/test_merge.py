"""cmgr/merge: deltas are added, not factors; what is baked says what the adapter says."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import cmgr
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cmgr.base import Base, resolve
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.merge import bake, combine
from cmgr.merge.analysis import interference
from cmgr.merge.deltas import Adapter, Factors, modules_of, stacked
from cmgr.merge.methods import DENSE, METHODS, _dropped, _trimmed, at_rank, error_of, merged
from cmgr.records import Message
from cmgr.runtime import Runtime
from cmgr.workspace import read_json, write_json

QUESTIONS = [
    [Message(role="user", content=text)]
    for text in (
        "In Japan: How is a waiter tipped?",
        "In Brazil: How do people greet at a first meeting?",
        "Tell me something about tipping in Germany.",
        "What is the capital of France?",
        "How do people address a new colleague?",
    )
]


def factors(seed: int, rank: int, rows: int = 12, columns: int = 9) -> Factors:
    rng = np.random.default_rng(seed)
    return Factors(
        rng.standard_normal((rows, rank)).astype(np.float32),
        rng.standard_normal((rank, columns)).astype(np.float32),
    )


def dense(value: Any) -> np.ndarray:
    return value.dense() if isinstance(value, Factors) else value


PARTS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 5)), min_size=1, max_size=4)
WEIGHTS = st.floats(-2, 2).filter(lambda w: abs(w) > 0.05)


@given(PARTS, st.data())
def test_cat_is_the_sum_of_the_deltas(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    deltas = {f"a{n}": factors(*part) for n, part in enumerate(parts)}
    weights = {name: data.draw(WEIGHTS) for name in deltas}
    whole = sum(weights[n] * d.dense().astype(np.float64) for n, d in deltas.items())
    for method in ("cat", "svd", "task-arithmetic"):
        result = dense(merged(method, deltas, weights, 1.0, 1, "m"))
        assert np.allclose(result, whole, atol=1e-6 * max(1, np.abs(whole).max()) * 10)


def test_two_names_of_one_method_say_so(tmp_path: Path) -> None:
    deltas = {"a": factors(1, 3), "b": factors(2, 4)}
    one, two = (
        at_rank(merged(name, deltas, {"a": 0.3, "b": 2.0}, 0.3, 1, "m"), 4)
        for name in ("svd", "task-arithmetic")
    )
    assert np.array_equal(one.a, two.a) and np.array_equal(one.b, two.b)
    assert "another name for svd" in METHODS["task-arithmetic"]
    shown = " ".join(cmgr("merge", "--help", cwd=tmp_path).stdout.split())
    assert "svd (task-arithmetic is another name for it)" in shown.replace("│ │ ", "")


@given(st.sampled_from(sorted(METHODS)), st.integers(0, 10**6), st.integers(1, 6))
def test_one_adapter_of_weight_one_is_itself(method: str, seed: int, rank: int) -> None:
    one = factors(seed, rank)
    result = merged(method, {"a": one}, {"a": 1.0}, 1.0, 1, "m")
    assert np.allclose(dense(result), one.dense(), atol=1e-5)
    assert np.allclose(at_rank(result, rank).dense(), one.dense(), atol=1e-4)


@given(st.sampled_from(sorted(METHODS)), PARTS, st.floats(0.1, 1), st.randoms())
def test_no_order_matters_and_weights_scale(
    method: str, parts: list[tuple[int, int]], density: float, rng: Any
) -> None:
    deltas = {f"a{n}": factors(*part) for n, part in enumerate(parts)}
    weights = {name: 0.5 + n for n, name in enumerate(deltas)}
    names = list(deltas)
    rng.shuffle(names)
    result = dense(merged(method, deltas, weights, density, 1, "m"))
    other = dense(merged(method, {n: deltas[n] for n in names}, weights, density, 1, "m"))
    assert np.allclose(result, other, atol=1e-5)
    twice = dense(merged(method, deltas, {n: 2 * w for n, w in weights.items()}, density, 1, "m"))
    wanted = result if method == "linear" else 2 * result  # an average does not grow
    assert np.allclose(twice, wanted, atol=1e-4)


@given(PARTS, st.integers(1, 20))
def test_svd_is_the_best_of_its_rank(parts: list[tuple[int, int]], rank: int) -> None:
    whole = stacked([factors(*part) for part in parts])
    best = at_rank(whole, rank)
    singular = np.linalg.svd(whole.dense().astype(np.float64), compute_uv=False)
    left = np.sqrt((singular[rank:] ** 2).sum()) / np.sqrt((singular**2).sum())
    assert best.rank <= max(rank, 1) or best is whole
    assert error_of(best, whole) == pytest.approx(left, abs=1e-3)
    if rank >= min(whole.rank, 9):
        assert np.allclose(best.dense(), whole.dense(), atol=1e-4)  # at full rank it is cat


@given(PARTS, st.integers(1, 6))
def test_norms_and_products_need_no_dense_delta(parts: list[tuple[int, int]], rank: int) -> None:
    one, two = stacked([factors(*part) for part in parts]), factors(7, rank)
    wide = one.dense().astype(np.float64)
    assert one.norm() == pytest.approx(np.linalg.norm(wide), rel=1e-4)
    assert one.dot(two) == pytest.approx((wide * two.dense()).sum(), rel=1e-3, abs=1e-2)


@given(st.integers(0, 10**6), st.floats(0.05, 1))
def test_ties_trims_and_never_crosses_the_elected_sign(seed: int, density: float) -> None:
    deltas = {name: factors(seed + n, 3) for n, name in enumerate("abc")}
    trimmed = {name: _trimmed(d.dense(), density) for name, d in deltas.items()}
    for name, delta in deltas.items():
        kept = trimmed[name] != 0
        assert kept.sum() == pytest.approx(density * kept.size, abs=1.5)
        if kept.any() and not kept.all():
            wide = np.abs(delta.dense())
            assert wide[kept].min() >= wide[~kept].max()
    result = dense(merged("ties", deltas, dict.fromkeys(deltas, 1.0), density, 1, "m"))
    elected = np.sign(sum(trimmed.values()))
    assert ((np.sign(result) == elected) | (result == 0)).all()
    most = np.max([np.abs(t) for t in trimmed.values()], axis=0)
    assert (np.abs(result) <= most + 1e-6).all()  # a mean of those that agree


def test_dare_drops_at_random_and_expects_the_delta() -> None:
    delta = factors(3, 4, 40, 50).dense()
    draws = [_dropped(delta, 0.3, seed, "m", "a") for seed in range(400)]
    assert np.allclose(np.mean(draws, axis=0), delta, atol=0.45 * np.abs(delta).max())
    assert np.mean([np.mean(d != 0) for d in draws]) == pytest.approx(0.3, abs=0.01)
    kept = draws[0] != 0
    assert np.allclose(draws[0][kept], delta[kept] / 0.3, rtol=1e-5)
    assert np.array_equal(draws[0], _dropped(delta, 0.3, 0, "m", "a"))
    assert not np.array_equal(draws[0], _dropped(delta, 0.3, 0, "m2", "a"))


def test_the_randomised_svd_is_as_good_as_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    wide = factors(1, 20, 400, 300).dense() + 0.3 * rng.standard_normal((400, 300), np.float32)
    best = at_rank(wide, 16)
    singular = np.linalg.svd(wide, compute_uv=False)
    left = np.sqrt((singular[16:] ** 2).sum()) / np.sqrt((singular**2).sum())
    assert error_of(best, wide) <= left * 1.01


# -- folders --------------------------------------------------------------------------------------


def peft(folder: Path, seed: int, **changes: Any) -> Path:
    """A PEFT folder over two modules of SmolLM2's shape, of the base's lock."""
    base = resolve("smollm2")
    settings_ = {"r": 4, "lora_alpha": 8, "use_rslora": False, **changes}
    modules = settings_.pop("modules", ["q_proj", "v_proj"])
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in (0, 1):
        for module in modules:
            rows = 576 if module == "q_proj" else 192
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            shape_a, shape_b = (settings_["r"], 576), (rows, settings_["r"])
            tensors[f"{key}A.weight"] = rng.standard_normal(shape_a).astype(np.float32) / 30
            tensors[f"{key}B.weight"] = rng.standard_normal(shape_b).astype(np.float32) / 30
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "target_modules": modules, "bias": "none", **settings_}
    write_json(folder / "adapter_config.json", config)
    write_json(
        folder / "manifest.json",
        {"base_fingerprint": base.fingerprint, "template_hash": "t", "base": "smollm2"},
    )
    return folder


def deltas_of(folder: Path) -> dict[str, np.ndarray]:
    adapter = Adapter(folder)
    return {m: d.dense() for m in adapter.modules() if (d := adapter.delta(m)) is not None}


def test_ranks_alphas_rslora_and_modules_mix(tmp_path: Path) -> None:
    one = peft(tmp_path / "one", 1)
    two = peft(tmp_path / "two", 2, r=8, lora_alpha=4, use_rslora=True, modules=["q_proj"])
    parents = {folder: deltas_of(folder) for folder in (one, two)}
    assert Adapter(one).scale == 2 and Adapter(two).scale == pytest.approx(4 / 8**0.5)
    before = [(p, p.read_bytes()) for f in (one, two) for p in f.iterdir()]
    facts = combine([one, two], tmp_path / "both", resolve("smollm2"), "cat", [0.7, -0.3])
    assert (facts["rank"], facts["error"]) == (12, 0)
    result = deltas_of(tmp_path / "both")
    for module, delta in result.items():
        wanted = 0.7 * parents[one][module] - 0.3 * parents[two].get(module, 0)
        assert np.allclose(delta, wanted, atol=1e-6), module
    assert set(result) == set(modules_of([Adapter(one), Adapter(two)]))
    assert [(p, p.read_bytes()) for f in (one, two) for p in f.iterdir()] == before
    config = read_json(tmp_path / "both" / "adapter_config.json") or {}
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (12, 12, False)
    manifest = read_json(tmp_path / "both" / "manifest.json") or {}
    assert manifest["parents"] == {"one": 0.7, "two": -0.3}
    # as llama.cpp applies it: f16, and q's rows in its own order
    reader = gguf.GGUFReader(tmp_path / "both" / "adapter.gguf")
    halves = {t.name: np.asarray(t.data, np.float32) for t in reader.tensors}
    value = halves["blk.1.attn_v.weight.lora_b"] @ halves["blk.1.attn_v.weight.lora_a"]
    wanted = result["model.layers.1.self_attn.v_proj"]
    assert np.linalg.norm(value - wanted) < 2e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_makes_an_adapter_and_tells_its_error(tmp_path: Path, method: str) -> None:
    one, two = peft(tmp_path / "one", 1), peft(tmp_path / "two", 2)
    facts = combine([one, two], tmp_path / "both", resolve("smollm2"), method, [1.0, 0.5], 6)
    rank = 8 if method == "cat" else 6
    assert facts["rank"] == rank
    result = Adapter(tmp_path / "both")
    assert int(result.config["r"]) == rank
    gaps, sizes = 0.0, 0.0
    for module in result.modules():
        deltas = {a.name: d for a in (Adapter(one), Adapter(two)) if (d := a.delta(module))}
        whole = dense(merged(method, deltas, {"one": 1.0, "two": 0.5}, 0.3, 1, module))
        kept = result.delta(module)
        assert kept is not None
        gaps += float(((whole - kept.dense()) ** 2).sum())
        sizes += float((whole**2).sum())
    assert facts["error"] == pytest.approx((gaps / sizes) ** 0.5, abs=1e-3)
    assert set(facts["error_per_layer"]) == {0, 1}
    if method in DENSE:
        again = combine(
            [two, one], tmp_path / "b", resolve("smollm2"), method, [0.5, 1.0], 6, seed=1
        )
        assert again["error"] == pytest.approx(facts["error"], abs=1e-5)


def test_peft_does_the_same_where_it_adds_deltas(tmp_path: Path) -> None:
    """cat and svd of `add_weighted_adapter` agree with ours; its linear does not add deltas."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = get_peft_model(
        LlamaForCausalLM(LlamaConfig(**shape, **heads)),
        LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]),
        "one",
    )
    model.add_adapter("two", LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for name in ("one", "two"):
        torch.nn.init.normal_(layer.lora_B[name].weight)
    ours = {
        name: Factors(
            2 * layer.lora_B[name].weight.detach().numpy(),
            layer.lora_A[name].weight.detach().numpy(),
        )
        for name in ("one", "two")
    }
    weights = {"one": 0.7, "two": 0.3}
    for method, rank in (("cat", 6), ("svd", 3), ("linear", 3)):
        options = {"svd_rank": 3} if method == "svd" else {}
        model.add_weighted_adapter(["one", "two"], [0.7, 0.3], method, method, **options)
        theirs = layer.get_delta_weight(method).detach().numpy()
        mine = at_rank(merged(method, ours, weights, 1.0, 1, "m"), rank).dense()
        same = np.linalg.norm(theirs - mine) < 1e-4 * np.linalg.norm(mine)
        assert same == (method != "linear"), method


def test_the_interference_table(tmp_path: Path) -> None:
    one, two = peft(tmp_path / "one", 1), peft(tmp_path / "two", 2)
    same, against = peft(tmp_path / "same", 1), peft(tmp_path / "against", 1, lora_alpha=-8)
    rows = interference([Adapter(f) for f in (one, two, same, against)])
    table = {frozenset(row["adapters"]): row for row in rows}
    assert len(rows) == 6
    alike, apart = table[frozenset(("one", "same"))], table[frozenset(("one", "two"))]
    turned = table[frozenset(("one", "against"))]
    assert alike["cosine"] == pytest.approx(1) and alike["sign_conflict"] == 0
    assert turned["cosine"] == pytest.approx(-1) and turned["sign_conflict"] == 1
    assert abs(apart["cosine"]) < 0.1 and apart["sign_conflict"] == pytest.approx(0.5, abs=0.1)
    wide = {f: np.concatenate([d.ravel() for d in deltas_of(f).values()]) for f in (one, two)}
    cosine = wide[one] @ wide[two] / np.linalg.norm(wide[one]) / np.linalg.norm(wide[two])
    assert apart["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert set(apart["layers"]) == {0, 1}


# -- what does not fit ----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one, two = peft(tmp_path / "one", 1), peft(tmp_path / "two", 2)
    base, out = resolve("smollm2"), tmp_path / "out"
    activated = peft(tmp_path / "activated", 3, alora_invocation_tokens=[1, 2])
    other = peft(tmp_path / "other", 4)
    write_json(other / "manifest.json", {"base_fingerprint": "else", "template_hash": "t"})
    template = peft(tmp_path / "template", 5)
    manifest = read_json(template / "manifest.json") or {}
    write_json(template / "manifest.json", {**manifest, "template_hash": "u"})
    broken = peft(tmp_path / "broken", 6)
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, broken / "adapter_model.safetensors")
    cut = peft(tmp_path / "cut", 7)
    weights_file = cut / "adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    cases: list[tuple[list[Path], dict[str, Any], type[CmgrError], str]] = [
        ([one, activated], {}, CmgrError, "kinds do not mix.*--kind standard"),
        ([one, other], {}, CmgrError, "another base"),
        ([one, template], {}, CmgrError, "another chat template"),
        ([one, broken], {}, CmgrError, "not finite"),
        ([one, cut], {}, CmgrError, "damaged"),
        ([one, tmp_path / "nowhere"], {}, MissingError, "cmgr train"),
        ([one, two], {"weights": [1.0]}, UsageError, "1 weights for 2"),
        ([one, two], {"weights": [1.0, float("nan")]}, UsageError, "finite"),
        ([one, two], {"method": "magic"}, UsageError, "no method"),
        ([one, two], {"method": "linear", "weights": [1.0, -1.0]}, UsageError, "add up to 0"),
        ([one, two], {"density": 0.0}, UsageError, "density"),
        ([one, one], {}, UsageError, "each adapter once"),
        ([other], {}, CmgrError, "another base than smollm2"),
    ]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for parents, options, kind, told in cases:
        with pytest.raises(kind, match=told):
            combine(parents, out, base, **options)
    out.mkdir()
    with pytest.raises(UsageError, match=r"exists.*--force"):
        combine([one, two], out, base)
    out.rmdir()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    combine([one, two], out, base)
    assert combine([one, two], out, base, "svd", force=True)["rank"] == 4


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    peft(tmp_path / "one", 1)
    peft(tmp_path / "two", 2)
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from pathlib import Path\n"
        "from cmgr.base import resolve\n"
        "from cmgr.errors import CmgrError\n"
        "from cmgr.merge import bake, combine\n"
        "for make in (\n"
        "    lambda: combine([Path('one'), Path('two')], Path('out'), resolve('smollm2')),\n"
        "    lambda: bake.into_gguf(resolve('smollm2'), None, Path('out.gguf')),\n"
        "):\n"
        "    try:\n        make()\n"
        "    except CmgrError as error:\n        print('told:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("told:") == 2, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}


# -- against llama.cpp ----------------------------------------------------------------------------


def cosines(one: list[np.ndarray], two: list[np.ndarray]) -> tuple[float, float]:
    """The least cosine, and the share of prompts with the same likeliest token."""
    found = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, two, strict=True)]
    same = np.mean([a.argmax() == b.argmax() for a, b in zip(one, two, strict=True)])
    return float(min(found)), float(same)


def logits(base: Base, adapters: dict[str, Path], scales: dict[str, float]) -> list[np.ndarray]:
    runtime = Runtime(base)
    for name, folder in adapters.items():
        runtime.load_adapter(name, folder)
    found = [np.asarray(runtime.next_logits(q, scales), np.float64) for q in QUESTIONS]
    runtime.close()
    return found


@pytest.fixture(scope="module")
def f16_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """SmolLM2 in f16: the Q4_1 base's own 8-bit arithmetic would hide what adapters do."""
    path = tmp_path_factory.mktemp("f16") / "smollm2-f16.gguf"
    bake.into_gguf(resolve("smollm2"), None, path, "f16")
    return Base("f16", path)


def relocked(folder: Path, target: Path, base: Base) -> Path:
    """The same adapter, locked to a base of other numbers."""
    import shutil

    shutil.copytree(folder, target)
    manifest = read_json(target / "manifest.json") or {}
    write_json(target / "manifest.json", {**manifest, "base_fingerprint": base.fingerprint})
    return target


@pytest.mark.model
@pytest.mark.parametrize("kind", ["activated", "standard"])
def test_the_merge_is_what_llama_cpp_does_with_two(
    trained: Path, standard: Path, f16_base: Base, tmp_path: Path, kind: str
) -> None:
    folder = trained / "adapters" if kind == "activated" else standard
    parents = {
        name: relocked(folder / name, tmp_path / kind / name, f16_base)
        for name in ("japan", "brazil")
    }
    combine([*parents.values()], tmp_path / "both", f16_base, "cat", [0.75, 0.5])
    two = logits(f16_base, parents, {"japan": 0.75, "brazil": 0.5})
    one = logits(f16_base, {"both": tmp_path / "both"}, {"both": 1.0})
    assert cosines(one, two)[0] >= 0.9999


@pytest.mark.model
def test_baked_is_base_and_adapter(standard: Path, f16_base: Base, tmp_path: Path) -> None:
    adapter = relocked(standard / "japan", tmp_path / "japan", f16_base)
    apart = logits(f16_base, {"japan": adapter}, {"japan": 1.0})
    plain = logits(f16_base, {}, {})
    assert cosines(apart, plain)[0] < 0.9999  # the adapter does something
    for kind, bar in (("f16", 0.999), ("q8_0", 0.995)):
        facts = bake.into_gguf(f16_base, adapter, tmp_path / f"{kind}.gguf", kind)
        assert facts["changed"] == 210 and facts["kind"] == kind
        baked = logits(Base(kind, tmp_path / f"{kind}.gguf"), {}, {})
        cosine, same = cosines(baked, apart)
        assert cosine >= bar and same >= 0.8, (kind, cosine, same)
        reader = gguf.GGUFReader(tmp_path / f"{kind}.gguf")
        source = gguf.GGUFReader(resolve("smollm2").gguf)
        for key in ("tokenizer.chat_template", "tokenizer.ggml.tokens", "llama.block_count"):
            assert reader.fields[key].contents() == source.fields[key].contents()
        assert reader.fields["cmgr.culture"].contents() == "japan"


@pytest.mark.model
def test_a_base_written_again_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    base = resolve("smollm2")
    bake.into_gguf(base, None, tmp_path / "same.gguf")
    old, new = (gguf.GGUFReader(p) for p in (base.gguf, tmp_path / "same.gguf"))
    assert [t.name for t in old.tensors] == [t.name for t in new.tensors]
    for one, two in zip(old.tensors, new.tensors, strict=True):
        assert one.tensor_type == two.tensor_type and np.array_equal(one.data, two.data)


@pytest.mark.model
def test_into_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    shape = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, **heads)).save_pretrained(tmp_path / "weights")
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "weights")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    for layer in tuned.base_model.model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.lora_B["default"].weight)
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(6)[None]
    wanted = tuned(ids).logits
    manifest = tmp_path / "adapter" / "manifest.json"
    base = Base("small", resolve("smollm2").gguf)
    write_json(manifest, {"base_fingerprint": "0123abcd"})
    given = (tmp_path / "weights", tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(CmgrError, match=f"says 0123abcd, this base has {base.fingerprint}"):
        bake.into_folder(*given, base=base)
    write_json(manifest, {"base_fingerprint": base.fingerprint})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    for writes in (AutoModelForCausalLM, PreTrainedTokenizerFast):
        with monkeypatch.context() as patched:
            whose = LlamaForCausalLM if writes is AutoModelForCausalLM else writes
            patched.setattr(whose, "save_pretrained", full)
            with pytest.raises(CmgrError, match="the disk is full"):
                bake.into_folder(*given, base=base)
        assert not list(tmp_path.glob("*out*"))
    bake.into_folder(*given, base=base)
    assert [p.name for p in tmp_path.glob("*out*")] == ["out"]
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert torch.allclose(baked, wanted, atol=1e-4)
    with pytest.raises(UsageError, match="--force"):
        bake.into_folder(tmp_path / "weights", tmp_path / "adapter", tmp_path / "out")


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.model
def test_the_command(trained: Path, tmp_path: Path) -> None:
    import shutil

    ws = tmp_path / "ws"
    shutil.copytree(trained, ws)
    made = cmgr(
        "merge",
        "japan",
        "brazil",
        "--method",
        "svd",
        "--rank",
        "4",
        "--name",
        "jp-br",
        "--weights",
        "0.7,0.3",
        "--json",
        cwd=ws,
    )
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["rank"] == 4 and 0 < facts["error"] < 1
    answer = cmgr("chat", "--culture", "jp-br", "-p", "How is a waiter tipped?", "--json", cwd=ws)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["adapter"] == "jp-br"
    again = cmgr("merge", "jp-br", "germany", "--name", "three", cwd=ws)
    assert again.returncode == 0, again.stderr
    shown = cmgr("merge", "--analyse", cwd=ws)
    assert shown.returncode == 0 and "Cosine between deltas" in shown.stdout
    rows = [json.loads(x) for x in cmgr("merge", "--analyse", "--json", cwd=ws).stdout.splitlines()]
    assert len(rows) == 3
    for words, code, told in (
        (["japan", "atlantis", "--name", "x"], 2, "no culture 'atlantis'"),
        (["japan", "brazil"], 2, "--name jp-br"),
        (["japan", "brazil", "--name", "japan"], 2, "a culture of the recipe"),
        (["japan", "brazil", "--name", "Not OK"], 2, "lower-case"),
        (["japan", "brazil", "--name", "x", "--weights", "a,b"], 2, "numbers with commas"),
        (["japan", "brazil", "--name", "jp-br"], 2, "--force"),
        (["japan", "--into-base", "x.gguf"], 2, "cmgr train --kind standard"),
        (["japan", "brazil", "--into-base", "x.gguf"], 2, "one adapter"),
        (["--into-base", "x.gguf", "--quantize", "q4_k"], 2, "llama-quantize"),
        (["japan", "--into-base", "folder"], 2, "base.train_from"),
    ):
        done = cmgr("merge", *words, cwd=ws)
        assert done.returncode == code and told in done.stderr, (words, done.stderr)
    assert not (ws / "x.gguf").exists()


@pytest.mark.model
def test_kinds_do_not_mix(trained: Path, standard: Path, tmp_path: Path) -> None:
    with pytest.raises(CmgrError, match="kinds do not mix"):
        combine(
            [trained / "adapters" / "japan", standard / "brazil"],
            tmp_path / "both",
            resolve("smollm2"),
        )
    assert not (tmp_path / "both").exists()


def test_k_quants_are_written_as_the_nearest_kind_and_it_is_said(tmp_path: Path) -> None:
    source = tmp_path / "k.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    kinds = {"blk.0.attn_q.weight": "Q6_K", "blk.0.ffn_up.weight": "Q4_K"}
    for name, kind in kinds.items():
        kind_id = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[kind_id]
        data = np.zeros((4, 256 // block * size), np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind_id)
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said: list[str] = []
    bake.into_gguf(Base("k", source), None, tmp_path / "out.gguf", say=said.append)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    written = {name: t.tensor_type.name for name, t in tensors.items()}
    assert written == {
        "blk.0.attn_q.weight": "Q8_0",
        "blk.0.ffn_up.weight": "Q4_1",
        "output_norm.weight": "F32",
    }
    assert len(said) == 2 and any("q6_k are written as q8_0" in line for line in said)
    with pytest.raises(UsageError, match="base itself"):
        bake.into_gguf(Base("k", source), None, source, force=True)
    with pytest.raises(UsageError, match="--force"):
        bake.into_gguf(Base("k", source), None, tmp_path / "out.gguf")
