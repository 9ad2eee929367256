"""What an example must stand before it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmgr.records import Evidence, Example
from cmgr.sources.passages import mentions, word_count

MAX_WORDS = 60
INPUTS = ("question", "options", "place", "topic", "wording", "fact")  # of a task example


def check(
    example: Example, evidence_by_id: Mapping[str, Evidence], culture_names: Sequence[str]
) -> str | None:
    """Why an example is not kept, or None; `culture_names` must not stand in a task answer."""
    if not example.answer.strip():
        return "the answer is empty"
    if not any(m.role == "user" and m.content.strip() for m in example.messages):
        return "the prompt is empty"
    if not example.quote.strip() or not example.evidence_ids:
        return "no evidence is quoted"
    cited = [evidence_by_id.get(i) for i in example.evidence_ids]
    if any(item is None or item.culture != example.culture for item in cited):
        return "the cited evidence is not there, or is another culture's"
    if not any(item and example.quote in item.text for item in cited):
        return "the quote does not stand in the cited evidence"
    words = word_count(example.answer)
    if words > MAX_WORDS:
        return f"the answer has {words} words, more than {MAX_WORDS}"
    return _task_reason(example, culture_names) if example.stage == "task" else None


def _task_reason(example: Example, culture_names: Sequence[str]) -> str | None:
    missing = [key for key in INPUTS if not example.inputs.get(key)]
    if not example.task:
        missing.append("task")
    if missing:
        return f"fields are missing: {', '.join(missing)}"
    if name := mentions(example.answer, culture_names):
        return f"the answer names a culture ({name})"
    options = example.inputs["options"]
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        return "the options are not a list of texts"
    if example.answer not in options:
        return "the answer is not among the options"
    if len(options) < 2 or len({o.casefold().strip() for o in options}) < len(options):
        return "the options are not distinct"
    return None
