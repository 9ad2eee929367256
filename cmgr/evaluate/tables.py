"""From what was said to figures: per culture, task and method; paired; the router; interference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cmgr.records import Record
from cmgr.stats import Resampled, grouped_wilson, macro_f1, sign_flip

ALL = "all"
CONTESTED = "contested"
SPLITS = {
    "fit": "items as trained",
    "wording": "other wordings of trained facts",
    "fact": "facts never trained",
    "test": "items of the file",
    CONTESTED: "items whose right answer depends on the culture",
}
AGAINST = {"routed": ("base", "prompt", "few-shot", "shared", "merged", "broad", "oracle")}
MATRIX = "interference"


class Result(Record):
    """One item under every method: what each said, and whether it was right."""

    id: str
    culture: str
    task: str
    split: str
    group: str
    contested: bool
    answer: str
    labels: list[str]
    routed_to: str | None
    probability: float | None  # the router's, of its likeliest culture
    said: dict[str, str]
    right: dict[str, bool]
    under: dict[str, bool] = {}  # right under each culture's adapter


Part = tuple[str, str, str]  # task, culture, split


def parts(results: Sequence[Result]) -> dict[Part, list[Result]]:
    """The results by (task, culture, split), and of all tasks and all cultures together.

    Of all cultures, `contested` items stand apart too: their right answer depends on the culture.
    """
    found: dict[Part, list[Result]] = defaultdict(list)
    tasks = {result.task for result in results}
    for result in results:
        for task in (result.task, *([ALL] if len(tasks) > 1 else [])):
            for culture in (result.culture, ALL):
                found[task, culture, result.split].append(result)
            if result.contested:
                found[task, ALL, CONTESTED].append(result)
    order = {"fit": 0, "wording": 1, "fact": 2, "test": 3, CONTESTED: 4}
    return {
        key: found[key]
        for key in sorted(found, key=lambda k: (k[0] == ALL, order.get(k[2], 9), k[1] == ALL, k))
    }


def scores(
    results: Sequence[Result], methods: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """A row per part and method: n, accuracy, macro-F1 where the task has labels; 95% intervals.

    Accuracy's is Wilson's, macro-F1's resampled, both by groups of items.
    """
    for (task, culture, split), mine in parts(results).items():
        drawn = Resampled(_groups(mine), seed) if _labels(mine) else None
        for method in methods:
            row: dict[str, Any] = {"kind": "score", "task": task, "culture": culture}
            row |= {"split": split, "method": method}
            row |= _share([r.right[method] for r in mine], mine)
            if drawn:
                pairs, size = _pairs(mine, method)
                counts = np.zeros((size, size))
                np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
                row["macro_f1"] = float(macro_f1(counts))
                row["macro_f1_interval"] = drawn.macro_f1(pairs, size)
            yield row


def _groups(mine: Sequence[Result]) -> list[str]:
    return [result.group for result in mine]


def _share(rights: Sequence[bool], mine: Sequence[Result]) -> dict[str, Any]:
    """How many of these results are right, and the share with its interval."""
    right, n = sum(rights), len(rights)
    interval = grouped_wilson(rights, _groups(mine))
    return {"n": n, "right": right, "accuracy": right / n, "interval": interval}


def _labels(mine: Sequence[Result]) -> list[str]:
    """The labels that all of these items have in common, if any."""
    first = mine[0].labels
    return first if all(r.labels == first for r in mine) else []


def _pairs(mine: Sequence[Result], method: str) -> tuple[Any, int]:
    labels = _labels(mine)
    at = {label: n for n, label in enumerate(labels)}
    return np.array([[at[r.answer], at[r.said[method]]] for r in mine], dtype=np.intp), len(at)


def paired(
    results: Sequence[Result], methods: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Differences of accuracy on the same items: 95% bootstrap interval and exact p, by groups."""
    for (task, culture, split), mine in parts(results).items():
        if culture != ALL:
            continue
        groups = _groups(mine)
        drawn = Resampled(groups, seed)
        for method, others in AGAINST.items():
            for other in others:
                if method not in methods or other not in methods:
                    continue
                gaps = [int(r.right[method]) - int(r.right[other]) for r in mine]
                yield {
                    "kind": "paired",
                    **{"task": task, "culture": culture, "split": split, "n": len(mine)},
                    **{"method": method, "against": other},
                    "difference": sum(gaps) / len(gaps),
                    "interval": drawn.mean(gaps),
                    **{"wins": gaps.count(1), "losses": gaps.count(-1)},
                    "p": sign_flip(gaps, groups),
                }


def router(
    results: Sequence[Result], methods: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """How often the router named the right culture, and what its errors cost (oracle - routed)."""
    for (task, culture, split), mine in parts(results).items():
        row: dict[str, Any] = {"kind": "router", "task": task, "culture": culture, "split": split}
        row |= _share([r.routed_to == r.culture for r in mine], mine)
        row["abstained"] = sum(r.routed_to is None for r in mine) / len(mine)
        if "routed" in methods and "oracle" in methods and culture == ALL:
            lost = np.array([int(r.right["oracle"]) - int(r.right["routed"]) for r in mine])
            row["cost"] = float(lost.mean())
            row["cost_interval"] = Resampled(_groups(mine), seed).mean(lost)
        yield row


def interference(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Accuracy of each culture's adapter (and of `base`) on each culture's items."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        for adapter in result.under:
            found[adapter, result.culture].append(result)
    for (adapter, culture), mine in found.items():
        row: dict[str, Any] = {"kind": MATRIX, "adapter": adapter, "culture": culture}
        yield row | _share([r.under[adapter] for r in mine], mine)


# -- for papers and spreadsheets ----------------------------------------------------------------

COLUMNS = (
    *("task", "culture", "split", "method", "n", "right", "accuracy", "low", "high"),
    *("macro_f1", "macro_f1_low", "macro_f1_high"),
)


def csv(rows: Sequence[dict[str, Any]]) -> str:
    """The score rows as CSV, a line per part and method."""
    import csv as lib
    import io

    out = io.StringIO()
    writer = lib.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row["kind"] == "score":
            low, high = row["interval"]
            f1_low, f1_high = row.get("macro_f1_interval", ("", ""))
            more = {"low": low, "high": high, "macro_f1_low": f1_low, "macro_f1_high": f1_high}
            writer.writerow({**row, **more})
    return out.getvalue()


def markdown(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """The score rows as a Markdown table: a line per part, a column per method."""
    head = ["task", "items", "culture", "n", *methods]
    lines = [
        f"| {' | '.join(head)} |",
        f"| {' | '.join(['---'] * 3 + ['---:'] * (len(head) - 3))} |",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in _lines(rows, methods, "**{}**".format)]
    return "\n".join(lines) + "\n"


def latex(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """The score rows as a LaTeX table (booktabs), the best of each line bold."""
    head = " & ".join(map(_tex, ["task", "items", "culture", "$n$", *methods]))
    body = [" & ".join(c) + r" \\" for c in _lines(rows, methods, r"\textbf{{{}}}".format, _tex)]
    return "\n".join(
        [
            "% \\usepackage{booktabs}; accuracy, 95% Wilson intervals by groups of items",
            rf"\begin{{tabular}}{{lllr{'r' * len(methods)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _tex(text: str) -> str:
    if text == "$n$":
        return text
    signs = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": r"\textbackslash{}"}
    signs |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(c, c) for c in text)


def _lines(
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str],
    bold: Callable[[str], str],
    escape: Callable[[str], str] = lambda text: text.replace("|", "\\|"),
) -> Iterator[list[str]]:
    found: dict[Part, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == "score":
            found[row["task"], row["culture"], row["split"]][row["method"]] = row
    for (task, culture, split), mine in found.items():
        best = max(row["accuracy"] for row in mine.values())
        cells = [escape(task), escape(split), escape(culture), str(next(iter(mine.values()))["n"])]
        for method in methods:
            row = mine[method]
            low, high = row["interval"]
            value = f"{row['accuracy']:.2f}"
            value = bold(value) if row["accuracy"] == best else value
            cells.append(f"{value} [{low:.2f}, {high:.2f}]")
        yield cells
