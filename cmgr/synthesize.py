"""Stage 2: evidence -> checked examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cmgr import search
from cmgr.checks import Checks, supports
from cmgr.errors import MissingError, UsageError
from cmgr.generators import extractive, imported, llama, openai_batch, openai_compatible, writing
from cmgr.generators.calls import Budget, Calls, price_of, tokens_of
from cmgr.llm import repair
from cmgr.records import Evidence, Example, Record, make_id, now
from cmgr.workspace import Progress, Workspace, hash_parts, hash_records

# for a forecast: tokens of an example, tokens a second of a small model here, seconds a call
SHOWN, TOKENS_A_SECOND, CALL_SECONDS = 150, 100, 8


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


@dataclass
class Outcome:
    """What came of one culture's share: kept, and left out with the reason; calls not answered."""

    kept: list[Example] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    came: Counter[str] = field(default_factory=Counter)  # by task ("" for broad)
    unanswered: int = 0


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

    if recipe.generator.kind == "extractive":
        made = _checked(ws, evidence, list(extractive.generate(recipe, evidence)))
    else:
        budget = Budget(price_of(recipe.generator), max_cost, max_calls)
        requests = _requests(ws, {c.id for c in todo})
        made = _written(ws, evidence, requests, budget, progress)
    quarantined = {getattr(r, "id", "") for r in ws.read("quarantine", Record)}
    for done, culture in enumerate(todo, 1):
        mine = made.get(culture.id, Outcome())
        ws.append("examples", [e for e in mine.kept if e.id not in have])
        bad = mine.failed
        ws.append("quarantine", [r for r in bad if getattr(r, "id", "") not in quarantined])
        parts[culture.id] = {
            "inputs": inputs,
            "ids": [e.id for e in mine.kept],
            "examples": dict(Counter(f"{e.stage}/{e.split}" for e in mine.kept)),
            "quarantined": len(bad),
            "yield": _yields(mine),
            "unanswered": mine.unanswered,
            "imported": parts.get(culture.id, {}).get("imported", []),
        }
        _finish(ws, parts)
        if progress and recipe.generator.kind == "extractive":
            progress(f"synthesize · {culture.name}", done, len(todo))
    if not todo:
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
    made = _written(ws, evidence, requests, budget, progress, look_again=False)
    have = {e.id for e in ws.read("examples", Example)}
    parts = {}
    for culture, mine in made.items():
        ws.append("examples", [e for e in mine.kept if e.id not in have])
        ids = [e.id for e in mine.kept]
        parts[culture] = {"ids": ids, "yield": _yields(mine), "unanswered": mine.unanswered}
    ws.finish(writing.BARE, make_id(writing.BARE, parts), cultures=parts)
    return parts


def _yields(mine: Outcome) -> dict[str, dict[str, Any]]:
    """Per task (broad: for all): how many came, passed, and why the rest did not."""
    kept = Counter(e.task or "broad" for e in mine.kept)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for record in mine.failed:
        value = record.model_dump()
        reasons[value.get("task") or "broad"][value["reason"]] += 1
    return {
        task: {"came": n, "kept": kept[task], "left_out": dict(reasons[task])}
        for task, n in mine.came.items()
    }


def _checked(
    ws: Workspace,
    evidence: list[Evidence],
    examples: Sequence[Example],
    prompts: Sequence[str] = (),
) -> dict[str, Outcome]:
    """The examples that stand every check, and the others with the reason, by culture."""
    checks = Checks(ws.recipe, evidence, search.excluded_items(ws), prompts)
    made: dict[str, Outcome] = defaultdict(Outcome)
    for example in examples:
        mine = made[example.culture]
        mine.came[example.task or "broad"] += 1
        reason = checks.reason(example)
        if reason is None:
            mine.kept.append(example)
        else:
            mine.failed.append(_left_out(example, reason))
    return made


def _left_out(example: Example, reason: str) -> Record:
    return Record.model_validate(
        {
            **example.model_dump(),
            "id": make_id("quarantine", example.id, reason),
            "example_id": example.id,
            "reason": reason,
            "at": now(),
        }
    )


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
                made[row.culture].failed.append(_left_out(row, reason))
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
    return {culture_id: _yields(mine)[task] for culture_id, mine in made.items()}


# -- a model writes -----------------------------------------------------------------------------


def planned(ws: Workspace, cultures: Sequence[str] | None = None) -> list[writing.Request]:
    """The calls that have no answer yet."""
    wanted = {c.id for c in ws.recipe.pick(list(cultures) if cultures else None)}
    calls = calls_of(ws)
    return [r for r in _requests(ws, wanted) if calls.get(r) is None]


def _requests(ws: Workspace, wanted: set[str]) -> list[writing.Request]:
    found = writing.requests(ws.recipe, search.current_evidence(ws))
    return [r for r in found if wanted & {r.culture, r.other}]


def calls_of(ws: Workspace) -> Calls:
    """The answers of models that the workspace keeps."""
    return Calls(ws.path("cache", "calls"))


def _written(
    ws: Workspace,
    evidence: list[Evidence],
    requests: Sequence[writing.Request],
    budget: Budget,
    progress: Progress | None,
    look_again: bool = True,
) -> dict[str, Outcome]:
    calls = calls_of(ws)
    ask(ws, [r for r in requests if calls.get(r) is None], calls, budget, progress)
    examples: list[Example] = []
    malformed: list[tuple[writing.Request, str]] = []
    unanswered: Counter[str] = Counter()
    for request in requests:
        text = calls.get(request)
        if text is None:
            unanswered[request.culture] += 1
            continue
        items = writing.items(text)
        if not items:
            malformed.append((request, "no example in the answer"))
        for item in items:
            try:
                examples += writing.examples(ws.recipe, request, item)
            except writing.MalformedError as error:
                malformed.append((request, f"schema: {error}"))
    system = writing.prompt(ws.recipe.generator, "system", {})
    made = _checked(ws, evidence, examples, [system])
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
    if look_again and ws.recipe.generator.judge:
        _look_again(ws, evidence, made, "judge", calls, budget, progress)
    if look_again and ws.recipe.generator.again:
        _look_again(ws, evidence, made, "again", calls, budget, progress)
    if budget.stopped:
        ws.say(f"stopped before {budget.stopped} would be exceeded; what was written is kept")
    if budget.calls:
        spent = f"${budget.cost:.4f}" if budget.price else "unknown: set generator.price"
        ws.say(
            f"{budget.calls} calls, {budget.tokens['input']} tokens in, "
            f"{budget.tokens['output']} out, cost {spent}"
        )
    return made


def ask(
    ws: Workspace,
    requests: Sequence[writing.Request],
    calls: Calls,
    budget: Budget,
    progress: Progress | None,
) -> None:
    """Make these calls, and tell how far it is and what it costs."""
    if not requests:
        return
    done = 0
    failed: Counter[str] = Counter()
    total = sum(budget.most(r) for r in requests)

    def told(request: writing.Request, reason: str | None) -> None:
        nonlocal done
        done += 1
        if reason:
            failed[reason] += 1
        if progress:
            label = "synthesize"
            if total and budget.price:
                label += f" · ${budget.cost:.2f} of ~${budget.cost / done * len(requests):.2f}"
            if failed:
                label += f" · {failed.total()} errors"
            progress(label, done, len(requests))

    generator = ws.recipe.generator
    if generator.kind == "llama":
        llama.write(generator, ws.folder, requests, calls, budget, told)
    elif generator.kind == "openai_batch":
        state = ws.path("cache", "batch.json")
        openai_batch.write(generator, state, requests, calls, budget, told, ws.say)
    else:
        openai_compatible.write(generator, requests, calls, budget, told)
    if failed:
        ws.say(f"calls without an answer: {_counted(failed)}. Run again to make them.")


def _look_again(
    ws: Workspace,
    evidence: list[Evidence],
    made: dict[str, Outcome],
    kind: Literal["judge", "again"],
    calls: Calls,
    budget: Budget,
    progress: Progress | None,
) -> None:
    """Drop what a judge scores too low, or what the model answers otherwise from its passage."""
    by_id = {item.id: item for item in evidence}
    looks = {
        e.id: writing.second_look(ws.recipe, kind, e, by_id[e.evidence_ids[0]])
        for mine in made.values()
        for e in mine.kept
    }
    ask(ws, [r for r in looks.values() if calls.get(r) is None], calls, budget, progress)
    least = ws.recipe.generator.judge or 0
    for mine in made.values():
        kept = []
        for example in mine.kept:
            text = calls.get(looks[example.id])
            if text is None:
                mine.unanswered += 1
                kept.append(example)
                continue
            value = repair(text)
            value = value if isinstance(value, dict) else {}
            reason = None
            if kind == "judge":
                score = value.get("score")
                score = score if isinstance(score, int) and 1 <= score <= 5 else 0
                example = example.model_copy(update={"judge": score})
                reason = None if score >= least else f"judge: {score} of 5"
            else:
                answer = str(value.get("answer", ""))
                same = answer == example.answer or (
                    not example.inputs.get("options") and supports(answer, example.answer)
                )
                reason = None if same else "another answer from the passage alone"
            if reason:
                mine.failed.append(_left_out(example, reason))
            else:
                kept.append(example)
        mine.kept = kept


def forecast(ws: Workspace, requests: Sequence[writing.Request]) -> dict[str, Any]:
    """What these calls mean, by estimate: tokens, US dollars (None where no price is known)."""
    asked = sum(tokens_of(m.content) for r in requests for m in r.messages)
    each = ws.recipe.generator.per_call * SHOWN
    price = price_of(ws.recipe.generator)
    written = each * len(requests)
    local = ws.recipe.generator.kind == "llama"
    # one after the other here; elsewhere many at once
    seconds = written / TOKENS_A_SECOND if local else CALL_SECONDS * (1 + len(requests) / 32)
    return {
        "calls": len(requests),
        "input_tokens": asked,
        "output_tokens": written,
        "minutes": seconds / 60 if requests else 0.0,
        "cost": (asked * price.input + written * price.output) / 1e6 if price else None,
    }


def _counted(values: Counter[str]) -> str:
    return ", ".join(f"{reason} ({n})" for reason, n in values.most_common())


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
