"""How good a router is on labelled texts, with intervals, beside a rule that looks for names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmgr.recipe import Culture
from cmgr.records import Decision
from cmgr.router import Router
from cmgr.sources.passages import mentions
from cmgr.stats import ece, macro_f1, wilson

NONE = "(none)"  # an abstention among culture ids, which never hold a bracket
RESAMPLED = 200  # times, for the intervals of macro-F1 and ECE


class Labelled(NamedTuple):
    """A text and the cultures it is of; none where abstaining is right."""

    text: str
    cultures: frozenset[str]


def score(
    router: Router, rows: Sequence[Labelled], cultures: Sequence[Culture] = ()
) -> dict[str, Any]:
    """Metrics of a router's decisions, and apart (`unnamed`) those of texts that name no culture.

    A text of no culture is a class of its own: abstaining is right there. Of several cultures, the
    first named must be one; `all_found` says how often they were named exactly. Intervals are 95%:
    Wilson's of shares, resampled ones of macro-F1 and ECE.
    """
    decisions = router.decide_all(row.text for row in rows)
    found = _measure(router.cultures, rows, decisions)
    names = {c.id: [name for name in (c.name, c.demonym) if name] for c in cultures}
    rule = [frozenset(c for c in names if mentions(row.text, names[c])) for row in rows]
    right = [bool(s & r.cultures) or s == r.cultures for r, s in zip(rows, rule, strict=True)]
    found["keyword_rule"] = sum(right) / len(right)
    found["intervals"]["keyword_rule"] = wilson(sum(right), len(right))
    unnamed = [n for n, named in enumerate(rule) if not named]
    if cultures and 0 < len(unnamed) < len(rows):
        part = [rows[n] for n in unnamed]
        found["unnamed"] = _measure(router.cultures, part, [decisions[n] for n in unnamed])
    return found


def _measure(
    ids: Sequence[str], rows: Sequence[Labelled], decisions: Sequence[Decision]
) -> dict[str, Any]:
    said = [d.culture or NONE for d in decisions]
    # of several right ones the one that was said, else the first
    truth = [
        s if s in row.cultures else min(row.cultures, default=NONE)
        for s, row in zip(said, rows, strict=True)
    ]
    labels = [c for c in (*ids, NONE) if c in {*truth, *said}]
    at = {label: n for n, label in enumerate(labels)}
    pairs = np.array([[at[t], at[s]] for t, s in zip(truth, said, strict=True)])
    counts = _counts(pairs, len(labels))
    right = pairs[:, 0] == pairs[:, 1]
    sure = np.array([1 - d.probability if d.abstained else d.probability for d in decisions])
    chance = np.random.default_rng(1)
    drawn = [chance.integers(len(rows), size=len(rows)) for _ in range(RESAMPLED)]
    several = [
        frozenset(d.cultures) == row.cultures
        for d, row in zip(decisions, rows, strict=True)
        if len(row.cultures) > 1
    ]
    classes = {}
    for n, label in enumerate(labels):
        hits, named, there = int(counts[n, n]), int(counts[:, n].sum()), int(counts[n].sum())
        classes[label] = {
            "n": there,
            "precision": hits / named if named else None,
            "recall": hits / there if there else None,
            "precision_interval": wilson(hits, named),
            "recall_interval": wilson(hits, there),
        }
    silent = [s == NONE for s in said]
    missed = [s for s, row in zip(silent, rows, strict=True) if row.cultures]
    shares = {"accuracy": right.tolist(), "abstention_rate": silent}
    shares |= {"named_abstained": missed} if missed else {}
    shares |= {"all_found": several} if several else {}
    measures: dict[str, Callable[[Any], float]] = {
        "macro_f1": lambda i: float(macro_f1(_counts(pairs[i], len(labels)))),
        "ece": lambda i: ece(sure[i], right[i]),
    }
    return {
        "n": len(rows),
        **{name: sum(part) / len(part) for name, part in shares.items()},
        **{name: of(slice(None)) for name, of in measures.items()},
        "intervals": {
            **{name: wilson(sum(part), len(part)) for name, part in shares.items()},
            **{
                name: tuple(np.quantile([of(i) for i in drawn], [0.025, 0.975]).tolist())
                for name, of in measures.items()
            },
        },
        "classes": classes,
        "coverage": _coverage(sure, right),
        "confusion": {
            t: {s: int(counts[i, j]) for j, s in enumerate(labels) if counts[i, j]}
            for i, t in enumerate(labels)
            if counts[i].any()
        },
    }


def _counts(pairs: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    return counts


def _coverage(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Accuracy among the surest tenth of the decisions, the surest two tenths, ..., all."""
    order = right[np.argsort(-sure, kind="stable")]
    points = []
    for tenth in range(1, 11):
        n = max(1, round(len(order) * tenth / 10))
        points.append({"coverage": n / len(order), "accuracy": float(order[:n].mean())})
    return points
