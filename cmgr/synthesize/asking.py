"""The calls of a model: made, told, kept and read; what they will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cmgr.generators import llama, openai_batch, openai_compatible, writing
from cmgr.generators.calls import Budget, Calls, price_of, tokens_of
from cmgr.llm import repair
from cmgr.stats import counted
from cmgr.workspace import Progress, Workspace

# for a forecast: tokens of an example, tokens a second of a small model here, seconds a call
SHOWN, TOKENS_A_SECOND, CALL_SECONDS = 150, 100, 8


def calls_of(ws: Workspace) -> Calls:
    """The answers of models that the workspace keeps."""
    return Calls(ws.path("cache", "calls"))


def ask(
    ws: Workspace,
    requests: Sequence[writing.Request],
    calls: Calls,
    budget: Budget,
    progress: Progress | None,
) -> None:
    """Make those of these calls that have no answer yet; tell how far it is and what it costs."""
    requests = list({r.key: r for r in requests if calls.get(r) is None}.values())
    if not requests:
        return
    done = 0
    failed: Counter[str] = Counter()
    total = sum(budget.most(r) for r in requests)

    def told(request: writing.Request, reason: str | None) -> None:
        nonlocal done
        done += 1
        if reason:
            failed[reason] += 1
        if progress:
            label = "synthesize"
            if total and budget.price:
                label += f" · ${budget.cost:.2f} of ~${budget.cost / done * len(requests):.2f}"
            if failed:
                label += f" · {failed.total()} errors"
            progress(label, done, len(requests))

    generator = ws.recipe.generator
    state = ws.path("cache", "batch.json")
    if generator.kind != "openai_batch" and state.exists():
        ws.say("a batch is on its way; set generator.kind to openai_batch to collect its answers")
    if generator.kind == "llama":
        llama.write(generator, ws.folder, requests, calls, budget, told)
    elif generator.kind == "openai_batch":
        openai_batch.write(generator, state, requests, calls, budget, told, ws.say)
    else:
        openai_compatible.write(generator, requests, calls, budget, told)
    if failed:
        ws.say(f"calls without an answer: {counted(failed)}. Run again to make them.")


def answers(
    ws: Workspace,
    requests: Sequence[writing.Request],
    calls: Calls,
    budget: Budget,
    progress: Progress | None,
    cultures: set[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """What a model answers to these, by key; {} where it is no object, no key without an answer.

    Calls are made for these cultures alone (or all); of the others, what is kept is read.
    """
    mine = [r for r in requests if cultures is None or cultures & {r.culture, r.other}]
    ask(ws, mine, calls, budget, progress)
    found: dict[str, dict[str, Any]] = {}
    for request in requests:
        text = calls.get(request)
        if text is not None:
            value = repair(text)
            found[request.key] = value if isinstance(value, dict) else {}
    return found


def forecast(ws: Workspace, requests: Sequence[writing.Request]) -> dict[str, Any]:
    """What these calls mean, by estimate: tokens, US dollars (None where no price is known)."""
    asked = sum(tokens_of(m.content) for r in requests for m in r.messages)
    each = ws.recipe.generator.per_call * SHOWN
    price = price_of(ws.recipe.generator)
    written = each * len(requests)
    local = ws.recipe.generator.kind == "llama"
    # one after the other here; elsewhere many at once
    seconds = written / TOKENS_A_SECOND if local else CALL_SECONDS * (1 + len(requests) / 32)
    return {
        "calls": len(requests),
        "input_tokens": asked,
        "output_tokens": written,
        "minutes": seconds / 60 if requests else 0.0,
        "cost": (asked * price.input + written * price.output) / 1e6 if price else None,
    }
