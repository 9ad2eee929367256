"""Two cultures in one prompt: answered in parts, or once by both adapters, by one, by none?

    python tests/bench/several.py -w WORKSPACE --data FILE [--loader table] [--part 2/2]

WORKSPACE is one that `tests/bench/real.py blend` has made, FILE a benchmark whose questions are
asked of many cultures in the same words (BLEnD). Two of them that differ in the culture alone
become one: "What do people eat at New Year in Spain and Greece?". Every method scores the same
replies, "In Spain: ... In Greece: ..." with each pair of the two questions' options (16 of four
each), by the mean log-probability of their tokens. A pair is right when both of its parts are. An
item stands in one pair at most. Free answers are right when each gold answer is in its part, or in
the one reply of those that answer once; `parts` also by the router, as `cmgr chat` would.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LONG = 40  # tokens of a free answer; one reply of both may have twice as many


class Pair(NamedTuple):
    """Two items that differ in the culture alone, and the prompt that asks both."""

    items: tuple[Any, Any]
    prompt: str


def pairs_of(recipe: Any, items: list[Any]) -> list[Pair]:
    """Pairs of items, each item at most once, whose prompt is cut into their own questions again.

    Which two of a question's cultures are paired is chosen by hash.
    """
    from cmgr.names import called, focused, pattern_of
    from cmgr.records import make_id

    alike = defaultdict(dict)
    for item in items:
        culture = recipe.culture(item.culture)
        text = item.messages[-1].content
        named = rf"(?<!\w)(?:[Tt]he )?(?:{pattern_of(culture)})(?!\w)"
        if len(re.findall(named, text)) == 1:
            alike[re.sub(named, "\0", text)].setdefault(item.culture, item)
    found = []
    for frame, by_culture in sorted(alike.items()):
        order = sorted(by_culture.values(), key=lambda i: make_id("pair", frame, i.culture))
        for one, two in zip(order[::2], order[1::2], strict=False):
            first, second = (recipe.culture(i.culture) for i in (one, two))
            prompt = frame.replace("\0", f"{called(first)} and {called(second)}")
            parts = focused(prompt, first, [second]), focused(prompt, second, [first])
            if parts == (one.messages[-1].content, two.messages[-1].content):
                found.append(Pair((one, two), prompt))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="everyday-knowledge")
    parser.add_argument("--loader", default="table")
    parser.add_argument("--part", default="2/2", help="the part that is asked")
    parser.add_argument("--limit", type=int, help="this many pairs")
    options = parser.parse_args()

    from cmgr.base import base_of
    from cmgr.evaluate.free import matches
    from cmgr.evaluate.items import of_file, task_named
    from cmgr.recipe import SHARED
    from cmgr.records import Message
    from cmgr.router import Router
    from cmgr.runtime.batch import Batch, Job
    from cmgr.runtime.choices import encode_choices
    from cmgr.runtime.llama import Model
    from cmgr.several import head
    from cmgr.stats import grouped_wilson, sign_flip
    from cmgr.workspace import Workspace

    ws = Workspace(options.workspace)
    recipe = ws.recipe
    task = task_named(recipe, options.task)
    every = [c.id for c in recipe.cultures]
    items, _ = of_file(
        recipe, task, options.data, options.loader, part=options.part, cultures=every
    )
    pairs = pairs_of(recipe, items)[: options.limit]
    print(f"{len(items)} items, {len(pairs)} pairs of {len({p.prompt for p in pairs})} prompts")

    router = Router.of(ws)
    routed = [set(router.decide(pair.prompt).cultures) for pair in pairs]
    both = [
        {i.culture for i in pair.items} == found for pair, found in zip(pairs, routed, strict=True)
    ]
    print(f"the router finds both cultures, and no other, in {np.mean(both):.3f}")

    model = Model(base_of(ws))
    for culture in every:
        model.load_adapter(culture, ws.path("adapters", culture))
    model.load_adapter(SHARED, ws.path("adapters", SHARED))
    batch = Batch(model, recipe.base.context, recipe.base.cache_mb)

    def heads(pair: Pair) -> list[str]:
        return [head(recipe.culture(item.culture)) for item in pair.items]

    def ask(jobs: list[Job]) -> list[Any]:
        return [outcome for _, outcome in sorted(batch.run(jobs), key=lambda found: found[0])]

    # a method: whether it answers in parts, and under what an item's culture (or both) is answered
    methods: dict[str, tuple[bool, Any]] = {
        "base, one reply": (False, lambda _: {}),
        "shared, one reply": (False, lambda _: {SHARED: 1.0}),
        "blend, one reply": (False, lambda ids: {one: 0.5 for one in ids}),
        "base, parts": (True, lambda _: {}),
        "shared, parts": (True, lambda _: {SHARED: 1.0}),
        "parts": (True, lambda ids: {ids[0]: 1.0}),
    }
    right: dict[str, list[bool]] = {}
    said: dict[str, list[bool]] = {}
    for name, (apart, scales) in methods.items():
        began = time.perf_counter()
        chosen, written = [], []
        for pair in pairs:
            ids = [item.culture for item in pair.items]
            if apart:
                for item in pair.items:
                    turns, under = item.messages, scales([item.culture])
                    chosen.append(Job(turns, under, item.options))
                    written.append(Job(turns, under, (), LONG))
                continue
            turns = [Message(role="user", content=pair.prompt)]
            replies = [
                f"{a}{one}\n\n{b}{two}"
                for a, b in [heads(pair)]
                for one, two in product(*(item.options for item in pair.items))
            ]
            chosen.append(Job(turns, scales(ids), replies))
            written.append(Job(turns, scales(ids), (), 2 * LONG))
        best = []
        for job, outcome in zip(chosen, ask(chosen), strict=True):
            sizes = [*map(len, encode_choices(model, job.choices))]
            best.append(int(np.argmax(np.divide(outcome.choice_logprobs, sizes))))
        texts = [outcome.response for outcome in ask(written)]
        right[name], said[name] = [], []
        for number, pair in enumerate(pairs):
            if apart:
                places, answers = best[2 * number :][:2], texts[2 * number :][:2]
            else:
                places, answers = (
                    divmod(best[number], len(pair.items[1].options)),
                    [texts[number]] * 2,
                )
            parts = list(zip(pair.items, places, answers, strict=True))
            right[name].append(all(i.options[p] == i.answer for i, p, _ in parts))
            said[name].append(all(matches(text, i.accepted) for i, _, text in parts))
        print(f"# {name}: {time.perf_counter() - began:.0f} s", flush=True)
    batch.close()
    model.close()
    # where the router misses a culture, or finds one too many, the parts are not those asked for
    right["parts, routed"] = [r and b for r, b in zip(right["parts"], both, strict=True)]
    said["parts, routed"] = [r and b for r, b in zip(said["parts"], both, strict=True)]

    groups = [pair.items[0].group for pair in pairs]
    for name, rights in right.items():
        low, high = grouped_wilson(rights, groups)
        print(
            f"{name:18} both options {np.mean(rights):.3f} [{low:.3f}, {high:.3f}], "
            f"both free answers {np.mean(said[name]):.3f}"
        )
    for name in [n for n in right if n != "parts"]:
        gaps = [int(a) - int(b) for a, b in zip(right["parts"], right[name], strict=True)]
        p = sign_flip(gaps, groups)
        print(f"parts less {name}: {np.mean(gaps):+.3f}, p {p:.4f}")


if __name__ == "__main__":
    main()
