"""What a switch of culture costs in a long thread, and what `cmgr chat -p` costs from cold.

    python tests/bench/chat.py -w quickstart

A switch: the first token of a turn in a thread of about 1,000 tokens, after another culture has
answered, over the same without a switch; for activated adapters, and for the same weights as
standard ones. From cold: the whole process, in turns with ten lines of `llama_cpp` that load the
same base and adapter and write as many tokens.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import make_standard

from cmgr.base import resolve
from cmgr.bench import first_tokens
from cmgr.runtime import Runtime

CULTURES = ["japan", "brazil", "germany"]
PROMPT = "Should I leave a tip at a restaurant in Osaka?"
SCRIPT = """
import ctypes, sys, llama_cpp
model, adapter, prompt, count = sys.argv[1:]
llm = llama_cpp.Llama(model, n_ctx=2048, n_threads=2, n_threads_batch=2, verbose=False)
lora = llama_cpp.llama_adapter_lora_init(llm.model, adapter.encode())
one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
llama_cpp.llama_set_adapters_lora(llm.ctx, one, 1, (ctypes.c_float * 1)(1.0))
said = llm.create_chat_completion(
    [{"role": "user", "content": prompt}], max_tokens=int(count), temperature=0)
print(said["choices"][0]["message"]["content"])
"""


def switches(workspace: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("activated", "standard"):
            runtime = Runtime(resolve("smollm2"), 2048)
            for culture in CULTURES:
                folder = workspace / "adapters" / culture
                if kind == "standard":
                    folder = make_standard(folder, Path(scratch) / culture)
                runtime.load_adapter(culture, folder)
            found = first_tokens(runtime, CULTURES)
            runtime.close()
            print(f"{kind}: {found}", flush=True)


def cold(workspace: Path, rounds: int, count: int) -> None:
    adapter = workspace / "adapters" / "japan" / "adapter.gguf"
    words = ["chat", "-p", PROMPT, "--no-log", "--max-tokens", str(count), "-w", str(workspace)]
    front = [sys.executable, "-c", "from cmgr.cli.app import main; main()"]
    contestants = {
        "cmgr chat -p, routed": [*front, *words],
        "cmgr chat -p --culture japan": [*front, *words, "--culture", "japan"],
        "ten lines of llama_cpp": [
            *(sys.executable, "-c", SCRIPT),
            *(str(resolve("smollm2").gguf), str(adapter), PROMPT, str(count)),
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, command in contestants.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:  # the first round warms the disk's cache
                times[name].append(time.perf_counter() - began)
    reference = times["ten lines of llama_cpp"]
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, reference, strict=True))
        print(f"{name:<30} {statistics.median(seconds):.2f} s, {ratio:.2f} of the ten lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-w", "--workspace", type=Path, default=Path("quickstart"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1)
    options = parser.parse_args()
    switches(options.workspace)
    cold(options.workspace, options.rounds, options.tokens)


if __name__ == "__main__":
    main()
