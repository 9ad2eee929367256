"""Stage 3: one LoRA per culture over one loaded base, broad stage then task stage.

The adapters are activated ones (aLoRA; Greenewald and others, 2025): they act from the template's
generation prompt on. The base alone reads each prompt, so its KV never changes: it is computed
once without gradients and kept, and each epoch computes the answer tokens only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cmgr import gguf_lora
from cmgr import recipe as recipes
from cmgr.base import Base, resolve, template_hash
from cmgr.errors import CmgrError, MissingError
from cmgr.records import Example, Message, make_id, now
from cmgr.synthesize import current_examples
from cmgr.train.loop import Trainable, fit, make_adapter
from cmgr.workspace import Progress, Workspace, write_atomic, write_json

VERSION = 1  # counts up when the same inputs would give other adapters
COSINE_BAR = 0.98
PARITY_PROMPTS = 6


def save_peft(model: Any, folder: Path, invocation: list[int], reference: str) -> None:
    """Write a PEFT folder that says the adapter is an activated one."""
    model.peft_config["default"].inference_mode = True
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["alora_invocation_tokens"] = invocation
    config["base_model_name_or_path"] = reference  # PEFT would write this machine's path
    write_json(path, config)


def parity(
    trainable: Trainable, folder: Path, prompts: list[list[Message]], context: int
) -> dict[str, float]:
    """Next-token logits after the invocation: PEFT's own activated forward pass and llama.cpp.

    Returns mean cosine and top-1 agreement of the adapter, and of the bare base on the same
    prompts (a quantised base's own arithmetic costs some). Raises CmgrError below the bar.
    """
    import numpy as np
    import torch
    from peft import PeftModel

    from cmgr.runtime import Runtime

    model = PeftModel.from_pretrained(trainable.model, str(folder))
    model.eval()
    runtime = Runtime(trainable.base, context)
    try:
        runtime.load_adapter("adapter", folder)
        found: dict[str, list[tuple[float, bool]]] = {"adapter": [], "base": []}
        for messages in prompts:
            ids = trainable.prompt_tokens(messages)
            if ids != runtime.prompt_tokens(messages):
                raise CmgrError("transformers and llama.cpp give other tokens for the same prompt")
            tensor = torch.tensor([ids + trainable.invocation], device=trainable.device)
            for name in found:
                with torch.no_grad():
                    if name == "adapter":
                        row = model(input_ids=tensor).logits[0, -1]
                    else:
                        with model.disable_adapter():
                            row = model(input_ids=tensor).logits[0, -1]
                ours = row.float().cpu().numpy().astype(np.float64)
                scales = {"adapter": 1.0} if name == "adapter" else {}
                theirs = runtime.next_logits(messages, scales)
                cosine = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
                found[name].append((cosine, int(ours.argmax()) == int(theirs.argmax())))
    finally:
        runtime.close()
        model.unload()
    result = {}
    for name, rows in found.items():
        result[f"{name}_cosine"] = round(float(np.mean([c for c, _ in rows])), 6)
        result[f"{name}_top1"] = round(float(np.mean([t for _, t in rows])), 4)
    result["prompts"] = len(prompts)
    if result["adapter_cosine"] < min(COSINE_BAR, result["base_cosine"] - 0.01):
        raise CmgrError(
            f"the export of {folder} does not agree with PEFT: cosine {result['adapter_cosine']} "
            f"(base {result['base_cosine']}). The adapter is not put into use"
        )
    return result


def wanted_inputs(
    ws: Workspace, culture: recipes.Culture, base: Base, examples: list[Example]
) -> str:
    """The hash of all that an adapter is made from: its manifest has it when up to date."""
    recipe = ws.recipe
    return make_id(
        VERSION,
        base.fingerprint,
        recipe.adapter.model_dump(),
        recipe.train.model_dump(),
        sorted(e.id for e in fit_examples(examples, culture.id)),
    )


def fit_examples(examples: list[Example], culture: str) -> list[Example]:
    """What a culture is trained on: its items of the `fit` split that nobody rejected."""
    return [
        e for e in examples if e.culture == culture and e.split == "fit" and e.review != "rejected"
    ]


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
    cultures: list[str] | None = None,
) -> bool:
    """Train, export and check each culture's adapter that is missing or out of date.

    A culture is put in place whole, so that a kill costs only the one in work. Returns whether
    anything was made. Raises MissingError without examples, base or extra.
    """
    examples = current_examples(ws)
    base = resolve(ws.recipe.base.model, ws.folder)
    plan = []
    for culture in ws.recipe.pick(cultures):
        if not fit_examples(examples, culture.id):
            raise MissingError(f"no training examples for {culture.id}. Make them: cmgr synthesize")
        inputs = wanted_inputs(ws, culture, base, examples)
        if force or not ws.is_current(f"train/{culture.id}", inputs):
            plan.append((culture, inputs))
    if not plan:
        return False
    trainable = Trainable(base, ws.say)
    for culture, inputs in plan:
        _one(ws, trainable, culture, inputs, fit_examples(examples, culture.id), progress)
    return True


def _one(
    ws: Workspace,
    trainable: Trainable,
    culture: recipes.Culture,
    inputs: str,
    examples: list[Example],
    progress: Progress | None,
) -> None:
    import torch

    recipe = ws.recipe
    work = ws.path("adapters", f".{culture.id}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    torch.manual_seed(recipe.train.seed)
    model = make_adapter(trainable, recipe.adapter)
    broad = [e for e in examples if e.stage == "broad"]
    task = [e for e in examples if e.stage == "task"]
    stages = [
        (name, items, epochs)
        for name, items, epochs in (
            ("broad", broad, recipe.train.broad_epochs),
            ("task", task, recipe.train.task_epochs),
        )
        if items and epochs
    ]
    with (work / "log.jsonl").open("w", encoding="utf-8") as log:
        try:
            facts = fit(
                trainable,
                model,
                stages,
                recipe.train,
                lambda line: print(json.dumps(line), file=log, flush=True),
                lambda done, total: (
                    progress(f"train · {culture.id}", done, total) if progress else None
                ),
            )
            save_peft(model, work, trainable.invocation, trainable.base.reference)
        finally:
            model.unload()
    lock = {
        "base_fingerprint": trainable.base.fingerprint,
        "template_hash": template_hash(trainable.template),
    }
    gguf_lora.export(
        work, work / "adapter.gguf", trainable.model.config.to_dict(), culture=culture.id, **lock
    )
    manifest = {
        "inputs": inputs,
        "finished_at": now(),
        "culture": culture.id,
        "kind": recipe.adapter.kind,
        "base": trainable.base.reference,
        **lock,
        "examples": {name: len(items) for name, items, _ in stages},
        "training": facts,
    }
    write_json(work / "manifest.json", manifest)
    prompts = [e.messages for e in task[:: max(1, len(task) // PARITY_PROMPTS)]][:PARITY_PROMPTS]
    manifest["parity"] = parity(
        trainable, work, prompts or [broad[0].messages], recipe.base.context
    )
    write_json(work / "manifest.json", manifest)
    write_atomic(work / "README.md", _card(culture, manifest).encode())
    target = ws.path("adapters", culture.id)
    old = ws.path("adapters", f".{culture.id}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    work.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _card(culture: recipes.Culture, manifest: dict[str, Any]) -> str:
    """The model card: what it is, and where it runs."""
    return f"""---
library_name: peft
tags: [lora, activated-lora, culture]
---

# {culture.name}: {manifest["kind"]} LoRA over {manifest["base"]}

Made by cmgr from {sum(manifest["examples"].values())} examples ({manifest["examples"]}).
An activated adapter (aLoRA): it acts from the generation prompt on, never on the prompt before it.
It runs in cmgr, in PEFT (`PeftModel.from_pretrained`) and in llama-server. Programs that do not
know `adapter.alora.invocation_tokens` would apply it to every token: do not use it there.

Training: {manifest["training"]}
Parity of the GGUF with PEFT (next-token logits): {manifest["parity"]}

It repeats what its documents say of a culture, and people within a culture differ: check what
matters with somebody who lives there.
"""
