"""How far adapters agree: cosines between their deltas, and the share of signs in conflict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from cmgr.merge.deltas import Adapter, Factors, layer_of, modules_of, stacked
from cmgr.merge.methods import METHODS, at_rank, error_of, merged, relative

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


def errors(
    adapters: Sequence[Adapter],
    weights: Mapping[str, float],
    rank: int,
    density: float,
    seed: int,
    tick: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """For each method: what a rank loses of its own delta, and how far that is from the exact sum.

    Relative Frobenius errors, over all and per layer.
    """
    sums: dict[str, dict[int, list[float]]] = {m: defaultdict(lambda: [0.0] * 4) for m in METHODS}
    modules = modules_of(adapters)
    for number, module in enumerate(modules, 1):
        deltas = {a.name: d for a in adapters if (d := a.delta(module)) is not None}
        exact = stacked([delta.scaled(weights[name]) for name, delta in deltas.items()])
        for method in METHODS:
            whole = merged(method, deltas, weights, density, seed, module)
            kept = whole if method == "cat" else at_rank(whole, rank)
            if not isinstance(kept, Factors):
                raise TypeError(method)
            size = whole.norm() if isinstance(whole, Factors) else float(np.linalg.norm(whole))
            row = sums[method][layer_of(module)]
            row[0] += (error_of(kept, whole) * size) ** 2
            row[1] += size**2
            row[2] += (error_of(kept, exact) * exact.norm()) ** 2
            row[3] += exact.norm() ** 2
        if tick:
            tick(number, len(modules))
    return [
        {
            "method": method,
            "error": relative(layers.values(), 0),
            "from_sum": relative(layers.values(), 2),
            "layers": {layer: relative([row], 0) for layer, row in sorted(layers.items())},
        }
        for method, layers in sums.items()
    ]
