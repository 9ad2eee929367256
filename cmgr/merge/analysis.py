"""How far adapters agree: cosines between their deltas, and the share of signs in conflict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from cmgr.merge.deltas import Adapter, layer_of, modules_of

ROWS = 512  # of a delta at a time


def interference(
    adapters: Sequence[Adapter], tick: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """For each two adapters: cosine over all and per layer, share of signs in conflict, norms.

    Orthogonal deltas (cosine near 0) leave each other alone; where signs conflict a merge cancels.
    An entry counts by its size in both, so that noise around zero does not make conflicts.
    """
    modules = modules_of(adapters)
    names = [a.name for a in adapters]
    dots: dict[tuple[str, str], float] = defaultdict(float)
    layers: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(
        lambda: defaultdict(lambda: [0.0, 0.0, 0.0])
    )
    against: dict[tuple[str, str], float] = defaultdict(float)
    weighed: dict[tuple[str, str], float] = defaultdict(float)
    for number, module in enumerate(modules, 1):
        deltas = {a.name: d for a in adapters if (d := a.delta(module)) is not None}
        for name, delta in deltas.items():
            dots[name, name] += delta.dot(delta)
        for one, two in combinations(names, 2):
            if one not in deltas or two not in deltas:
                continue
            first, second = deltas[one], deltas[two]
            dot = first.dot(second)
            dots[one, two] += dot
            sums = layers[one, two][layer_of(module)]
            for place, value in enumerate((dot, first.dot(first), second.dot(second))):
                sums[place] += value
            for start in range(0, len(first.b), ROWS):
                product = (first.b[start : start + ROWS] @ first.a) * (
                    second.b[start : start + ROWS] @ second.a
                )
                sizes = np.sqrt(np.abs(product))
                against[one, two] += float(sizes[product < 0].sum(dtype=np.float64))
                weighed[one, two] += float(sizes.sum(dtype=np.float64))
        if tick:
            tick(number, len(modules))
    return [
        {
            "adapters": [one, two],
            "cosine": _cosine(dots[one, two], dots[one, one], dots[two, two]),
            "sign_conflict": against[one, two] / weighed[one, two] if weighed[one, two] else 0.0,
            "norms": [dots[one, one] ** 0.5, dots[two, two] ** 0.5],
            "layers": {layer: _cosine(*sums) for layer, sums in sorted(layers[one, two].items())},
        }
        for one, two in combinations(names, 2)
    ]


def _cosine(dot: float, one: float, two: float) -> float:
    return dot / (one * two) ** 0.5 if one and two else 0.0
