"""A workspace on one page: one HTML file that needs nothing else, and its pictures as files.

What stands in it comes from web pages, people and models: the template escapes it, links are http
or https, and the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import platform
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cmgr import __version__, review, search, status, synthesize
from cmgr.errors import missing_extra
from cmgr.evaluate.tables import ALL, Result
from cmgr.records import Example, make_id, now
from cmgr.workspace import Workspace, read_json, write_atomic

EXAMPLES = 200
ITEMS = 60  # of an evaluation, those first on which the methods disagree
PASSAGE = 1500  # characters that are shown of one
LIBRARIES = (
    *("llama-cpp-python", "numpy", "torch", "transformers", "peft", "scikit-learn", "openai"),
    *("trafilatura", "matplotlib"),
)


def build(ws: Workspace, path: Path, examples: int = EXAMPLES) -> list[Path]:
    """Write the page to `path` and each picture beside it as .svg and .png; returns all of them.

    Raises MissingError without matplotlib.
    """
    try:
        import matplotlib.figure  # noqa: F401 - only to see whether it is there
    except ImportError:
        raise missing_extra("report", "cmgr report") from None
    from cmgr.report.pictures import draw

    data = gather(ws, examples)
    written = []
    shown: dict[str, dict[str, str]] = {}
    for picture in draw(data):
        for suffix, content in ((".svg", picture.svg), (".png", picture.png)):
            written.append(path.with_name(f"{picture.name}{suffix}"))
            write_atomic(written[-1], content)
        shown[picture.name] = {"title": picture.title, "about": picture.about}
        shown[picture.name]["svg"] = picture.inline()
    write_atomic(path, render(data, shown).encode())
    return [path, *written]


def render(data: dict[str, Any], pictures: dict[str, dict[str, str]]) -> str:
    """The page. Everything of `data` is escaped; the pictures' SVG is our own."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    room = files("cmgr.report")
    script = room.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # no loader, so that the template cannot take in another file
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["link"] = safe_link
    template = environment.from_string(room.joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        **data,
        pictures={k: {**v, "svg": Markup(v["svg"])} for k, v in pictures.items()},
        style=Markup(room.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )


def safe_link(url: str) -> str | None:
    """A URL that may be followed from the page: http or https, with a host; else None."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None


# -- what stands in it --------------------------------------------------------------------------


def gather(ws: Workspace, examples: int = EXAMPLES) -> dict[str, Any]:
    """All that the page shows, as plain values."""
    every = synthesize.all_examples(ws)
    return {
        "name": ws.recipe.name,
        "made_at": now(),
        "version": __version__,
        "state": status.of(ws),
        "counts": _counts(ws),
        "training": _training(ws),
        "evaluations": _evaluations(ws),
        "agreement": read_json(ws.path("logs", "analyse.json")),
        "examples": _examples(ws, every, examples),
        "all_examples": len(every),
        "review": review.told(review.error_rate(ws, every)) if every else "",
        "tried": (read_json(ws.manifest_path("eval")) or {}).get("tried", []),
        "costs": _costs(ws),
        "versions": _versions(),
        "recipe": ws.path("recipe.yaml").read_text(encoding="utf-8"),
    }


def _counts(ws: Workspace) -> list[dict[str, Any]]:
    """Per culture: queries, pages, passages, evidence; examples that came, passed, and why not."""
    searched, made = ws.parts("search"), ws.parts("synthesize")
    rows = []
    for culture in ws.recipe.cultures:
        found, part = searched.get(culture.id, {}), made.get(culture.id, {})
        reasons: dict[str, int] = defaultdict(int)
        came = kept = 0
        for task in part.get("yield", {}).values():
            came, kept = came + task["came"], kept + task["kept"]
            for reason, count in task["left_out"].items():
                reasons[reason] += count
        rows.append(
            {
                "culture": culture.id,
                "queries": found.get("queries", 0),
                "passages": found.get("passages", 0),
                "evidence": len(found.get("ids", [])),
                "dropped": found.get("dropped", {}),
                "came": came,
                "kept": kept,
                "imported": len(part.get("imported", [])),
                "left_out": dict(reasons),
            }
        )
    return rows


def _training(ws: Workspace) -> list[dict[str, Any]]:
    """Per adapter: its manifest, and the loss of each step."""
    found = []
    for name in [*(c.id for c in ws.recipe.cultures), *ws.variants(), *ws.merges()]:
        manifest = read_json(ws.path("adapters", name, "manifest.json"))
        if manifest is None:
            continue
        log = ws.path("adapters", name, "log.jsonl")
        lines = log.read_text(encoding="utf-8").split("\n") if log.is_file() else []
        steps = [json.loads(line) for line in lines if line.strip()]
        losses = [(s["stage"], s["loss"]) for s in steps if "loss" in s and "step" in s]
        found.append({"name": name, "manifest": manifest, "losses": losses})
    return found


def _evaluations(ws: Workspace) -> list[dict[str, Any]]:
    """Each evaluation that was kept: its rows, what the router said, items to look at."""
    found = []
    for path in sorted(ws.path("eval").glob("*.json")):
        about = read_json(path)
        if about is None or "rows" not in about:
            continue
        results = ws.read(f"eval/{path.stem}.items", Result)
        parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in about["rows"]:
            if row["kind"] == "score" and row["culture"] == ALL:
                parts.setdefault((row["task"], row["split"]), []).append(row)
        found.append(
            {
                **about,
                "parts": [{"task": t, "split": s, "rows": r} for (t, s), r in parts.items()],
                "paired": [row for row in about["rows"] if row["kind"] == "paired"],
                "routed": [
                    (r.culture, r.routed_to, r.probability)
                    for r in results
                    if r.probability is not None
                ],
                "items": _telling(results),
                "n": len(results),
            }
        )
    return found


def _telling(results: list[Result]) -> list[dict[str, Any]]:
    """Items to look at: those first on which the methods disagree."""
    ordered = sorted(results, key=lambda r: (len(set(r.right.values())) == 1, make_id(r.id)))
    return [r.model_dump() for r in ordered[:ITEMS]]


def _examples(ws: Workspace, every: list[Example], limit: int) -> list[dict[str, Any]]:
    """Some examples of each culture, chosen by hash, with the passages that they rest on."""
    each = max(1, limit // len(ws.recipe.cultures))
    passages = {p.id: p for p in search.current_evidence(ws)}
    found = []
    for culture in ws.recipe.cultures:
        mine = [e for e in every if e.culture == culture.id]
        for example in sorted(mine, key=lambda e: make_id("shown", e.id))[:each]:
            cited = [passages[i] for i in example.evidence_ids if i in passages]
            shown = example.model_dump(
                include={"id", "culture", "task", "stage", "split", "answer", "quote"}
                | {"generator", "review", "judge", "reason"}
            )
            shown["prompt"] = "\n".join(m.content for m in example.messages)
            shown["passages"] = [
                {
                    **p.model_dump(include={"title", "url", "source", "license", "language"}),
                    "retrieved_at": p.retrieved_at,
                    "pieces": _marked(p.text[:PASSAGE], example.quote),
                }
                for p in cited
            ]
            found.append(shown)
    return found


def _marked(text: str, quote: str) -> list[tuple[str, bool]]:
    """A passage in pieces, with whether each is the quote."""
    at = text.find(quote) if quote else -1
    if at < 0:
        return [(text, False)]
    end = at + len(quote)
    return [p for p in ((text[:at], False), (quote, True), (text[end:], False)) if p[0]]


def _costs(ws: Workspace) -> dict[str, Any]:
    """What models were paid, and how long training took."""
    calls = [c for p in ws.path("cache", "calls").glob("*/*.json") if (c := read_json(p))]
    known = [c["cost"] for c in calls if c.get("cost") is not None]
    seconds = sum(
        (read_json(path) or {}).get("training", {}).get("seconds", 0)
        for path in ws.path("adapters").glob("*/manifest.json")
    )
    return {
        "calls": len(calls),
        "dollars": sum(known) if known or not calls else None,
        "input_tokens": sum(c.get("prompt_tokens", 0) for c in calls),
        "output_tokens": sum(c.get("answer_tokens", 0) for c in calls),
        "training_minutes": seconds / 60,
    }


def _versions() -> list[tuple[str, str]]:
    found = [("cmgr", __version__), ("Python", platform.python_version())]
    found.append(("system", f"{platform.system()} {platform.machine()}"))
    for name in LIBRARIES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
