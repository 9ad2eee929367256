"""LoRA training on kept prompt KV: what the broad and the task stage both run.

The base alone reads each prompt of an activated adapter, so the prompt's KV never changes: it is
computed once without gradients and kept, and each epoch computes the answer tokens only.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cmgr import recipe as recipes
from cmgr.base import Base, generation_prompt, segments
from cmgr.errors import CmgrError, missing_extra
from cmgr.records import Example, Message


@dataclass
class Item:
    """One example as token ids: what the base reads, and what the adapter continues."""

    id: str
    prompt: list[int]
    target: list[int]  # invocation, answer, end of turn


class Trainable:
    """The base in torch, ready for LoRA; loaded once for all cultures.

    Raises MissingError without the `train` extra, CmgrError when transformers cannot load it.
    """

    def __init__(self, base: Base, say: Callable[[str], None]) -> None:
        try:
            import torch
            import transformers
            from peft import LoraConfig  # noqa: F401 - found out now, not after the loading
        except ImportError:
            raise missing_extra("train", "cmgr train") from None
        transformers.logging.set_verbosity_error()
        # notes of PEFT to its own callers (renamed paths, deprecations) tell a user nothing
        warnings.filterwarnings("ignore", module=r"peft|transformers")
        if torch.cuda.is_available():
            self.device, self.dtype, why = "cuda", torch.bfloat16, "a CUDA device is there"
        else:
            self.device, self.dtype, why = "cpu", torch.float32, "no CUDA device"
        say(f"train: on {self.device} in {str(self.dtype).removeprefix('torch.')} ({why})")
        self.base = base
        source = {"gguf_file": base.gguf.name, "local_files_only": True}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(base.gguf.parent, **source)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                base.gguf.parent, dtype=self.dtype, **source
            ).to(self.device)
        except Exception as error:
            raise CmgrError(
                f"{base.gguf}: transformers cannot load this GGUF for training: {error}"
            ) from error
        self.model.requires_grad_(False)
        self.model.eval()
        self.template = str(self.tokenizer.chat_template)
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        self._marks = {"bos": bos, "eos": eos}
        self.invocation = self.tokenize(generation_prompt(self.template, bos, eos), control=True)
        self.end = self.tokenizer.eos_token_id

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids; only with `control` are special tokens read as such (as in the runtime)."""
        tokens = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not control
        ).input_ids
        return [int(t) for t in tokens]

    def prompt_tokens(self, messages: list[Message]) -> list[int]:
        """The tokens before the invocation, the same as the runtime's."""
        parts = segments(self.template, messages, generation=True, **self._marks)
        tokens = [t for part in parts for t in self.tokenize(part.text, control=part.control)]
        return tokens[: -len(self.invocation)]

    def item(self, example: Example) -> Item:
        """One example as token ids."""
        answer = self.tokenize(example.answer, control=False)
        return Item(
            example.id,
            self.prompt_tokens(example.messages),
            [*self.invocation, *answer, self.end],
        )


class PromptCache:
    """KV of the prompts that the base has read, kept per item (layers x keys, values)."""

    def __init__(self, trainable: Trainable, model: Any) -> None:
        self.trainable = trainable
        self.model = model
        self.kept: dict[str, list[tuple[Any, Any]]] = {}

    def add(self, items: list[Item]) -> None:
        """Let the base read the prompts of `items` that are not kept yet, one batch."""
        import torch

        items = [item for item in items if item.id not in self.kept]
        if not items:
            return
        longest = max(len(item.prompt) for item in items)
        ids = torch.full((len(items), longest), self.trainable.end)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(items):
            ids[row, : len(item.prompt)] = torch.tensor(item.prompt)
            mask[row, : len(item.prompt)] = 1
        device = self.trainable.device
        with torch.no_grad(), self.model.disable_adapter():
            out = self.model.get_base_model().get_decoder()(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=True
            )
        layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        for row, item in enumerate(items):
            n = len(item.prompt)
            self.kept[item.id] = [(k[row, :, :n].clone(), v[row, :, :n].clone()) for k, v in layers]

    def batch(self, items: list[Item]) -> tuple[Any, Any]:
        """A fresh cache of these items, left-padded, and its mask, (items, longest)."""
        import torch
        from transformers import DynamicCache

        longest = max(len(item.prompt) for item in items)
        mask = torch.zeros((len(items), longest), dtype=torch.long)
        for row, item in enumerate(items):
            mask[row, longest - len(item.prompt) :] = 1
        cache = DynamicCache()
        for layer in range(len(self.kept[items[0].id])):
            pair = []
            for which in (0, 1):
                first = self.kept[items[0].id][layer][which]
                block = first.new_zeros((len(items), first.shape[0], longest, first.shape[2]))
                for row, item in enumerate(items):
                    block[row, :, longest - len(item.prompt) :] = self.kept[item.id][layer][which]
                pair.append(block)
            cache.update(pair[0], pair[1], layer)
        return cache, mask


def batch_loss(trainable: Trainable, model: Any, cache: PromptCache, items: list[Item]) -> Any:
    """The mean loss of a batch over answer tokens (and the end of turn) alone, a scalar tensor.

    The output head is computed at those positions only.
    """
    import torch

    past, past_mask = cache.batch(items)
    width = max(len(item.target) for item in items)
    ids = torch.full((len(items), width), trainable.end)
    mask = torch.zeros_like(ids)
    where = torch.zeros_like(ids)
    skip = len(trainable.invocation)
    rows, columns, labels = [], [], []
    for row, item in enumerate(items):
        n = len(item.target)
        ids[row, :n] = torch.tensor(item.target)
        mask[row, :n] = 1
        where[row] = len(item.prompt) + torch.arange(width)
        for column in range(skip - 1, n - 1):
            rows.append(row)
            columns.append(column)
            labels.append(item.target[column + 1])
    device = trainable.device
    out = model.get_base_model().get_decoder()(
        input_ids=ids.to(device),
        attention_mask=torch.cat([past_mask, mask], dim=1).to(device),
        position_ids=where.to(device),
        past_key_values=past,
        use_cache=True,
    )
    hidden = out.last_hidden_state[torch.tensor(rows), torch.tensor(columns)]
    logits = model.get_base_model().get_output_embeddings()(hidden).float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels, device=device))


def make_adapter(trainable: Trainable, settings: recipes.Adapter) -> Any:
    """The base with a fresh LoRA on every linear layer (a PeftModel)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    return get_peft_model(trainable.model, config)


def fit(
    trainable: Trainable,
    model: Any,
    stages: list[tuple[str, list[Example], int]],
    settings: recipes.Train,
    log: Callable[[dict[str, Any]], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train the adapter through (stage, examples, epochs); returns tokens, seconds, last loss.

    Raises CmgrError with the example ids of a batch whose loss is not finite.
    """
    import torch

    order = random.Random(settings.seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    cache = PromptCache(trainable, model)
    plans = [(name, [trainable.item(e) for e in examples], n) for name, examples, n in stages]
    size = settings.batch_size
    total = sum(n * -(-len(items) // size) for _, items, n in plans)
    began, tokens, step, last = time.perf_counter(), 0, 0, float("nan")
    model.train()
    for name, items, epochs in plans:
        steps = epochs * -(-len(items) // size)
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
        warm = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda at, warm=warm, steps=steps: min(
                (at + 1) / warm, max(0.05, 1 - (at - warm) / max(1, steps - warm))
            ),
        )
        for start in range(0, len(items), size):
            # the sort makes lengths in a batch alike, so that little is padded
            cache.add(sorted(items, key=lambda i: len(i.prompt))[start : start + size])
        for epoch in range(epochs):
            shuffled = order.sample(items, len(items))
            for start in range(0, len(shuffled), size):
                batch = shuffled[start : start + size]
                loss = batch_loss(trainable, model, cache, batch)
                last = float(loss.detach())
                if not torch.isfinite(loss):
                    raise CmgrError(
                        f"the loss is not finite (stage {name}, step {step}) on the examples "
                        f"{', '.join(item.id for item in batch)}. Lower train.learning_rate"
                    )
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                tokens += sum(len(i.prompt) + len(i.target) for i in batch)
                log({"stage": name, "epoch": epoch, "step": step, "loss": round(last, 5)})
                progress(step, total)
        cache.kept.clear()
    seconds = time.perf_counter() - began
    model.eval()
    return {"steps": step, "tokens": tokens, "seconds": round(seconds, 1), "loss": round(last, 4)}
