"""Passages before a question: which are found, what they are worth, what wrong ones cost.

    python tests/bench/evidence.py -w quickstart
    python tests/bench/evidence.py -w quickstart --uncovered questions.txt   # one a line
    python tests/bench/evidence.py -w quickstart --decision 10000

Over the held-out items of a workspace: how often the right passage is among the first k, how often
the index shows nothing, on the items and on them with their own passage taken out; free answers
with the passages that are found, with wrong ones of the same culture, with those of another culture
on the same question, and without; the first token with and without passages, in one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


def shown(index: Any, item: Any, kind: str, count: int, cultures: Any = ()) -> list[Any]:
    """The passages that an item is asked with."""
    found = index.search(item.culture, item.messages[-1].content, count + 5)
    own = set(item.evidence_ids)
    if kind == "found":
        return [f.passage for f in index.find(item.culture, item.messages[-1].content, count)]
    if kind == "wrong":
        return [f.passage for f in found if f.passage.id not in own][:count]
    right = next((p for p in index.passages(item.culture) if p.id in own), None)
    return [
        p
        for culture in cultures
        if culture != item.culture
        for p in index.passages(culture)
        if right and (p.topic, p.heading) == (right.topic, right.heading)
    ][:count]


def answers(folder: Path, count: int | None, uncovered: Path | None) -> None:
    from cmgr.base import base_of
    from cmgr.evaluate import own_items
    from cmgr.evaluate.free import is_right
    from cmgr.retrieval import Index
    from cmgr.retrieval.prompt import note_of, with_notes
    from cmgr.runtime import Runtime
    from cmgr.runtime.batch import Batch, Job
    from cmgr.runtime.llama import Model
    from cmgr.workspace import Workspace

    ws = Workspace(folder)
    count = count or ws.recipe.answer.passages
    index, items = Index(ws), own_items(ws)
    began = time.perf_counter()
    print(f"threshold {index.threshold:.3f}, {time.perf_counter() - began:.1f} s ({index.kind})")
    for split in dict.fromkeys(i.split for i in items):
        mine = [i for i in items if i.split == split]
        found = [index.search(i.culture, i.messages[-1].content, 10) for i in mine]
        ranks = [
            next((n for n, f in enumerate(some) if f.passage.id in i.evidence_ids), 99)
            for i, some in zip(mine, found, strict=True)
        ]
        first = " ".join(f"{k}: {np.mean([r < k for r in ranks]):.3f}" for k in (1, 2, 3, 5))
        kept = np.mean([some[0].score >= index.threshold for some in found])
        without = [
            max((f.score for f in some if f.passage.id not in i.evidence_ids), default=0.0)
            for i, some in zip(mine, found, strict=True)
        ]
        abstains = np.mean(np.array(without) < index.threshold)
        print(f"{split} (n {len(mine)}): right one among the first {first};")
        print(f"  something is shown for {kept:.3f};")
        print(f"  with the right one taken out nothing is shown for {abstains:.3f}")
    if uncovered:
        asked = [line for line in uncovered.read_text(encoding="utf-8").split("\n") if line.strip()]
        none = [not index.find(c.id, text, 1) for text in asked for c in ws.recipe.cultures]
        print(f"{uncovered}: nothing is shown for {np.mean(none):.3f} of {len(asked)} prompts")

    names = {c.id: c.name for c in ws.recipe.cultures}
    model = Model(base_of(ws))
    for culture in names:
        model.load_adapter(culture, ws.path("adapters", culture))
    batch = Batch(model, ws.recipe.base.context, ws.recipe.base.cache_mb)
    for split in dict.fromkeys(i.split for i in items):
        mine = [i for i in items if i.split == split]
        row = []
        for kind in ("none", "found", "wrong", "another culture's"):
            jobs = []
            for item in mine:
                passages = [] if kind == "none" else shown(index, item, kind, count, names)
                whose = names[passages[0].culture] if passages else ""
                notes = [(whose, [note_of(p, whose) for p in passages])]
                jobs.append(Job(with_notes(item.messages, notes), {item.culture: 1.0}, (), 40))
            said = {number: outcome.response for number, outcome in batch.run(jobs)}
            rights = [
                is_right(said[n], item.accepted, [o for o in item.options if o != item.answer])
                for n, item in enumerate(mine)
            ]
            row.append(f"{kind} {np.mean(rights):.3f}")
        print(f"{split} (n {len(mine)}), free answers right by the right adapter: {', '.join(row)}")
    batch.close()
    model.close()

    runtime = Runtime(base_of(ws), ws.recipe.base.context)
    item = items[0]
    runtime.load_adapter(item.culture, ws.path("adapters", item.culture))
    three = [note_of(p) for p in shown(index, item, "wrong", 3)]
    with_three = with_notes(item.messages, [(names[item.culture], three)])
    took: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(5):
        for name, messages in (("without", item.messages), ("with", with_three)):
            runtime.forget()
            began = time.perf_counter()
            runtime.next_logits(messages, {item.culture: 1.0})
            took[name].append(time.perf_counter() - began)
        tokens = [len(runtime.prompt_tokens(m)) for m in (item.messages, with_three)]
    for name, seconds in took.items():
        print(f"first token, {name}: {1000 * median(seconds):.0f} ms")
    print(f"prompt tokens without and with: {tokens[0]}, {tokens[1]}")
    runtime.close()
    index.close()


def decision(folder: Path, size: int) -> None:
    """How long the index of a workspace takes with so many passages a culture, and its encoder."""
    from cmgr.evaluate import own_items
    from cmgr.retrieval import Index
    from cmgr.workspace import Workspace

    ws = Workspace(folder)
    index, items = Index(ws), own_items(ws)
    culture = items[0].culture
    index.find(culture, "What is opened first?", 2)  # all is loaded
    real = index.passages(culture)
    chance = np.random.default_rng(1)
    rows = chance.normal(size=(size, index._cultures[culture].shape[1])).astype(np.float32)
    index._cultures[culture] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    index._passages[culture] = [real[n % len(real)] for n in range(size)]
    took: dict[str, list[float]] = {"all": [], "encoder": []}
    encode = index._encode

    def timed(texts: Any) -> Any:
        began = time.perf_counter()
        found = encode(texts)
        took["encoder"].append(time.perf_counter() - began)
        return found

    index._encode = timed  # type: ignore[method-assign]
    for prompt in dict.fromkeys(item.messages[-1].content for item in items):
        began = time.perf_counter()
        index.find(culture, prompt, ws.recipe.answer.passages)
        took["all"].append(time.perf_counter() - began)
    index.close()
    every, encoder = (1000 * median(took[name]) for name in ("all", "encoder"))
    print(
        f"{size} passages, {len(took['all'])} prompts ({index.kind}): {every:.2f} ms, "
        f"{encoder:.2f} of them the encoder's"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-w", "--workspace", type=Path, default=Path("quickstart"))
    parser.add_argument("--passages", type=int, help="how many are shown [the recipe's]")
    parser.add_argument("--uncovered", type=Path, help="prompts that no document answers")
    parser.add_argument("--decision", type=int, metavar="PASSAGES")
    options = parser.parse_args()
    if options.decision:
        decision(options.workspace, options.decision)
        return
    answers(options.workspace, options.passages, options.uncovered)


if __name__ == "__main__":
    main()
