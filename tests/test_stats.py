"""cmgr/stats: the figures of a table equal scikit-learn's and scipy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test
from scipy.stats import t as student
from sklearn.metrics import cohen_kappa_score, f1_score

from cmgr.stats import (
    Resampled,
    grouped_wilson,
    kappa,
    macro_f1,
    needed,
    sign_flip,
    t_critical,
    wilson,
)

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


def gaps_of(wins: int, losses: int, ties: int = 0) -> tuple[list[int], list[str]]:
    gaps = [1] * wins + [-1] * losses + [0] * ties
    return gaps, [str(n) for n in range(len(gaps))]


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 5))
def test_of_single_items_the_sign_flip_is_mcnemars_exact_test(
    wins: int, losses: int, ties: int
) -> None:
    known = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert sign_flip(*gaps_of(wins, losses, ties)) == pytest.approx(known, rel=1e-9, abs=1e-300)


def test_the_sign_flip_of_many_items_stays_in_range() -> None:
    known = binomtest(51_000, 100_000, 0.5).pvalue
    assert sign_flip(*gaps_of(51_000, 49_000)) == pytest.approx(known, rel=1e-6)
    assert sign_flip(*gaps_of(20_000, 0)) == 0.0


@given(st.lists(st.tuples(st.integers(-1, 1), st.sampled_from("abcdefgh")), min_size=1))
def test_the_sign_flip_is_scipys_permutation_test_of_the_groups_sums(
    items: list[tuple[int, str]],
) -> None:
    sums: dict[str, int] = {}
    for gap, group in items:
        sums[group] = sums.get(group, 0) + gap
    found = sign_flip([gap for gap, _ in items], [group for _, group in items])
    values = np.array(list(sums.values()))
    if len(values) < 2 or not values.any():  # scipy wants two
        assert found == pytest.approx(1.0)
        return
    known = permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert found == pytest.approx(known)


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=40), st.integers(2, 5))
def test_copies_of_an_item_are_no_further_evidence(gaps: list[int], times: int) -> None:
    names = [str(n) for n in range(len(gaps))]
    assert sign_flip(gaps * times, names * times) == pytest.approx(sign_flip(gaps, names))
    rights = [gap > 0 for gap in gaps]
    once = grouped_wilson(rights, names)
    assert grouped_wilson(rights * times, names * times) == pytest.approx(once)


@given(st.integers(1, 500), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    known = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((known.low, known.high), abs=1e-7)
    for k in (0, right, n):
        assert wilson(k, n)[0] <= k / n <= wilson(k, n)[1]
    rights, names = [True] * right + [False] * (n - right), [str(i) for i in range(n)]
    assert grouped_wilson(rights, names) == pytest.approx((known.low, known.high), abs=1e-7)


def test_a_grouped_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Posts of five countries each, of which a post shares most of what makes it hard."""
    chance = np.random.default_rng(5)
    names = [str(post) for post in range(120) for _ in range(5)]
    grouped = plain = 0
    for _ in range(400):
        hard = chance.beta(0.6, 0.4, size=120)  # the mean is 0.6
        rights = list(chance.random(600) < np.repeat(hard, 5))
        low, high = grouped_wilson(rights, names)
        grouped += low <= 0.6 <= high
        low, high = wilson(sum(rights), 600)
        plain += low <= 0.6 <= high
    assert 0.92 <= grouped / 400 <= 0.98
    assert plain / 400 < 0.8


@given(st.integers(1, 100_000))
def test_the_t_quantile_is_scipys(df: int) -> None:
    assert t_critical(df) == pytest.approx(float(student.ppf(0.975, df)), rel=1e-9)


SIZES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "equal": lambda chance, groups: np.full(groups, 5),
    "unequal": lambda chance, groups: chance.integers(1, 12, size=groups),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("groups", [8, 20, 120])
def test_a_share_of_few_groups_is_covered_too(groups: int, sizes: str) -> None:
    """Groups that differ a lot, somewhat, and hardly: 1,500 tables, standard error 0.006.

    Of groups of unequal sizes fewer than G - 1 degrees of freedom are real: some less is covered.
    """
    chance = np.random.default_rng(groups)
    covered = []
    for one, other in ((0.6, 0.4), (3, 2), (60, 40)):  # beta laws with the mean 0.6
        for _ in range(500):
            size = SIZES[sizes](chance, groups)
            names = [str(n) for n in np.repeat(np.arange(groups), size)]
            hard = np.repeat(chance.beta(one, other, size=groups), size)
            low, high = grouped_wilson(list(chance.random(len(hard)) < hard), names)
            covered.append(low <= 0.6 <= high)
    assert (0.94 if sizes == "equal" else 0.93) <= np.mean(covered) <= 0.985


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("groups", [8, 20, 120])
def test_a_difference_of_few_groups_is_covered_too(groups: int, sizes: str) -> None:
    """Gaps of 1, 0 and -1 with the mean 0.1 that differ between groups: 400 tables, or 150."""
    chance = np.random.default_rng(groups)
    covered = []
    for seed in range(400 if groups < 100 else 150):
        size = SIZES[sizes](chance, groups)
        names = [str(n) for n in np.repeat(np.arange(groups), size)]
        better = np.repeat(chance.uniform(-0.1, 0.3, size=groups), size)  # wins less losses
        drawn = chance.random(len(better))
        gaps = np.where(drawn < 0.25 + better / 2, 1, np.where(drawn < 0.5, -1, 0))
        low, high = Resampled(names, seed).mean(gaps)
        covered.append(low <= 0.1 <= high)
    assert (0.925 if sizes == "equal" else 0.91) <= np.mean(covered) <= 0.985


ITEMS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdefgh")), min_size=1, max_size=30)


@given(ITEMS, st.integers(0, 9))
def test_an_interval_holds_what_was_found(items: list[tuple[int, str]], seed: int) -> None:
    groups = [group for _, group in items]
    rights = [value > 0 for value, _ in items]
    share = sum(rights) / len(rights)
    low, high = grouped_wilson(rights, groups)
    assert 0 <= low <= share <= high <= 1
    low, high = wilson(sum(rights), len(rights))
    assert 0 <= low <= share <= high <= 1
    gaps = [value - 1 for value, _ in items]
    drawn = Resampled(groups, seed, times=20)
    low, high = drawn.mean(gaps)
    assert -1 <= low <= sum(gaps) / len(gaps) <= high <= 1
    pairs = np.array([[value, (value + n) % 3] for n, (value, _) in enumerate(items)])
    counts = np.zeros((3, 3))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    low, high = drawn.macro_f1(pairs, 3)
    assert 0 <= low <= float(macro_f1(counts)) <= high <= 1


def test_one_group_says_nothing_of_others() -> None:
    assert grouped_wilson([True, False], ["a", "a"]) == (0, 1)
    drawn = Resampled(["a", "a"], 1)
    assert drawn.mean([1, 0]) == (-1, 1)
    assert drawn.macro_f1(np.array([[0, 0], [1, 0]]), 2) == (0, 1)


def of_groups(values: list[float], found: float, groups: int, least: float) -> tuple[float, float]:
    """The percentile interval, its ends as much further off as t is wider than the normal law."""
    if groups == 1:
        return least, 1.0
    wider = float(student.ppf(0.975, groups - 1)) / 1.959964 * np.sqrt(groups / (groups - 1))
    low, high = np.quantile(values, [0.025, 0.975])
    low, high = found + wider * min(0, low - found), found + wider * max(0, high - found)
    return max(least, low), min(1.0, high)


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
    known = of_groups(means, float(values.mean()), len(names), -1.0)
    assert drawn.mean(values) == pytest.approx(known, abs=2e-5)


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
    found = f1_score(pairs[:, 0], pairs[:, 1], average="macro", zero_division=0)
    known = of_groups(scores, found, len(pairs), 0.0)
    assert drawn.macro_f1(pairs, labels) == pytest.approx(known, abs=2e-5)


def test_items_needed_grow_with_the_square_of_a_smaller_difference() -> None:
    groups = [str(n) for n in range(400)]
    clear = [1] * 40 + [0] * 360
    close = [1] * 30 + [-1] * 20 + [0] * 350
    # by hand: n (2.8 * sd / mean)^2 / n with the variance of one item's gap
    for gaps in (clear, close):
        mean = sum(gaps) / 400
        variance = sum((g - mean) ** 2 for g in gaps) / 399
        assert needed(gaps, groups) == pytest.approx(7.849 * variance / mean**2, rel=0.01)
    assert (needed(close, groups) or 0) > 10 * (needed(clear, groups) or 0)


def test_items_of_one_group_count_as_fewer() -> None:
    gaps = [1] * 8 + [-1] * 4 + [0] * 28
    alone = needed(gaps, [str(n) for n in range(40)])
    fours = needed(gaps, [str(n // 4) for n in range(40)])
    assert alone and fours and fours > 3 * alone


def test_no_difference_and_one_group_need_no_number() -> None:
    assert needed([1, -1, 0], ["a", "b", "c"]) is None
    assert needed([1, 1, 0], ["a", "a", "a"]) is None


def test_needed_items_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    law = [0.16, 0.10, 0.74]
    sample = [1] * 160 + [-1] * 100 + [0] * 740
    n = needed(sample, [str(i) for i in range(len(sample))])
    assert n is not None
    found = 0
    for _ in range(400):
        drawn = rng.choice([1, -1, 0], size=n, p=law)
        found += abs(drawn.mean()) / (drawn.std(ddof=1) / np.sqrt(n)) > 1.96
    assert 0.75 < found / 400 < 0.85
