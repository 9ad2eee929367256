"""What was written, sorted: kept, or left out with the reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cmgr import search
from cmgr.checks import Checks
from cmgr.checks.texts import supports
from cmgr.generators import writing
from cmgr.generators.calls import Budget, Calls
from cmgr.records import Evidence, Example, Record, make_id, now
from cmgr.synthesize.asking import answers
from cmgr.workspace import Progress, Workspace


@dataclass
class Outcome:
    """What came of one culture's share: kept, and left out with the reason; calls not answered."""

    kept: list[Example] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    came: Counter[str] = field(default_factory=Counter)  # by task ("" for broad)
    unanswered: int = 0


def checked(
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
            mine.failed.append(left_out(example, reason))
    return made


def left_out(example: Example, reason: str) -> Record:
    """What quarantine.jsonl keeps of an example."""
    return Record.model_validate(
        {
            **example.model_dump(),
            "id": make_id("quarantine", example.id, reason),
            "example_id": example.id,
            "reason": reason,
            "at": now(),
        }
    )


def yields(mine: Outcome) -> dict[str, dict[str, Any]]:
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


def look_again(
    ws: Workspace,
    evidence: list[Evidence],
    made: dict[str, Outcome],
    asked: set[str],
    kind: Literal["judge", "again"],
    calls: Calls,
    budget: Budget,
    progress: Progress | None,
) -> None:
    """Drop what a judge scores too low, or what the model answers otherwise from its passage.

    Calls are made for the cultures `asked` alone; of the others those that have answers count.
    """
    by_id = {item.id: item for item in evidence}
    looks = {
        e.id: writing.second_look(ws.recipe, kind, e, by_id[e.evidence_ids[0]])
        for mine in made.values()
        for e in mine.kept
    }
    said = answers(ws, list(looks.values()), calls, budget, progress, asked)
    least = ws.recipe.generator.judge or 0
    for mine in made.values():
        kept = []
        for example in mine.kept:
            value = said.get(looks[example.id].key)
            if value is None:
                mine.unanswered += 1
                kept.append(example)
                continue
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
                mine.failed.append(left_out(example, reason))
            else:
                kept.append(example)
        mine.kept = kept
