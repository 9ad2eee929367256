"""Training on kept prompt KV is PEFT's activated training."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmgr import recipe as recipes
from cmgr.base import resolve
from cmgr.errors import CmgrError
from cmgr.records import Example, Message
from cmgr.train import loop
from cmgr.workspace import read_json

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def trainable() -> loop.Trainable:
    return loop.Trainable(resolve("smollm2"), lambda _: None)


def example(number: int, question: str, answer: str) -> Example:
    return Example(
        id=str(number),
        culture="japan",
        task="t",
        stage="task",
        inputs={},
        answer=answer,
        messages=[Message(role="user", content=question)],
        evidence_ids=[],
        quote="",
        generator="test",
        created_at="",
    )


EXAMPLES = [
    example(0, "How do people greet?", "They bow."),
    example(1, "A longer question on tips <|im_end|> in a restaurant?", "No tip is left here."),
    example(2, "Shoes?", "They come off at the door, at once."),
]


def test_loss_and_gradients_equal_pefts_own_activated_forward(
    trainable: loop.Trainable,
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    items = [trainable.item(e) for e in EXAMPLES]
    torch.manual_seed(0)
    model = loop.make_adapter(trainable, recipes.Adapter(rank=4, alpha=8))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.02)
    start = {n: w.detach().clone() for n, w in model.named_parameters() if "lora_" in n}
    cache = loop.PromptCache(trainable, model)
    cache.add(items)
    loss = loop.batch_loss(trainable, model, cache, items)
    loss.backward()
    ours = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    model.unload()

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        alora_invocation_tokens=trainable.invocation,
    )
    other = get_peft_model(trainable.model, config)
    with torch.no_grad():
        for name, weights in other.named_parameters():
            if name in start:
                weights.copy_(start[name])
    total, count = torch.zeros(()), 0
    for item in items:
        ids = torch.tensor([item.prompt + item.target])
        logits = other(input_ids=ids).logits[0].float()
        first = len(item.prompt) + len(trainable.invocation)
        total = total + torch.nn.functional.cross_entropy(
            logits[first - 1 : -1], ids[0, first:], reduction="sum"
        )
        count += ids.shape[1] - first
    reference = total / count
    reference.backward()
    theirs = {n: w.grad for n, w in other.named_parameters() if w.grad is not None}
    assert loss.item() == pytest.approx(reference.item(), abs=1e-4)
    assert set(ours) == set(theirs) and ours
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], rtol=1e-2, atol=1e-4), name
    other.unload()


def test_an_items_loss_does_not_depend_on_its_neighbours(trainable: loop.Trainable) -> None:
    import torch

    items = [trainable.item(e) for e in EXAMPLES]
    model = loop.make_adapter(trainable, recipes.Adapter(rank=4, alpha=8))
    cache = loop.PromptCache(trainable, model)
    cache.add(items)
    with torch.no_grad():
        together = loop.batch_loss(trainable, model, cache, items).item()
        alone = [loop.batch_loss(trainable, model, cache, [i]).item() for i in items]
    lengths = [len(i.target) - len(trainable.invocation) for i in items]
    mean = sum(a * n for a, n in zip(alone, lengths, strict=True)) / sum(lengths)
    assert together == pytest.approx(mean, abs=1e-4)
    model.unload()


def test_a_loss_that_is_not_finite_names_its_examples(trainable: loop.Trainable) -> None:
    model = loop.make_adapter(trainable, recipes.Adapter(rank=4, alpha=8))
    settings = recipes.Train(learning_rate=1e30, batch_size=3)
    with pytest.raises(CmgrError, match=r"not finite.*0.*learning_rate"):
        loop.fit(
            trainable, model, [("task", EXAMPLES, 5)], settings, lambda _: None, lambda *_: None
        )
    model.unload()


def test_tokens_equal_the_runtimes(trainable: loop.Trainable) -> None:
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


def test_the_adapter_folder_is_what_the_ecosystem_knows(trained: Path) -> None:
    folder = trained / "adapters" / "japan"
    manifest = read_json(folder / "manifest.json")
    assert manifest is not None
    assert manifest["parity"]["adapter_cosine"] > 0.995
    config = read_json(folder / "adapter_config.json")
    assert config is not None and config["alora_invocation_tokens"]
    assert config["base_model_name_or_path"] == "smollm2"
    names = {p.name for p in folder.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter.gguf", "README.md", "log.jsonl"}
    assert str(trained.parent) not in (folder / "README.md").read_text()
