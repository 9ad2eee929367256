"""cmgr/stats: the figures of a table equal scikit-learn's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, f1_score

from cmgr.stats import Resampled, kappa, macro_f1, mcnemar, wilson

LABELS = st.integers(2, 6)


def pairs_of(data: st.DataObject, labels: int) -> np.ndarray:
    one = st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1))
    return np.array(data.draw(st.lists(one, min_size=1, max_size=80)))


@given(LABELS, st.data())
def test_macro_f1_is_scikit_learns(labels: int, data: st.DataObject) -> None:
    pairs = pairs_of(data, labels)
    counts = np.zeros((labels, labels), dtype=int)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    known = f1_score(pairs[:, 0], pairs[:, 1], average="macro", zero_division=0)
    assert float(macro_f1(counts)) == pytest.approx(known, abs=1e-12)
    assert macro_f1(np.stack([counts, counts.T])) == pytest.approx([known, known])


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    known = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(known, rel=1e-9, abs=1e-300)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


def test_mcnemar_of_many_items_stays_in_range() -> None:
    known = binomtest(51_000, 100_000, 0.5).pvalue
    assert mcnemar(51_000, 49_000) == pytest.approx(known, rel=1e-6)
    assert mcnemar(20_000, 0) == 0.0


@given(st.integers(1, 500), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    known = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((known.low, known.high), abs=1e-7)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_kappa_is_scikit_learns(verdicts: list[tuple[str, str]]) -> None:
    one, two = [a for a, _ in verdicts], [b for _, b in verdicts]
    found = kappa(one, two)
    if found is None:
        assert len({*one, *two}) == 1
    else:
        assert found == pytest.approx(cohen_kappa_score(one, two))


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), st.integers(0, 9), st.data())
def test_groups_are_drawn_whole(groups: list[str], seed: int, data: st.DataObject) -> None:
    drawn = Resampled(groups, seed, times=40)
    names = list(dict.fromkeys(groups))
    first = [groups.index(name) for name in names]
    assert (drawn.weights[:, first].sum(axis=1) == len(names)).all()
    for number, group in enumerate(groups):
        assert (drawn.weights[:, number] == drawn.weights[:, groups.index(group)]).all()
    values = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=len(groups))))[: len(groups)]
    means = [(w * values).sum() / w.sum() for w in drawn.weights.astype(float)]
    known = np.quantile(means, [0.025, 0.975])
    assert drawn.mean(values) == pytest.approx(tuple(known), abs=1e-5)


def test_an_interval_of_single_items_is_the_normal_one() -> None:
    chance = np.random.default_rng(3)
    values = chance.integers(0, 2, size=2000)
    low, high = Resampled([str(n) for n in range(2000)], 1).mean(values)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=3e-3)


def test_copies_of_a_group_make_no_interval_narrower() -> None:
    """What counting each of ten copies as evidence of its own would do."""
    chance = np.random.default_rng(4)
    once = chance.integers(0, 2, size=100)
    names = [str(n) for n in range(100)]
    low, high = Resampled(names, 1).mean(once)
    many_low, many_high = Resampled(names * 10, 1).mean(np.tile(once, 10))
    assert many_high - many_low == pytest.approx(high - low, abs=1e-6)


@given(LABELS, st.integers(0, 9), st.data())
def test_the_interval_of_macro_f1_is_that_of_drawn_items(
    labels: int, seed: int, data: st.DataObject
) -> None:
    pairs = pairs_of(data, labels)
    drawn = Resampled([str(n) for n in range(len(pairs))], seed, times=25)
    scores = []
    for weights in drawn.weights.astype(int):
        items = np.repeat(pairs, weights, axis=0)
        scores.append(f1_score(items[:, 0], items[:, 1], average="macro", zero_division=0))
    known = np.quantile(scores, [0.025, 0.975])
    assert drawn.macro_f1(pairs, labels) == pytest.approx(tuple(known), abs=1e-5)
