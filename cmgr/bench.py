"""How fast this machine is over a workspace's base and adapters, and what would make it faster."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cmgr.base import base_of, threads
from cmgr.errors import MissingError
from cmgr.merge import combine
from cmgr.records import Message
from cmgr.runtime import Runtime
from cmgr.runtime.batch import Batch, Job
from cmgr.runtime.llama import Context, Model, Reader
from cmgr.workspace import Progress, Workspace

PROMPT, ANSWER = 256, 32  # tokens read, tokens written, for the rates
TURN = "In which year was the house built, and by whom?"
MERGED = "one+other"  # two adapters made one; no culture can have this id
STORY = "The house stood at the end of a long road between two fields of barley. "
# GGUF file types (general.file_type) without a fast kernel for reading prompts on x86-64 CPUs
SLOW_TYPES = {3: "Q4_1", 8: "Q5_0", 9: "Q5_1"}


def machine(base: Path, model: Model) -> dict[str, Any]:
    """What the figures depend on: processor, memory, software, base file."""
    import llama_cpp

    about: dict[str, Any] = {"processor": _processor(), "threads": threads()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        about["memory_gb"] = round(pages * size / 2**30, 1)
    about["system"] = f"{platform.system()} {platform.machine()}"
    about["python"] = platform.python_version()
    about["llama_cpp_python"] = llama_cpp.__version__
    about["gpu_offload"] = bool(llama_cpp.llama_supports_gpu_offload())
    about["base"] = base.name
    about["base_mb"] = round(base.stat().st_size / 2**20)
    kind = model.metadata("general.file_type")
    about["file_type"] = int(kind) if kind and kind.isdigit() else None
    return about


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def advice(facts: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    """What would make this machine faster, from its facts and figures."""
    said = []
    slow = SLOW_TYPES.get(facts["file_type"])
    if slow and not facts["gpu_offload"]:
        said.append(
            f"The base is {slow}, for which CPUs have no fast kernel: a Q8_0 copy reads prompts "
            "about twice as fast."
        )
    total = os.cpu_count() or 1
    if facts["threads"] < total:
        said.append(f"cmgr may use {facts['threads']} of {total} processors (taskset, container).")
    if not facts["gpu_offload"]:
        said.append(
            "llama-cpp-python is built for the CPU; with a GPU, build it for CUDA or Metal."
        )
    one, base = figures["rates"]["one adapter"], figures["rates"]["base"]
    loss = 1 - one["decode"] / base["decode"]
    if loss > 0.15:
        said.append(
            f"An adapter costs {loss:.0%} of the writing speed: a lower rank, or fewer target "
            "modules, costs less; baked into the base it costs nothing."
        )
    return said


def measure(ws: Workspace, prompts: int = 48, progress: Progress | None = None) -> dict[str, Any]:
    """All figures: milliseconds, tokens per second, prompts per second.

    Raises MissingError where the workspace has no adapter.
    """
    base = base_of(ws)
    cultures = [
        c.id for c in ws.recipe.cultures if ws.path("adapters", c.id, "adapter.gguf").is_file()
    ]
    if not cultures:
        raise MissingError("no adapter to measure. Make them: cmgr train")
    parts = 4
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress("bench", done, parts)

    runtime = Runtime(base, ws.recipe.base.context, ws.recipe.base.cache_mb)
    try:
        loads = []
        for culture in cultures:
            loads.append(_ms(partial(_load, runtime, ws, culture)))
        figures: dict[str, Any] = {
            "adapters": {c: runtime.model.kind(c) for c in cultures},
            "adapter_load_ms": round(statistics.median(loads), 1),
        }
        tick()
        sets: dict[str, dict[str, float]] = {"base": {}, "one adapter": {cultures[0]: 1.0}}
        if len(cultures) > 1:
            sets["blend of two"] = {cultures[0]: 0.6, cultures[1]: 0.4}
            with tempfile.TemporaryDirectory() as scratch:
                blend = sets["blend of two"]
                merged = Path(scratch) / MERGED
                combine(
                    [ws.path("adapters", c) for c in blend], merged, base, "cat", [*blend.values()]
                )
                runtime.load_adapter(MERGED, merged)
            sets["two merged into one"] = {MERGED: 1.0}
        figures["switch_ms"] = round(_switch(runtime, sets["one adapter"]), 3)
        figures["rates"] = {name: rates(runtime, s) for name, s in sets.items()}
        tick()
        figures["first_token"] = first_tokens(runtime, cultures)
        tick()
        figures["batch"] = _batch(runtime, cultures, prompts)
        tick()
        facts = machine(base.gguf, runtime.model)
    finally:
        runtime.close()
    return {"machine": facts, **figures, "advice": advice(facts, figures)}


def _load(runtime: Runtime, ws: Workspace, culture: str) -> None:
    runtime.load_adapter(culture, ws.path("adapters", culture))


def _ms(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def _switch(runtime: Runtime, scales: dict[str, float]) -> float:
    """Milliseconds of one switch of adapters, without what is computed after it."""
    context = Context(runtime.model, 256, 2)
    try:
        wanted = runtime.model.scales(scales)
        times = [_ms(partial(context.use, s)) for _ in range(20) for s in (wanted, ())]
    finally:
        context.close()
    return statistics.median(times)


def rates(runtime: Runtime, scales: dict[str, float]) -> dict[str, float]:
    """Tokens per second of reading a prompt and of writing an answer, the better of two."""
    model = runtime.model
    wanted = model.scales(scales)
    tokens = (model.tokenize(STORY * 40, control=False))[:PROMPT]
    reader = Reader(model, PROMPT + ANSWER + 64, model.read_by(wanted), 2)
    reads, writes = [], []

    def write() -> None:
        for i in range(ANSWER):
            reader.context.decode([(tokens[i], PROMPT + i, 0, True)])

    try:
        for _ in range(2):
            reader.forget()
            reads.append(_ms(lambda: reader.read(tokens)))
            reader.context.use(wanted)
            writes.append(_ms(write))
    finally:
        reader.context.close()
    return {
        "prompt": round(1000 * PROMPT / min(reads), 1),
        "decode": round(1000 * ANSWER / min(writes), 1),
    }


def first_tokens(runtime: Runtime, cultures: list[str]) -> dict[str, Any]:
    """Milliseconds to the first token of a turn in a long thread: read cold, kept, switched."""
    room = min(1000, runtime.context - 256)
    sentences = 1
    while len(runtime.prompt_tokens(_thread(sentences))) < room - 24:
        sentences += 1
    long = _thread(sentences)
    first, other = cultures[0], cultures[-1]

    def turn(culture: str, number: int) -> float:
        asked = [*long, Message(role="user", content=f"{number}: {TURN}")]
        return _ms(lambda: runtime.next_logits(asked, {culture: 1.0}))

    runtime.forget()
    cold = turn(first, 0)
    turn(other, 0)  # a standard culture has now been visited
    times: dict[str, list[float]] = {"kept": [], "switched": []}
    for number in range(1, 40, 4):  # every turn has new tokens to read
        turn(first, number)
        times["kept"].append(turn(first, number + 1))
        turn(other, number + 2)
        times["switched"].append(turn(first, number + 3))
    kept, switched = (statistics.median(times[k]) for k in ("kept", "switched"))
    return {
        "thread_tokens": len(runtime.prompt_tokens(long)),
        "cold_ms": round(cold, 1),
        "kept_ms": round(kept, 1),
        "switched_ms": round(switched, 1),
        "switch_ratio": round(switched / kept, 2),
    }


def _thread(sentences: int) -> list[Message]:
    return [
        Message(role="user", content=STORY * sentences),
        Message(role="assistant", content="It did."),
    ]


def _batch(runtime: Runtime, cultures: list[str], count: int) -> dict[str, float]:
    """Prompts per second: mixed cultures, a shared system message, one of four options."""
    system = Message(role="system", content="Answer with the letter of the best option. " * 4)
    asked = "How is number {} of the guests greeted at the door?\nA) They bow\nB) They kiss\nC) No"
    jobs = [
        Job(
            [system, Message(role="user", content=asked.format(i))],
            {cultures[i % len(cultures)]: 1.0},
            ["A", "B", "C"],
        )
        for i in range(count)
    ]
    batch = Batch(runtime.model, runtime.context)
    try:
        for _ in batch.run(jobs[: len(cultures)]):
            pass
        seconds = _ms(lambda: list(batch.run(jobs))) / 1000
    finally:
        batch.close()
    return {"prompts": count, "prompts_per_s": round(count / seconds, 2)}
