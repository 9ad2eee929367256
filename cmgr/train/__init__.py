"""Stage 3: one LoRA per culture over one loaded base: broad stage, task stage, preferences.

An activated adapter (aLoRA; Greenewald and others, 2025) acts from the template's generation
prompt on: the base alone reads each prompt, once (`prompts.py`). A standard one acts on every
token. Either is a PEFT folder and a GGUF that has been compared with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmgr import gguf_lora, review
from cmgr import recipe as recipes
from cmgr.base import Base, base_of
from cmgr.chat_template import template_hash
from cmgr.errors import CmgrError, UsageError
from cmgr.recipe import PREFER
from cmgr.records import Example, now
from cmgr.retrieval import Index
from cmgr.retrieval.prompt import FORMAT
from cmgr.search import current_evidence
from cmgr.synthesize import all_examples, bare_examples, current_examples
from cmgr.train import checkpoint, variants
from cmgr.train.card import card
from cmgr.train.loop import Loop, Stage
from cmgr.train.model import Item, Trainable, is_main, out_of_memory
from cmgr.train.parity import PROMPTS, parity
from cmgr.train.passages import with_passages
from cmgr.train.variants import Wanted
from cmgr.train.watch import Log, Watch
from cmgr.workspace import (
    Progress,
    Workspace,
    put_back,
    put_in_place,
    write_atomic,
    write_json,
)

# -- what is trained on ------------------------------------------------------------------------

WITHOUT = " without passages"  # behind the id of an example that is trained with passages too


def check(recipe: recipes.Recipe, examples: Iterable[Example]) -> None:
    """Raise CmgrError for an example whose task or culture the recipe does not have."""
    tasks = {task.id for task in recipe.tasks}
    cultures = {culture.id for culture in recipe.cultures}
    for example in examples:
        for what, value, known in (
            ("culture", example.culture, cultures),
            ("task", example.task, {*tasks, None}),
        ):
            if value not in known:
                raise CmgrError(
                    f"example {example.id} is of the {what} {value!r}, which the recipe does not "
                    f"have. Correct it in examples.jsonl, or add the {what} to the recipe"
                )


def stages_of(
    recipe: recipes.Recipe,
    examples: Sequence[Example],
    trainable: Trainable,
    back: Collection[str] = (),
    also: Iterable[Example] = (),
) -> list[Stage]:
    """The stages that have examples, as tokens; those in `back` are to choose the best epoch by.

    `also` are examples that carry passages, without them: in the first stage, so that reading is
    what is learnt last. Raises CmgrError for what cannot be trained on.
    """
    settings = recipe.train
    epochs = {
        "broad": settings.broad_epochs,
        "task": settings.task_epochs,
        PREFER: settings.prefer_epochs,
    }
    found: list[Stage] = []
    for name in ("broad", "task", PREFER):
        if name not in settings.stages or not epochs[name]:
            continue
        items: list[list[Item]] = [[], []]
        for example in examples:
            rivals = variants.rivals_of(recipe, example) if name == PREFER else []
            if rivals or example.stage == name:
                items[example.id in back].append(trainable.item(example, rivals))
        for example in also if not found else ():
            item = trainable.item(example)
            item = replace(item, id=item.id + WITHOUT, group=f"{item.group} alone")
            items[example.id in back].append(item)
        if items[0]:
            found.append(Stage(name, items[0], items[1], epochs[name]))
    return found


# -- the stage ---------------------------------------------------------------------------------


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
    cultures: list[str] | None = None,
    variant: str | None = None,
) -> bool:
    """Train, export and check each adapter that is missing or out of date.

    `variant` (see variants.py) is what an evaluation compares with, in place of the cultures' own.
    The shared adapter that these begin with (`train.start: shared`) comes first. An adapter is put
    in place whole; one that was interrupted goes on from its checkpoint. Returns whether anything
    was made. Raises MissingError without examples, base or extra.
    """
    if is_main():
        for whose in (recipes.SHARED, *(culture.id for culture in ws.recipe.pick(cultures))):
            _tidy(ws.path("adapters", variants.name_of(whose, variant)))
    plan, base = planned(ws, force, cultures, variant)
    if not plan:
        return False
    plan = with_notes(ws, plan, ws.say if is_main() else lambda _: None)
    trainable = Trainable(base, ws.recipe, ws.folder, ws.say if is_main() else lambda _: None)
    gguf_lora.check_supported(trainable.model.config.to_dict())
    for number, wanted in enumerate(plan, 1):
        trainable.keeps = {later.culture.id for later in plan[number:]}
        with short_of_memory(ws.recipe.train, len(wanted.examples)):
            _one(ws, trainable, wanted, force, progress)
    return True


def index_of(ws: Workspace, variant: str | None = None) -> Index | None:
    """The index whose passages training prompts carry; None where they carry none.

    What a model wrote from memory is trained without passages, for that is what it is to show.
    """
    if variant == "no-evidence" or not ws.recipe.train.passages or not ws.recipe.answer.passages:
        return None
    return Index(ws)


def with_notes(
    ws: Workspace, plan: Sequence[Wanted], say: Callable[[str], None] = lambda _: None
) -> list[Wanted]:
    """What is to be trained, with the passages that its prompts carry."""
    index = index_of(ws, plan[0].variant if plan else None)
    if index is None:
        return list(plan)
    examples = current_examples(ws)
    trained = {i for e in examples if e.split == "fit" for i in e.evidence_ids}
    held = {i for e in examples for i in e.evidence_ids} - trained
    first = ws.recipe.train.start == "shared"  # what goes on from it reads the same prompts
    every = variants.fit_examples(ws.recipe, examples, recipes.SHARED) if first else []
    answers = [example.answer for example in every]
    found = []
    try:
        for wanted in plan:
            made = with_passages(wanted.recipe, wanted.examples, index, held, answers)
            also = [a for a, b in zip(wanted.examples, made, strict=True) if a is not b]
            if "task" not in wanted.recipe.train.stages:
                also = []
            count = len(also)
            if first and wanted.culture.id == recipes.SHARED:
                also = []  # the cultures' own will learn them so
            say(f"train: {wanted.name}: {count} of {len(made)} prompts carry passages")
            found.append(replace(wanted, examples=made, passages=count, also=also))
    finally:
        index.close()
    return found


def planned(
    ws: Workspace,
    force: bool,
    cultures: list[str] | None,
    variant: str | None = None,
) -> tuple[list[Wanted], Base]:
    """What is to be trained, in order, and on which base."""
    examples = bare_examples(ws) if variant == "no-evidence" else current_examples(ws)
    check(ws.recipe, examples)
    base = base_of(ws)
    index = index_of(ws, variant)

    def missing(every: Iterable[Wanted], force: bool = False) -> list[Wanted]:
        return [w for w in every if force or not ws.is_current(f"train/{w.name}", w.inputs)]

    own = missing(variants.wanted(ws.recipe, base, examples, cultures, variant, index=index), force)
    if any(wanted.start for wanted in own):  # they go on from the shared one
        shared = variant or recipes.SHARED
        first = variants.wanted(ws.recipe, base, examples, None, shared, True, index)
        own = [*missing(first), *own]
    return own, base


def shard(cultures: Sequence[str], text: str) -> list[str]:
    """Every n-th culture: "2/8" is the second, the tenth ... Raises UsageError."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise UsageError(f"--shard {text!r}: write I/N with I from 1 to N, such as 2/8")
    return list(cultures[int(first) - 1 :: int(count)])


@contextmanager
def short_of_memory(settings: recipes.Train, items: int) -> Iterator[None]:
    """Turn running out of memory into the recipe key that helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        at_once = min(settings.micro_batch or settings.batch_size, items)
        if at_once > 1:
            mend = f"micro_batch: {at_once // 2} (it is {at_once}; what is learnt stays the same)"
        elif not settings.gradient_checkpointing:
            mend = "gradient_checkpointing: true"
        else:
            mend = "quantize: 4bit (with base.train_from), or take a smaller base"
        raise CmgrError(f"out of memory. In the recipe, under train, set {mend}") from error


def _one(
    ws: Workspace,
    trainable: Trainable,
    wanted: Wanted,
    force: bool,
    progress: Progress | None,
) -> None:
    """One adapter, from its examples to its place."""
    import torch

    recipe = wanted.recipe
    work = ws.path("adapters", f".{wanted.name}.part")
    if trainable.main:
        _prepare(work, wanted.inputs, force)
    trainable.accelerator.wait_for_everyone()
    stages = stages_of(recipe, wanted.examples, trainable, wanted.back, wanted.also)
    if not stages:
        raise CmgrError(
            f"{wanted.name} has no examples for {', '.join(recipe.train.stages)} (train.stages): "
            "run cmgr synthesize, import some, or name other stages"
        )
    if PREFER in recipe.train.stages and all(s.name != PREFER for s in stages) and trainable.main:
        ws.say(
            f"train: {wanted.name} has no stage {PREFER}: none of its examples has options or "
            "labels to prefer its answer to"
        )
    torch.manual_seed(recipe.train.seed)
    model = trainable.make_adapter(recipe.adapter)
    gguf_lora.refuse_unfaithful(
        model.peft_config["default"].to_dict(), trainable.model.config.to_dict()
    )
    if wanted.start:
        _begin_with(model, ws.path("adapters", wanted.start))
    watch = Watch(say=ws.say)
    loop = Loop(trainable, model, recipe.adapter.kind, recipe.train, work, watch)
    if loop.resume():
        watch.say(f"train: {wanted.name} goes on after step {loop.state['number']}")
    log = Log(work / "log.jsonl", loop.state["lines"]) if trainable.main else None
    if log:
        watch.log = log

    def tell(stage: str, done: int, total: int, what: str) -> None:
        if progress and trainable.main:
            progress(f"train {wanted.name} {stage} · {what}", done, total)

    watch.progress = tell
    try:
        facts = loop.run(stages)
        if wanted.start:
            loop.keep(recipe.train.own)
        if trainable.main:
            save_peft(model, work, trainable, recipe.adapter.kind)
    except Exception:
        if trainable.main and loop.state["stage"]:
            watch.say(
                f"train: {wanted.name}: what the {stages[loop.state['stage'] - 1].name} stage has "
                "made is kept. With the same examples and settings, cmgr train goes on behind it"
            )
        raise
    finally:
        model.unload()
        if log:
            log.close()
    if trainable.main:
        for stage, best in facts.get("validation", {}).items():
            if best["epoch"] is None:
                before = "the shared adapter" if wanted.start else "the base"
                if "from" in best:
                    before = f"what the {best['from']} stage had made"
                watch.say(
                    f"train: {wanted.name}: no epoch of the {stage} stage was better than {before} "
                    "on what is held back, and none is kept. More examples may help"
                )
        _finish(ws, trainable, wanted, stages, facts, progress or (lambda what, done, total: None))
    trainable.accelerator.wait_for_everyone()


def _begin_with(model: Any, folder: Path) -> None:
    """Give an adapter the weights of another one, made by the same recipe."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    found = set_peft_model_state_dict(model, weights)
    if found.unexpected_keys:
        raise CmgrError(f"{folder}: not of this recipe. Train it again: cmgr train --force")


def _prepare(work: Path, inputs: str, force: bool) -> None:
    """An empty work folder, or the one of the same wish that was interrupted."""
    wish = work / "inputs"
    if force or not wish.is_file() or wish.read_text() != inputs:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_atomic(wish, inputs.encode())


def save_peft(model: Any, folder: Path, trainable: Trainable, kind: str) -> None:
    """Write a PEFT folder that says which kind of adapter it is, the same each time."""
    model.peft_config["default"].inference_mode = True
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if kind == "activated":
        config["alora_invocation_tokens"] = trainable.invocation
    config["base_model_name_or_path"] = trainable.reference  # PEFT would write a path of here
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # a set, whose order changes from run to run
    write_json(path, config)
    # safetensors keeps its file to its owner; the folder is for others too
    (folder / "adapter_model.safetensors").chmod(path.stat().st_mode & 0o777)


def _finish(
    ws: Workspace,
    trainable: Trainable,
    wanted: Wanted,
    stages: list[Stage],
    facts: dict[str, Any],
    progress: Progress,
) -> None:
    """Export, compare, describe, and put in place of the adapter before."""
    recipe, culture, examples = wanted.recipe, wanted.culture, wanted.examples
    work = ws.path("adapters", f".{wanted.name}.part")
    whose = {e.culture for e in examples}
    lock = {
        "base_fingerprint": trainable.base.fingerprint,
        "template_hash": template_hash(trainable.template, trainable.base.thinking),
        **({"passages": FORMAT} if wanted.passages else {}),
    }
    evidence = [p for p in current_evidence(ws) if p.culture in whose]
    licences = {p.license for p in evidence if p.license}
    progress(f"train {wanted.name} export", 0, 1)
    gguf_lora.export(
        work,
        work / "adapter.gguf",
        trainable.model.config.to_dict(),
        dtype=recipe.adapter.export,
        name=f"{culture.name} ({recipe.name})",
        base_name=trainable.reference,
        culture=culture.id,
        **({"license": ", ".join(sorted(licences))} if licences else {}),
        **lock,
    )
    progress(f"train {wanted.name} export", 1, 1)
    manifest = {
        "inputs": wanted.inputs,
        "finished_at": now(),
        "culture": culture.id,
        **({"variant": wanted.variant} if wanted.variant else {}),
        "kind": recipe.adapter.kind,
        **({"start": wanted.start} if wanted.start else {}),
        "base": trainable.base.reference,
        **lock,
        "examples": {s.name: counted(s.items) for s in stages},
        "held_back": {s.name: counted(s.validation) for s in stages if s.validation},
        **({"carrying_passages": wanted.passages} if wanted.passages else {}),
        "settings": {
            "adapter": recipe.adapter.model_dump(),
            "train": recipe.train.model_dump(exclude=recipes.RUNNING),
        },
        "training": facts,
    }
    write_json(work / "manifest.json", manifest)
    last = [e for e in examples if e.stage == stages[-1].name]
    if len(last) < PROMPTS:  # few: those of the other stage too
        last += [e for e in examples if e.stage != stages[-1].name]
    # the shorter half is as good a check, and four programs' passes read it sooner
    last = sorted(last, key=lambda e: len(e.messages[-1].content))[: max(PROMPTS, len(last) // 2)]
    prompts = [e.messages for e in last[:: max(1, len(last) // PROMPTS)]][:PROMPTS]

    def tell(done: int, total: int, what: str) -> None:
        progress(f"train {wanted.name} check of the export · {what}", done, total)

    manifest["parity"] = parity(trainable, work, prompts, recipe.base.context, tell)
    write_json(work / "manifest.json", manifest)
    rate = review.told(review.error_rate(ws, all_examples(ws, sorted(whose))))
    about = card(recipe, culture, manifest, examples, evidence, rate)
    write_atomic(work / "README.md", about.encode())
    _put_in_use(work, ws.path("adapters", wanted.name))


def counted(items: Sequence[Item]) -> int:
    """How many examples items are of, those left out that are there without passages too."""
    return sum(not item.id.endswith(WITHOUT) for item in items)


def _put_in_use(work: Path, target: Path) -> None:
    """Put a finished adapter in its place, and only then let its checkpoints go.

    So a kill at any moment leaves either what to go on from, or the finished adapter.
    """
    put_in_place(work, target)
    _tidy(target)


def _tidy(target: Path) -> None:
    """Finish what a kill left of `_put_in_use`."""
    put_back(target)
    checkpoint.drop(target)
    (target / "inputs").unlink(missing_ok=True)
