"""How fast an evaluation is: 1,000 four-option items by six methods.

    python tests/bench/evaluate.py -w DIR [--items 1000] [--rounds 3]

DIR is a workspace with adapters, router, `shared` (cmgr train --variant shared) and `merged` (cmgr
merge ... --name merged). Beside it the batch runtime itself on the same jobs, and base and prompt
alone. Figures are of the round with the median ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from cmgr import evaluate
from cmgr.base import resolve
from cmgr.evaluate.items import Item
from cmgr.evaluate.methods import Methods
from cmgr.records import Message, make_id
from cmgr.router import Router
from cmgr.runtime.batch import Batch, Job
from cmgr.runtime.llama import Model
from cmgr.workspace import Workspace

SIX = ["base", "prompt", "shared", "merged", "routed", "oracle"]
TOPICS = ["lunch", "weddings", "school", "trains", "gifts", "queues", "music", "neighbours"]
THINGS = [
    "rice",
    "a letter",
    "two hours",
    "flowers",
    "the oldest son",
    "cold tea",
    "a song",
    "cash",
]


def items_of(ws: Workspace, count: int) -> list[Item]:
    """Questions on everyday life, each with four options of two to four tokens."""
    found = []
    for n in range(count):
        culture = ws.recipe.cultures[n % len(ws.recipe.cultures)]
        spread = int(make_id("bench", n), 16)
        options = [f"{THINGS[(spread >> 4 * i) % 8]} {i + 1}" for i in range(4)]
        topic = TOPICS[spread % 8]
        found.append(
            Item(
                id=str(n),
                culture=culture.id,
                task=ws.recipe.tasks[0].id,
                split="test",
                group=str(n),
                messages=[
                    Message(
                        role="user",
                        content=f"Answer in a few words.\n\nIn {culture.name}, what would people "
                        f"expect of a guest who asks about {topic} for the {n}th time?",
                    )
                ],
                answer=options[0],
                options=options,
            )
        )
    return found


def batch_alone(ws: Workspace, items: list[Item]) -> float:
    """Seconds that the batch runtime takes for the six methods' jobs, handed over at once."""
    base = resolve(ws.recipe.base.model, ws.folder)
    able = Methods(ws, base, SIX, items, [])
    assert not able.lacking, able.lacking
    router = Router.of(ws)
    jobs = {}
    for item in items:
        to = router.decide(item.messages[-1].content).culture
        for ask in able.asks(item, to).values():
            messages = [Message.model_validate({"role": r, "content": t}) for r, t in ask.turns]
            jobs[ask] = Job(messages, dict(ask.scales), item.options)
    model = Model(base)
    for name in able.adapters:
        model.load_adapter(name, ws.path("adapters", name))
    batch = Batch(model, ws.recipe.base.context, ws.recipe.base.cache_mb)
    began = time.perf_counter()
    for _ in batch.run(list(jobs.values())):
        pass
    took = time.perf_counter() - began
    batch.close()
    model.close()
    return took


def whole(ws: Workspace, items: list[Item], methods: list[str]) -> float:
    """Seconds of an evaluation from nothing to its table."""
    ws.path("eval", "scores.jsonl").unlink(missing_ok=True)
    began = time.perf_counter()
    evaluate.run(ws, "bench", items, methods)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ws = Workspace(options.workspace)
    items = items_of(ws, options.items)
    rounds = []
    for number in range(options.rounds):
        alone, six = batch_alone(ws, items), whole(ws, items, SIX)
        two = whole(ws, items, SIX[:2])
        rounds.append((alone / six, six / two, alone, six, two))
        print(
            f"round {number + 1}: batch {alone:.1f} s, six {six:.1f} s, two {two:.1f} s", flush=True
        )
    rate = statistics.median(r[0] for r in rounds)
    more = statistics.median(r[1] for r in rounds)
    print(f"{len(items)} items x 6 methods: {rate:.2f} of the batch runtime's own rate")
    print(f"against base and prompt alone: {more:.2f} times their time")


if __name__ == "__main__":
    main()
