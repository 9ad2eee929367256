"""How fast a model's answers come in, and what memory they take, beside the ideal.

    python tests/bench/synthesize.py            # 1,000 calls, 300 ms each, 32 at once at most
    python tests/bench/synthesize.py --checks   # the checks on tests/check_set*.jsonl
    python tests/bench/synthesize.py --copies   # near-duplicates among 100,000 texts with one frame

The server runs in a process of its own, and answers 429 to what comes on top of 32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

LATENCY, AT_ONCE = 0.3, 32


def _answer(_: dict[str, Any]) -> str:
    item = {"question": "How?", "answer": "So.", "passage": 1, "quote": "x " * 200}
    return json.dumps({"examples": [item] * 4})


def _serve(pipe: Any) -> None:
    from model_server import ModelServer

    with ModelServer(answer=_answer, latency=LATENCY, at_once=AT_ONCE) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send((server.answered, dict(server.met), server.most))


def calls(count: int) -> None:
    """Time and memory of so many calls."""
    from cmgr.generators import openai_compatible
    from cmgr.generators.calls import Budget, Calls
    from cmgr.generators.writing import Request
    from cmgr.recipe import Generator, Price
    from cmgr.records import Message

    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,))
    server.start()
    url = ours.recv()
    message = Message(role="user", content="Passage 1 (Japan):\nIn Japan, people bow.\n" * 40)
    requests = [
        Request(f"{n:016x}", "task", "japan", "", "t", "en", (), (message,), {}, 100)
        for n in range(count)
    ]
    generator = Generator(kind="openai_compatible", model="m", base_url=url, timeout=30)
    memory: list[int] = []

    def done(*_: Any) -> None:
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        budget = Budget(Price(input=0, output=0))
        failed = openai_compatible.write(generator, requests, Calls(Path(folder)), budget, done)
        took = time.perf_counter() - start
    ours.send(None)
    answered, met, most = ours.recv()
    server.join()
    ideal = count / AT_ONCE * LATENCY
    print(
        f"{count} calls: {answered} answered, {failed.total()} failed, {met.get('limited', 0)} "
        f"times 429, at most {most} at once; {took:.1f} s, ideal {ideal:.1f} s: {took / ideal:.2f}"
    )
    print(
        f"peak memory after {count // 5} calls {memory[count // 5] / 1024:.0f} MB, at the end "
        f"{memory[-1] / 1024:.0f} MB"
    )


def checks() -> None:
    """What the checks catch of each kind of fault, and their false alarms."""
    from test_checks import RECIPE, SETS, read_set

    from cmgr.checks import Checks

    for name in SETS:
        passages, found = read_set(name)
        checks = Checks(RECIPE, passages)
        caught, asked = Counter[str](), Counter[str]()
        for kind, checkable, example in found:
            told = checks.reason(example)
            if checkable:
                asked[kind] += 1
                caught[kind] += told is not None
        print(
            f"{name}: {caught.total() - caught['right']} of {asked.total() - asked['right']} caught"
        )
        for kind, n in asked.items():
            print(f"  {kind}: {caught[kind]} of {n} {'alarmed' if kind == 'right' else 'caught'}")


def copies(count: int) -> None:
    """Near-duplicates sought among so many texts, which share a frame and know few words, or many.

    Time is the processor's, so that others on the machine do not count.
    """
    from cmgr.overlap import NearDuplicates

    for words in (20_000, 2_000, 200, 50):
        random = Random(words)
        lexicon = ["".join(random.choices("abcdefghij", k=6)) for _ in range(words)]
        found: NearDuplicates[int] = NearDuplicates(0.65, 2)
        kept, start = 0, time.process_time()
        for number in range(count):
            text = f"In South Korea, people usually {' '.join(random.choices(lexicon, k=6))}."
            if not found.of(text):
                found.add(number, text)
                kept += 1
        took = time.process_time() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count} texts of {words} words: {kept} kept; {took:.1f} s, {memory:.0f} MB at most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--copies", type=int, nargs="?", const=100_000, metavar="TEXTS")
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    if options.checks:
        checks()
    elif options.copies:
        copies(options.copies)
    else:
        calls(options.calls)
