"""Training speed and memory beside TRL's SFTTrainer: same base, data, LoRA, batch, epochs.

    pip install trl && python tests/bench/train.py -w quickstart
    python tests/bench/train.py -w quickstart --random 2048x24 --device cuda
    python tests/bench/train.py -w quickstart --random 4096x32 --device cuda --quantize 4bit
    python tests/bench/train.py -w quickstart --busy 2 --rounds 3

Each contestant is a process of its own, so that its peak memory is its own. Tokens are those of
the data, prompt and answer, per second and epoch. The accuracy is that of the held-out wordings,
scored by llama.cpp with each contestant's exported adapter. `--random` trains a Llama of that
hidden size and number of layers with random weights, for speed and memory alone. `--busy N` trains
the activated adapter alone and beside N processes that compute without end, with cmgr's choice of
threads (cmgr/threads.py) and without it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CONTESTANTS = ("trl", "standard", "activated")


def random_base(shape: str, folder: Path) -> Path:
    """A Llama of a real configuration with random weights, and SmolLM2's tokenizer."""
    import torch
    import transformers

    from cmgr.base import resolve

    hidden, layers = (int(n) for n in shape.split("x"))
    gguf = resolve("smollm2").gguf
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 256 * 256,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peak(device: str, size: int = 8192) -> float:
    """Matrix multiplication at its best here, in TFLOP/s (bf16 on CUDA, f32 elsewhere)."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = size if device == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        b = a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e12)
        del b
    return best


def one(options: argparse.Namespace) -> dict[str, Any]:
    """One contestant's figures, in this process."""
    import torch

    from cmgr.base import resolve
    from cmgr.synthesize import current_examples
    from cmgr.threads import Pace
    from cmgr.train.model import Trainable
    from cmgr.train.variants import fit_examples
    from cmgr.workspace import Workspace

    ws = Workspace(options.workspace)
    recipe = ws.recipe
    recipe.train.stages, recipe.train.task_epochs = ["task"], options.epochs
    recipe.train.validation, recipe.train.patience = 0, 0
    recipe.train.batch_size = options.batch
    recipe.train.device, recipe.train.quantize = options.device, options.quantize
    recipe.base.train_from = options.weights
    examples = [
        e for e in fit_examples(recipe, current_examples(ws), options.culture) if e.stage == "task"
    ]
    trainable = Trainable(resolve(recipe.base.model), recipe, ws.folder, lambda _: None)
    if options.plain:
        trainable.pace = Pace(1, torch.set_num_threads)
    items = [trainable.item(e) for e in examples]
    tokens = options.epochs * sum(map(len, items))
    out = Path(tempfile.mkdtemp())
    torch.manual_seed(1)
    seconds = (with_trl if options.one == "trl" else with_cmgr)(
        options, trainable, recipe, examples, out
    )
    memory = (
        torch.cuda.max_memory_allocated()
        if trainable.device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    parameters = sum(p.numel() for p in trainable.model.parameters())
    found = {
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "peak_gib": memory / 2**30,
        # a forward and a backward pass through frozen weights, two operations a weight each
        "tflops": 4 * parameters * tokens / seconds / 1e12,
    }
    if options.weights is None and not options.speed:
        found["accuracy"] = accuracy(ws, trainable, out, options.culture)
    return found


def with_cmgr(
    options: argparse.Namespace, trainable: Any, recipe: Any, examples: list[Any], out: Path
) -> float:
    from cmgr import train
    from cmgr.train.loop import Loop

    model = trainable.make_adapter(recipe.adapter)
    stages = train.stages_of(recipe, examples, trainable)
    began = time.perf_counter()
    Loop(trainable, model, options.one, recipe.train, out).run(stages)
    seconds = time.perf_counter() - began
    train.save_peft(model, out, trainable, options.one)
    model.unload()
    return seconds


def with_trl(
    options: argparse.Namespace, trainable: Any, recipe: Any, examples: list[Any], out: Path
) -> float:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    torch.set_float32_matmul_precision("highest")  # what TRL leaves it at
    rows = [
        {
            "prompt": [m.model_dump() for m in e.messages],
            "completion": [{"role": "assistant", "content": e.answer}],
        }
        for e in examples
    ]
    settings = SFTConfig(
        output_dir=str(out / "trl"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        learning_rate=recipe.train.learning_rate,
        warmup_steps=recipe.train.warmup,
        lr_scheduler_type="linear",
        gradient_checkpointing=False,  # slower with it, and memory is not short here
        bf16=trainable.device.type == "cuda",
        use_cpu=trainable.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=1,
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.adapter.rank,
        lora_alpha=recipe.adapter.alpha,
        target_modules="all-linear",
    )
    if not options.weights:
        # the GGUF has been dequantised; transformers' Trainer takes its mark for a refusal
        trainable.model.is_quantized, trainable.model.hf_quantizer = False, None
    trainer = SFTTrainer(
        model=trainable.model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=trainable.tokenizer,
        peft_config=lora,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.save_pretrained(out, save_embedding_layers=False)
    return seconds


def accuracy(ws: Any, trainable: Any, folder: Path, culture: str) -> float:
    """The share of held-out wordings whose right option is the likeliest, by llama.cpp."""
    from cmgr import gguf_lora
    from cmgr.chat_template import template_hash
    from cmgr.runtime import Runtime
    from cmgr.synthesize import current_examples
    from cmgr.workspace import write_json

    gguf_lora.export(folder, folder / "adapter.gguf", trainable.model.config.to_dict())
    lock = {
        "base_fingerprint": trainable.base.fingerprint,
        "template_hash": template_hash(trainable.template, trainable.base.thinking),
    }
    write_json(folder / "manifest.json", lock)
    items = [
        e
        for e in current_examples(ws)
        if e.culture == culture and e.split == "wording" and e.inputs.get("options")
    ][:60]
    runtime = Runtime(trainable.base)
    runtime.load_adapter("a", folder)
    right = 0
    for item in items:
        choices = item.inputs["options"]
        scores = runtime.score(item.messages, choices, {"a": 1.0})
        right += choices[scores.index(max(scores))] == item.answer
    runtime.close()
    return right / len(items)


def beside_others(options: argparse.Namespace, words: list[str]) -> None:
    """Rates alone and beside busy processes, with and without the choice of threads, by turns."""
    rates: dict[tuple[bool, int], list[float]] = {}
    for _ in range(options.rounds):
        for plain in (False, True):
            # libgomp's own count of spins, where a run has to be without cmgr's
            spins = {"GOMP_SPINCOUNT": "300000"} if plain else {}
            for count in (0, options.busy):
                others = [
                    subprocess.Popen([sys.executable, "-c", "while True: pass"])
                    for _ in range(count)
                ]
                try:
                    done = subprocess.run(
                        [sys.executable, __file__, *words, "--one", "activated", "--speed"]
                        + (["--plain"] if plain else []),
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                        env={**os.environ, **spins},
                    )
                finally:
                    for other in others:
                        other.kill()
                        other.wait()
                rate = json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]
                rates.setdefault((plain, count), []).append(rate)
                how = "without" if plain else "with"
                print(f"{how} the choice of threads, beside {count} busy: {rate:.0f}", flush=True)
    found = {key: median(values) for key, values in rates.items()}
    quiet = found[True, 0]
    for (plain, count), rate in sorted(found.items()):
        print(
            f"{'without' if plain else 'with'} the choice of threads, beside {count} busy: "
            f"{rate:.0f} tokens/s, {rate / quiet:.2f} of the quiet rate without"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-w", "--workspace", type=Path, default=Path("quickstart"))
    parser.add_argument("--culture", default="japan")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--random", help="HIDDENxLAYERS: random weights of that shape")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS))
    parser.add_argument("--busy", type=int, metavar="N", help="beside N busy processes")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--speed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        words = [*sys.argv[1:]]
        if options.random:
            words += ["--weights", str(random_base(options.random, Path(scratch)))]
        if options.busy:
            beside_others(options, words)
            return
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for name in options.only:
                command = [sys.executable, __file__, *words, "--one", name]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                if (
                    found["tokens_per_s"] > best.get(name, found)["tokens_per_s"]
                    or name not in best
                ):
                    best[name] = found
        import torch

        kind = options.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        top = peak(kind)
        print(f"on {kind}, matrix peak {top:.2f} TFLOP/s, {options.epochs} epochs")
        reference = best.get("trl", {}).get("tokens_per_s")
        for name, found in best.items():
            ratio = f"{found['tokens_per_s'] / reference:5.2f} of TRL" if reference else ""
            right = f"held-out {found['accuracy']:.2f}" if "accuracy" in found else ""
            print(
                f"{name:<10} {found['tokens_per_s']:8.0f} tokens/s  {ratio}  peak "
                f"{found['peak_gib']:.2f} GiB  {found['tflops'] / top:.2f} of matrix peak  {right}"
            )


if __name__ == "__main__":
    main()
