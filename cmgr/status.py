"""What a workspace holds, and which stage is missing or out of date; reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from cmgr import evaluate, review, search, synthesize
from cmgr.base import resolve
from cmgr.errors import CmgrError
from cmgr.router import fitting
from cmgr.train import variants
from cmgr.workspace import Workspace, read_json


def of(ws: Workspace) -> dict[str, Any]:
    """The workspace as one JSON value: stages (state, next command), cultures, accuracy."""
    examples = synthesize.current_examples(ws)
    evidence = Counter(e.culture for e in search.current_evidence(ws))
    fit = Counter(e.culture for e in examples if e.split == "fit")
    held_out = Counter(e.culture for e in examples if e.split != "fit")

    def adapter(culture_id: str) -> str:
        base = resolve(ws.recipe.base.model, ws.folder, ws.recipe.base.thinking)
        return _state(
            ws,
            f"train/{culture_id}",
            lambda: variants.inputs_of(ws.recipe, base, examples, culture_id),
        )

    everything = synthesize.all_examples(ws)
    cultures = []
    for culture in ws.recipe.cultures:
        try:
            state = adapter(culture.id)
        except CmgrError as error:
            state = str(error)
        mine = [e for e in everything if e.culture == culture.id]
        cultures.append(
            {
                "culture": culture.id,
                "evidence": evidence[culture.id],
                "examples": fit[culture.id],
                "held_out": held_out[culture.id],
                "review": review.error_rate(ws, mine),
                "adapter": state,
            }
        )
    states = {c["adapter"] for c in cultures}
    trained = next(iter(states)) if len(states) == 1 else "out of date"
    stages = [
        ("search", _state(ws, "search", lambda: search.wanted_inputs(ws))),
        ("synthesize", _state(ws, "synthesize", lambda: synthesize.wanted_inputs(ws))),
        ("train", trained),
        ("route", _state(ws, "route", lambda: fitting.wanted_inputs(ws))),
        ("eval", _state(ws, "eval", lambda: evaluate.wanted_inputs(ws))),
    ]
    commands = {"route": "cmgr route --fit"}
    return {
        "recipe": ws.recipe.name,
        "folder": str(ws.folder),
        "base": ws.recipe.base.model,
        "stages": [
            {
                "stage": stage,
                "state": state,
                "next": "" if state == "up to date" else commands.get(stage, f"cmgr {stage}"),
            }
            for stage, state in stages
        ],
        "cultures": cultures,
        "table": (read_json(ws.manifest_path("eval")) or {}).get("table"),
    }


def _state(ws: Workspace, stage: str, wanted: Callable[[], str]) -> str:
    if read_json(ws.manifest_path(stage)) is None:
        return "missing"
    try:
        return "up to date" if ws.is_current(stage, wanted()) else "out of date"
    except CmgrError:
        return "out of date"  # what it was made from is gone
