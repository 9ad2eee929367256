"""Does it help on real data? Trained on one part of a benchmark, asked the other.

    python tests/bench/real.py blend --data FOLDER --work DIR [--kind standard] [--rank 16]
    python tests/bench/real.py blend --data FOLDER --work DIR --learning-rate 0.001
    python tests/bench/real.py hate --data FOLDER --work DIR
    python tests/bench/real.py fork --data FOLDER --work DIR
    python tests/bench/real.py hate --data FOLDER --work DIR --methods shared,routed --limit 400
    python tests/bench/real.py hate --data FOLDER --work DIR --part 1/4      # half of the training
    python tests/bench/real.py hate --data FOLDER --work DIR --validation 0.1
    python tests/bench/real.py blend --data FOLDER --work DIR --prefer 1        # a third stage
    python tests/bench/real.py blend --data FOLDER --work DIR --task-epochs 4   # its rival
    python tests/bench/real.py blend --data FOLDER --work DIR --base gemma-3-270m.gguf

    python tests/bench/real.py blend --data FOLDER --work DIR --methods routed,routed+evidence \
        --evidence FILE    # more documents: JSON lines with country, title and text

FOLDER holds `blend_dev.jsonl` (four-option questions rebuilt from BLEnD), `crehate.jsonl`,
`fork.jsonl` and `factbook.jsonl` (passages of the CIA World Factbook, of which the broad stage is
cut). Every step is a command of cmgr, printed as it is run; a second run goes on. Ends with the
table of these methods; what other options are given are handed to `cmgr eval` in place of the
run's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from cmgr.recipe import SHARED
from cmgr.train.variants import VARIANTS

NAMES = {
    **{"united-states": "United States", "united-kingdom": "United Kingdom", "china": "China"},
    **{"south-korea": "South Korea", "spain": "Spain", "mexico": "Mexico", "iran": "Iran"},
    **{"indonesia": "Indonesia", "greece": "Greece", "ethiopia": "Ethiopia"},
    **{"australia": "Australia", "south-africa": "South Africa", "singapore": "Singapore"},
    **{"japan": "Japan", "india": "India"},
}
FACTBOOK = {"South Korea": "Korea, South"}
TEN = list(NAMES)[:10]
RUNS: dict[str, dict[str, Any]] = {
    "blend": {
        "cultures": TEN,
        "task": "everyday-knowledge",
        "file": "blend_dev.jsonl",
        "loader": "table",
        "train": {"task_epochs": 3, "start": "shared"},
        "eval": ["--interference"],
    },
    "hate": {
        "cultures": [*TEN[:2], "australia", "south-africa", "singapore"],
        "task": "hate-speech",
        "file": "crehate.jsonl",
        "loader": "crehate",
        "train": {"task_epochs": 2, "start": "shared"},
        "eval": ["--interference"],
        "baselines": "majority",
    },
    "fork": {
        "cultures": ["united-states", "china", "japan", "india"],
        "task": "food-customs",
        "file": "fork.jsonl",
        "loader": "fork",
        "train": {"task_epochs": 6, "start": "shared"},
        "eval": ["--interference"],
    },
}
RATE, PART = 0.0005, "1/2"
METHODS = "base,prompt,few-shot,shared,merged,broad,routed,oracle"
BASELINES = "popular,words"  # they read nothing


def prepare(options: argparse.Namespace, work: Path) -> Path:
    """A folder with the recipe and a folder of documents per culture; returns the recipe."""
    run = RUNS[options.run]
    work.mkdir(parents=True, exist_ok=True)
    passages = [
        json.loads(line)
        for path in (options.data / "factbook.jsonl", *options.evidence)
        for line in path.open(encoding="utf-8")
    ]
    for culture in run["cultures"]:
        country = FACTBOOK.get(NAMES[culture], NAMES[culture])
        mine = [p for p in passages if p["country"] in (country, NAMES[culture])]
        path = work / "documents" / culture / "factbook.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"title": p.get("section") or p["title"], "text": p["text"]} for p in mine]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    known = options.base == "smollm2"
    recipe = {
        "name": options.run,
        "base": {"model": options.base if known else str(Path(options.base).resolve())},
        "cultures": [{"id": c, "name": NAMES[c]} for c in run["cultures"]],
        "sources": [{"kind": "documents", "path": "documents"}],
        "tasks": [run["task"]],
        "adapter": {"kind": options.kind, "rank": options.rank, "alpha": 2 * options.rank},
        "train": {
            **run["train"],
            "learning_rate": options.learning_rate,
            "validation": options.validation,
            **({"task_epochs": options.task_epochs} if options.task_epochs else {}),
            **(
                {"stages": ["broad", "task", "prefer"], "prefer_epochs": options.prefer}
                if options.prefer
                else {}
            ),
        },
    }
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def call(*words: str) -> None:
    """Run a command of cmgr, and say how long it took."""
    print(f"$ cmgr {' '.join(words)}", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "-c", "from cmgr.cli.app import main; main()", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    print(f"# {time.perf_counter() - began:.0f} s, exit code {done.returncode}", flush=True)
    if done.returncode not in (0, 4):  # 4: rows of other cultures were left out
        sys.exit(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", default="activated", choices=("activated", "standard"))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=RATE)
    parser.add_argument("--base", default="smollm2", help="smollm2, or a GGUF file")
    parser.add_argument("--part", default=PART, help="the part that is trained on")
    parser.add_argument("--validation", type=float, default=0.0, help="the share held back")
    parser.add_argument("--task-epochs", type=int, help="[default: the run's]")
    parser.add_argument("--prefer", type=int, default=0, help="epochs of the stage prefer")
    parser.add_argument("--asked", default="2/2", help="the part that is asked")
    parser.add_argument("--methods", help=f"[default: {METHODS}, and those that read nothing]")
    parser.add_argument("--evidence", type=Path, action="append", default=[])
    options, more = parser.parse_known_args()
    run = RUNS[options.run]
    rate = options.learning_rate
    other = "" if options.base == "smollm2" else f"-{Path(options.base).stem}"
    other += f"-{rate:g}" if rate != RATE else ""
    other += "".join(f"-{path.stem}" for path in options.evidence)
    other += f"-{options.part.replace('/', 'of')}" if options.part != PART else ""
    other += f"-held-{options.validation:g}" if options.validation else ""
    other += f"-epochs-{options.task_epochs}" if options.task_epochs else ""
    other += f"-prefer-{options.prefer}" if options.prefer else ""
    source = options.work / f"{options.run}-{options.kind}-{options.rank}{other}"
    recipe = prepare(options, source)
    ws = str(source / "workspace")
    at = ("-w", ws)
    data, loader = str(options.data / run["file"]), ("--loader", run["loader"])
    task = ("--task", run["task"])
    call("init", str(recipe), ws)
    call("search", *at)
    call("synthesize", *at)
    call("synthesize", *at, "--import", data, *task, *loader, "--part", options.part)
    call("train", *at)
    named = options.methods or f"{METHODS},{run.get('baselines', BASELINES)}"
    methods = named.split(",")
    for variant in [m for m in methods if m in VARIANTS and m != SHARED]:
        call("train", *at, "--variant", variant)
    if "merged" in methods:
        call("merge", *run["cultures"], *at, "--method", "linear", "--name", "merged")
    call("route", *at, "--fit")
    cultures = [word for c in run["cultures"] for word in ("--culture", c)]
    call(
        *("eval", *at, *task, "--data", data, *loader, "--part", options.asked),
        *("--methods", named, *(more or run["eval"]), *cultures),
    )


if __name__ == "__main__":
    main()
