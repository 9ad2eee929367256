"""Stage 2: evidence -> checked examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cmgr import search
from cmgr.checks import check
from cmgr.errors import MissingError
from cmgr.generators import extractive
from cmgr.records import Evidence, Example, Record, make_id, now
from cmgr.sources.passages import names_of
from cmgr.workspace import Progress, Workspace, hash_records, read_json


def wanted_inputs(ws: Workspace) -> str:
    """The hash that the stage's manifest has when every culture is up to date."""
    inputs = _inputs(ws, search.current_evidence(ws))
    return _joined({culture.id: inputs for culture in ws.recipe.cultures})


def current_examples(ws: Workspace) -> list[Example]:
    """The examples of the last synthesis, without those a person has rejected."""
    parts = _parts(ws)
    wanted = {i for c in ws.recipe.cultures for i in parts.get(c.id, {}).get("ids", [])}
    found = ws.read("examples", Example) if wanted else []
    return [e for e in found if e.id in wanted and e.review != "rejected"]


def build(
    ws: Workspace,
    force: bool = False,
    progress: Progress | None = None,
    cultures: Sequence[str] | None = None,
) -> bool:
    """Make the examples of these cultures (or all), where out of date; returns whether it was.

    Only new examples are appended; what fails a check goes to quarantine.jsonl, once. Raises
    MissingError where there is no evidence.
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
    parts = {c.id: part for c in recipe.cultures if (part := _parts(ws).get(c.id))}
    todo = [
        c
        for c in wanted
        if force
        or parts.get(c.id, {}).get("inputs") != inputs
        or not have.issuperset(parts[c.id]["ids"])
    ]
    if not todo and ws.is_current("synthesize", _joined_parts(parts)):
        return False

    kept, failed = _checked(ws, evidence)
    quarantined = {getattr(r, "id", "") for r in ws.read("quarantine", Record)}
    for done, culture in enumerate(todo, 1):
        mine = kept.get(culture.id, [])
        ws.append("examples", [e for e in mine if e.id not in have])
        bad = failed.get(culture.id, [])
        ws.append("quarantine", [r for r in bad if getattr(r, "id", "") not in quarantined])
        parts[culture.id] = {
            "inputs": inputs,
            "ids": [e.id for e in mine],
            "examples": dict(Counter(f"{e.stage}/{e.split}" for e in mine)),
            "quarantined": len(bad),
        }
        _finish(ws, parts)
        if progress:
            progress(f"synthesize · {culture.name}", done, len(todo))
    if not todo:
        _finish(ws, parts)
    return bool(todo)


def _checked(
    ws: Workspace, evidence: list[Evidence]
) -> tuple[dict[str, list[Example]], dict[str, list[Record]]]:
    """The examples that stand every check, and the others with the reason, by culture."""
    by_id = {e.id: e for e in evidence}
    names = [name for culture in ws.recipe.cultures for name in names_of(culture)]
    kept: dict[str, list[Example]] = {}
    failed: dict[str, list[Record]] = {}
    seen: set[str] = set()
    for example in extractive.generate(ws.recipe, evidence):
        prompt = [m.model_dump() for m in example.messages]
        same = make_id(example.culture, example.task, prompt, example.answer)
        reason = check(example, by_id, names)
        if reason is None and same in seen:
            reason = "the same prompt and answer as an earlier example"
        if reason is None:
            seen.add(same)
            kept.setdefault(example.culture, []).append(example)
        else:
            record = {
                **example.model_dump(),
                "id": make_id("quarantine", example.id, reason),
                "example_id": example.id,
                "reason": reason,
                "at": now(),
            }
            failed.setdefault(example.culture, []).append(Record.model_validate(record))
    return kept, failed


def _finish(ws: Workspace, parts: dict[str, dict[str, Any]]) -> None:
    ws.finish(
        "synthesize",
        _joined_parts(parts),
        examples={culture: part["examples"] for culture, part in parts.items()},
        quarantined={culture: part["quarantined"] for culture, part in parts.items()},
        cultures=parts,
    )


def _parts(ws: Workspace) -> dict[str, dict[str, Any]]:
    """What the manifest holds per culture."""
    manifest = read_json(ws.manifest_path("synthesize")) or {}
    parts: dict[str, dict[str, Any]] = manifest.get("cultures", {})
    return parts


def _inputs(ws: Workspace, evidence: list[Evidence]) -> str:
    return hash_records(
        evidence,
        [culture.model_dump() for culture in ws.recipe.cultures],
        [task.model_dump() for task in ws.recipe.tasks],
        ws.recipe.generator.model_dump(),
    )


def _joined(inputs: dict[str, str]) -> str:
    return make_id("synthesize", inputs)


def _joined_parts(parts: dict[str, dict[str, Any]]) -> str:
    return _joined({culture: part["inputs"] for culture, part in parts.items()})
