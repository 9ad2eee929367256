"""From what was said to figures: per culture, task and method; paired; the router; interference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cmgr.evaluate.baselines import BASELINES
from cmgr.records import Record, make_id
from cmgr.scoring import fit_temperature, probabilities
from cmgr.stats import Resampled, ece, grouped_wilson, macro_f1, needed, sign_flip

ALL = "all"
CONTESTED = "contested"
SPLITS = {
    "fit": "items as trained",
    "wording": "other wordings of trained facts",
    "fact": "facts never trained",
    "test": "items of the file",
    CONTESTED: "items whose right answer depends on the culture",
}
AGAINST = {
    "routed": ("base", "prompt", "few-shot", "shared", "merged", "broad", "oracle", *BASELINES),
    "routed+evidence": (
        *("base", "prompt", "evidence", "shared+evidence", "open+evidence", "routed"),
        *BASELINES,
    ),
}
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
    options: list[str] = []
    scores: dict[str, list[float]] = {}  # of the options, by method
    # where it has options and is asked freely too: the text, whether it is right, what is wrong
    # with it as a text; of methods that read: whether its own passage, its answer's words were read
    answers: dict[str, str] = {}
    answered: dict[str, bool] = {}
    flaws: dict[str, str] = {}
    passages: dict[str, bool] = {}
    words: dict[str, bool] = {}


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
            row |= _free(mine, method)
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


def _free(mine: Sequence[Result], method: str) -> dict[str, Any]:
    """Of answers in own words: the share that is right, and that is sound as a text."""
    free = [r for r in mine if method in r.answered]
    if not free:
        return {}
    found = _share([r.answered[method] for r in free], free)
    sound = sum(not r.flaws.get(method) for r in free) / len(free)
    return {
        **{"answers_n": found["n"], "answers_right": found["right"]},
        **{"answers": found["accuracy"], "answers_interval": found["interval"], "sound": sound},
    }


def coverage(results: Sequence[Result], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What methods that read passages had before them: the right one, the right answer's words.

    `right_with` and `right_without` are the shares right where the right passage was read, and
    where not; of free answers where there are any.
    """
    for (task, culture, split), mine in parts(results).items():
        for method in methods:
            read = [r for r in mine if method in r.words]
            if not read or culture != ALL:
                continue
            row: dict[str, Any] = {"kind": "coverage", "task": task, "culture": culture}
            row |= {"split": split, "method": method, "n": len(read)}
            row["shown"] = sum(method in r.passages for r in read) / len(read)
            row["words"] = sum(r.words[method] for r in read) / len(read)
            row["passage"] = sum(r.passages.get(method, False) for r in read) / len(read)
            covered = [r for r in read if r.passages.get(method) or r.words[method]]
            others = [r for r in read if not (r.passages.get(method) or r.words[method])]
            for name, some in (("right_with", covered), ("right_without", others)):
                rights = [r.answered.get(method, r.right[method]) for r in some]
                row[name] = sum(rights) / len(rights) if rights else None
            yield row


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
    """Differences of accuracy on the same items: 95% bootstrap interval and exact p, by groups.

    `needed` is how many items would tell such a difference from nothing.
    """
    for (task, culture, split), mine in parts(results).items():
        if culture != ALL:
            continue
        groups = _groups(mine)
        drawn = Resampled(groups, seed)
        for method, others in AGAINST.items():
            for other in others:
                if method not in methods or other not in methods:
                    continue
                both = [("options", [(r.right[method], r.right[other]) for r in mine])]
                if all(method in r.answered and other in r.answered for r in mine):
                    free = [(r.answered[method], r.answered[other]) for r in mine]
                    both.append(("answers", free))
                for what, pairs in both:
                    gaps = [int(one) - int(two) for one, two in pairs]
                    yield {
                        "kind": "paired",
                        **{"task": task, "culture": culture, "split": split, "n": len(mine)},
                        **{"method": method, "against": other, "what": what},
                        "difference": sum(gaps) / len(gaps),
                        "interval": drawn.mean(gaps),
                        **{"wins": gaps.count(1), "losses": gaps.count(-1)},
                        "p": sign_flip(gaps, groups),
                        "needed": needed(gaps, groups),
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


def calibration(
    results: Sequence[Result], methods: Sequence[str], rule: Sequence[str | float]
) -> Iterator[dict[str, Any]]:
    """Of each method: the temperature that makes its scores probabilities, and how far these err.

    Of held-out items alone. `ece` is the expected calibration error of half of them at the
    temperature of the other half, and the other way round (whole groups on one side); the
    temperature that is given is that of all.
    """
    held = [r for r in results if r.split != "fit" and r.answer in r.options]
    for method in methods:
        mine = [r for r in held if method in r.scores]
        if not mine:
            continue
        halves = [[r for r in mine if int(make_id("half", r.group), 16) % 2 == n] for n in (0, 1)]
        sure, right = [], []
        for here, other in (halves, halves[::-1]):
            temperature = _temperature(other, method)
            for result in here:
                shares = probabilities(result.scores[method], temperature)
                sure.append(float(shares.max()))
                right.append(int(shares.argmax()) == result.options.index(result.answer))
        yield {
            **{"kind": "calibration", "method": method, "n": len(mine), "rule": list(rule)},
            "temperature": round(_temperature(mine, method), 4),
            "ece": ece(np.array(sure), np.array(right)),
        }


def _temperature(mine: Sequence[Result], method: str) -> float:
    places = [r.options.index(r.answer) for r in mine]
    return fit_temperature([r.scores[method] for r in mine], places)


def interference(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Accuracy of each culture's adapter (and of `base`) on each culture's items."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        for adapter in result.under:
            found[adapter, result.culture].append(result)
    for (adapter, culture), mine in found.items():
        row: dict[str, Any] = {"kind": MATRIX, "adapter": adapter, "culture": culture}
        yield row | _share([r.under[adapter] for r in mine], mine)


# -- for people ---------------------------------------------------------------------------------

SHORT = {"fit": "trained", "wording": "wording", "fact": "unseen", "test": "test"}


def _whole(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The score rows over all tasks and cultures, by split and method."""
    scored = [r for r in rows if r["kind"] == "score" and r["culture"] == ALL]
    tasks = {r["task"] for r in scored}
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in scored:
        if row["task"] == ALL or len(tasks) == 1:
            found[row["split"]][row["method"]] = row
    return found


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """What came of it, in a sentence: of free answers where there are any, beside the base's."""
    said = []
    names = {"wording": "other wordings", "fact": "facts never trained", "test": "items"}
    for split, mine in _whole(rows).items():
        method = "routed+evidence" if "routed+evidence" in mine else "routed"
        if split not in names or method not in mine:
            continue
        key, n = ("answers_right", "answers_n") if "answers_n" in mine[method] else ("right", "n")
        others = ["base"] if "base" in mine else []
        # what reads nothing writes nothing: it stands beside options alone
        blind = [m for m in BASELINES if m in mine and key == "right"]
        others += [max(blind, key=lambda m: mine[m][key])] if blind else []
        beside = ", ".join(f"{m} {mine[m][key]}" for m in others)
        said.append(
            f"{names[split]} {mine[method][key]} of {mine[method][n]}"
            + (f" ({beside})" if beside else "")
        )
    if not said:
        return ""
    free = any("answers_n" in row for mine in _whole(rows).values() for row in mine.values())
    return f"{'Free answers' if free else 'Answers'} right: {'; '.join(said)}"


def gains(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of each split, whether the routed method is ahead of the best of all others, in a sentence.

    Where that is not sure, how many items would tell. Free answers count where there are any.
    """
    found = []
    for split, mine in _whole(rows).items():
        method = "routed+evidence" if "routed+evidence" in mine else "routed"
        if split not in SHORT or split == "fit" or method not in mine:
            continue
        free = "answers" in mine[method]
        what, key = ("answers", "answers") if free else ("options", "accuracy")
        others = [
            r
            for r in rows
            if r["kind"] == "paired"
            and (r["split"], r["method"], r["task"]) == (split, method, mine[method]["task"])
            and r.get("what", "options") == what
            and r["against"] != "oracle"
        ]
        if not others:
            continue
        best = max(others, key=lambda r: float(mine[r["against"]][key]))
        found.append(
            f"{SHORT[split]}: {method} {mine[method][key]:.3f}, the best of the others "
            f"{best['against']} {mine[best['against']][key]:.3f}: {_gain(best)}"
        )
    return found


def _gain(row: dict[str, Any]) -> str:
    p = "p < 0.001" if row["p"] < 0.001 else f"p {row['p']:.3f}"
    gap = f"{row['difference']:+.3f}, {p}"
    if row["p"] < 0.05 or not row.get("needed"):
        return gap
    return f"{gap}; {row['n']:,} items cannot tell this from chance, about {row['needed']:,} could"


def overview(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(heads, cells): a method a line; for each split the shares of free answers and of options

    that are right. A column that has nothing is left out.
    """
    whole = {split: mine for split, mine in _whole(rows).items() if split in SHORT}
    methods = list(dict.fromkeys(method for mine in whole.values() for method in mine))
    heads, columns = ["method"], [methods]
    for split, mine in whole.items():
        first = next(iter(mine.values()))
        free = any("answers" in row for row in mine.values())
        kinds = [("answers", "answers")] if free else []
        kinds.append(("options" if kinds else "right", "accuracy"))
        for name, key in kinds:
            heads.append(f"{SHORT[split]}\n{name}\nn {first['n']}")
            columns.append([_two(mine.get(m, {}).get(key)) for m in methods])
    return heads, [list(cells) for cells in zip(*columns, strict=True)]


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# -- for papers and spreadsheets ----------------------------------------------------------------

COLUMNS = (
    *("task", "culture", "split", "method", "n", "right", "accuracy", "low", "high"),
    *("macro_f1", "macro_f1_low", "macro_f1_high"),
    *("answers_n", "answers_right", "answers", "answers_low", "answers_high", "sound"),
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
            more["answers_low"], more["answers_high"] = row.get("answers_interval", ("", ""))
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
