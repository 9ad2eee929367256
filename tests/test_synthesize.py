"""cmgr/synthesize/ and the extractive generator: splits, options, balance, re-runs."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from cmgr import search, synthesize
from cmgr.checks import Checks
from cmgr.errors import MissingError
from cmgr.generators import extractive
from cmgr.records import Example, Record
from cmgr.workspace import Workspace, read_json

RECIPE = """
name: small
cultures:
  - {id: japan, name: Japan, demonym: Japanese, places: [Osaka, Kyoto]}
  - {id: brazil, name: Brazil, demonym: Brazilian, places: [Salvador]}
  - {id: germany, name: Germany, demonym: German, places: [Berlin]}
sources: [{kind: documents, path: docs}]
search: {topics: [greetings, home visits]}
tasks:
  - id: everyday
    name: Everyday
    instruction: Answer briefly.
    queries: ["{topic} in {culture}"]
    wordings:
      - {text: "In {place}: {question}"}
      - {text: "I am in {place}. {question}", question: 1}
      - {text: "I moved to {place}. {question}", question: 2, split: wording}
      - {text: "Never: {question}", question: 7, split: wording}
"""
CULTURES = ("japan", "brazil", "germany")
TOPICS = ("greetings", "home-visits")


def section(culture: str, topic: str, number: int) -> str:
    name = culture.capitalize()
    return (
        f"## What about {topic} {number}?\n\n*Also asked: First {topic} {number}? | "
        f"Second {topic} {number}?*\n\n"
        f"In {name}, the {culture[:3]} habit {number} of {topic} is kept. It is old.\n\n"
    )


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for culture in CULTURES:
        folder = tmp_path / "docs" / culture
        folder.mkdir(parents=True)
        for topic in TOPICS:
            body = "".join(section(culture, topic, n) for n in range(5))
            (folder / f"{topic}.md").write_text(f"# {topic} in {culture.capitalize()}\n\n{body}")
    found = Workspace(tmp_path)
    search.build(found)
    return found


def made(ws: Workspace) -> list[Example]:
    synthesize.build(ws)
    return synthesize.current_examples(ws)


def facts(examples: list[Example]) -> dict[str, set[str]]:
    by_split: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        by_split[example.split].add(example.inputs["fact"])
    return by_split


def test_counts_and_prompts(ws: Workspace) -> None:
    examples = made(ws)
    for culture in CULTURES:
        mine = [e for e in examples if e.culture == culture]
        assert Counter((e.stage, e.split) for e in mine) == {
            ("task", "fit"): 16,  # 8 trained facts, 2 wordings
            ("task", "wording"): 8,
            ("task", "fact"): 2,  # one of five per topic, its last wording
            ("broad", "fit"): 12,  # and two pairs of facts per topic
        }
    item = next(e for e in examples if e.stage == "task" and e.culture == "japan")
    place, question = item.inputs["place"], item.inputs["question"]
    assert place in {"Japan", "Osaka", "Kyoto"}
    assert [m.role for m in item.messages] == ["user"]
    prompt = item.messages[0].content
    assert prompt.startswith("Answer briefly.\n\n") and place in prompt and question in prompt
    assert item.quote.startswith("In Japan, the jap habit")
    assert item.answer == item.quote.replace("In Japan, the", "The")
    assert not any(option in prompt for option in item.inputs["options"])
    assert {e.inputs["place"] for e in examples if e.culture == "japan" and e.task} == {
        "Japan",
        "Osaka",
        "Kyoto",
    }


def test_unseen_facts_are_nowhere_trained_and_the_same_for_all_cultures(ws: Workspace) -> None:
    examples = made(ws)
    by_split = facts(examples)
    assert not by_split["fact"] & (by_split["fit"] | by_split["wording"])
    assert by_split["wording"] <= by_split["fit"]
    for culture in CULTURES:
        unseen = facts([e for e in examples if e.culture == culture])["fact"]
        assert unseen == by_split["fact"]
    topics = {e.inputs["fact"]: e.inputs["topic"] for e in examples if e.split == "fact"}
    assert sorted(topics.values()) == sorted(TOPICS)
    trained = " ".join(e.answer for e in examples if e.split == "fit")
    for held in (e for e in examples if e.split == "fact"):
        assert held.answer.removeprefix("The ") not in trained


def test_the_right_answer_stands_equally_often_everywhere(ws: Workspace) -> None:
    places: dict[tuple[str, str | None, str], Counter[int]] = defaultdict(Counter)
    for example in made(ws):
        if example.stage == "task":
            options = example.inputs["options"]
            assert len(options) == len(set(options)) == 3
            places[example.culture, example.task, example.split][options.index(example.answer)] += 1
    assert places
    for count in places.values():
        numbers = [count[p] for p in range(3)]
        assert max(numbers) - min(numbers) <= 1


def test_a_rerun_adds_nothing(ws: Workspace) -> None:
    assert synthesize.build(ws)
    before = ws.path("examples.jsonl").read_bytes()
    assert not synthesize.build(ws)
    assert synthesize.build(ws, force=True)
    assert ws.path("examples.jsonl").read_bytes() == before
    assert ws.is_current("synthesize", synthesize.wanted_inputs(ws))
    manifest = read_json(ws.manifest_path("synthesize")) or {}
    assert manifest["examples"]["japan"]["task/fit"] == 16
    assert not ws.path("quarantine.jsonl").exists()


def test_a_changed_document_replaces_its_examples(ws: Workspace) -> None:
    made(ws)
    path = ws.path("docs", "japan", "greetings.md")
    path.write_text(path.read_text().replace("habit 1", "custom 1"))
    search.build(ws)
    assert not ws.is_current("synthesize", synthesize.wanted_inputs(ws))
    examples = made(ws)
    everything = " ".join(e.model_dump_json() for e in examples)
    assert "jap custom 1 of greetings" in everything
    assert "jap habit 1 of greetings" not in everything
    assert "jap habit 1 of greetings" in ws.path("examples.jsonl").read_text()


def test_damaged_evidence_is_left_out(ws: Workspace) -> None:
    made(ws)
    path = ws.path("evidence.jsonl")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0][:40], *lines[1:]]))
    assert synthesize.build(ws)
    known = {e.id for e in search.current_evidence(ws)}
    assert len(known) == 29
    for example in synthesize.current_examples(ws):
        assert set(example.evidence_ids) <= known


def test_a_damaged_example_is_made_again(ws: Workspace) -> None:
    before = {e.id for e in made(ws)}
    path = ws.path("examples.jsonl")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:-2], lines[-2][:50]]))
    assert len(synthesize.current_examples(ws)) == len(before) - 1
    assert {e.id for e in made(ws)} == before


def test_an_answer_that_names_a_place_becomes_no_task_item(ws: Workspace) -> None:
    path = ws.path("docs", "japan", "greetings.md")
    path.write_text(path.read_text().replace("jap habit", "Osaka habit"))
    search.build(ws)
    examples = made(ws)
    named = [e for e in examples if e.culture == "japan" and e.inputs["topic"] == "greetings"]
    assert {e.stage for e in named} == {"broad"}
    others = [e for e in examples if e.culture == "brazil" and e.inputs["topic"] == "greetings"]
    assert {len(e.inputs["options"]) for e in others if e.stage == "task"} == {2}


def test_a_passage_without_a_match_is_broad_only(ws: Workspace) -> None:
    ws.path("docs", "japan", "greetings.txt").write_text("People greet with a bow. It is old.")
    search.build(ws)
    mine = [e for e in made(ws) if "with a bow" in e.answer]
    assert [(e.stage, e.split, e.answer) for e in mine] == [
        ("broad", "fit", "People greet with a bow. It is old.")
    ]
    prompt = mine[0].messages[0].content
    assert prompt in {f.format(subject="greetings in Japan") + "." for f in extractive.FRAMES}


def test_what_fails_a_check_goes_to_quarantine_once(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(_: Checks, example: Example) -> str | None:
        return "no good" if example.split == "fact" else None

    monkeypatch.setattr(Checks, "reason", reason)
    examples = made(ws)
    synthesize.build(ws, force=True)
    assert all(e.split != "fact" for e in examples)
    bad = [r.model_dump() for r in ws.read("quarantine", Record)]
    assert len(bad) == 6
    assert {r["reason"] for r in bad} == {"no good"}
    assert len(ws.path("quarantine.jsonl").read_text().splitlines()) == 6


def test_one_culture_at_a_time(ws: Workspace) -> None:
    assert synthesize.build(ws, cultures=["japan"])
    assert {e.culture for e in synthesize.current_examples(ws)} == {"japan"}
    assert not ws.is_current("synthesize", synthesize.wanted_inputs(ws))
    assert synthesize.build(ws)
    assert {e.culture for e in synthesize.current_examples(ws)} == set(CULTURES)


def test_a_rejected_example_is_not_used(ws: Workspace) -> None:
    examples = made(ws)
    ws.append("examples", [examples[0].model_copy(update={"review": "rejected"})])
    assert not synthesize.build(ws)
    assert examples[0].id not in {e.id for e in synthesize.current_examples(ws)}


def test_without_evidence_search_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(MissingError, match="cmgr search"):
        synthesize.build(Workspace(tmp_path))


def test_every_fact_of_the_quickstart_has_three_options(tmp_path: Path) -> None:
    ws, _ = Workspace.init("quickstart", tmp_path / "quickstart")
    search.build(ws)
    evidence = search.current_evidence(ws)
    examples = made(ws)
    assert not ws.path("quarantine.jsonl").exists()
    used = {(e.culture, e.inputs["fact"]) for e in examples if e.stage == "task"}
    assert len(used) == len(evidence)
    for example in examples:
        if example.stage == "task":
            assert len(set(example.inputs["options"])) == 3, example.inputs["question"]
    for culture in ws.recipe.cultures:
        for split in ("wording", "fact"):
            held = [e for e in examples if e.culture == culture.id and e.split == split]
            assert len(held) >= getattr(ws.recipe.evaluate, f"{split}s")


def test_an_item_of_two_hops_needs_both_its_passages(ws: Workspace) -> None:
    examples = made(ws)
    evidence = {e.id: e for e in search.current_evidence(ws)}
    two = [e for e in examples if len(e.evidence_ids) == 2]
    assert Counter(e.culture for e in two) == {culture: 4 for culture in CULTURES}
    unseen = facts(examples)["fact"]
    for example in two:
        first, second = (evidence[i] for i in example.evidence_ids)
        assert first.heading in example.messages[0].content
        assert second.heading in example.messages[0].content
        assert first.text.split(". ")[0] in example.answer
        assert second.text.split(". ")[0] in example.answer
        assert not {extractive.fact_of(first), extractive.fact_of(second)} & unseen
    frames = {e.messages[0].content.split(" greetings")[0] for e in examples if e.stage == "broad"}
    assert len(frames) > 3


def test_of_many_answers_the_nearest_are_the_wrong_options(tmp_path: Path) -> None:
    names = ["japan", "brazil", "germany", "kenya", "india", "france"]
    answers = {
        "japan": "people bow deeply to an elder",
        "brazil": "people hug warmly and at once",
        "germany": "people bow slightly to an elder",
        "kenya": "a long handshake is given",
        "india": "people bow to an old person",
        "france": "people bow to an elder and kiss",
    }
    cultures = "".join(f"  - {{id: {n}, name: {n.capitalize()}}}\n" for n in names)
    head = RECIPE.index("  - {id: japan"), RECIPE.index("sources:")
    (tmp_path / "recipe.yaml").write_text(RECIPE[: head[0]] + cultures + RECIPE[head[1] :])
    for name, answer in answers.items():
        (tmp_path / "docs" / name).mkdir(parents=True)
        text = f"# Greetings\n\n## How do people greet?\n\nIn {name.capitalize()}, {answer}.\n"
        (tmp_path / "docs" / name / "greetings.md").write_text(text)
    found = Workspace(tmp_path)
    search.build(found)
    item = next(e for e in made(found) if e.culture == "japan" and e.stage == "task")
    wrong = set(item.inputs["options"]) - {item.answer}
    assert len(wrong) == extractive.MOST - 1
    assert not any("handshake" in option or "hug" in option for option in wrong)
