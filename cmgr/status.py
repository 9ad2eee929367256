"""What a workspace holds, and which stage is missing or out of date; reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from cmgr import evaluate, review, search, synthesize
from cmgr.base import base_of
from cmgr.errors import CmgrError
from cmgr.router import fitting
from cmgr.train import index_of, variants
from cmgr.workspace import Workspace, read_json

CURRENT, STALE, MISSING = "up to date", "out of date", "missing"
# of a culture, why it has no adapter and cannot have one yet
NO_EXAMPLES, NONE_ACCEPTED = "no examples", "no example accepted"


def of(ws: Workspace) -> dict[str, Any]:
    """The workspace as one JSON value: stages (state, next command), cultures, accuracy.

    A stage's next command, once those before it are done, brings it up to date; where nothing can
    (no evidence, nothing held out), the state says why, and there is none.
    """
    examples = synthesize.current_examples(ws)
    evidence = Counter(e.culture for e in search.current_evidence(ws))
    fit = Counter(e.culture for e in examples if e.split == "fit")
    held_out = Counter(e.culture for e in examples if e.split != "fit")
    everything = synthesize.all_examples(ws)

    stages = [_stage("search", _state(ws, "search", lambda: search.wanted_inputs(ws)))]
    if stages[0]["state"] == CURRENT and not evidence:  # then what people brought is all there is
        stages.append(_stage("synthesize", CURRENT if everything else "no evidence"))
    else:
        made = _state(ws, "synthesize", lambda: synthesize.wanted_inputs(ws))
        stages.append(_stage("synthesize", made))
    under_way = any(stage["next"] for stage in stages)
    index = cache(lambda: index_of(ws))  # where its encoder is missing, each adapter says so

    def adapter(culture_id: str) -> str:
        if not variants.fit_examples(ws.recipe, examples, culture_id):
            none = NONE_ACCEPTED if fit[culture_id] else NO_EXAMPLES
            return MISSING if under_way else none
        base = base_of(ws)
        return _state(
            ws,
            f"train/{culture_id}",
            lambda: variants.inputs_of(ws.recipe, base, examples, culture_id, index()),
        )

    adapters: dict[str, str] = {}
    for culture in ws.recipe.cultures:
        try:
            adapters[culture.id] = adapter(culture.id)
        except CmgrError as error:
            adapters[culture.id] = str(error)
    stages.append(_trained(adapters))
    if evidence or fit or under_way:
        fitted = _state(ws, "route", lambda: fitting.wanted_inputs(ws))
    else:
        fitted = "no evidence, no examples"
    stages.append(_stage("route", fitted, "cmgr route --fit"))
    stages.append(_evaluated(ws, under_way=any(stage["next"] for stage in stages)))
    cultures = [
        {
            "culture": culture,
            "evidence": evidence[culture],
            "examples": fit[culture],
            "held_out": held_out[culture],
            "review": review.error_rate(ws, [e for e in everything if e.culture == culture]),
            "adapter": state,
        }
        for culture, state in adapters.items()
    ]
    return {
        "recipe": ws.recipe.name,
        "folder": str(ws.folder),
        "base": ws.recipe.base.model,
        "stages": stages,
        "cultures": cultures,
        "table": (read_json(ws.manifest_path("eval")) or {}).get("table"),
    }


def _stage(stage: str, state: str, command: str | None = None) -> dict[str, str]:
    """A stage with the command that brings it up to date, where one can."""
    able = state in (MISSING, STALE)
    return {"stage": stage, "state": state, "next": (command or f"cmgr {stage}") if able else ""}


def _trained(adapters: dict[str, str]) -> dict[str, str]:
    """The stage of training, from the state of each culture's adapter."""
    able = {c: state for c, state in adapters.items() if state in (CURRENT, MISSING, STALE)}
    if not able:  # why not, of the first: mostly of all
        state = next(iter(adapters.values()))
        return _stage("train", state) | ({"next": "cmgr review"} if state == NONE_ACCEPTED else {})
    states = set(able.values())
    # training refuses cultures that have no examples: only the others are named then
    todo = (
        ""
        if able == adapters
        else "".join(f" --culture {culture}" for culture, state in able.items() if state != CURRENT)
    )
    return _stage("train", states.pop() if len(states) == 1 else STALE, f"cmgr train{todo}")


def _evaluated(ws: Workspace, under_way: bool) -> dict[str, str]:
    """The stage of evaluation; `under_way`: what it needs may yet be made by another stage."""
    made = read_json(ws.manifest_path("eval")) is not None
    try:
        current = ws.is_current("eval", evaluate.wanted_inputs(ws))
    except CmgrError as error:
        if not under_way:
            return _stage("eval", str(error).partition(". ")[0])
        current = False
    return _stage("eval", CURRENT if current else STALE if made else MISSING)


def _state(ws: Workspace, stage: str, wanted: Callable[[], str]) -> str:
    if read_json(ws.manifest_path(stage)) is None:
        return MISSING
    try:
        return CURRENT if ws.is_current(stage, wanted()) else STALE
    except CmgrError:
        return STALE  # what it was made from is gone
