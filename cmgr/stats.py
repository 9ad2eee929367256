"""Counts in words, shares with their intervals, and how far two people agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion (Wilson, 1927); (0, 1) for no items."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    p, q = right / n, z * z / n
    middle = (p + q / 2) / (1 + q)
    half = z / (1 + q) * math.sqrt(p * (1 - p) / n + q / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


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
