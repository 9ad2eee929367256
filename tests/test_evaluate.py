"""Intervals, the choice of items, and a table that counts rightly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr.evaluate import METHODS, Result, pick_items, summary
from cmgr.stats import wilson
from cmgr.synthesize import current_examples
from cmgr.workspace import Workspace


def test_wilson_equals_the_published_figures() -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_proportion(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


def result(number: int, culture: str, split: str, **choices: str) -> Result:
    return Result(
        id=str(number),
        culture=culture,
        task="everyday",
        split=split,
        answer="right",
        routed_to=culture if number % 2 else None,
        choices=choices,
    )


def test_the_summary_counts_per_culture_and_split(recipe_folder: Path, tmp_path: Path) -> None:
    ws, _ = Workspace.init(str(recipe_folder / "recipe.yaml"), tmp_path / "ws")
    rows = summary(
        ws,
        [
            result(1, "japan", "wording", base="wrong", prompt="right", routed="right"),
            result(2, "japan", "wording", base="wrong", prompt="wrong", routed="right"),
            result(3, "brazil", "wording", base="right", prompt="right", routed="wrong"),
            result(4, "japan", "fact", base="right", prompt="wrong", routed="wrong"),
        ],
    )
    found = {(r["culture"], r["split"]): r for r in rows}
    assert set(found) == {
        ("japan", "wording"),
        ("japan", "fact"),
        ("brazil", "wording"),
        ("all", "wording"),
        ("all", "fact"),
    }
    japan = found["japan", "wording"]
    assert [japan["n"], japan["router"], *(japan[m] for m in METHODS)] == [2, 0.5, 0.0, 0.5, 1.0]
    assert found["all", "wording"]["routed"] == pytest.approx(2 / 3, abs=1e-4)


@pytest.mark.model
def test_items_hold_what_their_split_says_and_are_always_the_same(trained: Path) -> None:
    ws = Workspace(trained)
    examples = current_examples(ws)
    items = pick_items(ws, examples)
    assert [i.id for i in items] == [i.id for i in pick_items(ws, examples[::-1])]
    assert {i.split for i in items} == {"fit", "wording", "fact"}
    assert all(len(i.inputs["options"]) == 3 for i in items)
    trained_on = {i.inputs["fact"] for i in examples if i.split == "fit" and i.stage == "task"}
    assert all((i.inputs["fact"] in trained_on) == (i.split != "fact") for i in items)
