"""Did it help? Base, prompted base and routed, on held-out items, with intervals.

Options are scored by the mean log-probability of their text as the answer; nothing is sampled.
Trained items (`fit`), other wordings of trained facts (`wording`) and facts never trained (`fact`)
are reported apart.
"""

from __future__ import annotations

from typing import Any

from cmgr.base import Base, resolve
from cmgr.errors import MissingError
from cmgr.records import Example, Message, Record, make_id
from cmgr.router import Router
from cmgr.runtime import Runtime
from cmgr.stats import wilson
from cmgr.synthesize import current_examples
from cmgr.workspace import Progress, Workspace, read_json

METHODS = ("base", "prompt", "routed")
VERSION = 1


class Result(Record):
    """One item under every method: the chosen option of each, and the router's culture."""

    id: str
    culture: str
    task: str
    split: str
    answer: str
    routed_to: str | None
    choices: dict[str, str]


def pick_items(ws: Workspace, examples: list[Example]) -> list[Example]:
    """The items that are scored: per culture and split up to the recipe's number.

    Chosen by a hash, spread evenly over the tasks, so that every run takes the same ones.
    """
    wanted = ws.recipe.evaluate
    limits = {"fit": wanted.trained, "wording": wanted.wordings, "fact": wanted.facts}
    chosen: list[Example] = []
    for culture in ws.recipe.cultures:
        for split, limit in limits.items():
            by_task = [
                sorted(
                    (
                        e
                        for e in examples
                        if (e.culture, e.split, e.task) == (culture.id, split, task.id)
                        and e.inputs.get("options")
                    ),
                    key=lambda e: make_id("eval", e.id),
                )
                for task in ws.recipe.tasks
            ]
            turn = 0
            picked: list[Example] = []
            while len(picked) < limit and any(turn < len(items) for items in by_task):
                picked += [items[turn] for items in by_task if turn < len(items)]
                turn += 1
            chosen += picked[:limit]
    return chosen


def _key(ws: Workspace, base: Base) -> str:
    """What an item's scores depend on beside the item: adapters, router and base."""
    made = {}
    for culture in ws.recipe.cultures:
        manifest = read_json(ws.path("adapters", culture.id, "manifest.json"))
        if manifest is None:
            raise MissingError(f"no adapter for {culture.id}. Make it: cmgr train")
        made[culture.id] = manifest["inputs"]
    routed_by = (read_json(ws.manifest_path("route")) or {}).get("inputs")
    return make_id(VERSION, made, routed_by, base.fingerprint)


def wanted_inputs(ws: Workspace) -> str:
    """The hash that the stage's manifest has when it is up to date. Raises MissingError."""
    items = pick_items(ws, current_examples(ws))
    key = _key(ws, resolve(ws.recipe.base.model, ws.folder))
    return make_id(key, [item.id for item in items], ws.recipe.try_prompts)


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Score what is not scored yet, and sum up in `logs/eval.json`.

    Items are kept in eval/results.jsonl as they are done, by the hash of item, adapters and
    router. Returns whether anything was made; raises MissingError without adapters or router.
    """
    items = pick_items(ws, current_examples(ws))
    if not items:
        raise MissingError("no held-out items. Make them: cmgr synthesize")
    router = Router.load(ws.path("router"))
    base = resolve(ws.recipe.base.model, ws.folder)
    key, inputs = _key(ws, base), wanted_inputs(ws)
    if not force and ws.is_current("eval", inputs):
        return False
    ws.path("eval").mkdir(exist_ok=True)
    done = {} if force else {r.id: r for r in ws.read("eval/results", Result)}
    runtime = Runtime(base, ws.recipe.base.context)
    results = []
    try:
        for culture in ws.recipe.cultures:
            runtime.load_adapter(culture.id, ws.path("adapters", culture.id))
        for number, item in enumerate(items, 1):
            result_id = make_id(key, item.id)
            result = done.get(result_id)
            if result is None:
                result = _score(ws, runtime, router, item, result_id)
                ws.append("eval/results", [result])
            results.append(result)
            if progress:
                progress("eval", number, len(items))
        tried = [_try(ws, runtime, router, prompt) for prompt in ws.recipe.try_prompts]
    finally:
        runtime.close()
    ws.finish("eval", inputs, table=summary(ws, results), items=len(results), tried=tried)
    return True


def _try(ws: Workspace, runtime: Runtime, router: Router, prompt: str) -> dict[str, Any]:
    """One prompt answered by the base and by whom the router names."""
    culture = router.decide(prompt).culture
    messages = [Message(role="user", content=prompt)]
    answers = {
        name: "".join(runtime.generate(messages, scales, max_tokens=80)).strip()
        for name, scales in (("base", {}), ("routed", {culture: 1.0} if culture else {}))
    }
    return {"prompt": prompt, "culture": culture, **answers}


def _score(
    ws: Workspace, runtime: Runtime, router: Router, item: Example, result_id: str
) -> Result:
    options = list(item.inputs["options"])
    name = ws.recipe.culture(item.culture).name
    decision = router.decide(item.messages[-1].content)
    system = Message(
        role="system",
        content=f"You live in {name} and know its culture well. Answer as people in {name} would.",
    )
    plan: dict[str, tuple[list[Message], dict[str, float]]] = {
        "base": (item.messages, {}),
        "routed": (item.messages, {decision.culture: 1.0} if decision.culture else {}),
        "prompt": ([system, *item.messages], {}),
    }
    choices: dict[str, str] = {}
    for method, (messages, scales) in plan.items():
        if method == "routed" and not scales:
            choices[method] = choices["base"]  # it abstained: the same computation
            continue
        scores = runtime.score(messages, options, scales)
        choices[method] = options[max(range(len(options)), key=lambda i: scores[i])]
    return Result(
        id=result_id,
        culture=item.culture,
        task=str(item.task),
        split=item.split,
        answer=item.answer,
        routed_to=decision.culture,
        choices=choices,
    )


def summary(ws: Workspace, results: list[Result]) -> list[dict[str, Any]]:
    """One row per culture and split, and over all: n, router accuracy, accuracy and interval."""
    rows = []
    for culture in [*[c.id for c in ws.recipe.cultures], "all"]:
        for split in ("fit", "wording", "fact"):
            part = [r for r in results if r.split == split and culture in (r.culture, "all")]
            if not part:
                continue
            row: dict[str, Any] = {"culture": culture, "split": split, "n": len(part)}
            row["router"] = round(sum(r.routed_to == r.culture for r in part) / len(part), 4)
            for method in METHODS:
                right = sum(r.choices[method] == r.answer for r in part)
                row[method] = round(right / len(part), 4)
                row[f"{method}_interval"] = [round(v, 4) for v in wilson(right, len(part))]
            rows.append(row)
    return rows
