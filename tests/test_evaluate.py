"""cmgr/evaluate: the right prompt under the right adapter, computed once, and counted rightly."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CULTURES, cmgr, write_recipe
from hypothesis import given
from hypothesis import strategies as st
from model_server import ModelServer
from sklearn.metrics import f1_score

from cmgr import evaluate
from cmgr.base import resolve
from cmgr.errors import MissingError, UsageError
from cmgr.evaluate import bounds, free, items, tables
from cmgr.evaluate.baselines import Baselines
from cmgr.evaluate.methods import METHODS, Methods
from cmgr.evaluate.scores import PROMPTS, Question, Score, Scores
from cmgr.evaluate.tables import ALL, CONTESTED, Result
from cmgr.recipe import Generator
from cmgr.records import Example, Message
from cmgr.runtime.batch import Batch, Job
from cmgr.runtime.llama import Model
from cmgr.stats import grouped_wilson, sign_flip
from cmgr.synthesize import current_examples
from cmgr.tasks import Task
from cmgr.workspace import Workspace

model = pytest.mark.model
LABELS = ["yes", "no"]
POSTS = ["a post on buses", "a post on tea", "a post on rain", "a post on shoes", "a post on cats"]


def result(number: int, culture: str = "japan", split: str = "test", **said: str) -> Result:
    return Result(
        id=str(number),
        culture=culture,
        task="hate",
        split=split,
        group=f"g{number % 7}",
        contested=number % 2 == 0,
        answer="yes",
        labels=LABELS,
        routed_to=culture if said.get("routed") != "no" else None,
        probability=0.9,
        said=said,
        right={method: text == "yes" for method, text in said.items()},
    )


WORD = st.sampled_from(LABELS)
SAID = st.fixed_dictionaries({m: WORD for m in ("base", "prompt", "routed", "oracle")})
RESULTS = st.lists(st.tuples(st.sampled_from(sorted(CULTURES)), SAID), min_size=1, max_size=30).map(
    lambda rows: [result(n, culture, **said) for n, (culture, said) in enumerate(rows)]
)


# -- figures ------------------------------------------------------------------------------------


@given(RESULTS)
def test_a_table_counts_what_was_said(results: list[Result]) -> None:
    methods = ["base", "prompt", "routed", "oracle"]
    rows = {(r["culture"], r["split"], r["method"]): r for r in tables.scores(results, methods, 1)}
    for culture in {r.culture for r in results} | {ALL}:
        mine = [r for r in results if culture in (r.culture, ALL)]
        for method in methods:
            row = rows[culture, "test", method]
            said = [r.said[method] for r in mine]
            right = said.count("yes")
            assert (row["n"], row["right"]) == (len(mine), right)
            assert row["accuracy"] == pytest.approx(right / len(mine))
            rights = [text == "yes" for text in said]
            assert row["interval"] == grouped_wilson(rights, [r.group for r in mine])
            known = f1_score(["yes"] * len(mine), said, average="macro", zero_division=0)
            assert row["macro_f1"] == pytest.approx(known)
            low, high = row["macro_f1_interval"]
            assert 0 <= low <= high <= 1
    contested = [r for r in results if r.contested]
    for method in methods if contested else []:
        assert rows[ALL, CONTESTED, method]["n"] == len(contested)


@given(RESULTS)
def test_pairs_are_of_the_same_items(results: list[Result]) -> None:
    rows = [r for r in tables.paired(results, ["prompt", "routed"], 1) if r["split"] == "test"]
    assert [r["against"] for r in rows] == ["prompt"]
    wins = sum(r.right["routed"] and not r.right["prompt"] for r in results)
    losses = sum(r.right["prompt"] and not r.right["routed"] for r in results)
    assert (rows[0]["wins"], rows[0]["losses"]) == (wins, losses)
    gaps = [r.right["routed"] - r.right["prompt"] for r in results]
    assert rows[0]["p"] == sign_flip(gaps, [r.group for r in results])
    assert rows[0]["difference"] == pytest.approx((wins - losses) / len(results))
    low, high = rows[0]["interval"]
    assert low - 1e-6 <= high


def test_what_the_routers_errors_cost() -> None:
    results = [
        result(0, oracle="yes", routed="no"),
        result(1, oracle="yes", routed="yes"),
        result(2, "brazil", oracle="no", routed="no"),
        result(3, "brazil", oracle="yes", routed="yes"),
    ]
    rows = {(r["culture"], r["split"]): r for r in tables.router(results, ["oracle", "routed"], 1)}
    assert rows[ALL, "test"]["cost"] == pytest.approx(0.25)
    assert (rows[ALL, "test"]["accuracy"], rows[ALL, "test"]["abstained"]) == (0.5, 0.5)
    assert rows["brazil", "test"]["accuracy"] == 0.5
    assert "cost" not in rows["brazil", "test"]


def test_interference_is_per_adapter_and_culture() -> None:
    results = [result(n, culture, base="yes") for n, culture in enumerate(["japan", "brazil"] * 2)]
    for r in results:
        r.under = {"japan": r.culture == "japan", "brazil": True}
    found = {(r["adapter"], r["culture"]): r["accuracy"] for r in tables.interference(results)}
    assert found == {
        ("japan", "japan"): 1.0,
        ("japan", "brazil"): 0.0,
        ("brazil", "japan"): 1.0,
        ("brazil", "brazil"): 1.0,
    }


def test_tables_for_spreadsheets_and_papers() -> None:
    results = [result(n, base="no", routed="yes") for n in range(4)]
    for r in results:
        r.task = "50% & more_|x"
    rows = list(tables.scores(results, ["base", "routed"], 1))
    found = list(csv.DictReader(io.StringIO(tables.csv(rows))))
    assert [(r["method"], r["accuracy"], r["n"]) for r in found if r["culture"] == ALL][:2] == [
        ("base", "0.0", "4"),
        ("routed", "1.0", "4"),
    ]
    markdown = tables.markdown(rows, ["base", "routed"])
    assert r"| 50% & more_\|x | test | all | 4 |" in markdown
    assert "**1.00** [0.51, 1.00]" in markdown and "0.00 [0.00, 0.49]" in markdown
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()}) == 1
    latex = tables.latex(rows, ["base", "routed"])
    assert r"50\% \& more\_|x & test & all & 4 & 0.00" in latex
    assert r"\textbf{1.00} [0.51, 1.00] \\" in latex


def freely(number: int, split: str, base: bool, routed: bool, covered: bool = True) -> Result:
    """An item with options that was asked freely too, with passages."""
    method = "routed+evidence"
    made = result(number, split=split, base="no", routed="yes", **{method: "yes"})
    made.answers = {"base": "Text.", method: "Text."}
    made.answered = {"base": base, method: routed}
    made.flaws = {} if routed else {method: "repetition"}
    made.passages, made.words = {method: covered}, {method: covered}
    return made


def test_free_answers_are_the_verdict_and_stand_beside_the_options() -> None:
    results = [
        *(freely(n, "wording", base=n < 1, routed=n < 9) for n in range(10)),
        *(freely(n, "fact", False, routed=n < 3, covered=n < 2) for n in range(4)),
    ]
    methods = ["base", "routed", "routed+evidence"]
    rows = [*tables.scores(results, methods, 1), *tables.coverage(results, methods)]
    assert tables.verdict(rows) == (
        "Free answers right: other wordings 9 of 10 (base 1); facts never trained 3 of 4 (base 0)"
    )
    heads, cells = tables.overview(rows)
    assert [h.split("\n")[:2] for h in heads[1:]] == [
        ["wording", "answers"],
        ["wording", "options"],
        ["unseen", "answers"],
        ["unseen", "options"],
    ]
    assert cells == [
        ["base", "0.10", "0.00", "0.00", "0.00"],
        ["routed", "", "1.00", "", "1.00"],
        ["routed+evidence", "0.90", "1.00", "0.75", "1.00"],
    ]
    scored = {(r["split"], r["method"]): r for r in rows if r["kind"] == "score"}
    assert scored["wording", "routed+evidence"]["sound"] == pytest.approx(0.9)
    covered = {r["split"]: r for r in rows if r["kind"] == "coverage"}
    assert covered["fact"]["passage"] == 0.5 and covered["fact"]["right_with"] == 1.0
    assert covered["fact"]["right_without"] == 0.5 and covered["wording"]["right_without"] is None
    pairs = {
        (r["split"], r["what"], r["against"]): r["difference"]
        for r in tables.paired(results, methods, 1)
        if r["method"] == "routed+evidence"
    }
    assert pairs["wording", "answers", "base"] == pytest.approx(0.8)
    assert ("wording", "answers", "routed") not in pairs  # it was not asked freely
    assert pairs["wording", "options", "routed"] == 0


def test_a_verdict_without_free_answers_or_a_routed_method() -> None:
    results = [result(n, base="no", routed="yes") for n in range(4)]
    rows = list(tables.scores(results, ["base", "routed"], 1))
    assert tables.verdict(rows) == "Answers right: items 4 of 4 (base 0)"
    assert tables.verdict(list(tables.scores(results, ["base"], 1))) == ""


def test_a_gain_is_one_above_the_best_of_the_others_with_the_items_it_would_take() -> None:
    said = [
        {"base": "no", "shared": "yes" if n < 20 else "no", "words": "yes" if n < 24 else "no"}
        for n in range(50)
    ]
    results = [
        result(n, routed="yes" if 4 <= n < 30 else "no", oracle="yes", **one)
        for n, one in enumerate(said)
    ]
    methods = ["base", "shared", "routed", "oracle", "words"]
    rows = [*tables.scores(results, methods, 1), *tables.paired(results, methods, 1)]
    assert tables.verdict(rows) == "Answers right: items 26 of 50 (base 0, words 24)"
    (line,) = tables.gains(rows)
    assert line.startswith(
        "test: routed 0.520, the best of the others words 0.480: +0.040, p 0.625; "
        "50 items cannot tell this from chance, about "
    )
    needed = next(
        r["needed"]
        for r in rows
        if r["kind"] == "paired" and (r["method"], r["against"]) == ("routed", "words")
    )
    assert line.endswith(f"about {needed:,} could") and needed > 50
    clear = [result(n, base="no", routed="yes" if n < 30 else "no") for n in range(50)]
    rows = [
        *tables.scores(clear, ["base", "routed"], 1),
        *tables.paired(clear, ["base", "routed"], 1),
    ]
    assert tables.gains(rows) == [
        "test: routed 0.600, the best of the others base 0.000: +0.600, p 0.016"
    ]
    assert tables.gains(list(tables.scores(clear, ["base", "routed"], 1))) == []


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("No tip is left, and money on the table is handed back.", True),
        ("People leave no tip.", True),
        ("In Japan no tip is left.", True),
        ("People round the bill up and say the total.", False),
        ("Ten percent stand on the bill already.", False),
        ("Tip.", False),
        ("", False),
    ],
)
def test_an_answer_in_own_words_is_nearest_the_right_one(said: str, right: bool) -> None:
    gold = "No tip is left, and money on the table is handed back"
    others = ["People round the bill up and say the total", "Ten percent stand on the bill"]
    if said == "People leave no tip.":
        gold = "People leave no tip at all"
    assert free.is_right(said, [gold], others) == right
    assert free.token_f1(gold, gold) == 1 and free.token_f1("", gold) == 0


@pytest.mark.parametrize(
    ("said", "flaw"),
    [
        ("People bow, and a deeper bow shows more respect.", ""),
        ("Yes. No.", ""),
        ("", "empty"),
        ("...", "empty"),
        ("People bow. People bow.", "repetition"),
        ("they bow and they bow and they bow and they bow and they bow", "repetition"),
        ("Man verbeugt sich vor den Gästen und gibt ihnen nicht die Hand.", "another language"),
    ],
)
def test_what_is_wrong_with_an_answer_as_a_text(said: str, flaw: str) -> None:
    assert free.flaw(said, "People bow to each other when they meet at work.") == flaw


# -- bounds -------------------------------------------------------------------------------------


def own_results() -> list[Result]:
    """A small model after training: right on what was trained, in any words, and on no new fact."""
    return [
        result(n, split=split, base="no", routed="no" if split == "fact" else "yes")
        for n, split in enumerate(["fit", "wording", "fact"] * 4)
    ]


def test_a_bound_is_on_other_wordings_unless_it_names_a_split() -> None:
    rows = list(tables.scores(own_results(), ["base", "routed"], 1))
    (usual,) = bounds.check(rows, [bounds.parse("routed.accuracy=0.7")])
    assert usual.holds and "hate, wording: other wordings of trained facts, n 4" in usual.text
    for split, holds in (("fit", True), ("wording", True), ("fact", False)):
        (one,) = bounds.check(rows, [bounds.parse(f"routed.macro_f1@{split}=0.5")])
        assert one.holds == holds and f"hate, {split}" in one.text
    assert not bounds.check(rows, [bounds.parse("base.accuracy=.1")])[0].holds
    of_file = [result(n, base="yes") for n in range(4)]
    rows = list(tables.scores(of_file, ["base"], 1))
    (one,) = bounds.check(rows, [bounds.parse("base.accuracy=1")])
    assert one.holds and "hate, test" in one.text
    (one,) = bounds.check(rows, [bounds.parse("base.accuracy@contested=1.0")])
    assert one.holds and "contested" in one.text


def test_a_bound_is_on_each_task_and_on_all() -> None:
    results = own_results() + [r.model_copy(update={"task": "other"}) for r in own_results()[2::3]]
    rows = list(tables.scores(results, ["routed"], 1))
    found = bounds.check(rows, [bounds.parse("routed.accuracy=0.7")])
    assert [(c.holds, re.findall(r"\((\w+), (\w+)", c.text)[0]) for c in found] == [
        (True, ("hate", "wording")),
        (False, ("other", "fact")),
        (True, ("all", "wording")),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("routed", "METHOD.accuracy=X"),
        ("routed.accuracy", "METHOD.accuracy=X"),
        ("routed.accuracy=x", "METHOD.accuracy=X"),
        ("routd.accuracy=0.7", "no method routd: there are base, prompt, few-shot, shared"),
        ("routed.f1=0.7", "no metric f1: there are accuracy, macro_f1"),
        ("routed.accuracy@facts=0.7", "no split facts: there are fit, wording, fact, test, contes"),
        ("routed.accuracy=70", "70 is above 1"),
    ],
)
def test_a_wrong_bound_names_what_there_is(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        bounds.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("oracle.accuracy=0.7", "of the method oracle, only of base, routed"),
        ("routed.macro_f1=0.7", "no macro_f1 of routed, only accuracy"),
        ("routed.accuracy@test=0.7", "of the split test, only of fit, wording, fact"),
    ],
)
def test_a_bound_on_what_was_not_asked_says_what_was(text: str, told: str) -> None:
    results = [r.model_copy(update={"labels": []}) for r in own_results()]
    for r in results:
        r.contested = False
    rows = list(tables.scores(results, ["base", "routed"], 1))
    with pytest.raises(MissingError, match=re.escape(told)):
        bounds.check(rows, [bounds.parse(text)])


# -- free answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "accepted", "right"),
    [
        ("The kimchi.", ["Kimchi"], True),
        ("People there eat KIMCHI, mostly", ["rice", "kimchi"], True),
        ("Kimchee", ["kimchi"], False),
        ("scarf", ["car"], False),
        ("12", ["1"], False),
        ("\uff11\uff12 o'clock", ["12"], True),
        ("お雑煮です", ["雑煮"], True),
        ("anything", ["the", "..."], False),
        ("", ["rice"], False),
    ],
)
def test_a_free_answer_matches(said: str, accepted: list[str], right: bool) -> None:
    assert free.matches(said, accepted) == right


@given(st.text(max_size=30), st.text(max_size=30))
def test_an_answer_matches_itself_in_other_words(answer: str, around: str) -> None:
    if not re.search(r"\w", answer):
        return
    assert free.matches(answer, [answer])
    assert free.matches(f"{around} {answer} {around}", [answer])


# -- items --------------------------------------------------------------------------------------


def hate_rows() -> list[dict[str, Any]]:
    """Five posts for three cultures; of two the right label depends on the culture."""
    return [
        {
            "id": f"post-{n}",
            "text": text,
            "culture": culture,
            "answer": "yes" if n % 2 == 0 or (n == 1 and culture == "japan") else "no",
        }
        for n, text in enumerate(POSTS)
        for culture in CULTURES
    ]


HATE: dict[str, Any] = {
    "id": "hate",
    "name": "Hate",
    "queries": ["slurs in {culture}"],
    "prompt": "Post: {text}\nIs it hateful in {culture}? Answer yes or no.",
    "fields": {"text": "a post"},
    "labels": LABELS,
    "shows": ["culture", "answer"],
}


def rows_file(folder: Path, rows: list[dict[str, Any]], name: str = "posts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace with a labelled task, nothing made in it."""
    (tmp_path / "source").mkdir()
    path = write_recipe(tmp_path / "source")
    recipe = yaml.safe_load(path.read_text())
    recipe["tasks"].append(HATE)
    path.write_text(yaml.safe_dump(recipe))
    return Workspace.init(str(path), tmp_path / "ws")[0]


def test_rows_become_items(ws: Workspace, tmp_path: Path) -> None:
    rows = [
        *hate_rows(),
        {"id": "x", "text": "Elsewhere", "culture": "France", "answer": "yes"},
        {"id": "y", "text": "Of no label", "culture": "japan", "answer": "perhaps"},
        {"id": "z", "text": "Without", "culture": "japan", "answer": ""},
    ]
    task = items.task_named(ws.recipe, "hate")
    found, left_out = items.of_file(ws.recipe, task, rows_file(tmp_path, rows), "table")
    assert len(found) == 15
    assert sum(left_out.values()) == 3
    assert any("France" in why for why in left_out) and any("perhaps" in why for why in left_out)
    one = next(i for i in found if i.culture == "brazil" and i.group == "post-1")
    assert one.messages[0].content == (
        "Post: a post on tea\nIs it hateful in Brazil? Answer yes or no."
    )
    assert (one.answer, one.options, one.labels, one.split) == ("no", LABELS, LABELS, "test")
    assert {i.group for i in found if i.contested} == {"post-1"}
    again, _ = items.of_file(ws.recipe, task, rows_file(tmp_path, rows[::-1]), "table")
    assert {i.id for i in again} == {i.id for i in found}
    only, left_out = items.of_file(
        ws.recipe, task, rows_file(tmp_path, rows), "table", cultures=["brazil"]
    )
    assert {i.culture for i in only} == {"brazil"} and not any("France" in w for w in left_out)


def test_parts_hold_whole_groups_and_all_of_them(ws: Workspace, tmp_path: Path) -> None:
    task = items.task_named(ws.recipe, "hate")
    path = rows_file(tmp_path, hate_rows())
    parts = [
        {i.group for i in items.of_file(ws.recipe, task, path, "table", part=f"{n}/2")[0]}
        for n in (1, 2)
    ]
    assert parts[0] | parts[1] == {f"post-{n}" for n in range(5)}
    assert not parts[0] & parts[1] and all(parts)
    for wrong in ("0/2", "3/2", "x", "1/", "1"):
        with pytest.raises(UsageError, match="such as 1/2"):
            items.of_file(ws.recipe, task, path, "table", part=wrong)


def test_published_options_keep_their_order(ws: Workspace, tmp_path: Path) -> None:
    task = Task(
        id="pick",
        name="Pick",
        queries=["{culture}"],
        prompt="{question}\n{options}",
        fields={"question": "a question"},
        options=4,
    )
    options = ["zebra", "apple", "melon"]
    row = {"question": "Which?", "culture": "Japan", "options": options, "answer": "melon"}
    path = rows_file(tmp_path, [row, {**row, "question": "What?", "answer": "pear"}])
    found, left_out = items.of_file(ws.recipe, task, path, "table")
    assert found[0].messages[0].content == "Which?\nA. zebra\nB. apple\nC. melon"
    assert (found[0].answer, found[0].options) == ("C", ["A", "B", "C"])
    assert left_out.total() == 1


@given(st.integers(1, 5), st.integers(0, 9))
def test_a_limit_is_per_culture_and_keeps_groups_together(limit: int, seed: int) -> None:
    every = [
        items.Item(
            id=f"{n}-{culture}",
            culture=culture,
            task="hate",
            split="test",
            group=f"post-{n}",
            messages=[],
            answer="yes",
        )
        for n in range(5)
        for culture in CULTURES
    ]
    found = items.limited(every, limit, seed)
    assert len(found) == limit * len(CULTURES)
    assert len({i.group for i in found}) == limit
    assert found == items.limited(every[::-1], limit, seed)
    assert items.limited(every, None, seed) == every


def test_one_class_only_is_told(ws: Workspace, tmp_path: Path) -> None:
    rows = [row for row in hate_rows() if row["answer"] == "yes"]
    task = items.task_named(ws.recipe, "hate")
    found, _ = items.of_file(ws.recipe, task, rows_file(tmp_path, rows), "table")
    assert len(items.problems(found)) == 1 and "'yes'" in items.problems(found)[0]
    assert items.problems(found[:1]) == []


def test_an_unknown_task_is_refused(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="the recipe has everyday, hate"):
        items.task_named(ws.recipe, "nothing")
    assert items.task_named(ws.recipe, "etiquette").labels  # of a bundled card


# -- methods ------------------------------------------------------------------------------------


def shot(number: int, culture: str, answer: str, **changes: Any) -> Example:
    return Example(
        **{
            "id": f"e{number}",
            "culture": culture,
            "task": "hate",
            "stage": "task",
            "inputs": {},
            "answer": answer,
            "messages": [Message(role="user", content=f"Post {number}")],
            "evidence_ids": [],
            "quote": "",
            "generator": "test",
            "created_at": "",
            **changes,
        }
    )


def one_item(culture: str = "japan", **changes: Any) -> items.Item:
    plain: dict[str, Any] = {"id": "i", "culture": culture, "task": "hate", "split": "test"}
    plain |= {"group": "g", "answer": "yes", "options": LABELS}
    messages = [Message(role="user", content="Is it?")]
    return items.Item(**{**plain, "messages": messages, **changes})


def test_what_is_missing_is_named_and_the_rest_goes_on(ws: Workspace) -> None:
    able = Methods(ws, resolve("smollm2"), list(METHODS), [one_item()], [])
    assert able.wanted == ["base", "prompt"]
    assert set(able.lacking) == set(METHODS) - {"base", "prompt"}
    assert able.lacking["shared"].endswith("Make it: cmgr train --variant shared")
    assert able.lacking["broad"].endswith("cmgr train --variant broad")
    assert able.lacking["routed"].endswith("Make it: cmgr train")
    assert "cmgr merge japan brazil germany" in able.lacking["merged"]
    assert "no training examples of japan" in able.lacking["few-shot"]


def test_few_shots_take_each_label_in_turn_and_never_the_item(ws: Workspace) -> None:
    examples = [shot(n, "japan", "yes") for n in range(9)] + [shot(9, "japan", "no")]
    examples.append(shot(10, "japan", "no", split="fact"))
    examples.append(shot(11, "brazil", "no"))
    able = Methods(ws, resolve("smollm2"), ["few-shot"], [one_item()], examples)
    for item in (one_item(), *(one_item(id=f"e{n}") for n in range(10))):
        turns = able.asks(item, None)["few-shot"].turns
        assert [role for role, _ in turns] == ["system", *["user", "assistant"] * 3, "user"]
        assert "Japan" in turns[0][1]
        assert turns[-1] == ("user", "Is it?")
        shown = [text.removeprefix("Post ") for role, text in turns[1:-1] if role == "user"]
        assert item.id.removeprefix("e") not in shown and "10" not in shown and "11" not in shown
        answers = [text for role, text in turns if role == "assistant"]
        assert "yes" in answers and (item.id == "e9" or "no" in answers)


def test_baselines_choose_by_the_training_answers_alone(ws: Workspace) -> None:
    named = {"japan": ["miso soup", "rice", "Rice."], "brazil": ["bean stew", "rice and beans"]}
    examples = [
        shot(n, culture, answer)
        for n, (culture, answer) in enumerate((c, a) for c, told in named.items() for a in told)
    ]
    examples += [shot(8, "japan", "bean stew", split="fact")] * 3  # never trained: says nothing
    examples.append(shot(9, "japan", "bean stew", stage="broad", task=None))
    found = Baselines(examples)
    item = one_item(answer="rice", options=["bean stew", "rice", "miso soup"])
    assert found.choose("popular", item) == "rice"
    assert found.choose("popular", item.model_copy(update={"culture": "brazil"})) == "bean stew"
    # rice is eaten in both: soup is what only one of them says
    assert found.choose("words", item) == "miso soup"
    # words that nobody says do not count for either side
    odd = item.model_copy(update={"options": ["soup", "xyzzy", "beans"]})
    assert found.choose("words", odd) == "soup"


def test_a_baseline_does_not_know_the_items_own_answer(ws: Workspace) -> None:
    examples = [shot(1, "japan", "tea"), shot(2, "japan", "rice"), shot(3, "brazil", "coffee")]
    found = Baselines(examples)
    own = one_item(id="e1", answer="tea", options=["tea", "rice"])
    assert {found.choose(m, own) for m in ("popular", "words")} == {"rice"}
    assert found.choose("popular", own.model_copy(update={"options": []})) == "rice"


def test_level_options_are_chosen_by_chance_and_always_alike(ws: Workspace) -> None:
    found = Baselines([shot(1, "japan", "tea")])
    asked = [one_item(id=f"x{n}", options=["a1", "b2", "c3", "d4"]) for n in range(400)]
    said = [found.choose("popular", item) for item in asked]
    assert said == [found.choose("popular", item) for item in asked]
    assert all(70 < said.count(option) < 130 for option in asked[0].options)


def test_majority_is_the_most_frequent_label_of_the_culture(ws: Workspace) -> None:
    told = [("japan", "no"), ("japan", "no"), ("japan", "yes"), ("brazil", "yes")]
    found = Baselines([shot(n, culture, label) for n, (culture, label) in enumerate(told)])
    for culture, label in (("japan", "no"), ("brazil", "yes")):
        item = one_item(culture, options=LABELS, labels=LABELS)
        assert found.choose("majority", item) == label
    assert evaluate.baselines_of([one_item(labels=LABELS)]) == ["majority"]
    assert evaluate.baselines_of([one_item()]) == ["popular", "words"]


# -- with the model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained workspace with a shared adapter, a merge, and a labelled task."""
    folder = tmp_path_factory.mktemp("shelf") / "small"
    shutil.copytree(trained, folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["tasks"].append(HATE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for words in (
        ("train", "--variant", "shared"),
        ("merge", *CULTURES, "--method", "linear", "--name", "merged"),
    ):
        done = cmgr(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    rows_file(folder, hate_rows())
    return folder


def figures(folder: Path, *words: str, code: int = 0) -> list[dict[str, Any]]:
    done = cmgr("eval", *words, "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@model
def test_items_hold_what_their_split_says_and_are_always_the_same(trained: Path) -> None:
    ws = Workspace(trained)
    examples = current_examples(ws)
    found = items.pick(ws, examples)
    assert [i.id for i in found] == [i.id for i in items.pick(ws, examples[::-1])]
    assert {i.split for i in found} == {"fit", "wording", "fact"}
    assert all(len(i.inputs["options"]) == 3 for i in found)
    trained_on = {i.inputs["fact"] for i in examples if i.split == "fit" and i.stage == "task"}
    assert all((i.inputs["fact"] in trained_on) == (i.split != "fact") for i in found)


@model
def test_each_method_is_its_prompt_under_its_adapter(shelf: Path) -> None:
    """What a run says is what the batch runtime says of jobs that are written here by hand."""
    ws = Workspace(shelf)
    path = shelf / "posts.jsonl"
    task = items.task_named(ws.recipe, "hate")
    every, _ = items.of_file(ws.recipe, task, path, "table")
    methods = ["base", "prompt", "shared", "merged", "routed", "oracle"]
    found = evaluate.run(ws, "each", every, methods, interference=True)
    assert found.methods == methods and not found.lacking
    system = "You live in {} and know its culture well. Answer as people in {} would."
    jobs: dict[tuple[str, str], Job] = {}
    for item in every:
        name = CULTURES[item.culture]
        prompt = Message(role="system", content=system.format(name, name))
        under: dict[str, dict[str, float]] = {"base": {}, "shared": {"shared": 1.0}}
        under |= {"merged": {"merged": 1.0}} | {c: {c: 1.0} for c in CULTURES}
        for how, scales in under.items():
            jobs[item.id, how] = Job(item.messages, scales, LABELS)
        jobs[item.id, "prompt"] = Job([prompt, *item.messages], {}, LABELS)
    runtime = Model(resolve("smollm2"))
    for name in (*CULTURES, "shared", "merged"):
        runtime.load_adapter(name, ws.path("adapters", name))
    batch = Batch(runtime)
    outcomes = dict(batch.run(list(jobs.values())))
    batch.close()
    runtime.close()
    known: dict[tuple[str, str], str] = {}
    for number, key in enumerate(jobs):
        sums = outcomes[number].choice_logprobs
        assert sums is not None
        known[key] = LABELS[max((0, 1), key=sums.__getitem__)]
    assert len(set(known.values())) == 2
    for item in every:
        got = next(r for r in found.results if r.id == item.id)
        assert got.routed_to == item.culture  # the prompt names it
        for method in ("base", "prompt", "shared", "merged"):
            assert got.said[method] == known[item.id, method]
        assert got.said["routed"] == got.said["oracle"] == known[item.id, item.culture]
        assert got.under == {c: known[item.id, c] == item.answer for c in CULTURES}


@model
def test_a_killed_run_goes_on_to_the_last_bit(shelf: Path, tmp_path: Path) -> None:
    ws = Workspace(Path(shutil.copytree(shelf, tmp_path / "ws")))
    rows = [
        {**row, "text": f"{row['text']}, number {n}", "id": f"{row['id']}-{n}"}
        for n in range(5)
        for row in hate_rows()
    ]
    task = items.task_named(ws.recipe, "hate")
    every, _ = items.of_file(ws.recipe, task, rows_file(tmp_path, rows), "table")
    assert len(every) == 75 > PROMPTS
    kept = ws.path("eval", "scores.jsonl")
    kept.unlink()
    whole = evaluate.run(ws, "whole", every, ["base", "routed"])
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 150
    # what a kill leaves: the first chunk, and a line cut in two
    kept.write_bytes(b"".join(lines[: 2 * PROMPTS]) + lines[2 * PROMPTS][:20])
    with ws.lock("cmgr eval"):  # as the command does
        again = evaluate.run(ws, "again", every, ["base", "routed"])
        # the cut line, ended by what was appended behind it, goes to quarantine at the next read
        assert len(ws.read("eval/scores", Score)) == 150
    assert again.rows == whole.rows
    found = {line for line in kept.read_bytes().splitlines() if line.strip()}  # blanked in place
    assert sorted(found) == sorted(line.rstrip() for line in lines)
    told: list[tuple[int, int]] = []
    more = evaluate.run(
        ws,
        "more",
        every,
        ["base", "routed", "oracle"],
        progress=lambda _, a, b: told.append((a, b)),
    )
    assert told == []  # the router names every culture: oracle asks nothing new
    assert {r["method"] for r in more.rows if r["kind"] == "score"} == {"base", "routed", "oracle"}


@model
def test_an_adapter_trained_again_is_another(shelf: Path, tmp_path: Path) -> None:
    ws = Workspace(Path(shutil.copytree(shelf, tmp_path / "ws")))
    base = resolve("smollm2")
    ask = Methods(ws, base, ["oracle"], [one_item()], []).asks(one_item(), None)["oracle"]
    question = Question(ask, tuple(LABELS))
    keys = set()
    for culture in ("japan", "brazil"):
        source = ws.path("adapters", culture, "adapter.gguf")
        if culture != "japan":
            shutil.copy(source, ws.path("adapters", "japan", "adapter.gguf"))
        able = Methods(ws, base, ["oracle"], [one_item()], [])
        keys.add(Scores(ws, base, able.adapters).key(question))
    assert len(keys) == 2


@model
def test_what_does_not_fit_is_left_out_for_all(shelf: Path) -> None:
    ws = Workspace(shelf)
    long = one_item(id="long", messages=[Message(role="user", content="tea " * 3000)])
    found = evaluate.run(ws, "long", [one_item(), long], ["base", "prompt"])
    assert [r.id for r in found.results] == ["i"]
    assert found.notes == ["1 items left out: too long for the context of the base"]
    with pytest.raises(MissingError, match="nothing could be evaluated"):
        evaluate.run(ws, "long", [long], ["base"])


def test_scores_of_a_base_that_thinks_are_others(ws: Workspace) -> None:
    question = Question(
        Methods(ws, resolve("smollm2"), ["base"], [], []).asks(one_item(), None)["base"], ()
    )
    keys = {
        Scores(ws, resolve("smollm2", None, think), {}).key(question) for think in (True, False)
    }
    assert len(keys) == 2


@model
def test_what_did_not_fit_is_asked_again_in_a_larger_context(shelf: Path, tmp_path: Path) -> None:
    """Also where an earlier version has kept the error under the same key."""
    folder = Path(shutil.copytree(shelf, tmp_path / "ws"))
    ws = Workspace(folder)
    long = one_item(id="long", messages=[Message(role="user", content="tea " * 600)])
    every = [one_item(), long]
    ws.recipe.base.context = 256
    found = evaluate.run(ws, "long", every, ["base"])
    assert [r.id for r in found.results] == ["i"] and "too long" in found.notes[0]
    kept = ws.read("eval/scores", Score)
    assert kept and not any(score.error for score in kept)
    base = resolve("smollm2")
    able = Methods(ws, base, ["base"], every, [])
    key = Scores(ws, base, {}).key(Question(able.asks(long, None)["base"], tuple(LABELS)))
    ws.append("eval/scores", [Score(id=key, error="the prompt is too long: raise base.context")])
    ws.recipe.base.context = 2048
    found = evaluate.run(ws, "long", every, ["base"])
    assert [r.id for r in found.results] == ["i", "long"] and not found.notes


@model
def test_an_answer_cut_by_the_context_is_written_anew_in_a_larger_one(
    shelf: Path, tmp_path: Path
) -> None:
    ws = Workspace(Path(shutil.copytree(shelf, tmp_path / "ws")))
    story = [Message(role="user", content="Write a long story on tea. " * 10)]
    free_item = one_item(id="f", task="everyday", options=[], accepted=["tea"], messages=story)
    said = []
    for context in (128, 2048):
        ws.recipe.base.context = context
        (result,) = evaluate.run(ws, "cut", [free_item], ["base"]).results
        said.append(result.said["base"])
    assert len(said[1]) > len(said[0]) > 0


@model
def test_a_method_that_can_put_no_item_is_left_out_alone(shelf: Path, tmp_path: Path) -> None:
    """Examples in the prompt that leave no room: the other methods go on, with every item."""
    ws = Workspace(Path(shutil.copytree(shelf, tmp_path / "ws")))
    ws.recipe.base.context = 256
    examples = [
        shot(n, "japan", "yes", messages=[Message(role="user", content="tea " * 200)])
        for n in range(4)
    ]
    able = Methods(ws, resolve("smollm2"), ["base", "few-shot"], [one_item()], examples)
    assert able.wanted == ["base", "few-shot"]
    found = evaluate.run(ws, "shots", [one_item()], able)
    assert [r.id for r in found.results] == ["i"] and found.methods == ["base"]
    assert "too long" in found.lacking["few-shot"] and not found.notes


@model
def test_the_own_evaluation_tells_what_it_left_out_and_follows_the_context(
    shelf: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shelf, tmp_path / "ws"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    path = folder / "examples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    held_out = next(row for row in rows if row["split"] == "fact" and row["stage"] == "task")
    held_out["messages"][-1]["content"] += " tea" * 300
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for context, code, told in ((256, 4, ""), (256, 4, "eval: up to date"), (2048, 0, "")):
        recipe["base"] = {"model": "smollm2", "context": context}
        recipe["try_prompts"] = []
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        done = cmgr("eval", cwd=folder)
        assert done.returncode == code, done.stderr
        assert ("too long" in done.stderr) == (code == 4) and told in done.stderr


@model
def test_free_answers_are_matched_and_judged(shelf: Path) -> None:
    """A judge that says yes to every second answer: its word counts, and agreement is told."""
    ws = Workspace(shelf)
    every = [
        one_item(id=str(n), task="everyday", options=[], accepted=["bow", "the"],
                 messages=[Message(role="user", content=f"How do people greet, {n}?")])
        for n in range(4)
    ]  # fmt: skip

    def answer(body: dict[str, Any]) -> str:
        told = body["messages"][-1]["content"]
        assert "- bow" in told and "Japan" in told
        return json.dumps({"right": int(re.findall(r"greet, (\d)", told)[0]) % 2 == 0, "why": "x"})

    matched = evaluate.run(ws, "free", every, ["base"])
    said = [r.said["base"] for r in matched.results]
    assert all(said)
    assert [r.right["base"] for r in matched.results] == [free.matches(s, ["bow"]) for s in said]
    with pytest.raises(UsageError, match="--judge needs a model"):
        evaluate.run(ws, "free", every, ["base"], judge=True)
    with ModelServer(answer=answer) as server:
        ws.recipe.generator = Generator(
            kind="openai_compatible", model="m", base_url=server.url, backoff=0.01
        )
        found = evaluate.run(ws, "free", every, ["base"], judge=True)
        assert [r.right["base"] for r in found.results] == [True, False, True, False]
        (row,) = [r for r in found.rows if r["kind"] == "judge"]
        agreed = [r.right["base"] for r in matched.results]
        wanted = sum(a == b for a, b in zip(agreed, [True, False, True, False], strict=True)) / 4
        assert (row["n"], row["unanswered"], row["agreement"]) == (4, 0, wanted)
        assert "{answer}" in row["prompt"]
        asked = len(server.asked)
        evaluate.run(ws, "free", every, ["base"], judge=True)
        assert len(server.asked) == asked  # none is paid for twice


@model
def test_the_command(shelf: Path) -> None:
    words = ("--task", "hate", "--data", "posts.jsonl", "--methods", "base,shared,merged,routed")
    rows = figures(shelf, *words)
    scores = [r for r in rows if r["kind"] == "score" and r["culture"] == "all"]
    assert {r["method"] for r in scores} == {"base", "shared", "merged", "routed"}
    assert {r["split"] for r in scores} == {"test", "contested"}
    assert {r["against"] for r in rows if r["kind"] == "paired"} == {"base", "shared", "merged"}
    accuracy = next(r["accuracy"] for r in scores if r["method"] == "base")
    for bound, code in ((accuracy, 0), (accuracy + 0.01, 1)):
        done = cmgr("eval", *words, "--fail-under", f"base.accuracy={bound}", cwd=shelf)
        assert done.returncode == code
        assert (f"under {bound:g}" in done.stderr) == (code == 1)
    for form, shown in (("--csv", "task,culture,split"), ("--markdown", "| task |"),
                        ("--latex", r"\toprule")):  # fmt: skip
        done = cmgr("eval", *words, form, cwd=shelf)
        assert done.returncode == 0 and shown in done.stdout
    done = cmgr("eval", *words, "--interference", cwd=shelf)
    assert "Interference" in done.stdout and "routed against it" not in done.stdout
    done = cmgr("eval", *words, "--interference", "--all", cwd=shelf)
    assert "Interference" in done.stdout and "routed against it" in done.stdout


@model
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--task", "hate", "--data", "none.jsonl"), 3, "none.jsonl"),
        (("--task", "hate", "--data", "recipe.yaml"), 2, "recipe.yaml"),
        (("--task", "hate", "--data", "posts.jsonl", "--loader", "fork"), 2, "another format"),
        (("--task", "hate", "--data", "posts.jsonl", "--loader", "x"), 2, "no loader 'x'"),
        (("--task", "nothing"), 2, "no task card 'nothing'"),
        (("--data", "posts.jsonl"), 2, "--data needs --task"),
        (("--part", "1/2"), 2, "go with --data"),
        (("--methods", "base,magic"), 2, "no method magic"),
        (("--task", "hate"), 3, "no items"),
        (("--fail-under", "routed=0.7"), 2, "METHOD.accuracy=X"),
        (("--fail-under", "shared.macro_f1=0.7"), 3, "no macro_f1 of shared"),
        (("--fail-under", "broad.accuracy=0.7"), 3, "broad is not evaluated here, only base, prom"),
        (("--fail-under", "base.accuracy@test=0.7"), 3, "only of fit, wording, fact"),
        (("--csv", "--latex"), 2, "one of"),
        (("--methods", "base,no-broad", "--limit", "1"), 4, "cmgr train --variant no-broad"),
    ],
)  # fmt: skip
def test_bad_input_is_told(shelf: Path, words: tuple[str, ...], code: int, told: str) -> None:
    done = cmgr("eval", *words, cwd=shelf)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@model
def test_rows_that_cannot_be_asked_make_exit_4(shelf: Path, tmp_path: Path) -> None:
    rows = [*hate_rows(), {"id": "x", "text": "t", "culture": "Mars", "answer": "yes"}]
    path = str(rows_file(tmp_path, rows))
    words = ("--task", "hate", "--data", path, "--methods", "base")
    done = cmgr("eval", *words, cwd=shelf)
    assert done.returncode == 4
    assert "1 rows left out: a culture that the recipe does not have: Mars" in done.stderr
    assert cmgr("eval", *words, "--culture", "japan", cwd=shelf).returncode == 0
    same = str(rows_file(tmp_path, [r for r in hate_rows() if r["answer"] == "yes"], "same.jsonl"))
    done = cmgr("eval", "--task", "hate", "--data", same, "--methods", "base", cwd=shelf)
    assert done.returncode == 4 and "has the label 'yes'" in done.stderr
