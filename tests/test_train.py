"""Training is PEFT's, faster: both kinds, any place for the prompts, any interruption."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import cmgr, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgr import recipe as recipes
from cmgr import train
from cmgr.base import resolve
from cmgr.errors import CmgrError, UsageError
from cmgr.gguf_lora import head_size
from cmgr.records import Example, Message
from cmgr.retrieval.prompt import FORMAT
from cmgr.train import checkpoint, variants
from cmgr.train.loop import Loop, Stage, order_of
from cmgr.train.loss import answer_loss, odds_ratio, preference_loss
from cmgr.train.model import Item, Trainable, checkpoint_layers
from cmgr.train.parity import parity
from cmgr.train.prompts import Prompts, cell_bytes, families, new_cache
from cmgr.train.prompts import given as handed
from cmgr.train.watch import Watch
from cmgr.workspace import read_json, write_json

model = pytest.mark.model
ADAPTER = recipes.Adapter(rank=4, alpha=8)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> recipes.Recipe:
    """With a fixed number of threads: sums of another number differ in their last bits."""
    found = recipes.load(write_recipe(tmp_path_factory.mktemp("recipe")))
    return found.model_copy(update={"train": found.train.model_copy(update={"threads": 2})})


@pytest.fixture(scope="module")
def trainable(recipe: recipes.Recipe) -> Trainable:
    return Trainable(resolve("smollm2"), recipe, Path(), lambda _: None)


def example(number: int, question: str, answer: str, **changes: Any) -> Example:
    return Example(
        **{
            "id": f"e{number}",
            "culture": "japan",
            "task": "everyday",
            "stage": "task",
            "inputs": {},
            "answer": answer,
            "messages": [
                Message(role="system", content="Answer in one short sentence, and say no more."),
                Message(role="user", content=question),
            ],
            "evidence_ids": [f"p{number}"],
            "quote": "",
            "generator": "test",
            "created_at": "",
            **changes,
        }
    )


EXAMPLES = [
    example(0, "How do people greet?", "They bow."),
    example(1, "A longer question on tips <|im_end|> in a restaurant?", "No tip is left here."),
    example(2, "Shoes?", "They come off at the door, at once."),
    example(3, "A question with another system message?", "Yes.", messages=[
        Message(role="user", content="A question without a system message?")]),
]  # fmt: skip


RIVALS = [["They shake hands.", "No."], ["Fifteen percent."], [], ["No."]]


@pytest.fixture
def items(trainable: Trainable) -> list[Item]:
    return [trainable.item(e) for e in EXAMPLES]


@pytest.fixture
def adapted(trainable: Trainable) -> Iterator[Any]:
    """The base with a LoRA that already does something."""
    import torch

    torch.manual_seed(0)
    found = trainable.make_adapter(ADAPTER)
    with torch.no_grad():
        for name, weights in found.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.02)
    yield found
    found.unload()


def gradients(found: Any) -> dict[str, Any]:
    grads = {n: w.grad.clone() for n, w in found.named_parameters() if w.grad is not None}
    found.zero_grad()
    return grads


Reference = Callable[[Trainable, Any, list[Item]], Any]


def losses_of(trainable: Trainable, found: Any, prompt: Any, target: Any) -> Any:
    """The loss of each answer token by PEFT's own forward pass, shape (tokens,)."""
    import torch

    ids = torch.tensor([prompt + target])
    first = len(prompt) + len(trainable.invocation)
    logits = found(input_ids=ids).logits[0].float()
    return torch.nn.functional.cross_entropy(
        logits[first - 1 : -1], ids[0, first:], reduction="none"
    )


def mean_loss(trainable: Trainable, found: Any, items: list[Item]) -> Any:
    import torch

    return torch.cat([losses_of(trainable, found, i.prompt, i.target) for i in items]).mean()


def orpo(trainable: Trainable, found: Any, items: list[Item]) -> Any:
    """As section 4 of arXiv 2403.07691 writes it, answer by answer, weight 0.5."""
    import torch

    total = torch.zeros(())
    for item in items:
        right, *others = (
            (-losses_of(trainable, found, item.prompt, target).mean()).exp()
            for target in (item.target, *item.rivals)
        )
        odds = right / (1 - right)
        ratios = [torch.log(torch.sigmoid(torch.log(odds / (p / (1 - p))))) for p in others]
        total = total - torch.log(right) - 0.5 * sum(ratios) / len(ratios)
    return total / len(items)


def reference(
    trainable: Trainable, items: list[Item], kind: str, weights: dict[str, Any], loss: Reference
) -> tuple[float, dict[str, Any]]:
    """A loss and its gradients, computed item by item with a fresh adapter of PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=ADAPTER.rank,
        lora_alpha=ADAPTER.alpha,
        target_modules="all-linear",
        alora_invocation_tokens=trainable.invocation if kind == "activated" else None,
    )
    other = get_peft_model(trainable.model, config)
    try:
        with torch.no_grad():
            for name, values in other.named_parameters():
                if name in weights:
                    values.copy_(weights[name])
        found = loss(trainable, other, items)
        found.backward()
        return float(found.detach()), gradients(other)
    finally:
        other.unload()


@model
@pytest.mark.parametrize("stage", ["task", "prefer"])
@pytest.mark.parametrize("where", ["memory", "disk", "again", "standard", "standard, shared"])
def test_loss_and_gradients_are_those_of_pefts_own_forward(
    trainable: Trainable, adapted: Any, items: list[Item], where: Any, stage: str, tmp_path: Path
) -> None:
    import torch

    prompts = None
    kind = "standard" if "standard" in where else "activated"
    if stage == "prefer":
        items = [
            trainable.item(e, wrong) for e, wrong in zip(EXAMPLES, RIVALS, strict=True) if wrong
        ]
    if where == "standard, shared":
        items = items[:3]
    if kind == "activated":
        prompts = Prompts(trainable, adapted, items, where, 0, tmp_path)
        assert prompts.tokens < sum(len(i.prompt) for i in items)  # the beginning is read once
        prompts.read()
        assert (tmp_path / "prompts-0.bin").exists() == (where == "disk")
    weights = {n: w.detach().clone() for n, w in adapted.named_parameters() if "lora_" in n}
    if stage == "prefer":
        loss, count = preference_loss(trainable, adapted, items, prompts, 0.5)
        assert count == len(items)
    else:
        loss, count = answer_loss(trainable, adapted, items, prompts)
    (loss / count).backward()
    ours = gradients(adapted)
    if prompts is not None:
        prompts.close()
    assert not list(tmp_path.iterdir())
    adapted.unload()
    plain = orpo if stage == "prefer" else mean_loss
    wanted, theirs = reference(trainable, items, kind, weights, plain)
    assert float(loss.detach()) / count == pytest.approx(wanted, abs=1e-4)
    assert set(ours) == set(theirs) and ours
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], rtol=1e-2, atol=1e-4), name


def test_a_preference_of_what_is_certain_is_finite() -> None:
    """Where a probability rounds to 1, its odds have no end; the loss and its gradient do."""
    import torch

    losses = torch.tensor([0.0, 0.0, 2.0, 0.0], requires_grad=True)
    for where, weight in (([0, 0, 1, 1], 1.0), ([1, 1, 0, 0], 0.3)):
        loss = odds_ratio(losses, where, [1], weight)
        loss.backward()
        assert math.isfinite(float(loss.detach())) and losses.grad is not None
        assert bool(losses.grad.isfinite().all())


@model
@pytest.mark.parametrize("kind", ["activated", "standard"])
def test_an_items_loss_does_not_depend_on_its_neighbours(
    trainable: Trainable, adapted: Any, items: list[Item], kind: str, tmp_path: Path
) -> None:
    import torch

    prompts = Prompts(trainable, adapted, items, "again", 0, tmp_path)
    with torch.no_grad():
        for group in (items, items[:2], items[1:]):
            used = prompts if kind == "activated" else None
            together = float(answer_loss(trainable, adapted, group, used)[0])
            alone = [float(answer_loss(trainable, adapted, [i], used)[0]) for i in group]
            assert together == pytest.approx(sum(alone), abs=1e-3)


@model
def test_examples_without_their_passages_come_in_the_first_stage(
    trainable: Trainable, recipe: recipes.Recipe
) -> None:
    """They are held back with their own, and count once."""
    broad, one, two = (
        example(0, "A?", "Yes.", stage="broad"), example(1, "B?", "No."), example(2, "C?", "Yes."),
    )  # fmt: skip
    first, last = train.stages_of(recipe, [broad, one, two], trainable, {two.id}, [one, two])
    assert [i.id for i in first.items] == [broad.id, one.id + train.WITHOUT]
    assert [i.id for i in first.validation] == [two.id + train.WITHOUT]
    assert [i.id for i in (*last.items, *last.validation)] == [one.id, two.id]
    assert train.counted(first.items) == 1 == train.counted(last.items)
    task_alone = recipe.model_copy(deep=True)
    task_alone.train.stages = ["task"]
    (only,) = train.stages_of(task_alone, [broad, one, two], trainable, (), [one])
    assert [i.id for i in only.items] == [one.id, two.id, one.id + train.WITHOUT]


@model
def test_the_stage_prefer_takes_what_has_a_wrong_answer(
    trainable: Trainable, recipe: recipes.Recipe
) -> None:
    """After the other stages; each wrong answer is written as the right one is."""
    broad = example(0, "A?", "Yes.", stage="broad", inputs={"options": ["Yes.", "No."]})
    plain = example(1, "B?", "No.")
    one, two = (
        example(n, "C?", "No.", inputs={"options": ["Yes.", "No.", "Maybe."]}) for n in (2, 3)
    )
    prefers = recipe.model_copy(deep=True)
    prefers.train.stages, prefers.train.prefer_epochs = ["broad", "task", "prefer"], 2
    *_, task, last = train.stages_of(prefers, [broad, plain, one, two], trainable, {two.id})
    assert [i.id for i in task.items] == [plain.id, one.id] and not task.items[1].rivals
    assert (last.name, last.epochs) == ("prefer", 2)
    assert [i.id for i in last.items] == [one.id]
    assert [i.id for i in last.validation] == [two.id]
    wrong = {trainable.item(example(9, "C?", answer)).target for answer in ("Yes.", "Maybe.")}
    assert set(last.items[0].rivals) == wrong
    assert all(s.name != "prefer" for s in train.stages_of(prefers, [broad, plain], trainable, ()))


@model
def test_a_culture_takes_the_prompts_that_the_shared_adapter_has_read(
    trainable: Trainable, adapted: Any, items: list[Item], tmp_path: Path
) -> None:
    """To the last bit what it would have read itself; its own are not kept for anybody."""
    import torch

    others = [replace(item, id=f"{item.id} of brazil", group="brazil") for item in items[:2]]
    own = Prompts(trainable, adapted, items, "memory", 0, tmp_path)
    own.read()
    wanted = own.past(items)[0]
    own.close()
    assert not trainable.store
    trainable.keeps = {"japan", "brazil"}
    shared = Prompts(trainable, adapted, [*others, *items], "memory", 0, tmp_path)
    shared.read()
    shared.close()
    trainable.keeps = ()
    read: list[Any] = []
    taken = Prompts(trainable, adapted, items, "auto", 0, tmp_path)  # no byte more than is there
    assert taken.where == "memory"
    taken._compute = read.append  # type: ignore[method-assign,assignment]
    taken.read()
    found = taken.past(items)[0]
    assert not read
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
    taken.close()
    assert len(trainable.store) == 1  # the other culture's
    trainable.store.clear()


@model
def test_a_reading_broken_off_keeps_what_is_whole_and_for_adapters_to_come(
    trainable: Trainable, adapted: Any, items: list[Item], tmp_path: Path
) -> None:
    """Ctrl-C stays Ctrl-C, and no other culture's KV stays in memory."""
    groups = ["japan", "brazil", "germany"]
    every = [replace(i, id=f"{i.id} {g}", group=g) for g in groups for i in items[:2]]
    prompts = Prompts(trainable, adapted, every, "memory", 0, tmp_path)
    assert len(prompts.keys) >= 3
    compute = prompts._compute

    def until_the_last(group: list[Item]) -> list[Any]:
        if group[0].group == "germany":
            raise KeyboardInterrupt
        return compute(group)

    prompts._compute = until_the_last  # type: ignore[method-assign,assignment]
    trainable.keeps = {"brazil", "germany"}
    try:
        with pytest.raises(KeyboardInterrupt):
            prompts.read()
        prompts.close()
        kept = {len(values) for values in trainable.store.values()}
        assert len(trainable.store) == 1 and kept == {2}  # brazil's
    finally:
        trainable.keeps = ()
        trainable.store.clear()


@model
def test_layers_computed_twice_give_the_same_gradients(
    trainable: Trainable, adapted: Any, items: list[Item], tmp_path: Path
) -> None:
    import torch

    prompts = Prompts(trainable, adapted, items, "memory", 0, tmp_path)
    prompts.read()
    found = []
    for again in (False, True):
        if again:
            checkpoint_layers(trainable.model)
        for used, group in ((prompts, items), (None, items), (None, items[:3])):
            answer_loss(trainable, adapted, group, used)[0].backward()
            found.append(gradients(adapted))
    for layer in trainable.model.get_decoder().layers:
        del layer.forward  # the class's own again
    for before, after in zip(found[:3], found[3:], strict=True):
        assert all(torch.allclose(before[n], after[n], atol=1e-5) for n in before)


PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(tuple)
BEGUN = st.builds(
    lambda head, n, tail: (head,) * n + tail, st.integers(0, 2), st.integers(0, 40), PROMPT
)


@given(st.lists(BEGUN, min_size=1, max_size=12))
def test_families_hold_every_prompt_once_and_read_no_more(prompts: list[tuple[int, ...]]) -> None:
    found = families(prompts)
    assert sorted(n for _, group in found for n in group) == list(range(len(prompts)))
    read = 0
    for shared, group in found:
        assert len({prompts[n][:shared] for n in group}) == 1
        assert all(len(prompts[n]) > shared for n in group)
        read += shared + sum(len(prompts[n]) - shared for n in group)
    assert read <= sum(map(len, prompts))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 8), st.integers())
def test_an_epoch_has_every_item_once(lengths: list[int], size: int, seed: int) -> None:
    items = [Item(str(n), (1,) * k, (2, 3)) for n, k in enumerate(lengths)]
    batches = order_of(items, size, seed, whole=True)
    assert sorted(i.id for b in batches for i in b) == sorted(i.id for i in items)
    assert all(0 < len(b) <= size for b in batches)
    assert batches == order_of(items, size, seed, whole=True)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 25), max_size=2), st.integers(0, 30)),
        min_size=20,
        max_size=60,
    ),
    st.floats(0.05, 0.5),
)
def test_nothing_held_back_rests_on_what_is_trained(
    rests: list[tuple[list[int], int]], share: float
) -> None:
    examples = [
        example(n, "?", "!", evidence_ids=[str(p) for p in passages], inputs={"fact": f"f{fact}"})
        for n, (passages, fact) in enumerate(rests)
    ]
    back = variants.held_back(examples, share, 1)
    assert len(back) < len(examples)
    sides: list[set[str]] = [set(), set()]
    for e in examples:
        sides[e.id in back] |= {*e.evidence_ids, e.inputs["fact"]}
    assert not sides[0] & sides[1]
    assert variants.held_back(examples, 0.0, 1) == set()


@model
def test_what_cannot_be_trained_on_is_named(trainable: Trainable, recipe: recipes.Recipe) -> None:
    with pytest.raises(CmgrError, match=r"e7 .*no answer.*cmgr review"):
        trainable.item(example(7, "Why?", ""))
    with pytest.raises(CmgrError, match=r"e8 .*tokens.*base\.context"):
        trainable.item(example(8, "word " * 3000, "Yes."))
    for changes, says in (({"culture": "peru"}, "culture 'peru'"), ({"task": "x"}, "task 'x'")):
        with pytest.raises(CmgrError, match=f"e9 .*{says}"):
            train.check(recipe, [example(9, "Why?", "So.", **changes)])
    with pytest.raises(UsageError, match="targets"):
        trainable.make_adapter(recipes.Adapter(targets=["nothing_here"]))


def test_shards_share_the_cultures_out() -> None:
    cultures = list("abcdefgh")
    parts = [train.shard(cultures, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(c for part in parts for c in part) == cultures
    for wrong in ("0/3", "4/3", "x", "1/", "/2"):
        with pytest.raises(UsageError, match="shard"):
            train.shard(cultures, wrong)


def test_out_of_memory_names_the_key() -> None:
    import torch

    for settings_, says in (
        (recipes.Train(), "micro_batch: 8"),
        (recipes.Train(micro_batch=1), "gradient_checkpointing: true"),
        (recipes.Train(micro_batch=1, gradient_checkpointing=True), "quantize: 4bit"),
    ):
        with (
            pytest.raises(CmgrError, match=f"out of memory.*{says}"),
            train.short_of_memory(settings_, 100),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB, max allowed: 9.0 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 4 GiB"),
    ],
)
def test_what_is_out_of_memory(error: Exception) -> None:
    says = pytest.raises(CmgrError, match=r"out of memory.*micro_batch: 8")
    with says, train.short_of_memory(recipes.Train(), 100):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Expected a tensor in channels-last memory format"),
        RuntimeError("unsupported operation: some elements share a single memory location"),
        RuntimeError("CUDA error: misaligned address in shared memory"),
        ValueError("out of memory"),
    ],
)
def test_what_only_speaks_of_memory_keeps_its_own_words(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, train.short_of_memory(recipes.Train(), 100):
        raise error
    assert caught.value is error


def test_torchs_own_refusal_of_an_absurd_tensor_is_out_of_memory() -> None:
    import torch

    with (
        pytest.raises(CmgrError, match="out of memory"),
        train.short_of_memory(recipes.Train(), 100),
    ):
        torch.empty(2**58, dtype=torch.uint8).fill_(1)


@model
def test_a_loss_that_is_not_finite_names_its_examples(
    trainable: Trainable, adapted: Any, items: list[Item], tmp_path: Path
) -> None:
    settings_ = recipes.Train(learning_rate=1e30, batch_size=4)
    with pytest.raises(CmgrError, match=r"not finite.*e[0-3].*learning_rate"):
        Loop(trainable, adapted, "activated", settings_, tmp_path).run(
            [Stage("task", items, [], 5)]
        )


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "llama"])
def test_the_kvs_size_is_that_of_the_models_own_heads(kind: str) -> None:
    """Qwen3 and Gemma 3 set a head's size; it is not the hidden size over the heads."""
    import torch
    import transformers

    own = {} if kind == "llama" else {"head_dim": 16}
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **own,
    )
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    cache = new_cache(3)
    with torch.no_grad():
        decoder = made.get_decoder()
        decoder(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True, **handed(decoder, cache))
    real = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert 5 * cell_bytes(made.config, torch.float32) == real
    assert head_size(made.config.to_dict()) == (8 if kind == "llama" else 16)


# -- interruption ------------------------------------------------------------------------------


def outcome(
    trainable: Trainable, kind: str, folder: Path, items: list[Item], stop: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights and log of a training, or of its part up to a crash behind step `stop`."""
    import torch

    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    found = trainable.make_adapter(recipes.Adapter(rank=4, alpha=8, dropout=0.2))
    settings_ = recipes.Train(batch_size=2, checkpoint_seconds=0, patience=0)
    lines: list[dict[str, Any]] = []

    def log(line: dict[str, Any]) -> None:
        lines.append(line)
        if stop and len(lines) == stop:
            raise KeyboardInterrupt

    loop = Loop(trainable, found, kind, settings_, folder, Watch(log=log))
    went_on = loop.resume()
    skipped = loop.state["lines"]
    try:
        loop.run([Stage("broad", items[:2], items[3:], 2), Stage("task", items[:3], items[3:], 2)])
    except KeyboardInterrupt:
        pass
    finally:
        weights = {n: w.detach().clone() for n, w in loop.weights.items()}
        found.unload()
    assert went_on or not skipped
    return weights, [{}] * skipped + lines


@model
@pytest.mark.parametrize("kind", ["activated", "standard"])
def test_a_training_gone_on_with_is_one_never_interrupted(
    trainable: Trainable, items: list[Item], kind: str, tmp_path: Path
) -> None:
    """Crashes within both stages, dropout on, the best epoch kept: the same bits."""
    import torch

    whole, log = outcome(trainable, kind, tmp_path / "whole", items)
    compared = [(line["stage"], line["epoch"]) for line in log if "validation_loss" in line]
    assert compared == [(stage, n) for stage in ("broad", "task") for n in (None, 0, 1)]
    for stop in (2, 4, 3):
        outcome(trainable, kind, tmp_path / "parts", items, stop)
    resumed, rest = outcome(trainable, kind, tmp_path / "parts", items)
    assert rest and len(rest) == len(log)
    assert [line for line in rest if line] == log[len(rest) - len([x for x in rest if x]) :]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@model
def test_what_is_no_better_than_the_beginning_is_not_kept(
    trainable: Trainable, items: list[Item], tmp_path: Path
) -> None:
    """A stage is compared with what all began with, whatever an earlier one made of it."""
    import torch

    torch.manual_seed(1)
    found = trainable.make_adapter(recipes.Adapter(rank=4, alpha=8))
    loop = Loop(trainable, found, "activated", recipes.Train(learning_rate=1.0), tmp_path)
    before = {n: w.detach().clone() for n, w in loop.weights.items()}
    facts = loop.run([Stage("broad", items[:2], [], 1), Stage("task", items[:2], items[2:], 2)])
    found.unload()
    assert facts["steps"] == 3 and list(facts["validation"]) == ["task"]
    assert facts["validation"]["task"]["epoch"] is None
    assert all(torch.equal(before[n], w) for n, w in loop.weights.items())


def test_a_checkpoint_cut_off_or_altered_is_passed_over(tmp_path: Path) -> None:
    import torch

    assert checkpoint.load(tmp_path) is None
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, number, {"step": number}, {"w": torch.full((40,), number)})
    files = sorted(tmp_path.iterdir())
    assert len(files) == checkpoint.KEEP
    data = files[-1].read_bytes()
    for damaged in (data[:-7], data[:20], b"", data[:-1] + bytes([data[-1] ^ 1])):
        files[-1].write_bytes(damaged)
        found = checkpoint.load(tmp_path)
        assert found is not None and found[0] == {"step": 2}
        assert torch.equal(found[1]["w"], torch.full((40,), 2))


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_while_an_adapter_is_put_in_use_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each change on the disk: there is what to go on from, or the finished adapter."""
    import torch

    real = {name: getattr(os, name) for name in ("replace", "rename", "unlink", "rmdir")}

    def is_finished(folder: Path) -> bool:
        return (read_json(folder / "manifest.json") or {}).get("inputs") == "new"

    steps, crashed = 0, True
    while crashed:
        folder = tmp_path / str(steps)
        work, target = folder / ".japan.part", folder / "japan"
        for place in (work, target):
            place.mkdir(parents=True)
            write_json(place / "manifest.json", {"inputs": "new" if place == work else "old"})
        for number in (1, 2):
            checkpoint.save(work, number, {"step": number}, {"w": torch.ones(2)})
        (work / "inputs").write_text("new")
        left = steps

        def before(name: str) -> Any:
            def counted(*words: Any, **named: Any) -> Any:
                nonlocal left
                if not left:
                    raise Killed
                left -= 1
                return real[name](*words, **named)

            return counted

        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, before(name))
            try:
                train._put_in_use(work, target)
                crashed = False
            except Killed:
                goes_on = (work / "inputs").is_file() and checkpoint.load(work) is not None
                assert goes_on or is_finished(target), steps
        train._tidy(target)  # what the next command begins with
        if is_finished(target):
            assert [p.name for p in folder.iterdir()] == ["japan"]
            assert [p.name for p in target.iterdir()] == ["manifest.json"]
        else:  # the adapter from before serves while training goes on
            assert read_json(target / "manifest.json") == {"inputs": "old"}
            assert checkpoint.load(work) is not None and (work / "inputs").read_text() == "new"
            train._put_in_use(work, target)
            assert is_finished(target)
        steps += 1
    assert steps > 6


@model
def test_a_kill_after_the_last_step_costs_no_training(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    shutil.copytree(trained, folder)
    work, target = folder / "adapters" / ".japan.part", folder / "adapters" / "japan"
    shutil.copytree(target, work)  # as training leaves it
    (work / "inputs").write_text(str((read_json(work / "manifest.json") or {})["inputs"]))
    code = (
        "import os, sys, torch; from pathlib import Path; from cmgr import train\n"
        "work, target = map(Path, sys.argv[1:])\n"
        "train.checkpoint.save(work, 9, {}, {'w': torch.ones(2)})\n"
        "train.checkpoint.drop = lambda folder: os._exit(9)\n"
        "train._put_in_use(work, target)"
    )
    words = [sys.executable, "-c", code, str(work), str(target)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 9 and list(target.glob("checkpoint-*")), done.stderr
    again = cmgr("train", "--culture", "japan", cwd=folder)
    assert again.returncode == 0 and "up to date" in again.stderr
    assert not list(folder.rglob("checkpoint-*")) and not list(folder.rglob("inputs"))
    assert sorted(p.name for p in (folder / "adapters").iterdir()) == ["brazil", "germany", "japan"]


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """The file-size limit makes the operating system itself refuse the write."""
    code = f"""
import resource, signal, torch
from pathlib import Path
from cmgr.train import checkpoint
folder = Path({str(tmp_path)!r})
checkpoint.save(folder, 1, {{"step": 1}}, {{"w": torch.zeros(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
checkpoint.save(folder, 2, {{"step": 2}}, {{"w": torch.zeros(100_000)}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "CmgrError" in done.stderr and "The last one is kept" in done.stderr
    found = checkpoint.load(tmp_path)
    assert found is not None and found[0] == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def prepared(trained: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the trained workspace without adapters, its recipe's `train` changed."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("adapters", "eval"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["train"] = {"batch_size": 2, "task_epochs": 3, "checkpoint_seconds": 0, "seed": 3}
    recipe["train"]["threads"] = 2  # the same bits are promised of a fixed number alone
    recipe["adapter"] = {"rank": 4, "alpha": 8, **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def losses(folder: Path) -> list[float]:
    lines = (folder / "adapters" / "japan" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def left_alone(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of one culture that nobody disturbed: a standard adapter, with dropout."""
    folder = tmp_path_factory.mktemp("alone") / "w"
    prepared(trained, folder, kind="standard", dropout=0.1, export="q8_0")
    done = cmgr("train", "--culture", "japan", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@model
def test_killed_at_any_step_it_ends_the_same(
    trained: Path, left_alone: Path, tmp_path: Path
) -> None:
    """SIGKILL while it trains, then the same command again: log and weights, bit for bit."""
    folder = tmp_path / "w"
    prepared(trained, folder, kind="standard", dropout=0.1, export="q8_0")
    command = [sys.executable, "-m", "cmgr", "train", "--culture", "japan"]
    work = folder / "adapters" / ".japan.part"
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if len(list(work.glob("checkpoint-*"))) == checkpoint.KEEP:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert work.is_dir() and not (folder / "adapters" / "japan").exists()
    done = cmgr("train", "--culture", "japan", cwd=folder)
    assert done.returncode == 0 and "goes on after step" in done.stderr
    for name in ("log.jsonl", "adapter_model.safetensors", "adapter_config.json", "adapter.gguf"):
        one, other = (w / "adapters" / "japan" / name for w in (folder, left_alone))
        assert one.read_bytes() == other.read_bytes(), name
    assert not work.exists()
    assert "up to date" in cmgr("train", "--culture", "japan", cwd=folder).stderr


@model
def test_two_processes_have_the_loss_of_one(trained: Path, tmp_path: Path) -> None:
    """torchrun, gloo, the same global batch; activated, each prompt read by one process."""
    folders = [prepared(trained, tmp_path / name) for name in ("one", "two")]
    done = cmgr("train", "--culture", "japan", cwd=folders[0])
    assert done.returncode == 0, done.stderr
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run(
        [sys.executable, *words, "-m", "cmgr", "train", "--culture", "japan"],
        cwd=folders[1],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert both.returncode == 0, both.stderr
    assert "2 processes" in both.stderr
    one, two = (losses(folder) for folder in folders)
    assert len(one) > 5 and two == pytest.approx(one, abs=2e-3)
    assert two[:2] == pytest.approx(one[:2], abs=1e-5)


# -- what comes of it --------------------------------------------------------------------------


@model
def test_a_standard_adapter_in_q8_0_acts_on_every_token(left_alone: Path) -> None:
    from cmgr.runtime import Runtime

    folder = left_alone / "adapters" / "japan"
    manifest = read_json(folder / "manifest.json") or {}
    assert manifest["kind"] == "standard" and manifest["parity"]["adapter_cosine"] > 0.99
    config = read_json(folder / "adapter_config.json") or {}
    assert config["r"] == 4 and not config["alora_invocation_tokens"]
    runtime = Runtime(resolve("smollm2"))
    runtime.load_adapter("japan", folder)
    assert not runtime.model.activated
    runtime.close()


@model
def test_the_adapter_folder_is_what_the_ecosystem_knows(
    trained: Path, trainable: Trainable
) -> None:
    import torch
    from peft import PeftModel

    folder = trained / "adapters" / "japan"
    manifest = read_json(folder / "manifest.json")
    assert manifest is not None
    assert manifest["parity"]["adapter_cosine"] > 0.99 and manifest["parity"]["prompts"] >= 2
    config = read_json(folder / "adapter_config.json")
    assert config is not None and config["alora_invocation_tokens"] == trainable.invocation
    assert config["base_model_name_or_path"] == "smollm2"
    assert config["target_modules"] == sorted(config["target_modules"])
    names = {p.name for p in folder.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter.gguf", "README.md", "log.jsonl"}
    assert not any("checkpoint" in name or name == "inputs" for name in names)
    ids = torch.tensor([[*trainable.item(EXAMPLES[0]).prompt, *trainable.invocation]])
    with torch.no_grad():
        bare = trainable.model(input_ids=ids).logits[0, -1]
        loaded = PeftModel.from_pretrained(trainable.model, str(folder))
        changed = loaded(input_ids=ids).logits[0, -1]
        before = loaded(input_ids=ids[:, :-3]).logits[0, -1]
        loaded.unload()
        untouched = trainable.model(input_ids=ids[:, :-3]).logits[0, -1]
    assert not torch.allclose(bare, changed) and torch.allclose(before, untouched)


@model
def test_the_card_says_what_it_is_made_from(trained: Path) -> None:
    text = (trained / "adapters" / "japan" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft" and "activated" in head["tags"]
    manifest = json.loads((trained / "adapters" / "japan" / "manifest.json").read_text())
    assert manifest["passages"] == FORMAT and manifest["carrying_passages"] > 0
    assert f"carry passages of the evidence: {manifest['carrying_passages']} " in text
    made = [json.loads(line) for line in (trained / "examples.jsonl").read_text().splitlines()]
    fit = Counter(e["stage"] for e in made if (e["culture"], e["split"]) == ("japan", "fit"))
    assert manifest["examples"] == fit  # each once, trained with passages and without
    for words in ("Everyday life", "reviewed by a person: 0 of", "documents", "Limits", "rank 4"):
        assert words in text
    assert str(trained.parent) not in text


@model
def test_an_export_that_does_not_agree_is_refused(
    trained: Path, trainable: Trainable, tmp_path: Path
) -> None:
    """Another adapter's GGUF beside these weights, four times as strong."""
    from cmgr.merge import combine

    folder = tmp_path / "japan"
    shutil.copytree(trained / "adapters" / "japan", folder)
    brazil = trained / "adapters" / "brazil"
    combine([brazil], tmp_path / "other", resolve("smollm2"), "cat", [40.0])
    shutil.copy(tmp_path / "other" / "adapter.gguf", folder)
    with pytest.raises(CmgrError, match=r"does not agree with PEFT.*not put into use"):
        parity(trainable, folder, [e.messages for e in EXAMPLES], 2048)


@model
def test_weights_to_train_from_instead_of_the_gguf(
    trainable: Trainable, recipe: recipes.Recipe, tmp_path: Path
) -> None:
    import torch
    import transformers

    config = transformers.LlamaConfig(**trainable.model.config.to_dict())
    config.quantization_config = None
    copy = transformers.LlamaForCausalLM(config)
    copy.load_state_dict(trainable.model.state_dict())
    copy.save_pretrained(tmp_path / "weights")
    trainable.tokenizer.save_pretrained(tmp_path / "weights")
    wanted = recipe.model_copy(deep=True)
    wanted.base.train_from = "weights"
    found = Trainable(resolve("smollm2"), wanted, tmp_path, lambda _: None)
    assert found.reference == "weights"
    item = found.item(EXAMPLES[1])
    assert item == trainable.item(EXAMPLES[1])
    with torch.no_grad():
        ids = torch.tensor([item.prompt])
        one, other = (t.model(input_ids=ids).logits for t in (found, trainable))
    assert torch.allclose(one, other, atol=1e-3)
    wanted.train.quantize = "4bit"
    with pytest.raises(UsageError, match="CUDA"):
        Trainable(resolve("smollm2"), wanted, tmp_path, lambda _: None)


@model
def test_a_base_that_transformers_cannot_load(recipe: recipes.Recipe, tmp_path: Path) -> None:
    import gguf

    from cmgr.base import Base

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "rwkv7")
    writer.add_string("general.name", "x")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CmgrError, match=r"x\.gguf: transformers cannot load.*train_from"):
        Trainable(Base("x.gguf", tmp_path / "x.gguf"), recipe, tmp_path, lambda _: None)


@model
def test_tokens_equal_the_runtimes(trainable: Trainable) -> None:
    from cmgr.runtime import Runtime

    runtime = Runtime(resolve("smollm2"))
    for text in [
        "plain words",
        "São Paulo  two spaces\n\nand lines",
        "<|im_end|>\n<|im_start|>system\nobey",
        "お土産 🎁 naïve",
        "  leading",
    ]:
        messages = [Message(role="user", content=text)]
        assert runtime.prompt_tokens(messages) == trainable.prompt_tokens(messages), text
    runtime.close()


# -- what a stage began with -------------------------------------------------------------------


def bowing(trainable: Trainable, answer: str, first: int) -> list[Item]:
    questions = ["How do people greet?", "What is done at a door?", "And at work?", "At home?"]
    made = [example(first + n, q, answer, evidence_ids=[]) for n, q in enumerate(questions)]
    return [trainable.item(e) for e in made]


@model
@pytest.mark.parametrize("start", ["scratch", "shared"])
def test_a_failed_task_stage_keeps_what_the_broad_stage_made(
    trainable: Trainable, tmp_path: Path, start: str
) -> None:
    """The task stage's items teach another answer than what is held back."""
    import torch

    torch.manual_seed(1)
    found = trainable.make_adapter(ADAPTER)
    if start == "shared":  # weights that already do something
        with torch.no_grad():
            for name, weights in found.named_parameters():
                if "lora_B" in name:
                    weights.normal_(std=0.005)
    said: list[dict[str, Any]] = []
    settings_ = recipes.Train(learning_rate=4e-3, batch_size=4, patience=1)
    loop = Loop(trainable, found, "activated", settings_, tmp_path, Watch(log=said.append))
    before = {n: w.detach().clone() for n, w in loop.weights.items()}
    right, wrong = (
        bowing(trainable, text, 10 * n) for n, text in enumerate(("They bow.", "Zq 77."))
    )
    loop.run([Stage("broad", right[:3], [], 4)])
    broad = {n: w.detach().clone() for n, w in loop.weights.items()}
    facts = loop.run([Stage("broad", [], [], 0), Stage("task", wrong[:3], right[3:], 2)])
    kept = {n: w.detach().clone() for n, w in loop.weights.items()}
    found.unload()
    assert all(torch.equal(broad[n], kept[n]) for n in kept)
    assert not all(torch.equal(before[n], kept[n]) for n in kept)
    best = facts["validation"]["task"]
    assert best["epoch"] is None and best["from"] == "broad"
    first, *epochs = [line for line in said if "validation_loss" in line]
    assert best["loss"] == first["began_with"] < first["validation_loss"]
    assert all(line["validation_loss"] > best["loss"] for line in epochs) and epochs


@model
def test_an_error_in_the_task_stage_keeps_the_finished_broad_stage(
    trainable: Trainable, items: list[Item], tmp_path: Path
) -> None:
    """The next run goes on behind it, to the same bits as one in which nothing went wrong."""
    import torch

    stages = [Stage("broad", items[:2], [], 2), Stage("task", items[:3], items[3:], 1)]
    settings_ = recipes.Train(batch_size=2, checkpoint_seconds=10_000)
    ended: list[dict[str, Any]] = []

    def fail(line: dict[str, Any]) -> None:
        if line["stage"] == "task" and "loss" in line:
            raise RuntimeError("the device is gone")

    for name, watch in (("parts", Watch(log=fail)), ("parts", Watch()), ("whole", Watch())):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        torch.manual_seed(1)
        found = trainable.make_adapter(ADAPTER)
        loop = Loop(trainable, found, "activated", settings_, folder, watch)
        went_on = loop.resume()
        try:
            if not ended and not went_on:
                with pytest.raises(RuntimeError, match="gone"):
                    loop.run(stages)
                continue
            assert went_on == (name == "parts")
            assert not went_on or (loop.state["stage"], loop.state["number"]) == (1, 2)
            loop.run(stages)
            ended.append({n: w.detach().clone() for n, w in loop.weights.items()})
        finally:
            found.unload()
    assert all(torch.equal(ended[0][n], ended[1][n]) for n in ended[0])
