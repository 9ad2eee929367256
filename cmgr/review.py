"""Accept, edit, reject: what people say of examples, and what it says of those not looked at."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmgr.checks import Checks, answer_text
from cmgr.checks.texts import support
from cmgr.errors import MissingError, UsageError
from cmgr.records import Evidence, Example, Record, make_id, now
from cmgr.search import current_evidence
from cmgr.stats import kappa, wilson
from cmgr.synthesize import all_examples
from cmgr.workspace import Workspace, write_atomic

Verdict = Literal["accepted", "edited", "rejected", "pending"]
COLUMNS = (
    *("id", "culture", "task", "drawn", "prompt", "answer", "quote", "passage", "url", "judge"),
    *("verdict", "reason", "new_prompt", "new_answer"),
)
WORDS: dict[str, Verdict] = {
    **{"accept": "accepted", "accepted": "accepted", "a": "accepted", "ok": "accepted"},
    **{"reject": "rejected", "rejected": "rejected", "r": "rejected"},
    **{"edit": "edited", "edited": "edited", "e": "edited"},
}


How = Literal["random", "risk", "sheet"]


class Review(Record):
    """One verdict of one person; `how` says whether the example was drawn at random or by risk.

    `sheet`: by a sheet that does not say how. The last verdict of a person on an example counts;
    `pending` takes one back.
    """

    id: str
    example_id: str
    reviewer: str
    verdict: Verdict
    how: How
    reason: str = ""
    at: str


@dataclass(frozen=True)
class Item:
    """An example with the passage it rests on, and how risky it looks (0 to 1)."""

    example: Example
    passage: Evidence | None
    risk: float


def items(ws: Workspace, cultures: Sequence[str] | None = None) -> list[Item]:
    """Every example of the last synthesis, rejected ones too. Raises MissingError for none."""
    passages = {e.id: e for e in current_evidence(ws)}
    found = [
        Item(e, passages.get(e.evidence_ids[0]) if e.evidence_ids else None, risk(e))
        for e in all_examples(ws, cultures)
    ]
    if not found:
        raise MissingError("no examples to review. Make some: cmgr synthesize")
    return found


def risk(example: Example) -> float:
    """How likely an example is at fault, by what needs no judgement: 0 to 1.

    A judge's low score, an answer that shares little with its quote, a quote of a few words.
    """
    language = str(example.inputs.get("language", "en"))
    shared = support(example.quote, answer_text(example), language)
    judged = 0.5 if example.judge is None else (5 - example.judge) / 4
    short = 1.0 if len(example.quote.split()) < 5 else 0.0
    return round(0.5 * (1 - shared) + 0.35 * judged + 0.15 * short, 4)


def queue(
    found: Iterable[Item],
    done: Mapping[str, Verdict],
    how: Literal["random", "risk"],
    sample: int | None,
    seed: int = 1,
) -> list[Item]:
    """What a person is to look at: not seen by them yet, in this order, so many.

    A random sample is the same for every reviewer, so that two can be compared.
    """
    ordered = sorted(found, key=lambda item: item.example.id)
    if how == "risk":
        ordered.sort(key=lambda item: -item.risk)
    else:
        random.Random(seed).shuffle(ordered)
    return [item for item in ordered[:sample] if done.get(item.example.id, "pending") == "pending"]


def verdicts(ws: Workspace) -> dict[str, dict[str, Review]]:
    """The verdicts that count: reviewer -> example -> review."""
    found: dict[str, dict[str, Review]] = defaultdict(dict)
    for review in ws.read("reviews", Review):
        found[review.reviewer][review.example_id] = review
    return found


def of_reviewer(ws: Workspace, reviewer: str) -> dict[str, Verdict]:
    """A person's verdict by example."""
    return {i: review.verdict for i, review in verdicts(ws).get(reviewer, {}).items()}


def give(
    ws: Workspace,
    example: Example,
    verdict: Verdict,
    reviewer: str,
    how: How,
    reason: str = "",
) -> None:
    """Keep a verdict, and the example as it is now; both are on disk on return."""
    at = now()
    review = Review(
        id=make_id("review", example.id, reviewer, verdict, at, reason),
        example_id=example.id,
        reviewer=reviewer,
        verdict=verdict,
        how=how,
        reason=reason,
        at=at,
    )
    ws.append("reviews", [review])
    changed = example.model_copy(update={"review": verdict, "reviewer": reviewer, "reason": reason})
    ws.append("examples", [changed])


def edited(ws: Workspace, example: Example, prompt: str, answer: str) -> Example:
    """An example in other words. Raises UsageError that says which check it does not stand."""
    messages = [m.model_copy() for m in example.messages]
    messages[-1] = messages[-1].model_copy(update={"content": prompt.strip()})
    changed = example.model_copy(update={"messages": messages, "answer": answer.strip()})
    reason = Checks(ws.recipe, current_evidence(ws)).of_itself(changed)
    if reason:
        raise UsageError(f"not as edited: {reason}")
    return changed


# -- what it says -------------------------------------------------------------------------------


def agreement(ws: Workspace) -> list[dict[str, Any]]:
    """For each two people who looked at the same examples: how many, and Cohen's kappa."""
    found = verdicts(ws)
    names = sorted(found)
    rows = []
    for n, one in enumerate(names):
        for two in names[n + 1 :]:
            both = sorted(
                i
                for i in found[one].keys() & found[two].keys()
                if "pending" not in (found[one][i].verdict, found[two][i].verdict)
            )
            if both:
                first, second = ([found[name][i].verdict for i in both] for name in (one, two))
                same = sum(a == b for a, b in zip(first, second, strict=True))
                rows.append(
                    {
                        "reviewers": [one, two],
                        "examples": len(both),
                        "agreed": same / len(both),
                        "kappa": kappa(first, second),
                    }
                )
    return rows


def error_rate(ws: Workspace, examples: Iterable[Example]) -> dict[str, Any] | None:
    """The share of faulty ones among those nobody has looked at, from those drawn at random.

    Edited and rejected ones were faulty; the last verdict on each counts, also where another
    person, for whom it was not drawn at random, has given it. Where none was drawn at random, those
    chosen by risk serve, and the share is thought too high. None where nobody has looked.
    """
    ids = {e.id for e in examples}
    last: dict[str, Review] = {}
    drawn_at_random: set[str] = set()
    for of in verdicts(ws).values():
        for i, review in of.items():
            if i not in ids or review.verdict == "pending":
                continue
            if review.how == "random":
                drawn_at_random.add(i)
            if i not in last or last[i].at <= review.at:
                last[i] = review
    drawn = [last[i] for i in sorted(drawn_at_random)] or list(last.values())
    if not drawn:
        return None
    faulty = sum(r.verdict != "accepted" for r in drawn)
    low, high = wilson(faulty, len(drawn))
    return {
        "reviewed": len(last),
        "unreviewed": len(ids) - len(last),
        "random": bool(drawn_at_random),
        "sample": len(drawn),
        "error_rate": faulty / len(drawn),
        "interval": [low, high],
    }


def told(rate: dict[str, Any] | None) -> str:
    """An estimated error rate in words."""
    if rate is None:
        return "not known"
    low, high = rate["interval"]
    return f"{'' if rate['random'] else 'at most '}{rate['error_rate']:.0%} [{low:.0%}, {high:.0%}]"


# -- sheets -------------------------------------------------------------------------------------


def export(found: Sequence[Item], path: Path, how: Literal["random", "risk"] | None = None) -> None:
    """Write a sheet (CSV, UTF-8) with empty columns for verdict, reason and new wording.

    `how` the examples were drawn goes with them, so that the verdicts on a random sample say
    something of the rest.
    """
    import io

    text = io.StringIO()
    sheet = csv.DictWriter(text, COLUMNS)
    sheet.writeheader()
    for item in found:
        example, passage = item.example, item.passage
        sheet.writerow(
            {
                "id": example.id,
                "culture": example.culture,
                "task": example.task or "broad",
                "drawn": how or "",
                "prompt": _cell(example.messages[-1].content),
                "answer": _cell(example.answer),
                "quote": _cell(example.quote),
                "passage": _cell(passage.text if passage else ""),
                "url": passage.url if passage else "",
                "judge": example.judge if example.judge is not None else "",
                "verdict": "" if example.review == "pending" else example.review,
                "reason": example.reason,
            }
        )
    # a byte order mark: spreadsheets take the file for UTF-8
    write_atomic(path, b"\xef\xbb\xbf" + text.getvalue().encode())


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: a page's text may begin with `=`."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


def read_sheet(ws: Workspace, path: Path, reviewer: str) -> dict[str, int]:
    """Take the verdicts of a sheet; returns how many of each. Nothing is taken of a bad sheet.

    Raises MissingError, and UsageError that names the row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MissingError(
            f"{path}: no such sheet. Make one: cmgr review --export {path}"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}. Save it as CSV in UTF-8.") from None
    if rows and not {"id", "verdict"} <= set(rows[0]):
        raise UsageError(f"{path}: a sheet has the columns id and verdict; see --export")
    known = {item.example.id: item.example for item in items(ws)}
    taken: list[tuple[Example, Verdict, How, str]] = []
    empty = 0
    for number, row in enumerate(rows, 2):
        word = (row.get("verdict") or "").strip().lower()
        drawn = (row.get("drawn") or "").strip().lower()
        how: How = "random" if drawn == "random" else "risk" if drawn == "risk" else "sheet"
        if not word:
            empty += how == "random"
            continue
        example = known.get(row["id"])
        if example is None:
            raise UsageError(f"{path}, row {number}: no example {row['id']!r} in this workspace")
        if word not in WORDS:
            raise UsageError(f"{path}, row {number}: verdict {word!r}: accept, edit or reject")
        verdict = WORDS[word]
        if verdict == "edited":
            prompt = row.get("new_prompt") or example.messages[-1].content
            try:
                example = edited(ws, example, prompt, row.get("new_answer") or example.answer)
            except UsageError as error:
                raise UsageError(f"{path}, row {number}: {error}") from None
        taken.append((example, verdict, how, row.get("reason") or ""))
    if empty and any(how == "random" for _, _, how, _ in taken):
        ws.say(
            f"{path}: {empty} examples of the random sample have no verdict. The error rate takes "
            "it that chance left them out"
        )
    before = of_reviewer(ws, reviewer)
    counts: dict[str, int] = defaultdict(int)
    for example, verdict, how, reason in taken:
        if verdict == "edited" or before.get(example.id) != verdict:
            give(ws, example, verdict, reviewer, how, reason)
            counts[verdict] += 1
    return dict(counts)
