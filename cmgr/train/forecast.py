"""What training will see and take, before it is done: `--inspect` and `--dry-run`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cmgr import train
from cmgr.recipe import PREFER, SHARED
from cmgr.train.loop import Loop, Stage, order_of
from cmgr.train.model import Item, Trainable
from cmgr.train.prompts import Prompts
from cmgr.workspace import Workspace


def inspect(ws: Workspace, cultures: list[str]) -> list[dict[str, Any]]:
    """The first example of each stage and culture as trained.

    Its tokens as (text, learnt?), and the wrong answers that the right one is preferred to.
    """
    plan, base = train.planned(ws, True, cultures)
    plan = train.with_notes(ws, [wanted for wanted in plan if wanted.culture.id in cultures])
    trainable = Trainable(base, ws.recipe, ws.folder, ws.say)
    found = []
    for wanted in plan:
        for stage in train.stages_of(ws.recipe, wanted.examples, trainable, wanted.back):
            item = stage.items[0]
            found.append(
                {
                    "culture": wanted.culture.id,
                    "stage": stage.name,
                    "id": item.id,
                    "tokens": trainable.pieces(item),
                    "rivals": [_answer(trainable, rival) for rival in item.answers()[1:]],
                }
            )
    return found


def _answer(trainable: Trainable, item: Item) -> str:
    return "".join(text for text, learnt in trainable.pieces(item) if learnt)


def dry_run(
    ws: Workspace, force: bool, cultures: list[str], variant: str | None = None
) -> dict[str, Any]:
    """Tokens, steps, seconds and memory of what is to be trained; nothing is written.

    The shared adapter that others begin with is among it, first. The time is that of all epochs:
    reading the prompts, training, and the loss on what is held back, each at the speed of a few
    batches of the longest stage; export and its check come on top.
    """
    plan, base = train.planned(ws, force, cultures, variant)
    if not plan:
        return {"cultures": [], "memory_mb": 0.0}
    plan = train.with_notes(ws, plan)
    import psutil

    recipe = ws.recipe
    trainable = Trainable(base, recipe, ws.folder, ws.say)
    model = trainable.make_adapter(recipe.adapter)
    found: list[dict[str, Any]] = []
    size = recipe.train.batch_size
    speed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(trainable, model, recipe.adapter.kind, recipe.train, Path(scratch))
        for wanted in plan:
            stages = train.stages_of(
                wanted.recipe, wanted.examples, trainable, wanted.back, wanted.also
            )
            if not stages:
                continue
            if not speed:
                stage = max(stages, key=lambda s: len(s.items))
                batches = order_of(stage.items, size, "probe", whole=not loop.activated)[:2]
                with train.short_of_memory(recipe.train, len(stage.items)):
                    speed = _probe(loop, stage, batches)
            seconds = dict.fromkeys(speed, 0.0)
            kept = 0.0
            for number, stage in enumerate(stages):
                compared = stage.epochs + 1 + bool(number) if stage.validation else 0
                if loop.activated:
                    prompts = loop.prompts(stage)
                    seconds["read"] += _read(prompts, stage, compared) / speed["read"]
                    if prompts.where == "memory":
                        kept = max(kept, prompts.tokens * prompts.cell_bytes / 2**20)
                        if wanted.culture.id == SHARED:  # those of its cultures take them over
                            trainable.store |= {key: [] for key in prompts.keys}
                seconds["train"] += stage.epochs * loop.work(stage.items) / speed["train"]
                seconds["compare"] += compared * loop.work(stage.validation) / speed["compare"]
            found.append(
                {
                    "culture": wanted.name,
                    "examples": sum(train.counted(s.items) for s in stages if s.name != PREFER),
                    "tokens": sum(s.epochs * sum(map(len, s.items)) for s in stages),
                    "steps": sum(s.epochs * s.per_epoch(size) for s in stages),
                    "seconds": round(sum(seconds.values()), 1),
                    "read_seconds": round(seconds["read"], 1),
                    "prompts_mb": round(kept, 1),
                }
            )
    memory = psutil.Process().memory_info().rss / 2**20
    if trainable.device.type == "cuda":
        import torch

        memory = torch.cuda.max_memory_allocated() / 2**20
    model.unload()
    most = max((c["prompts_mb"] for c in found), default=0.0)
    return {"cultures": found, "memory_mb": round(memory + most, 1)}


def _read(prompts: Prompts, stage: Stage, compared: int) -> int:
    """The prompts' tokens that a stage reads: once, or each time where they are not kept."""
    if prompts.where != "again":
        return prompts.unread
    items = sum(len(i.prompt) for i in stage.items)
    return stage.epochs * items + compared * sum(len(i.prompt) for i in stage.validation)


def _probe(loop: Loop, stage: Stage, batches: list[list[Item]]) -> dict[str, float]:
    """Tokens a second of reading prompts, of training, and of comparing, by two batches."""
    items = [item for batch in batches for item in batch]
    speed = {"read": 1.0}
    prompts = None
    if loop.activated:
        make = partial(Prompts, loop.trainable, loop.model)
        make(items[:1], "memory", 0, loop.folder).read()  # the first time is slower
        prompts = make(items, "memory", 0, loop.folder)
        speed["read"] = prompts.tokens / _seconds(prompts.read)
    for batch in (batches[0][:4],) * 6:  # until the number of threads is found
        loop.step(stage, batch, prompts, 100)
    work = sum(loop.work(batch) for batch in batches)
    speed["train"] = work / sum(
        _seconds(partial(loop.step, stage, batch, prompts, 100)) for batch in batches
    )
    held_back = Stage(stage.name, [], items, 1)
    speed["compare"] = work / _seconds(lambda: loop.validate(held_back, prompts))
    if prompts is not None:
        prompts.close()
    return speed


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began
