"""Counts in words, shares and F1 with their intervals, paired tests, how far two people agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLED = 1000
BINS = 10  # of probabilities, to see whether they are right as often as they say
NORMAL = 1.959964  # 95% of a normal law lie within so many standard deviations
POWER = 0.841621  # and 80% of it below this one


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion (Wilson, 1927); (0, 1) for no items."""
    return _score_interval(right / n, n, NORMAL) if n else (0.0, 1.0)


def _score_interval(share: float, n: float, critical: float) -> tuple[float, float]:
    """Wilson's interval with another critical value; it holds the share whatever is rounded."""
    q = critical * critical / n
    middle = (share + q / 2) / (1 + q)
    half = critical / (1 + q) * math.sqrt(share * (1 - share) / n + q / (4 * n))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def grouped_wilson(rights: Sequence[bool], groups: Sequence[str]) -> tuple[float, float]:
    """Wilson's 95% interval of a share of items, where items of one group are not independent.

    It counts as many items as would, if independent, vary so little (Kish's design effect, 1965).
    That effect is estimated from G groups: the variance between them has the factor G / (G - 1),
    and t with G - 1 degrees of freedom replaces the normal quantile (Korn and Graubard, 1998; Dean
    and Pagano, 2015). Where every group is all right or all wrong and all are of one size, a group
    is an item, and the interval is Wilson's own. One mixed group says nothing of others: (0, 1).
    """
    n, sizes, hits = len(rights), Counter(groups), Counter[str]()
    for right, group in zip(rights, groups, strict=True):
        hits[group] += bool(right)
    share, count = sum(hits.values()) / n, len(sizes)
    alike = all(hits[group] in (0, size) for group, size in sizes.items())
    if alike and (share in (0, 1) or len(set(sizes.values())) == 1):
        return _score_interval(share, count, NORMAL)
    if count == 1:
        return 0.0, 1.0
    spread = math.fsum((hits[group] - share * size) ** 2 for group, size in sizes.items())
    spread *= count / (count - 1)
    effective = min(n, n**2 * share * (1 - share) / spread) if spread else n
    return _score_interval(share, effective, t_critical(count - 1))


@cache
def t_critical(df: int) -> float:
    """The 97.5% quantile of Student's t with `df` degrees of freedom.

    By bisection of its distribution, a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 1.9, 13.0  # 12.7 for one degree, 1.96 for many
    odd = df % 2
    steps = np.arange(1 + odd, df - 2, 2, dtype=np.float64)
    while high - low > 1e-12 * high:
        value = (low + high) / 2
        angle = math.atan(value / math.sqrt(df))
        terms = np.cumprod(steps / (steps + 1) * math.cos(angle) ** 2)
        inside = math.sin(angle) * (1 + float(terms.sum()))
        if odd:
            more = math.cos(angle) * inside if df > 1 else 0.0
            inside = (angle + more) * 2 / math.pi
        low, high = (low, value) if inside > 0.95 else (value, high)
    return high


def kappa(one: Sequence[str], two: Sequence[str]) -> float | None:
    """Cohen's kappa of two people's verdicts on the same items (Cohen, 1960).

    None where there is nothing to agree on: no items, or one verdict for all by both.
    """
    n = len(one)
    if n == 0:
        return None
    agreed = sum(a == b for a, b in zip(one, two, strict=True)) / n
    first, second = Counter(one), Counter(two)
    chance = sum(first[verdict] * second[verdict] for verdict in first) / n**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def counted(values: Mapping[str, int]) -> str:
    """What was counted in a line, most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in Counter(values).most_common())


def macro_f1(counts: NDArray[Any]) -> NDArray[np.float64]:
    """The mean F1 of the labels that occur, as truth or as what was said.

    `counts`: (..., labels, labels), the truth in rows; returns (...), 0 where nothing occurs.
    """
    both = counts.sum(axis=-1) + counts.sum(axis=-2)
    there = both > 0
    hits = 2.0 * np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = np.divide(hits, both, out=np.zeros_like(hits), where=there)
    return np.asarray(f1.sum(axis=-1) / np.maximum(there.sum(axis=-1), 1), dtype=np.float64)


def sign_flip(gaps: Sequence[int], groups: Sequence[str]) -> float:
    """The exact two-sided p of a paired comparison; `gaps` are 1, 0 or -1 per item.

    If neither side were better, each group's sum would as likely have the other sign (Fisher,
    1935). Of groups of one item that is McNemar's exact test. 1 where the two never differ.
    """
    sums: Counter[str] = Counter()
    for gap, group in zip(gaps, groups, strict=True):
        sums[group] += int(gap)
    law = np.ones(1)  # the probability of each total, the middle one is 0
    for size, n in sorted(Counter(abs(value) for value in sums.values() if value).items()):
        steps = np.zeros(2 * size * n + 1)
        # of logarithms: 2**n leaves a float's range at a thousand groups
        top = math.lgamma(n + 1) - n * math.log(2)
        logs = [top - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)]
        steps[:: 2 * size] = np.exp(logs)
        law = np.convolve(law, steps)
    totals = np.abs(np.arange(len(law)) - len(law) // 2)
    return min(1.0, math.fsum(law[totals >= abs(sum(sums.values()))]))


def needed(gaps: Sequence[int], groups: Sequence[str]) -> int | None:
    """How many such items would tell a difference as large as this one from nothing.

    With a power of 0.8 at a two-sided 5%, where items vary within and between groups as these do
    (the variance of a mean of clusters). None where the mean gap is 0 or there is one group.
    """
    sums, sizes = Counter[str](), Counter(groups)
    for gap, group in zip(gaps, groups, strict=True):
        sums[group] += int(gap)
    n, count = len(gaps), len(sizes)
    mean = sum(gaps) / n
    if mean == 0 or count == 1:
        return None
    spread = math.fsum((sums[group] - mean * size) ** 2 for group, size in sizes.items())
    error = math.sqrt(spread * count / (count - 1)) / n  # of the mean
    return max(1, math.ceil(n * ((NORMAL + POWER) * error / mean) ** 2))


def ece(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """The expected calibration error, ten equal bins (Naeini and others, 2015)."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - sure, minlength=BINS)
    return float(np.abs(gaps).sum() / len(sure))


class Resampled:
    """How often each item is drawn, when whole groups of items are drawn with replacement.

    Items of one group (wordings of one fact, one post for several cultures) are no independent
    evidence, and so are drawn together: the cluster bootstrap (Efron and Tibshirani, 1993).
    """

    def __init__(self, groups: Sequence[str], seed: int, times: int = RESAMPLED) -> None:
        places: dict[str, int] = {}
        of_item = np.array([places.setdefault(g, len(places)) for g in groups], dtype=np.intp)
        self.groups = len(places)
        drawn = np.random.default_rng(seed).integers(len(places), size=(times, len(places)))
        counts = np.zeros((times, len(places)), dtype=np.float32)
        np.add.at(counts, (np.arange(times)[:, None], drawn), 1)
        self.weights = counts[:, of_item]  # (times, items)

    def mean(self, values: Sequence[float] | NDArray[Any]) -> tuple[float, float]:
        """The 95% interval of the mean of one value per item; values are between -1 and 1."""
        known = np.asarray(values, dtype=np.float64)
        found = self.weights @ known.astype(np.float32) / self.weights.sum(axis=1)
        return self._interval(found, float(known.mean()), -1.0)

    def macro_f1(self, pairs: NDArray[np.intp], labels: int) -> tuple[float, float]:
        """The 95% interval of macro-F1; `pairs` are (items, 2): truth, said."""
        cells = np.zeros((len(pairs), labels * labels), dtype=np.float32)
        cells[np.arange(len(pairs)), pairs[:, 0] * labels + pairs[:, 1]] = 1
        found = macro_f1((self.weights @ cells).reshape(-1, labels, labels))
        whole = cells.sum(axis=0, dtype=np.float64).reshape(labels, labels)
        return self._interval(found, float(macro_f1(whole)), 0.0)

    def _interval(self, drawn: NDArray[Any], found: float, least: float) -> tuple[float, float]:
        """The percentile interval around what was found, as wide as so few groups need.

        Draws of G groups vary too little by sqrt((G - 1) / G), and their law is t's with G - 1
        degrees of freedom, not the normal one (Hesterberg, 2015, on why the bootstrap's percentile
        interval is too narrow). One group says nothing of others: from `least` to 1.
        """
        if self.groups == 1:
            return least, 1.0
        wider = t_critical(self.groups - 1) / NORMAL * math.sqrt(self.groups / (self.groups - 1))
        low, high = np.quantile(drawn, [0.025, 0.975])
        low, high = (found + wider * min(0.0, low - found), found + wider * max(0.0, high - found))
        return max(least, float(low)), min(1.0, float(high))
