"""cmgr/checks.py: a good example stands, each fault is named."""

from typing import Any

import pytest

from cmgr.checks import check
from cmgr.records import Evidence, Example

EVIDENCE = Evidence(
    id="e1",
    culture="japan",
    query_id="q",
    source="documents",
    url="a.md#b",
    title="Greetings",
    text="In Japan, people bow. They smile.",
    retrieved_at="2026-01-01",
    score=1.0,
    sha256="0",
)
INPUTS = {
    "question": "How?",
    "options": ["People bow.", "People hug."],
    "place": "Osaka",
    "topic": "greetings",
    "wording": "In {place}: {question}",
    "fact": "f",
}
GOOD: dict[str, Any] = {
    "id": "x",
    "culture": "japan",
    "task": "everyday",
    "stage": "task",
    "inputs": INPUTS,
    "answer": "People bow.",
    "messages": [{"role": "user", "content": "In Osaka: How?"}],
    "evidence_ids": ["e1"],
    "quote": "In Japan, people bow.",
    "generator": "extractive",
    "created_at": "2026-01-01",
}
NAMES = ["Japan", "Japanese", "Osaka", "Brazil"]


def reason(**changes: Any) -> str | None:
    return check(Example.model_validate(GOOD | changes), {"e1": EVIDENCE}, NAMES)


def test_a_good_example_stands() -> None:
    assert reason() is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"answer": " "}, "answer is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "prompt is empty"),
        ({"quote": ""}, "no evidence"),
        ({"evidence_ids": []}, "no evidence"),
        ({"evidence_ids": ["e2"]}, "not there"),
        ({"culture": "brazil"}, "another culture's"),
        ({"quote": "In Japan, people wave."}, "quote does not stand"),
        ({"answer": "word " * 61}, "61 words"),
        ({"answer": "Japanese people bow."}, "names a culture (Japanese)"),
        ({"answer": "Unlike in Brazil, bow."}, "names a culture (Brazil)"),
        ({"answer": "People nod."}, "not among the options"),
        ({"task": None}, "fields are missing: task"),
        ({"inputs": INPUTS | {"fact": ""}}, "fields are missing: fact"),
        ({"inputs": INPUTS | {"options": ["People bow."]}}, "not distinct"),
        ({"inputs": INPUTS | {"options": ["People bow.", "people bow. "]}}, "not distinct"),
        ({"inputs": INPUTS | {"options": "People bow."}}, "not a list"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], part: str) -> None:
    assert part in (reason(**changes) or "")


def test_a_broad_example_may_name_its_culture() -> None:
    answer = "In Japan, people bow."
    assert reason(stage="broad", task=None, inputs={}, answer=answer) is None
