"""The model card of an adapter: what it is, what it is made from, where it runs, its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from cmgr import __version__
from cmgr.recipe import Culture, Recipe
from cmgr.records import Evidence, Example

WHERE = {
    "activated": (
        "An activated adapter (aLoRA): it acts from the generation prompt on, never on the prompt "
        "before it. It runs in cmgr, in PEFT and in llama-server; vLLM (0.33) refuses it. Programs "
        "that do not know `adapter.alora.invocation_tokens` (llama-cli, Ollama) would apply it to "
        "every token: do not use it there. It cannot be merged into the base."
    ),
    "standard": (
        "A standard adapter: it acts on every token, and runs wherever LoRA does (PEFT, vLLM, "
        "llama.cpp and what is built on it). It can be merged into the base."
    ),
}


def card(
    recipe: Recipe,
    culture: Culture,
    manifest: dict[str, Any],
    examples: Iterable[Example],
    evidence: Iterable[Evidence],
    error_rate: str,
) -> str:
    """The README.md of an adapter folder, with the hub's metadata on top.

    `error_rate`: what reviews say of the examples that nobody has looked at.
    """
    examples = list(examples)
    cited = {i for e in examples for i in e.evidence_ids}
    used = [p for p in evidence if p.id in cited]
    tasks = {task.id: task.name for task in recipe.tasks}
    head = {
        "library_name": "peft",
        "base_model": manifest["base"],
        "tags": ["lora", "culture", culture.id, manifest["kind"]],
        "language": culture.languages or ["en"],
    }
    reviewed = Counter(e.review for e in examples)
    parity = manifest["parity"]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {culture.name}: {manifest['kind']} LoRA over {manifest['base']}",
        "",
        WHERE[manifest["kind"]],
        "",
        "## Use",
        "",
        "```sh",
        f'cmgr chat --culture {culture.id} -p "..."',
        "```",
        "",
        "```python",
        "model = PeftModel.from_pretrained(base, FOLDER)  # base: the model named above",
        "```",
        "",
        "## Made from",
        "",
        f"- culture: {culture.name} (`{culture.id}`)",
        f"- tasks: {_counted(tasks.get(e.task or '', 'broad knowledge') for e in examples)}",
        f"- examples per stage: {_pairs(manifest['examples'])}"
        + (f"; held back: {_pairs(manifest['held_back'])}" if manifest["held_back"] else ""),
        *(
            [
                f"- prompts that carry passages of the evidence: {manifest['carrying_passages']} "
                "(numbered notes before the question, as cmgr writes them in use)"
            ]
            if manifest.get("carrying_passages")
            else []
        ),
        f"- written by: {_counted(e.generator for e in examples)}",
        f"- reviewed by a person: {len(examples) - reviewed['pending']} of {len(examples)}"
        + (f" ({_pairs(reviewed)})" if len(reviewed) > 1 else ""),
        f"- faulty among those not reviewed, by estimate: {error_rate}",
        f"- evidence: {len(used)} passages from {_counted(p.source for p in used)}; licences: "
        f"{', '.join(sorted({p.license or 'not stated' for p in used})) or 'none'}",
        "",
        "## Training",
        "",
        *(f"- {key}: {_pairs(values)}" for key, values in manifest["settings"].items()),
        f"- run: {_pairs({k: v for k, v in manifest['training'].items() if k != 'validation'})}",
        *(
            f"- best epoch of {stage}: {_epoch(best)}, validation loss {best['loss']:.3f}"
            for stage, best in manifest["training"].get("validation", {}).items()
        ),
        f"- GGUF against PEFT on {parity['prompts']} prompts: cosine {parity['adapter_cosine']}, "
        f"same likeliest token {parity['adapter_top1']:.0%} (the bare base: "
        f"{parity['base_cosine']}, {parity['base_top1']:.0%})",
        "",
        "## Limits",
        "",
        "It repeats what its evidence says of a culture. People within a culture differ, evidence "
        "can be wrong or old, and a model can say what no evidence holds: check what matters with "
        "somebody who lives there.",
        "",
        f"Made by cmgr {__version__}.",
        "",
    ]
    return "\n".join(lines)


def _epoch(best: Mapping[str, Any]) -> str:
    if best["epoch"] is not None:
        return str(best["epoch"])
    return f"none (what the {best['from']} stage had made is kept)" if "from" in best else "none"


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in sorted(Counter(values).items())) or "none"


def _pairs(values: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
