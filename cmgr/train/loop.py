"""The loop that both stages and both kinds run: loss on the answer alone, exact resume.

accelerate brings the device and the processes. A step is a function of its number (order, dropout,
learning rate), so that a checkpoint is the weights, the optimiser's moments and that number.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cmgr import recipe as recipes
from cmgr.errors import CmgrError
from cmgr.recipe import PREFER
from cmgr.records import make_id
from cmgr.train import checkpoint
from cmgr.train.loss import answer_loss, preference_loss
from cmgr.train.model import Item, Trainable
from cmgr.train.prompts import Prompts, prompts_budget
from cmgr.train.watch import Watch

POOL = 8  # batches whose items are sorted by length together


@dataclass
class Stage:
    """One stage's items: to train on, and to choose the best epoch by."""

    name: str
    items: list[Item]
    validation: list[Item]
    epochs: int

    def per_epoch(self, size: int) -> int:
        """Steps of an epoch, at `size` items a step."""
        return -(-len(self.items) // size)

    @cached_property
    def place(self) -> dict[str, int]:
        """Each item's number: it says which process has it."""
        return {i.id: n for n, i in enumerate([*self.items, *self.validation])}


def order_of(items: Sequence[Item], size: int, *seed: Any, whole: bool) -> list[list[Item]]:
    """An epoch's batches: shuffled, of like lengths in a batch so that little is padded.

    `whole` counts the prompt too (it is computed each time). The same seed gives the same order.
    """
    chance = random.Random(make_id("order", *seed))
    mixed = chance.sample(list(items), len(items))
    batches = []
    for start in range(0, len(mixed), POOL * size):
        pool = sorted(
            mixed[start : start + POOL * size], key=lambda i: len(i) if whole else len(i.target)
        )
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return chance.sample(batches, len(batches))


class Loop:
    """One adapter's training through its stages, from its checkpoint where `folder` has one.

    Raises CmgrError with the example ids of a batch whose loss is not finite, or on a full disk.
    """

    def __init__(
        self,
        trainable: Trainable,
        model: Any,
        kind: str,
        settings: recipes.Train,
        folder: Path,
        watch: Watch | None = None,
    ) -> None:
        self.trainable = trainable
        self.model = model
        self.activated = kind == "activated"
        self.settings = settings
        self.folder = folder
        self.watch = watch or Watch()
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.beginning = self._copy()  # a candidate of every stage
        self.state: dict[str, Any] = {
            **{"stage": 0, "step": 0, "number": 0, "lines": 0, "tokens": 0, "seconds": 0.0},
            **{"loss": None, "best": None, "bad": 0, "validation": {}},
        }
        self.best: dict[str, Any] = {}  # weights of the stage's best epoch
        self.start()

    # -- keeping -----------------------------------------------------------------------------

    def resume(self) -> bool:
        """Take up the newest whole checkpoint; False where there is none."""
        found = checkpoint.load(self.folder)
        if found is None:
            return False
        self.state, tensors = found
        self.best = {n[5:]: t for n, t in tensors.items() if n.startswith("best/")}
        self._put({n: tensors[f"weights/{n}"] for n in self.weights})
        for name, weights in self.weights.items():
            if f"first/{name}" in tensors:
                self.optimizer.state[weights] = {
                    "step": tensors[f"step/{name}"].clone(),
                    "exp_avg": tensors[f"first/{name}"].to(weights.device).clone(),
                    "exp_avg_sq": tensors[f"second/{name}"].to(weights.device).clone(),
                }
        return True

    def _save(self) -> None:
        if not self.trainable.main:
            return
        tensors = {f"best/{name}": t for name, t in self.best.items()}
        for name, weights in self.weights.items():
            tensors[f"weights/{name}"] = weights
            moments = self.optimizer.state.get(weights)
            if moments:
                tensors[f"step/{name}"] = moments["step"]
                tensors[f"first/{name}"] = moments["exp_avg"]
                tensors[f"second/{name}"] = moments["exp_avg_sq"]
        checkpoint.save(self.folder, self.state["number"], self.state, tensors)

    def start(self) -> None:
        """A fresh optimiser: each stage has its own."""
        import torch

        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )

    def keep(self, share: float) -> None:
        """Keep this share of what the stages have changed; 1 is all of it.

        Checkpoints hold the weights from before, so a resumed run keeps as much as one that was not
        interrupted. Validation losses are of these too.
        """
        import torch

        changed = self._copy()
        self._put({n: torch.lerp(self.beginning[n], w, share) for n, w in changed.items()})

    # -- training ----------------------------------------------------------------------------

    def run(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Train through the stages; returns steps, tokens, seconds, losses."""
        self.model.train()
        self._clock = self._saved = time.monotonic()
        for number, stage in enumerate(stages):
            if number >= self.state["stage"]:
                self._stage(stage, [s.name for s in stages[:number]])
        self.model.eval()
        state = self.state
        facts = {
            "steps": state["number"],
            "tokens": state["tokens"],
            "seconds": round(state["seconds"], 1),
            "loss": round(state["loss"], 4) if state["loss"] is not None else None,
        }
        if state["validation"]:
            facts["validation"] = state["validation"]
        return facts

    def _stage(self, stage: Stage, earlier: Sequence[str]) -> None:
        settings, state = self.settings, self.state
        prompts = self.prompts(stage) if self.activated else None
        try:
            if prompts is not None:
                prompts.read(partial(self._tell_reading, stage.name))
            per_epoch = stage.per_epoch(settings.batch_size)
            total = stage.epochs * per_epoch
            if state["best"] is None and stage.validation:
                self._compare_beginnings(stage, earlier, prompts)
            planned, batches = -1, []
            while state["step"] < total and not self._stopped():
                epoch, at = divmod(state["step"], per_epoch)
                if epoch != planned:
                    planned, batches = epoch, self._batches(stage, epoch)
                self.step(stage, batches[at], prompts, total)
                if at == per_epoch - 1:
                    self._compare(stage, epoch, prompts)
                self._keep_time()
                now = time.monotonic()
                if at == per_epoch - 1 or now - self._saved >= settings.checkpoint_seconds:
                    self._save()
                    self._saved = time.monotonic()
        finally:
            if prompts is not None:
                prompts.close()
        self._finish_stage()

    def prompts(self, stage: Stage) -> Prompts:
        """What the base is to read for a stage, by this process."""
        return Prompts(
            self.trainable,
            self.model,
            self._mine([*stage.items, *stage.validation], stage),
            self.settings.prompts,
            prompts_budget(self.trainable, self.settings),
            self.folder,
            self.watch.say,
        )

    def _tell_reading(self, stage: str, done: int, total: int) -> None:
        self.watch.progress(f"{stage} prompts", done, total, "read by the base")

    def work(self, items: Sequence[Item]) -> int:
        """The tokens that are computed for items: an activated adapter's prompts have been read."""
        if self.activated:
            return sum(item.learnt for item in items)
        return sum(len(answer) for item in items for answer in item.answers())

    def _batches(self, stage: Stage, epoch: int) -> list[list[Item]]:
        return order_of(
            stage.items,
            self.settings.batch_size,
            self.settings.seed,
            stage.name,
            epoch,
            whole=not self.activated,
        )

    def _mine(self, items: Sequence[Item], stage: Stage) -> list[Item]:
        """The items of this process: each belongs to one, so that its prompt is read once."""
        accelerator = self.trainable.accelerator
        if accelerator.num_processes == 1:
            return list(items)
        count, index = accelerator.num_processes, accelerator.process_index
        return [item for item in items if stage.place[item.id] % count == index]

    def _parts(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """Items in pieces that are computed at once."""
        size = self.settings.micro_batch or self.settings.batch_size
        size = max(1, size // (1 + max((len(i.rivals) for i in items), default=0)))
        ordered = sorted(items, key=len)
        yield from (ordered[i : i + size] for i in range(0, len(ordered), size))

    def loss(self, stage: Stage, items: Sequence[Item], prompts: Prompts | None) -> tuple[Any, int]:
        """The summed loss of items by their stage, and how many it is a sum of (`_count`)."""
        if stage.name == PREFER:
            weight = self.settings.prefer_weight
            return preference_loss(self.trainable, self.model, items, prompts, weight)
        return answer_loss(self.trainable, self.model, items, prompts)

    def _count(self, stage: Stage, items: Sequence[Item]) -> int:
        """What a stage's loss is a mean of: answer tokens, or examples where it is of pairs."""
        if stage.name == PREFER:
            return len(items)
        return sum(len(i.target) - len(self.trainable.invocation) for i in items)

    def step(self, stage: Stage, batch: list[Item], prompts: Prompts | None, total: int) -> None:
        """One step of the optimiser over a batch."""
        import torch

        state, settings, trainable = self.state, self.settings, self.trainable
        accelerator = trainable.accelerator
        # dropout is a function of the step too
        seed = make_id(settings.seed, stage.name, state["step"], accelerator.process_index)
        torch.manual_seed(int(seed[:15], 16))
        began = time.monotonic()
        count = self._count(stage, batch)
        summed = 0.0
        for part in self._parts(self._mine(batch, stage)):
            with trainable.pace.step(self.work(part), "train"):
                loss, _ = self.loss(stage, part, prompts)
                (loss / count).backward()
                summed += float(loss.detach())
        if accelerator.num_processes > 1:
            summed = self._share(summed)
        last = summed / count
        if not math.isfinite(last):
            raise CmgrError(
                f"the loss is not finite (stage {stage.name}, step {state['step']}) on the "
                f"examples {', '.join(item.id for item in batch)}. Lower train.learning_rate"
            )
        torch.nn.utils.clip_grad_norm_(self.weights.values(), settings.max_grad_norm)
        rate = settings.learning_rate * _schedule(state["step"], total, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(map(len, batch))
        state["step"] += 1
        state["number"] += 1
        state["tokens"] += tokens
        state["loss"] = last
        epoch = (state["step"] - 1) // stage.per_epoch(settings.batch_size)
        # no time in it: a run that was killed leaves the same lines as one that was not
        self._log(
            {
                "stage": stage.name,
                "epoch": epoch,
                "step": state["number"],
                "loss": last,
                "learning_rate": rate,
                "tokens": tokens,
            }
        )
        speed = tokens / max(time.monotonic() - began, 1e-9)
        self.watch.progress(
            stage.name, state["step"], total, f"loss {last:.3f} · {speed:.0f} tokens/s"
        )

    def _share(self, summed: float) -> float:
        """Add up gradients and loss over the processes, in one message."""
        import torch

        grads = [
            p.grad if p.grad is not None else torch.zeros_like(p) for p in self.weights.values()
        ]
        flat = torch.cat([*(g.flatten().float() for g in grads), grads[0].new_tensor([summed])])
        flat = self.trainable.accelerator.reduce(flat, "sum")
        start = 0
        for parameter in self.weights.values():
            n = parameter.numel()
            parameter.grad = flat[start : start + n].view_as(parameter).to(parameter.dtype)
            start += n
        return float(flat[-1])

    # -- choosing the best epoch -------------------------------------------------------------

    def _copy(self) -> dict[str, Any]:
        return {n: w.detach().cpu().clone() for n, w in self.weights.items()}

    def _put(self, found: Mapping[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, weights in self.weights.items():
                weights.copy_(found[name])

    def _compare_beginnings(
        self, stage: Stage, earlier: Sequence[str], prompts: Prompts | None
    ) -> None:
        """Let a stage better both what all began with, and what the stage itself begins with."""
        reached = self._copy()
        self._put(self.beginning)
        line: dict[str, Any] = {"stage": stage.name, "epoch": None}
        line["validation_loss"] = self._candidate(stage, prompts, {"epoch": None})
        self._put(reached)
        if earlier:
            found = {"epoch": None, "from": earlier[-1]}
            line["began_with"] = self._candidate(stage, prompts, found)
        self.state["bad"] = 0
        self._log(line)

    def _compare(self, stage: Stage, epoch: int, prompts: Prompts | None) -> None:
        """Keep the weights of an epoch if they are the best so far."""
        if stage.validation:
            loss = self._candidate(stage, prompts, {"epoch": epoch})
            self._log({"stage": stage.name, "epoch": epoch, "validation_loss": loss})

    def _candidate(self, stage: Stage, prompts: Prompts | None, about: dict[str, Any]) -> float:
        """The validation loss of the weights as they are; they are kept if none had a lower one."""
        state = self.state
        loss = self.validate(stage, prompts)
        if state["best"] is None or loss < state["best"]:
            state["best"], state["bad"] = loss, 0
            state["validation"][stage.name] = {"loss": loss, **about}
            self.best = self._copy()
        else:
            state["bad"] += 1
        return loss

    def _log(self, line: dict[str, Any]) -> None:
        self.state["lines"] += 1
        self.watch.log(line)

    def validate(self, stage: Stage, prompts: Prompts | None) -> float:
        """The mean loss on a stage's validation items, per answer token (or per preference)."""
        import torch

        self.model.eval()
        summed, count = 0.0, 0
        with torch.no_grad():
            for part in self._parts(self._mine(stage.validation, stage)):
                with self.trainable.pace.step(self.work(part), "validate"):
                    loss, n = self.loss(stage, part, prompts)
                    summed, count = summed + float(loss), count + n
        self.model.train()
        if self.trainable.accelerator.num_processes > 1:
            both = torch.tensor([summed, float(count)], device=self.trainable.device)
            summed, count = self.trainable.accelerator.reduce(both, "sum").tolist()
        return summed / count

    def _stopped(self) -> bool:
        return bool(self.settings.patience) and self.state["bad"] >= self.settings.patience

    def _finish_stage(self) -> None:
        """Go back to the best candidate, and on to the next stage."""
        if self.best:
            self._put(self.best)
        self.best = {}
        self.state |= {"stage": self.state["stage"] + 1, "step": 0, "best": None, "bad": 0}
        self.start()
        self._keep_time()
        self._save()

    def _keep_time(self) -> None:
        now = time.monotonic()
        self.state["seconds"] += now - self._clock
        self._clock = now


def _schedule(step: int, total: int, warmup: float) -> float:
    """The share of the learning rate: a linear rise, then a linear fall to a twentieth."""
    warm = max(1, int(total * warmup))
    return min((step + 1) / warm, max(0.05, 1 - (step - warm) / max(1, total - warm)))
