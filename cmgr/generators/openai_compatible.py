"""Examples written by an OpenAI-compatible endpoint, as many calls at once as it takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from cmgr.generators.calls import Budget, Calls
from cmgr.generators.writing import Request
from cmgr.llm import Completion, Endpoint, RefusedError, TroubleError
from cmgr.recipe import Generator

START = 8  # calls at once to begin with
FEEL = 0.03  # how much an answer raises the level where it was limited before


class Level:
    """How many calls at once: doubles while answers come, halves when the server says 429.

    Where it was limited before, it comes back quickly to just below, and then feels its way up.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = float(min(START, most))
        self.ceiling = float("inf")
        self.paused_until = 0.0
        self._halved_at = 0.0

    def answered(self) -> None:
        """An answer came."""
        step = 1.0 if self.now < self.ceiling - 1 else FEEL
        self.now = min(self.now + step, float(self.most))

    def limited(self, in_flight: int, wait: float) -> None:
        """A 429 came while others were in flight: those it does take at once."""
        at = time.monotonic()
        self.ceiling = in_flight + 1.0
        if at - self._halved_at > 0.2:  # one crowd of refusals is one sign
            self._halved_at = at
            self.now = max(1.0, self.now / 2)
        self.now = min(self.now, max(1.0, float(in_flight)))  # one more would be refused again
        self.paused_until = max(self.paused_until, at + wait)


async def run(
    generator: Generator,
    requests: Sequence[Request],
    calls: Calls,
    budget: Budget,
    done: Callable[[Request, str | None], None],
) -> None:
    """Make these calls; each ends in `done` with None, or the reason why it has no answer.

    An answer is on disk before `done` is called. Calls that the budget forbids are not made.
    Raises MissingError at once for a key or a model that will not do.
    """
    endpoint = Endpoint(generator)
    level = Level(generator.most_at_once)
    waiting = list(reversed([(request, 0) for request in requests]))
    later: list[tuple[float, Request, int]] = []
    tasks: dict[asyncio.Task[Completion], tuple[Request, int]] = {}
    try:
        while True:
            at = time.monotonic()
            for entry in [e for e in later if e[0] <= at]:
                later.remove(entry)
                waiting.append(entry[1:])
            while waiting and len(tasks) < int(level.now) and at >= level.paused_until:
                if not budget.begin(waiting[-1][0]):
                    waiting.clear()
                    later.clear()
                    break
                request, tried = waiting.pop()
                task = asyncio.create_task(_kept(endpoint, request, calls, budget))
                tasks[task] = request, tried
            if not tasks and not waiting and not later:
                return
            soonest = min([e[0] for e in later], default=at + 60)
            if waiting and level.paused_until > at:
                soonest = min(soonest, level.paused_until)
            if tasks:
                ended, _ = await asyncio.wait(
                    tasks, timeout=max(0.001, soonest - at), return_when=asyncio.FIRST_COMPLETED
                )
            else:
                ended = set()
                await asyncio.sleep(max(0.001, soonest - at))
            for task in ended:
                request, tried = tasks.pop(task)
                try:
                    answer = task.result()
                except TroubleError as trouble:
                    budget.end(request, None, taken=not trouble.limited)
                    if trouble.limited:
                        level.limited(len(tasks), trouble.wait)
                    if tried >= generator.retries and not (trouble.limited and tried < 50):
                        done(request, str(trouble))
                        continue
                    pause = generator.backoff * 2 ** min(tried, 6) * random.uniform(0.8, 1.2)
                    if trouble.limited:
                        pause = trouble.wait or random.uniform(0.05, 0.15) * (1 + tried)
                    later.append((time.monotonic() + pause, request, tried + 1))
                except RefusedError as refused:
                    budget.end(request, None)
                    done(request, str(refused))
                else:
                    level.answered()
                    budget.end(request, answer)
                    done(request, None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await endpoint.close()


async def _kept(endpoint: Endpoint, request: Request, calls: Calls, budget: Budget) -> Completion:
    """An answer that is on disk; the disk is waited for in a thread, so that other calls go on."""
    answer = await endpoint.complete(request.messages, request.schema, request.tokens)
    await asyncio.to_thread(calls.put, request.key, answer, budget.cost_of(request, answer))
    return answer


def write(
    generator: Generator,
    requests: Sequence[Request],
    calls: Calls,
    budget: Budget,
    done: Callable[[Request, str | None], None],
) -> Counter[str]:
    """`run`, waited for; returns the reasons of what has no answer, counted."""
    failed: Counter[str] = Counter()

    def told(request: Request, reason: str | None) -> None:
        if reason:
            failed[reason] += 1
        done(request, reason)

    asyncio.run(run(generator, requests, calls, budget, told))
    return failed
