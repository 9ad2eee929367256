"""Batch rate against llama-server of the same llama.cpp: mixed cultures, one answer token.

    python tests/bench/llama_server.py --server build/bin/llama-server -w quickstart

`--server` is a llama-server built from the sources that llama-cpp-python carries
(`vendor/llama.cpp` of its source distribution). Each round measures every contestant once, so that
a noisy machine touches all alike; the table shows the best of the rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import make_standard

from cmgr.base import Base, resolve
from cmgr.records import Message
from cmgr.runtime.batch import Batch, Job
from cmgr.runtime.llama import Model

CULTURES = ["japan", "brazil", "germany"]
PLACES = ["Osaka", "Salvador", "Hamburg", "Kyoto", "Recife", "Munich", "Nara", "Fortaleza"]
DEEDS = ["greet a host", "tip a waiter", "give a gift", "enter a home", "join a wedding"]
RULES = (
    "You are a careful assistant who knows how people live in many countries. Answer with the "
    "letter of the best option, A, B, C or D, and with nothing else."
)
MORE = " Think of what people there usually do, not of what the law says, and of today." * 8
CHOICES = ["A", "B", "C", "D"]


class Copy(Base):
    """A requantised copy of a base, for which the template lock is lifted."""

    original: Base

    @cached_property
    def fingerprint(self) -> str:
        return self.original.fingerprint


def prompts(count: int, rules: str) -> list[list[Message]]:
    options = "\nA) They bow low\nB) They kiss on the cheek\nC) They shake hands\nD) None of these"
    return [
        [
            Message(role="system", content=rules),
            Message(
                role="user",
                content=f"In {PLACES[i % 8]}, how do people {DEEDS[i // 8 % 5]} {i}?{options}",
            ),
        ]
        for i in range(count)
    ]


def q8_copy(base: Base, out: Path) -> Base:
    """A Q8_0 copy of a base, tensor by tensor."""
    import gguf
    from gguf.quants import dequantize, quantize

    reader = gguf.GGUFReader(str(base.gguf))
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = 7 if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=sub)
    q8, f32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
    for tensor in reader.tensors:
        if tensor.tensor_type == f32:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            values = dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quantize(values, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy = Copy("q8_0 copy", out)
    object.__setattr__(copy, "original", base)
    return copy


@contextmanager
def server(program: str, base: Base, adapters: list[Path], port: int) -> Any:
    words = [program, "-m", str(base.gguf), "-np", "8", "-c", "8192", "-t", "2"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--lora-init-without-apply"]
    words += ["--lora", ",".join(str(a / "adapter.gguf") for a in adapters)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok:
                    break
            except requests.RequestException:
                pass
            if process.poll() is not None:
                raise SystemExit(f"llama-server ended with {process.returncode}: {words}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/completion"
    finally:
        process.terminate()
        process.wait()


def ask_server(url: str, model: Model, items: list[tuple[list[Message], int]]) -> float:
    """Seconds for all prompts, 16 requests at a time, each naming its adapter."""
    bodies = [
        {
            "prompt": model.prompt_tokens(messages) + model.invocation,
            "n_predict": 1,
            "temperature": 0,
            "cache_prompt": True,
            "lora": [{"id": i, "scale": float(i == which)} for i in range(len(CULTURES))],
        }
        for messages, which in items
    ]
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=16))

    def ask(body: dict[str, Any]) -> None:
        session.post(url, json=body, timeout=600).raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, bodies))
    return time.perf_counter() - began


def ours(batch: Batch, jobs: list[Job]) -> float:
    began = time.perf_counter()
    failed = [o.error for _, o in batch.run(jobs) if o.error]
    assert not failed, failed
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="llama-server; without it only cmgr is measured")
    parser.add_argument("-w", "--workspace", type=Path, default=Path("quickstart"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    activated = [options.workspace / "adapters" / c for c in CULTURES]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        standard = [make_standard(a, folder / a.name) for a in activated]
        base = resolve("smollm2")
        for title, used in (("as it is", base), ("Q8_0 copy", q8_copy(base, folder / "q8.gguf"))):
            measure(title, used, options, activated, standard)


def measure(
    title: str, base: Base, options: argparse.Namespace, activated: list[Path], standard: list[Path]
) -> None:
    model = Model(base)
    for culture, one, other in zip(CULTURES, activated, standard, strict=True):
        model.load_adapter(culture, one)
        model.load_adapter(f"{culture}-all", other)
    batch = Batch(model)
    items = [(m, i % 3) for i, m in enumerate(prompts(options.prompts, RULES))]
    empty = [items[0][0][0], Message(role="user", content="")]
    shared = len(model.prompt_tokens(empty)) - 2
    each = len(model.prompt_tokens(items[5][0])) + len(model.invocation) - shared
    print(f"\n{title}: {len(items)} prompts of about {each} tokens behind {shared} shared ones")
    jobs = {
        "cmgr, activated": [Job(m, {CULTURES[c]: 1.0}, CHOICES) for m, c in items],
        "cmgr, standard": [Job(m, {f"{CULTURES[c]}-all": 1.0}, CHOICES) for m, c in items],
        "cmgr, activated, each under all three": [
            Job(m, {c: 1.0}, CHOICES) for m, _ in items for c in CULTURES
        ],
        "cmgr, activated, 200 shared tokens": [
            Job(m, {CULTURES[i % 3]: 1.0}, CHOICES)
            for i, m in enumerate(prompts(options.prompts, RULES + MORE))
        ],
    }
    best: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        rate = options.prompts / seconds
        print(f"  {name}: {rate:.2f} prompts/s", file=sys.stderr, flush=True)
        best[name] = max(best.get(name, 0.0), rate)

    by_adapter = sorted(items, key=lambda item: item[1])
    for number in range(options.rounds):
        for name, wanted in jobs.items():
            note(name, ours(batch, wanted))
        if options.server:
            port = 18080 + number
            with server(options.server, base, standard, port) as url:
                note("llama-server, standard, as they come", ask_server(url, model, items))
                note("llama-server, standard, sorted", ask_server(url, model, by_adapter))
            with server(options.server, base, activated, port + 10) as url:
                note("llama-server, activated, as they come", ask_server(url, model, items))
                note("llama-server, activated, sorted", ask_server(url, model, by_adapter))
    began = time.perf_counter()
    batch.context.clear()
    batch.context.use(())
    batch.context.decode([(100 + i % 400, i, 0, False) for i in range(512)])
    bound = 512 / (time.perf_counter() - began) / each
    batch.close()
    model.close()
    print(f"{'bound (prompt reading alone)':<44} {bound:6.2f}")
    reference = max((r for n, r in best.items() if n.startswith("llama-server")), default=None)
    for name, rate in best.items():
        ratio = f"  {rate / reference:.2f} of llama-server's best" if reference else ""
        print(f"{name:<44} {rate:6.2f} prompts/s{ratio}")


if __name__ == "__main__":
    main()
