"""Examples written by a GGUF in this process, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cmgr.generators.calls import Budget, Calls
from cmgr.generators.writing import Request
from cmgr.llm import Local, RefusedError
from cmgr.recipe import Generator


def write(
    generator: Generator,
    folder: Path,
    requests: Sequence[Request],
    calls: Calls,
    budget: Budget,
    done: Callable[[Request, str | None], None],
) -> Counter[str]:
    """Make these calls; an answer is on disk before `done` is called.

    Returns the reasons of what has no answer, counted. Raises MissingError where the file is not
    there.
    """
    failed: Counter[str] = Counter()
    model = Local(generator, folder)
    for request in requests:
        if not budget.begin(request):
            break
        try:
            answer = model.complete(request.messages, request.schema, request.tokens)
        except RefusedError as refused:
            budget.end(request, None)
            failed[str(refused)] += 1
            done(request, str(refused))
        else:
            calls.put(request.key, answer, budget.end(request, answer))
            done(request, None)
    return failed
