"""Stage 2: evidence -> checked examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmgr import search
from cmgr.checks import Checks
from cmgr.errors import MissingError, UsageError
from cmgr.generators import extractive, imported, writing
from cmgr.generators.calls import Budget, price_of
from cmgr.generators.task_format import MalformedError
from cmgr.records import Evidence, Example, Record, make_id, now
from cmgr.synthesize.asking import ask, calls_of
from cmgr.synthesize.sorting import Outcome, checked, left_out, look_again, yields
from cmgr.workspace import Progress, Workspace, hash_parts, hash_records


def wanted_inputs(ws: Workspace) -> str:
    """The hash that the stage's manifest has when every culture is up to date."""
    inputs = _inputs(ws, search.current_evidence(ws))
    return _joined({culture.id: inputs for culture in ws.recipe.cultures})


def current_examples(ws: Workspace) -> list[Example]:
    """The examples of the last synthesis, without those a person has rejected."""
    return [e for e in all_examples(ws) if e.review != "rejected"]


def all_examples(ws: Workspace, cultures: Sequence[str] | None = None) -> list[Example]:
    """The examples of the last synthesis of these cultures (or all), rejected ones too."""
    parts = ws.parts("synthesize")
    mine = ws.recipe.pick(list(cultures) if cultures else None)
    wanted = {
        i for c in mine for key in ("ids", "imported") for i in parts.get(c.id, {}).get(key, [])
    }
    return [e for e in ws.read("examples", Example) if e.id in wanted] if wanted else []


def bare_examples(ws: Workspace) -> list[Example]:
    """The examples that a model wrote without evidence, for the ablation."""
    wanted = {i for part in ws.parts(writing.BARE).values() for i in part["ids"]}
    return [e for e in ws.read("examples", Example) if e.id in wanted] if wanted else []


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
    cultures: Sequence[str] | None = None,
    max_cost: float | None = None,
    max_calls: int | None = None,
) -> bool:
    """Make the examples of these cultures (or all), where out of date; returns whether it was.

    Only new examples are appended; what fails a check goes to quarantine.jsonl, once. A model's
    answers are kept as they come, so that none is paid for twice; calls that `max_cost` (US
    dollars) or `max_calls` forbid are not made, and the culture is then not up to date. Raises
    MissingError where there is no evidence, or the generator's key or model is not there.
    """
    recipe = ws.recipe
    wanted = recipe.pick(list(cultures) if cultures else None)
    evidence = search.current_evidence(ws)
    with_evidence = {e.culture for e in evidence}
    empty = [c.name for c in wanted if c.id not in with_evidence]
    if len(empty) == len(wanted):
        raise MissingError(f"no evidence for {', '.join(empty)}. Find some: cmgr search")
    if empty:
        ws.say(f"no evidence for {', '.join(empty)}: no examples. Add documents, then: cmgr search")

    inputs = _inputs(ws, evidence)
    have = {e.id for e in ws.read("examples", Example)}
    parts = {c.id: part for c in recipe.cultures if (part := ws.parts("synthesize").get(c.id))}
    todo = [
        c
        for c in wanted
        if force
        or parts.get(c.id, {}).get("inputs") != inputs
        or parts[c.id].get("unanswered")
        or not have.issuperset(parts[c.id]["ids"])
    ]
    if not todo and ws.is_current("synthesize", hash_parts("synthesize", parts, "unanswered")):
        return False

    renewed = list(todo)
    if recipe.generator.kind == "extractive":
        made = checked(ws, evidence, list(extractive.generate(recipe, evidence)))
    else:
        budget = Budget(price_of(recipe.generator), max_cost, max_calls)
        # some checks compare cultures, so all are looked at together, and what was stopped and
        # run again, or made one by one, ends as what was made at once
        asked = {c.id for c in wanted}
        others = {i for i, part in parts.items() if part["inputs"] == inputs}
        made = _written(ws, evidence, _requests(ws, asked | others), asked, budget, progress)
        renewed = [c for c in recipe.cultures if c.id in asked or c.id in others & made.keys()]
    quarantined = {getattr(r, "id", "") for r in ws.read("quarantine", Record)}
    for done, culture in enumerate(renewed, 1):
        mine = made.get(culture.id, Outcome())
        ws.append("examples", [e for e in mine.kept if e.id not in have])
        bad = mine.failed
        ws.append("quarantine", [r for r in bad if getattr(r, "id", "") not in quarantined])
        parts[culture.id] = {
            "inputs": inputs,
            "ids": [e.id for e in mine.kept],
            "examples": dict(Counter(f"{e.stage}/{e.split}" for e in mine.kept)),
            "quarantined": len(bad),
            "yield": yields(mine),
            "unanswered": mine.unanswered,
            "imported": parts.get(culture.id, {}).get("imported", []),
        }
        if progress and recipe.generator.kind == "extractive":
            progress(f"synthesize · {culture.name}", done, len(todo))
    _finish(ws, parts)
    return bool(todo)


def build_bare(
    ws: Workspace,
    progress: Progress | None = None,
    max_cost: float | None = None,
    max_calls: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Let the model write from memory what it wrote from evidence; trained on by `no-evidence`.

    Returns per culture what came and passed; calls are kept and paid for once. Raises UsageError
    where the recipe has no model, MissingError where there is no evidence to take the topics from.
    """
    if ws.recipe.generator.kind == "extractive":
        raise UsageError("--no-evidence needs a model: set generator.kind in recipe.yaml")
    evidence = search.current_evidence(ws)
    if not evidence:
        raise MissingError("no evidence to take the topics from. Find some: cmgr search")
    budget = Budget(price_of(ws.recipe.generator), max_cost, max_calls)
    requests = list(writing.bare_requests(ws.recipe, evidence))
    everyone = {c.id for c in ws.recipe.cultures}
    made = _written(ws, evidence, requests, everyone, budget, progress, second=False)
    have = {e.id for e in ws.read("examples", Example)}
    parts = {}
    for culture, mine in made.items():
        ws.append("examples", [e for e in mine.kept if e.id not in have])
        ids = [e.id for e in mine.kept]
        parts[culture] = {"ids": ids, "yield": yields(mine), "unanswered": mine.unanswered}
    ws.finish(writing.BARE, make_id(writing.BARE, parts), cultures=parts)
    return parts


def import_file(
    ws: Workspace,
    path: Path,
    task: str,
    columns: dict[str, str],
    culture: str | None = None,
    loader: str | None = None,
    part: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Take a person's examples, with the same checks; returns per culture what came, what passed.

    Only grounding is not asked of rows without a quote. `loader` and `part`, and what is raised:
    see `imported.read`.
    """
    evidence = search.current_evidence(ws)
    whose = ws.recipe.culture(culture) if culture else None
    rows = list(imported.read(ws.recipe, path, task, columns, whose, evidence, loader, part))
    checks = Checks(ws.recipe, evidence, search.excluded_items(ws))
    have = all_examples(ws)
    for example in have:
        checks.reason(example)
    parts = ws.parts("synthesize")
    made: dict[str, Outcome] = defaultdict(Outcome)
    known = {e.id for e in have}
    for number, row in rows:
        if isinstance(row, str):
            record = {"id": make_id("import", path.name, number, row), "culture": culture or ""}
            record |= {"task": task, "file": path.name, "line": str(number), "reason": row}
            made[culture or ""].failed.append(Record.model_validate({**record, "at": now()}))
            made[culture or ""].came[task] += 1
        elif row.id not in known:
            made[row.culture].came[task] += 1
            if reason := checks.reason(row):
                made[row.culture].failed.append(left_out(row, reason))
            else:
                made[row.culture].kept.append(row)
    quarantined = {getattr(r, "id", "") for r in ws.read("quarantine", Record)}
    for culture_id, mine in made.items():
        ws.append("examples", mine.kept)
        bad = [r for r in mine.failed if getattr(r, "id", "") not in quarantined]
        ws.append("quarantine", bad)
        if culture_id:
            empty = {"inputs": "", "ids": [], "examples": {}, "quarantined": 0, "yield": {}}
            entry = parts.setdefault(culture_id, {**empty, "unanswered": 0})
            entry["imported"] = [*entry.get("imported", []), *(e.id for e in mine.kept)]
    _finish(ws, parts)
    return {culture_id: yields(mine)[task] for culture_id, mine in made.items()}


# -- a model writes -----------------------------------------------------------------------------


def planned(ws: Workspace, cultures: Sequence[str] | None = None) -> list[writing.Request]:
    """The calls that have no answer yet."""
    wanted = {c.id for c in ws.recipe.pick(list(cultures) if cultures else None)}
    calls = calls_of(ws)
    return [r for r in _requests(ws, wanted) if calls.get(r) is None]


def _requests(ws: Workspace, wanted: set[str]) -> list[writing.Request]:
    found = writing.requests(ws.recipe, search.current_evidence(ws))
    return [r for r in found if wanted & {r.culture, r.other}]


def _written(
    ws: Workspace,
    evidence: list[Evidence],
    requests: Sequence[writing.Request],
    asked: set[str],
    budget: Budget,
    progress: Progress | None,
    second: bool = True,
) -> dict[str, Outcome]:
    """What becomes of these requests; only those of the cultures `asked` are made, the others read.

    Of a culture that is not asked, and has a request without an answer, nothing is returned.
    """
    calls = calls_of(ws)
    ask(ws, [r for r in requests if asked & {r.culture, r.other}], calls, budget, progress)
    examples: list[Example] = []
    malformed: list[tuple[writing.Request, str]] = []
    unanswered: Counter[str] = Counter()
    for request in requests:
        text = calls.get(request)
        if text is None:
            unanswered.update({request.culture, request.other} - {""})
            continue
        items = writing.items(text)
        if not items:
            malformed.append((request, "no example in the answer"))
        for item in items:
            try:
                examples += writing.examples(ws.recipe, request, item)
            except MalformedError as error:
                malformed.append((request, f"schema: {error}"))
    system = writing.prompt(ws.recipe.generator, "system", {})
    made = checked(ws, evidence, examples, [system])
    for n, (request, reason) in enumerate(malformed):
        mine = made[request.culture]
        mine.came[request.task or "broad"] += 1
        mine.failed.append(
            Record.model_validate(
                {
                    "id": make_id("quarantine", request.key, n, reason),
                    "culture": request.culture,
                    "task": request.task or None,
                    "call": request.key,
                    "reason": reason,
                    "at": now(),
                }
            )
        )
    for culture, count in unanswered.items():
        made[culture].unanswered = count
        if culture not in asked:
            del made[culture]
    if second and ws.recipe.generator.judge:
        look_again(ws, evidence, made, asked, "judge", calls, budget, progress)
    if second and ws.recipe.generator.again:
        look_again(ws, evidence, made, asked, "again", calls, budget, progress)
    if budget.stopped:
        ws.say(f"stopped before {budget.stopped} would be exceeded; what was written is kept")
    if budget.calls or budget.collected:
        spent = f"${budget.cost:.4f}" if budget.price else "unknown: set generator.price"
        collected = f", {budget.collected} answers collected" if budget.collected else ""
        ws.say(
            f"{budget.calls} calls{collected}, {budget.tokens['input']} tokens in, "
            f"{budget.tokens['output']} out, cost {spent}"
        )
    return made


# -- what is up to date -------------------------------------------------------------------------


def _finish(ws: Workspace, parts: dict[str, dict[str, Any]]) -> None:
    ws.finish(
        "synthesize",
        hash_parts("synthesize", parts, "unanswered"),
        examples={culture: part["examples"] for culture, part in parts.items()},
        quarantined={culture: part["quarantined"] for culture, part in parts.items()},
        cultures=parts,
    )


def _inputs(ws: Workspace, evidence: list[Evidence]) -> str:
    running = {"timeout", "retries", "backoff", "most_at_once", "price", "key_env"}
    return hash_records(
        evidence,
        [culture.model_dump() for culture in ws.recipe.cultures],
        [task.model_dump() for task in ws.recipe.tasks],
        ws.recipe.generator.model_dump(exclude=running),
    )


def _joined(inputs: dict[str, str]) -> str:
    return make_id("synthesize", inputs)
