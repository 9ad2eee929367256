"""Counts in words, shares and F1 with their intervals, paired tests, how far two people agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLED = 1000


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion (Wilson, 1927); (0, 1) for no items."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    p, q = right / n, z * z / n
    middle = (p + q / 2) / (1 + q)
    half = z / (1 + q) * math.sqrt(p * (1 - p) / n + q / (4 * n))
    # rounding must not leave the share itself outside
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def grouped_wilson(rights: Sequence[bool], groups: Sequence[str]) -> tuple[float, float]:
    """Wilson's 95% interval of a share of items of which those of one group are no independent
    evidence: with as many items as would, independent, vary so little (Kish's design effect, 1965).

    Of groups of one item it is Wilson's own.
    """
    n, sizes, hits = len(rights), Counter(groups), Counter[str]()
    for right, group in zip(rights, groups, strict=True):
        hits[group] += bool(right)
    share = sum(hits.values()) / n
    spread = math.fsum((hits[group] - share * size) ** 2 for group, size in sizes.items())
    if 0 < share < 1 and len(sizes) > 1:
        effective = min(n, n**2 * share * (1 - share) / spread) if spread else n
    else:  # nothing tells how much groups vary: each counts once
        effective = len(sizes)
    return wilson(share * effective, effective)


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


class Resampled:
    """How often each item is drawn, when whole groups of items are drawn with replacement.

    Items of one group (wordings of one fact, one post for several cultures) are no independent
    evidence, and so are drawn together: the cluster bootstrap (Efron and Tibshirani, 1993).
    """

    def __init__(self, groups: Sequence[str], seed: int, times: int = RESAMPLED) -> None:
        places: dict[str, int] = {}
        of_item = np.array([places.setdefault(g, len(places)) for g in groups], dtype=np.intp)
        drawn = np.random.default_rng(seed).integers(len(places), size=(times, len(places)))
        counts = np.zeros((times, len(places)), dtype=np.float32)
        np.add.at(counts, (np.arange(times)[:, None], drawn), 1)
        self.weights = counts[:, of_item]  # (times, items)

    def mean(self, values: Sequence[float] | NDArray[Any]) -> tuple[float, float]:
        """The 95% percentile interval of the mean of one value per item."""
        found = self.weights @ np.asarray(values, dtype=np.float32) / self.weights.sum(axis=1)
        return _middle(found)

    def macro_f1(self, pairs: NDArray[np.intp], labels: int) -> tuple[float, float]:
        """The 95% percentile interval of macro-F1; `pairs` are (items, 2): truth, said."""
        cells = np.zeros((len(pairs), labels * labels), dtype=np.float32)
        cells[np.arange(len(pairs)), pairs[:, 0] * labels + pairs[:, 1]] = 1
        return _middle(macro_f1((self.weights @ cells).reshape(-1, labels, labels)))


def _middle(values: NDArray[Any]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
