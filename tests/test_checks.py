"""cmgr/checks/: a good example stands, each fault is named; measured on a set of 400."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr.checks import Checks
from cmgr.checks.texts import stands_in, supports, turned
from cmgr.overlap import Excluded
from cmgr.recipe import Recipe
from cmgr.records import Evidence, Example, Message, make_id

SETS = ("check_set.jsonl", "check_set_2.jsonl")
CULTURES = [
    {
        "id": "japan",
        "name": "Japan",
        "demonym": "Japanese",
        "places": ["Tokyo", "Osaka", "Kyoto"],
        "languages": ["ja"],
    },
    {
        "id": "brazil",
        "name": "Brazil",
        "demonym": "Brazilian",
        "places": ["São Paulo", "Salvador"],
        "languages": ["pt"],
    },
    {
        "id": "germany",
        "name": "Germany",
        "demonym": "German",
        "places": ["Berlin", "Munich"],
        "languages": ["de"],
    },
]
RECIPE = Recipe.model_validate(
    {
        "name": "set",
        "cultures": CULTURES,
        "sources": [{"kind": "documents", "path": "d"}],
        "tasks": [
            {
                "id": "everyday",
                "name": "Everyday",
                "queries": ["q"],
                "wordings": [{"text": "In {place}: {question}"}],
            },
            {
                "id": "advice",
                "name": "Advice",
                "instruction": "Give short advice for the situation.",
                "queries": ["q"],
                "prompt": "{situation}",
                "fields": {"situation": "a situation"},
                "shows": [],
            },
            {
                "id": "label",
                "name": "Usual or not",
                "queries": ["q"],
                "prompt": "Is this usual or unusual in {culture}?\n\n{statement}",
                "fields": {"statement": "a behaviour"},
                "labels": ["usual", "unusual"],
            },
            {
                "id": "choice",
                "name": "Choice",
                "queries": ["q"],
                "prompt": "In {place}: {question}\n{options}",
                "fields": {"question": "a question"},
                "options": 3,
            },
        ],
    }
)


def evidence(i: str, culture: str, text: str, topic: str = "greetings") -> Evidence:
    return Evidence(
        id=i,
        culture=culture,
        query_id="q",
        source="documents",
        url="a.md#b",
        title="T",
        text=text,
        topic=topic,
        retrieved_at="2026-01-01",
        score=1.0,
        sha256="0",
    )


EVIDENCE = [
    evidence("e1", "japan", "In Japan, people bow. They smile. Nobody shakes 2 hands at once."),
    evidence("e2", "brazil", "In Brazil, people hug each other warmly when they meet a friend."),
]
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


def reason(checks: Checks | None = None, **changes: Any) -> str | None:
    checks = checks or Checks(RECIPE, EVIDENCE)
    return checks.reason(Example.model_validate(GOOD | changes))


def test_a_good_example_stands() -> None:
    assert reason() is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"answer": " "}, "answer is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "prompt is empty"),
        ({"culture": "france"}, "no culture france"),
        ({"quote": ""}, "no evidence"),
        ({"evidence_ids": []}, "no evidence"),
        ({"evidence_ids": ["e9"]}, "not there"),
        ({"evidence_ids": ["e2"]}, "another culture's"),
        ({"quote": "In Japan, people wave."}, "quote is not in"),
        ({"task": None}, "fields are missing: task"),
        ({"inputs": INPUTS | {"fact": ""}}, "fields are missing: fact"),
        ({"inputs": INPUTS | {"options": ["People bow."]}}, "not distinct"),
        ({"inputs": INPUTS | {"options": ["People bow.", "people bow. "]}}, "not distinct"),
        ({"inputs": INPUTS | {"options": "People bow."}}, "not a list"),
        ({"answer": "People nod."}, "not among the options"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], part: str) -> None:
    assert part in (reason(**changes) or "")


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("word " * 61, "more than 60 words"),
        ("Japanese people bow.", "names a culture (Japanese)"),
        ("Unlike in Brazil, bow.", "names a culture (Brazil)"),
    ],
)
def test_answers_are_looked_at(answer: str, part: str) -> None:
    inputs = INPUTS | {"options": [answer, "Other."]}
    assert part in (reason(answer=answer, inputs=inputs) or "")


def test_a_broad_example_may_name_its_culture() -> None:
    assert reason(stage="broad", task=None, inputs={}, answer="In Japan, people bow.") is None


def test_what_is_the_same_is_kept_once() -> None:
    checks = Checks(RECIPE, EVIDENCE)
    assert reason(checks) is None
    assert reason(checks, id="y") == "duplicate"
    other = INPUTS | {"options": ["They smile.", "They bow."]}
    assert reason(checks, id="z", inputs=other, answer="They smile.", quote="They smile.") == (
        "the same prompt has another answer"
    )
    two = {"culture": "brazil", "evidence_ids": ["e2"], "quote": "people hug each other warmly"}
    assert reason(checks, **two) == "the same for another culture"


def advice(culture: str, passage: str, situation: str, answer: str) -> dict[str, Any]:
    return {
        **{"id": f"{culture} {situation}", "culture": culture, "task": "advice"},
        "inputs": {"situation": situation, "fact": passage, "language": "en"},
        "messages": [{"role": "user", "content": situation}],
        **{"answer": answer, "evidence_ids": [passage], "generator": "m"},
    }


def test_what_tells_two_cultures_nothing_apart_is_left_out() -> None:
    checks = Checks(RECIPE, EVIDENCE)
    asked = "An old friend comes up to me in the street and smiles at me."
    other = "An old friend comes up to me in the park and smiles at me."
    bow, hug = "In Japan, people bow.", "people hug each other warmly when they meet a friend"
    assert reason(checks, **advice("japan", "e1", asked, "People bow."), quote=bow) is None
    wrong = advice("brazil", "e2", other, "People bow.")
    assert reason(checks, **wrong, quote=hug) in {
        "the quote does not support the answer",
        "the same for another culture",
    }
    right = advice("brazil", "e2", asked, "Hug each other warmly.")
    assert reason(checks, **right, quote=hug) is None  # a contrast
    same = advice("japan", "e1", "A friend of old comes up to me and smiles.", "They smile.")
    assert reason(checks, **same, quote="They smile.") is None
    both = [*EVIDENCE, evidence("e3", "brazil", "In Brazil they smile. That is all.")]
    checks = Checks(RECIPE, both)
    assert reason(checks, **same, quote="They smile.") is None
    again = advice("brazil", "e3", "A friend of old comes up to me and smiles so.", "They smile.")
    assert reason(checks, **again, quote="they smile") == "the same for another culture"


THINGS = [
    f"{verb} {whom}"
    for verb in ("bow", "wave", "sing")
    for whom in ("him", "her", "us", "me", "all")
]


def labelled(generator: str, answers: list[str]) -> list[str | None]:
    checks = Checks(RECIPE, EVIDENCE)
    return [
        reason(
            checks,
            id=thing,
            task="label",
            inputs={"statement": thing, "options": ["usual", "unusual"], "fact": thing},
            answer=answer,
            messages=[{"role": "user", "content": f"Is this usual?\n\n{thing}"}],
            generator=generator,
        )
        for thing, answer in zip(THINGS, answers, strict=True)
    ]


def test_labels_that_a_model_writes_are_balanced_and_those_that_people_bring_are_theirs() -> None:
    skewed = ["usual"] * 13 + ["unusual"] * 2
    assert labelled("llama:x", skewed) == [
        *[None] * 11,
        *["too many of one label"] * 2,
        *[None] * 2,
    ]
    assert labelled("import:posts.csv", skewed) == [None] * 15


def test_an_evaluation_item_is_not_trained() -> None:
    item = Excluded(["how does one greet an elder at the door"])
    checks = Checks(RECIPE, EVIDENCE, item)
    message = {"role": "user", "content": "Osaka: how does one greet an elder at the door of home?"}
    assert reason(checks, messages=[message]) == "evaluation item"


PASSAGE = (
    "In Japan a guest brings a small gift, often food, and hands it over with both hands. It is "
    "not opened at once. A tip of 10 percent is never left."
)


@pytest.mark.parametrize(
    "quote",
    [
        "a guest brings a small gift, often food",
        "A guest brings a small gift, often food.",
        "“a guest brings a small gift’",
        "a guest  brings\na small gift",
        "hands it over with both hands. It is not opened at once",
        "In Japan a guest brings a small gift, often food, and hands it over with hands",
    ],
)
def test_a_quote_may_differ_as_copies_do(quote: str) -> None:
    assert stands_in(quote, PASSAGE)


@pytest.mark.parametrize(
    "quote",
    [
        "a guest brings a large gift, often food",
        "It is opened at once.",
        "It is not opened at once. A tip of percent is never left",
        "A tip of 10 percent is left.",
        "hands both gift a with small",
        "",
        "...",
    ],
)
def test_a_quote_that_says_another_thing_does_not_stand(quote: str) -> None:
    assert not stands_in(quote, PASSAGE)


@given(st.integers(0, 20), st.integers(1, 20))
def test_every_part_of_a_passage_stands_in_it(start: int, size: int) -> None:
    part = PASSAGE.split()[start : start + size]
    assert stands_in(" ".join(part), PASSAGE)


def test_support_and_what_turns_a_sentence() -> None:
    assert supports("A tip is never left.", "No tip is left on the table.")
    assert not supports("A tip is never left.", "Guests bring flowers.")
    assert turned("A tip is left.", "A tip is never left.")
    assert turned("A tip of 15 percent is left", "A tip of 10 percent is left")
    assert not turned("No tip is left.", "A tip is never left.")
    assert not turned("Bring flowers.", "Red roses are never brought.")


# -- the set ------------------------------------------------------------------------------------


def read_set(name: str) -> tuple[list[Evidence], list[tuple[str, bool, Example]]]:
    passages, found = [], []
    for line in Path(__file__).with_name(name).open(encoding="utf-8"):
        row = json.loads(line)
        if "evidence" in row:
            e = row["evidence"]
            passages.append(evidence(e["id"], e["culture"], e["text"], e["topic"]))
            continue
        x = row["example"]
        inputs = {**x["inputs"], "language": x["language"], "fact": (x["evidence_ids"] or ["?"])[0]}
        example = Example(
            id=make_id(len(found), x["prompt"]),
            culture=x["culture"],
            task=x["task"],
            stage="task",
            inputs=inputs,
            answer=x["answer"],
            messages=[Message(role="user", content=x["prompt"])],
            evidence_ids=x["evidence_ids"],
            quote=x["quote"],
            generator="openai_compatible:m",
            created_at="2026-01-01",
        )
        found.append((row["kind"], row["checkable"], example))
    return passages, found


@pytest.mark.parametrize("name", SETS)
def test_the_checks_catch_what_can_be_seen_and_spare_what_is_right(name: str) -> None:
    """Goal of the issue: 95% of the checkable faults, at most 2% false alarms."""
    passages, found = read_set(name)
    half = {"check_set.jsonl": 200, "check_set_2.jsonl": 80}[name]
    assert Counter(kind == "right" for kind, *_ in found) == {True: half, False: half}
    checks = Checks(RECIPE, passages)
    missed: list[tuple[str, str]] = []
    alarms: list[tuple[str, str]] = []
    wrong = 0
    for kind, checkable, example in found:
        told = checks.reason(example)
        if kind == "right" and told:
            alarms.append((told, f"{example.messages[0].content} => {example.answer}"))
        elif kind != "right" and checkable:
            wrong += 1
            if told is None:
                missed.append((kind, f"{example.messages[0].content} => {example.answer}"))
    assert len(missed) <= 0.05 * wrong, missed
    assert len(alarms) <= 0.02 * half, alarms
