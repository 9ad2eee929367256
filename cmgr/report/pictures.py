"""The report's pictures, each as SVG and PNG. In the page their text takes the page's colour."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cmgr.router.scoring import NONE
from cmgr.stats import BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010101"  # what becomes the page's own text colour
GREY = "#8a8a8a"
# Okabe and Ito (2008): apart for colour-blind eyes too, on light and on dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
WIDTH = 6.0  # inches
MOST_CELLS = 16  # a side of a heat map with numbers in it


class Picture(NamedTuple):
    """A drawn picture: its files, and what it shows in words."""

    name: str
    title: str
    about: str
    svg: bytes
    png: bytes

    def inline(self) -> str:
        """The SVG for a page: no fixed size, text in the page's colour, ids of its own."""
        text = self.svg.decode()
        text = text[text.index("<svg") :]
        head, rest = text.split(">", 1)
        head = re.sub(r'\s(width|height)="[^"]*"', "", head)
        text = f'{head} focusable="false" aria-hidden="true">{rest}'
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        return text.replace(INK, "currentColor")


def draw(data: dict[str, Any]) -> Iterator[Picture]:
    """Every picture that there is something for."""
    if any(row["came"] or row["imported"] or row["evidence"] for row in data["counts"]):
        yield _pipeline(data["counts"])
    if any(entry["losses"] for entry in data["training"]):
        logged = [entry for entry in data["training"] if entry["losses"]]
        own = [entry for entry in logged if "variant" not in entry["manifest"]]
        yield _losses(own or logged)
    routed = [r for evaluation in data["evaluations"] for r in evaluation["routed"]]
    if routed:
        yield _reliability(routed)
        yield _confusion(routed)
    for number, evaluation in enumerate(data["evaluations"], 1):
        for place, part in enumerate(evaluation["parts"], 1):
            yield _methods(f"methods-{number}-{place}", evaluation["name"], part)
        cells = [row for row in evaluation["rows"] if row["kind"] == "interference"]
        if cells:
            yield _interference(f"interference-{number}", evaluation["name"], cells)
    if data["agreement"]:
        yield _agreement(data["agreement"])


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _finish(figure: Figure, name: str, title: str, about: str) -> Picture:
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcParams["svg.fonttype"] = "none"
        matplotlib.rcParams["svg.hashsalt"] = name  # the same ids each time
        matplotlib.rcParams["text.parse_math"] = False
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, facecolor="white")
    return Picture(name, title, about, svg.getvalue(), png.getvalue())


def _label(axes: Axes, x: str = "", y: str = "") -> None:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        frameon=False,
        labelcolor=INK,
        fontsize=8,
        ncols=columns,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )


def _named(axes: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _pipeline(rows: list[dict[str, Any]]) -> Picture:
    figure, axes = _figure(0.8 + 0.45 * len(rows))
    _named(axes, [row["culture"] for row in rows])
    at = np.arange(len(rows))
    bars = (
        ("evidence", [row["evidence"] for row in rows], COLOURS[0], -0.2),
        ("examples kept", [row["kept"] + row["imported"] for row in rows], COLOURS[2], 0.2),
    )
    for label, values, colour, offset in bars:
        axes.barh(at + offset, values, 0.36, color=colour, label=label)
    lost = [row["came"] - row["kept"] for row in rows]
    kept = [row["kept"] + row["imported"] for row in rows]
    axes.barh(at + 0.2, lost, 0.36, left=kept, color=COLOURS[1], label="examples left out")
    _label(axes, "records")
    _legend(axes, 3)
    came = sum(row["came"] for row in rows)
    share = sum(row["kept"] for row in rows) / came if came else 1.0
    about = f"{sum(row['evidence'] for row in rows)} passages; {share:.0%} of {came} examples kept."
    return _finish(figure, "pipeline", "What came, and what was kept", about)


def _losses(training: list[dict[str, Any]]) -> Picture:
    figure, axes = _figure(3.2)
    for number, entry in enumerate(training):
        values = [loss for _, loss in entry["losses"]]
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        colour = COLOURS[number % len(COLOURS)]
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, style, color=colour, linewidth=1.2, label=entry["name"])
    _label(axes, "step (one stage after the other)", "loss")
    axes.set_ylim(bottom=0)
    _legend(axes, 3)
    ends = [e["losses"][-1][1] for e in training]
    about = f"{len(training)} adapters; the last loss is {min(ends):.2f} to {max(ends):.2f}."
    return _finish(figure, "losses", "Loss of each training step", about)


Routed = tuple[str, str | None, float]


def _reliability(routed: Sequence[Routed]) -> Picture:
    figure, axes = _figure(3.6)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    # how sure of what it said: of an abstention, that no culture is meant
    sure = np.array([p if said else 1 - p for _, said, p in routed])
    right = np.array([truth == said for truth, said, _ in routed], dtype=float)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    meant = np.bincount(bins, sure, minlength=BINS)[there] / counts[there]
    found = np.bincount(bins, right, minlength=BINS)[there] / counts[there]
    axes.scatter(meant, found, s=12 + 150 * counts[there] / counts.max(), color=COLOURS[0])
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_aspect("equal")
    _label(axes, "how sure the router was", "how often it was right")
    gap = float(np.abs(np.bincount(bins, right - sure, minlength=BINS)).sum() / len(sure))
    about = f"{len(sure)} items; right on {right.mean():.1%}; expected calibration error {gap:.3f}."
    return _finish(
        figure, "reliability", "How far the router's probabilities can be trusted", about
    )


def _confusion(routed: Sequence[Routed]) -> Picture:
    truths = sorted({truth for truth, _, _ in routed})
    named = sorted({said or NONE for _, said, _ in routed} | set(truths))
    counts = np.zeros((len(truths), len(named)))
    for truth, said, _ in routed:
        counts[truths.index(truth), named.index(said or NONE)] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    missed = sum(truth != said for truth, said, _ in routed)
    about = f"{missed} of {len(routed)} items were routed to another culture, or to none."
    figure = _heat(shares, truths, named, "routed to", "{:.2f}", (0.0, 1.0))
    return _finish(figure, "confusion", "Where the router sends each culture's items", about)


def _methods(name: str, evaluation: str, part: dict[str, Any]) -> Picture:
    rows = part["rows"]
    figure, axes = _figure(0.7 + 0.32 * len(rows))
    _named(axes, [row["method"] for row in rows])
    values = np.array([row["accuracy"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    colours = [COLOURS[2] if row["method"] == "routed" else COLOURS[0] for row in rows]
    axes.barh(range(len(rows)), values, 0.62, color=colours, alpha=0.55)
    error = np.maximum((values - low, high - values), 0)  # rounding may leave -1e-16
    axes.errorbar(values, range(len(rows)), xerr=error, fmt="none", ecolor=INK, elinewidth=1.2)
    axes.set_xlim(0, 1)
    _label(axes, "accuracy, 95% interval")
    best = max(rows, key=lambda row: row["accuracy"])
    title = f"{evaluation}: {part['task']}, {part['split']} (n {rows[0]['n']})"
    return _finish(figure, name, title, f"Best: {best['method']}, {best['accuracy']:.3f}.")


def _interference(name: str, evaluation: str, cells: list[dict[str, Any]]) -> Picture:
    adapters = list(dict.fromkeys(cell["adapter"] for cell in cells))
    cultures = list(dict.fromkeys(cell["culture"] for cell in cells))
    found = np.full((len(adapters), len(cultures)), np.nan)
    for cell in cells:
        at = adapters.index(cell["adapter"]), cultures.index(cell["culture"])
        found[at] = cell["accuracy"]
    own = [c["accuracy"] for c in cells if c["adapter"] == c["culture"]]
    other = [c["accuracy"] for c in cells if c["adapter"] != c["culture"]]
    about = "Accuracy of a culture's adapter (row) on a culture's items (column)."
    if own and other:
        about += f" On its own {np.mean(own):.3f}, on others' {np.mean(other):.3f}."
    figure = _heat(found, adapters, cultures, "items of", "{:.2f}", None)
    return _finish(figure, name, f"{evaluation}: interference", about)


def _agreement(found: dict[str, Any]) -> Picture:
    names = found["adapters"]
    cosines = np.eye(len(names))
    for row in found["rows"]:
        one, two = (names.index(name) for name in row["adapters"])
        cosines[one, two] = cosines[two, one] = row["cosine"]
    figure = _heat(cosines, names, names, "adapter", "{:.2f}", (-1.0, 1.0))
    pairs = [row["cosine"] for row in found["rows"]]
    about = f"Cosine between adapters' deltas: {min(pairs):.2f} to {max(pairs):.2f}."
    return _finish(figure, "agreement", "How far the adapters agree", about)


def _heat(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    across: str,
    form: str,
    span: tuple[float, float] | None,
) -> Figure:
    """A heat map with its numbers in the cells."""
    figure, axes = _figure(1.4 + 0.34 * len(rows))
    low, high = span or (float(np.nanmin(values)), float(np.nanmax(values)))
    # drawn as shapes: the page's policy lets no embedded image in
    image = axes.pcolormesh(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9))
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=35, ha="right")
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    _label(axes, across)
    if max(values.shape) <= MOST_CELLS:
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                # the relative luminance of the cell decides the colour of its number
                dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
                colour = "#ffffff" if dark else "#000000"
                text = form.format(value)
                axes.text(
                    j + 0.5, i + 0.5, text, ha="center", va="center", color=colour, fontsize=8
                )
    return figure
