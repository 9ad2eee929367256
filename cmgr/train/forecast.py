"""What training will see and take, before it is done: `--inspect` and `--dry-run`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from cmgr import train
from cmgr.train.loop import Loop, order_of
from cmgr.train.model import Trainable
from cmgr.train.prompts import Prompts
from cmgr.workspace import Workspace


def inspect(ws: Workspace, cultures: list[str]) -> list[dict[str, Any]]:
    """The first example of each stage and culture as trained: (text of a token, learnt?)."""
    plan, base = train.planned(ws, True, cultures)
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
                }
            )
    return found


def dry_run(
    ws: Workspace, force: bool, cultures: list[str], variant: str | None = None
) -> dict[str, Any]:
    """Tokens, steps, seconds and memory of what is to be trained; nothing is written.

    The time comes from two steps of the first culture's longest stage, and from reading its
    prompts' first batch.
    """
    plan, base = train.planned(ws, force, cultures, variant)
    if not plan:
        return {"cultures": [], "memory_mb": 0.0}
    import psutil

    recipe = ws.recipe
    trainable = Trainable(base, recipe, ws.folder, ws.say)
    model = trainable.make_adapter(recipe.adapter)
    found: list[dict[str, Any]] = []
    speed = 0.0  # tokens a second, prompts and answers
    with tempfile.TemporaryDirectory() as scratch:
        for wanted in plan:
            stages = train.stages_of(wanted.recipe, wanted.examples, trainable, wanted.back)
            size = recipe.train.batch_size
            kept = 0.0
            for stage in stages:
                if recipe.adapter.kind == "activated":
                    prompts = Prompts(trainable, model, stage.items, "again", 0, Path(scratch))
                    kept = max(kept, prompts.tokens * prompts.cell_bytes / 2**20)
            if not speed:
                stage = max(stages, key=lambda s: len(s.items))
                loop = Loop(trainable, model, recipe.adapter.kind, recipe.train, Path(scratch))
                batches = order_of(stage.items, size, "probe", whole=True)[:2]
                speed = _probe(loop, stage, batches)
            tokens = sum(s.epochs * sum(map(len, s.items)) for s in stages)
            found.append(
                {
                    "culture": wanted.name,
                    "examples": sum(len(s.items) for s in stages),
                    "tokens": tokens,
                    "steps": sum(s.epochs * s.per_epoch(size) for s in stages),
                    "seconds": round(tokens / speed, 1),
                    "prompts_mb": round(kept, 1),
                }
            )
    memory = psutil.Process().memory_info().rss / 2**20
    if trainable.device.type == "cuda":
        import torch

        memory = torch.cuda.max_memory_allocated() / 2**20
    model.unload()
    return {"cultures": found, "memory_mb": round(memory + max(c["prompts_mb"] for c in found), 1)}


def _probe(loop: Loop, stage: Any, batches: list[Any]) -> float:
    """Tokens a second of a few steps, the first one not counted."""
    prompts = None
    if loop.activated:
        items = [item for batch in batches for item in batch]
        prompts = Prompts(loop.trainable, loop.model, items, "memory", 0, loop.folder)
        prompts.read()
    tokens, seconds = 0, 0.0
    for number, batch in enumerate([batches[0], *batches]):
        began = time.perf_counter()
        loop.step(stage, batch, prompts, 100)
        if number:
            seconds += time.perf_counter() - began
            tokens += sum(map(len, batch))
    if prompts is not None:
        prompts.close()
    return tokens / seconds
