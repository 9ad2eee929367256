"""cmgr/scoring: which prompts are read for options, how they add up, and what they mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import cmgr
from hypothesis import given
from hypothesis import strategies as st

from cmgr.base import resolve
from cmgr.recipe import Culture, Recipe
from cmgr.records import Message
from cmgr.runtime import Runtime
from cmgr.runtime.choices import encode_choices
from cmgr.scoring import (
    SCORES,
    Scorer,
    fit_temperature,
    neutral,
    persona,
    probabilities,
    temperatures,
)
from cmgr.tasks import Task, card, card_ids
from cmgr.workspace import Workspace

US = Culture(id="united-states", name="United States")
UK = Culture(id="united-kingdom", name="United Kingdom", demonym="British")
JAPAN = Culture(id="japan", name="Japan", demonym="Japanese", places=["Osaka", "Kyoto"])
BRAZIL = Culture(id="brazil", name="Brazil", demonym="Brazilian", places=["Salvador"])
ASK = ("user", "What do people in Japan eat?")


def recipe(*cultures: Culture, **answer: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "cultures": [c.model_dump() for c in cultures],
            "sources": [{"kind": "documents", "path": "documents"}],
            "tasks": ["everyday-knowledge"],
            "answer": answer,
        }
    )


def test_contrast_reads_the_question_about_three_others_in_the_bare_base() -> None:
    others = [US, UK, BRAZIL, Culture(id="china", name="China"), Culture(id="iran", name="Iran")]
    scorer = Scorer(recipe(JAPAN, *others, score="contrast", contrast_weight=3))
    passages = ("user", "Japan: people eat rice.\n\nWhat do people in Japan eat?")
    own, bare, *swapped = scorer.readings([passages], (("japan", 1.0),), "japan", plain=[ASK])
    assert own == ((passages,), (("japan", 1.0),), 1.0)
    assert bare == ((ASK,), (), 3.0)
    assert len(swapped) == 3 and len({s.turns for s in swapped}) == 3
    for one in swapped:
        assert one.scales == () and one.weight == -1.0
        assert one.turns[0][1].startswith("What do people in") and "Japan" not in one.turns[0][1]
    again = scorer.readings([passages], (("japan", 1.0),), "japan", plain=[ASK])
    assert again == [own, bare, *swapped]


def test_a_question_that_names_no_culture_is_put_behind_system_texts() -> None:
    scorer = Scorer(recipe(JAPAN, BRAZIL, score="contrast"))
    system, asked = ("system", "Be short."), ("user", "Who pays?")
    _, own, other = scorer.readings([system, asked], (), "japan")
    assert own.turns == (persona(JAPAN), asked) and other.turns == (persona(BRAZIL), asked)


def test_contrast_of_one_culture_or_none_is_the_mean() -> None:
    alone = Scorer(recipe(JAPAN, score="contrast"))
    assert len(alone.readings([ASK], (), "japan")) == 1
    two = Scorer(recipe(JAPAN, BRAZIL, score="contrast"))
    assert len(two.readings([ASK], (), None)) == 1
    assert len(Scorer(recipe(JAPAN, BRAZIL), "contrast").readings([ASK], (), "brazil")) == 3


def test_pmi_takes_away_what_an_option_has_after_a_prompt_that_asks_nothing() -> None:
    scorer = Scorer(recipe(JAPAN, score="pmi"))
    own, nothing = scorer.readings([ASK], (("japan", 1.0),), "japan")
    assert nothing.turns == (("user", card("everyday-knowledge").neutral),)
    assert (own.weight, nothing.weight, nothing.scales) == (1.0, -1.0, (("japan", 1.0),))


def test_every_card_has_a_prompt_that_asks_nothing() -> None:
    for name in card_ids():
        text = neutral(card(name))
        assert text.strip() and "{" not in text, name
    made = Task(id="t", name="T", queries=["{topic}"], prompt="Say {text} in {culture}.",
                fields={"text": "a text"}, labels=["a", "b"])  # fmt: skip
    assert neutral(made) == "Say ... in the country."


NUMBERS = st.floats(-20, 0, allow_nan=False)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=5, max_size=5))
def test_readings_add_up_by_their_weights(means: list[list[float]]) -> None:
    every = [US, UK, BRAZIL, JAPAN]
    scorer = Scorer(recipe(*every, score="contrast", contrast_weight=2))
    readings = scorer.readings([ASK], (), "japan")
    found = scorer.combine(readings, means, [1, 2, 3])
    table = np.array(means)
    assert found == pytest.approx(table[0] + 2 * (table[1] - table[2:].mean(axis=0)))
    total = Scorer(recipe(*every), "sum")
    assert total.combine(total.readings([ASK], (), None), means[:1], [1, 2, 3]) == pytest.approx(
        table[0] * [1, 2, 3]
    )


@pytest.mark.parametrize("known", [0.2, 1.0, 5.0])
def test_the_temperature_that_made_the_labels_is_found(known: float) -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 2 * known, size=(3000, 4))
    shares = [probabilities(one, known) for one in scores]
    right = [int(rng.choice(4, p=one)) for one in shares]
    assert fit_temperature(scores.tolist(), right) == pytest.approx(known, rel=0.1)


def test_a_few_items_that_are_all_right_make_nothing_certain() -> None:
    temperature = fit_temperature([[-1.0, -3.0, -4.0]] * 3, [0, 0, 0])
    assert 0.7 < probabilities([-1.0, -3.0, -4.0], temperature)[0] < 0.9
    assert fit_temperature([], []) == fit_temperature([[-1.0]], [0]) == 1.0


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.floats(0.01, 100))
def test_probabilities_are_shares_in_the_order_of_the_scores(
    scores: list[float], temperature: float
) -> None:
    shares = probabilities(scores, temperature)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    assert shares[int(np.argmax(scores))] == shares.max()


# -- with the model -----------------------------------------------------------------------------


@pytest.mark.model
def test_a_batch_scores_as_the_readings_one_by_one_and_by_the_fitted_temperature(
    trained: Path, tmp_path: Path
) -> None:
    ws = Workspace(trained)
    choices = ["They bow.", "They shake hands.", "They kiss."]
    line = {"id": "1", "prompt": "How do people greet in Japan?", "choices": choices}
    asked = tmp_path / "in.jsonl"
    asked.write_text(json.dumps({**line, "culture": "japan"}) + "\n")
    runtime = Runtime(resolve("smollm2"))
    runtime.load_adapter("japan", trained / "adapters" / "japan")
    sizes = [*map(len, encode_choices(runtime.model, choices))]
    kept = ws.path("eval", "temperatures.json")
    try:
        for score in SCORES:
            scorer = Scorer(ws.recipe, score)
            turns = [("user", line["prompt"])]
            readings = scorer.readings(turns, (("japan", 1.0),), "japan")  # type: ignore[arg-type]
            means = [
                runtime.score(
                    [Message.model_validate({"role": r, "content": t}) for r, t in one.turns],
                    choices,
                    dict(one.scales),
                )
                for one in readings
            ]
            wanted = scorer.combine(readings, means, sizes)
            words = ("chat", "-w", str(trained), "--batch", "in.jsonl", "--no-passages")
            for temperature in (1.0, 2.5):
                kept.parent.mkdir(exist_ok=True)
                found = {"rule": scorer.rule, "base": resolve("smollm2").fingerprint}
                found |= {"temperatures": {"routed": temperature}}
                kept.write_text(json.dumps(found))
                done = cmgr(*words, "--score", score, cwd=tmp_path)
                assert done.returncode == 0, done.stderr
                (answer,) = map(json.loads, done.stdout.splitlines())
                shares = [answer["choice_probabilities"][choice] for choice in choices]
                logs = np.log(shares) * temperature
                gaps = (logs - logs[0]) - (np.array(wanted) - wanted[0])
                # llama.cpp rounds otherwise in other company; a sum has that of every token
                most = 0.5 * (
                    max(sizes) if score == "sum" else sum(abs(r.weight) for r in readings)
                )
                assert np.abs(gaps).max() < most, score
                assert answer["choice"] == choices[int(np.argmax(shares))]
    finally:
        kept.unlink(missing_ok=True)
        runtime.close()


def test_a_temperature_of_another_rule_or_base_does_not_count(
    recipe_folder: Path, tmp_path: Path
) -> None:
    done = cmgr("init", "source/recipe.yaml", "ws", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ws = Workspace(tmp_path / "ws")
    path = ws.path("eval", "temperatures.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rule": ["mean"], "base": "b", "temperatures": {"routed": 0.4}}))
    mean = Scorer(ws.recipe)
    assert temperatures(ws, mean, "b")[True, False] == 0.4
    assert temperatures(ws, mean, "b")[False, False] == 1.0
    assert temperatures(ws, mean, "another")[True, False] == 1.0
    assert temperatures(ws, Scorer(ws.recipe, "pmi"), "b")[True, False] == 1.0


def test_an_unknown_score_names_those_there_are(tmp_path: Path) -> None:
    for words in (("chat", "-p", "x"), ("eval",)):
        done = cmgr(*words, "--score", "best", cwd=tmp_path)
        assert done.returncode == 2 and "mean, sum, pmi, contrast" in done.stderr, words
