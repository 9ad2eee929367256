"""Bounds that figures must reach (`--fail-under`): for a script or a nightly job that must stop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cmgr.errors import MissingError, UsageError
from cmgr.evaluate.methods import METHODS
from cmgr.evaluate.tables import ALL, SPLITS

METRICS = ("accuracy", "macro_f1")
# where a bound names no split: what is not trained as it stands, and can be known from training
DEFAULT = ("test", "wording", "fact", "fit")


class Bound(NamedTuple):
    """The least that a method's metric may be; no `split` means the first of DEFAULT with items."""

    method: str
    metric: str
    split: str | None
    least: float

    def __str__(self) -> str:
        return f"{self.method}.{self.metric}" + (f"@{self.split}" if self.split else "")


class Checked(NamedTuple):
    """A bound beside the figure of one task, in words."""

    holds: bool
    text: str


def parse(text: str) -> Bound:
    """METHOD.METRIC[@SPLIT]=X. Raises UsageError that names what there is."""
    found = re.fullmatch(r"([\w-]+)\.([\w-]+)(?:@([\w-]+))?=(\d+\.?\d*|\.\d+)", text)
    if not found:
        raise UsageError(
            f"--fail-under {text!r}: write METHOD.accuracy=X or METHOD.macro_f1=X, with @SPLIT "
            "before the = for other items, such as routed.accuracy@wording=0.7"
        )
    for what, name, known in (
        ("method", found[1], METHODS),
        ("metric", found[2], METRICS),
        ("split", found[3], SPLITS),
    ):
        if name is not None and name not in known:
            raise UsageError(f"--fail-under {text!r}: no {what} {name}: there are {_list(known)}")
    if float(found[4]) > 1:
        raise UsageError(f"--fail-under {text!r}: {found[4]} is above 1; write 70% as 0.7")
    return Bound(found[1], found[2], found[3], float(found[4]))


def check_methods(bounds: Iterable[Bound], methods: Sequence[str]) -> None:
    """Before anything is computed: raise MissingError for a bound on a method that is left out."""
    for bound in bounds:
        if bound.method not in methods:
            raise MissingError(
                f"--fail-under: {bound.method} is not evaluated here, only {_list(methods)}. "
                "--methods adds it"
            )


def check(rows: Sequence[dict[str, Any]], bounds: Iterable[Bound]) -> list[Checked]:
    """Each bound beside the figures of all cultures together: one a task, and one of all tasks.

    Raises MissingError, with what there is, where a bound's figure is not there.
    """
    found = []
    for bound in bounds:
        mine = [row for row in rows if row["kind"] == "score" and row["culture"] == ALL]
        mine = _those(mine, "method", bound.method, f"--fail-under {bound}")
        having = [row for row in mine if bound.metric in row]
        if not having:
            there = [metric for metric in METRICS if any(metric in row for row in mine)]
            raise MissingError(
                f"--fail-under: there is no {bound.metric} of {bound.method}, only {_list(there)} "
                "(macro_f1 is of tasks with labels)"
            )
        if bound.split:
            having = _those(having, "split", bound.split, f"--fail-under {bound}")
        found += [_checked(bound, row) for row in (having if bound.split else _usual(having))]
    return found


def _usual(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each task, the row of the split that is meant where none is named."""
    at = {(row["task"], row["split"]): row for row in rows}
    tasks = dict.fromkeys(row["task"] for row in rows)
    return [next(at[task, split] for split in DEFAULT if (task, split) in at) for task in tasks]


def _checked(bound: Bound, row: dict[str, Any]) -> Checked:
    value, split = row[bound.metric], row["split"]
    holds = value >= bound.least
    where = f"{row['task']}, {split}: {SPLITS[split]}, n {row['n']}"
    verdict = "holds" if holds else f"under {bound.least:g}"
    return Checked(holds, f"{bound.method}.{bound.metric} is {value:.4f} ({where}): {verdict}")


def _those(rows: Sequence[dict[str, Any]], key: str, name: str, what: str) -> list[dict[str, Any]]:
    mine = [row for row in rows if row[key] == name]
    if not mine:
        there = list(dict.fromkeys(row[key] for row in rows))
        raise MissingError(f"{what}: no figures of the {key} {name}, only of {_list(there)}")
    return mine


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
