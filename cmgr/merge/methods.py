"""How deltas become one: each method by its paper, on the delta and never on its factors apart.

PEFT's `add_weighted_adapter` agrees with ours where it adds deltas (`cat`, `svd`). It does not for
`linear`, `ties` and `dare`, which it applies to A and to B by themselves: the product of two sums
is not the sum of two products (peft#643, #1155).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cmgr.merge.deltas import Array, Factors, stacked

METHODS: dict[str, str] = {
    "cat": "the exact sum; the rank adds up",
    "svd": "the sum at a rank: the best approximation there is (Eckart and Young, 1936)",
    "linear": "the average by the weights' shares, at a rank",
    "task-arithmetic": "another name for svd: task vectors added (Ilharco and others, 2023)",
    "ties": "trim, elect signs, average what agrees (Yadav and others, 2023), at a rank",
    "dare": "drop at random, rescale, add (Yu and others, 2024), at a rank",
}
DENSE = {"ties", "dare"}


def merged(
    method: str,
    deltas: Mapping[str, Factors],
    weights: Mapping[str, float],
    density: float,
    seed: int,
    module: str,
) -> Factors | Array:
    """What a method makes of the deltas of one module: factors, or a dense delta.

    `weights` are those of all adapters, also of those that do not change this module.
    """
    parts = {name: deltas[name] for name in sorted(deltas)}  # no order of theirs matters
    if method == "linear":
        all_of_it = sum(weights.values())
        weights = {name: weight / all_of_it for name, weight in weights.items()}
    if method not in DENSE:
        return stacked([delta.scaled(weights[name]) for name, delta in parts.items()])
    shares = [weights[name] for name in parts]
    if method == "dare":
        total = np.zeros_like(next(iter(parts.values())).dense())
        for (name, delta), share in zip(parts.items(), shares, strict=True):
            total += np.float32(share) * _dropped(delta.dense(), density, seed, module, name)
        return total
    trimmed = (_trimmed(delta.dense(), density) for delta in parts.values())
    return _ties([np.float32(w) * d for w, d in zip(shares, trimmed, strict=True)], shares)


def _trimmed(delta: Array, density: float) -> Array:
    """The share of entries that are largest; the others are 0."""
    keep = round(density * delta.size)
    if keep >= delta.size:
        return delta
    if keep == 0:
        return np.zeros_like(delta)
    bar = np.partition(np.abs(delta), delta.size - keep, axis=None)[delta.size - keep]
    return np.where(np.abs(delta) >= bar, delta, np.float32(0))


def _ties(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """The mean, by weight, of the entries whose sign is that of the sum of all.

    With one adapter, weight 1 and density 1 it is the identity.
    """
    elected = np.sign(np.sum(parts, axis=0))
    total = np.zeros_like(parts[0])
    counted = np.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        agrees = (np.sign(part) == elected) & (part != 0)
        total += np.where(agrees, part, 0)
        counted += np.where(agrees, abs(weight), 0).astype(np.float32)
    mean: Array = np.divide(total, counted, out=np.zeros_like(total), where=counted > 0)
    # weights say how much each counts, and their mean how much of it all there is
    return mean * np.float32(np.mean(np.abs(weights)))


def _dropped(delta: Array, density: float, seed: int, module: str, name: str) -> Array:
    """Each entry kept with a chance, and rescaled so that the expectation is the delta."""
    if density >= 1:
        return delta
    digest = hashlib.sha256(f"{seed} {module} {name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    kept = rng.random(delta.shape, dtype=np.float32) < density
    return np.where(kept, delta / np.float32(density), np.float32(0))


def at_rank(delta: Factors | Array, rank: int) -> Factors:
    """The best approximation of a rank (in the Frobenius norm), scales shared by both factors.

    Of factors by QR of each and a small SVD: no dense delta is made. Of a dense delta by
    randomised SVD (Halko and others, 2011), whose error is told with all others.
    """
    if isinstance(delta, Factors):
        if delta.rank <= rank:
            return delta
        qb, rb = np.linalg.qr(delta.b.astype(np.float64))
        qa, ra = np.linalg.qr(delta.a.T.astype(np.float64))
        u, s, vt = np.linalg.svd(rb @ ra.T, full_matrices=False)
        root = np.sqrt(s[:rank])
        return Factors(
            np.asarray(qb @ u[:, :rank] * root, np.float32),
            np.asarray(root[:, None] * (vt[:rank] @ qa.T), np.float32),
        )
    size = min(rank, *delta.shape)
    u, s, vt = _dense_svd(delta, size)
    root = np.sqrt(s)
    return Factors(u * root, root[:, None] * vt)


def _dense_svd(delta: Array, rank: int) -> tuple[Array, Array, Array]:
    width = min(rank + 16, *delta.shape)
    if width * 4 >= min(delta.shape):
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    start = np.random.default_rng(0).standard_normal((delta.shape[1], width), dtype=np.float32)
    basis, _ = np.linalg.qr(delta @ start)
    for _ in range(4):
        other, _ = np.linalg.qr(delta.T @ basis)
        basis, _ = np.linalg.qr(delta @ other)
    u, s, vt = np.linalg.svd(basis.T @ delta, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vt[:rank]


def relative(rows: Iterable[Sequence[float]], at: int = 0) -> float:
    """The relative error over rows that hold a squared gap at `at`, and the squared size next."""
    found = list(rows)
    whole = sum(row[at + 1] for row in found)
    return float((sum(row[at] for row in found) / whole) ** 0.5) if whole else 0.0


def error_of(result: Factors, wanted: Factors | Array) -> float:
    """The relative Frobenius error of what was kept of a delta."""
    if isinstance(wanted, Factors):
        norm = wanted.norm()
        gap = stacked([wanted, result.scaled(-1)]).norm()
    else:
        norm = float(np.linalg.norm(wanted))
        gap = float(np.linalg.norm(wanted - result.dense()))
    return gap / norm if norm else 0.0
