"""How many threads compute: as many as are fastest now, found by measuring.

Threads that share one sum wait for the last of them. Beside other busy processes each waits for a
turn on a processor at every such point, and fewer threads may be several times as fast.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

FASTER = 1.15  # another count is taken when it is faster by this factor, twice in a row
SURE = 2.0  # or the first time once by this one: at a wrong count each step may be long
CHANGED = 1.3  # a rate that has changed by this factor makes what is known of others old
RECENT = 5  # steps whose median rate is compared with
LEAST = 2  # steps of a size before another count is tried on one
SHARE = 0.03  # of all time that slower counts may cost
SPINS = "100"
EVERY = (2, 64)  # steps from one try to the next: at first, and when nothing changes


class Pace:
    """Proposes a number of threads for each step of long work, and learns from how long it took.

    `apply(threads)` sets the number, and `most` is the highest. Mostly a step has the best number
    known; now and then it has another, which is kept when it is faster. What slower ones cost is
    at most one step's time, once and again when the speed has changed, and SHARE of the time.

    Steps are compared with those of the same kind and of about the same work (a power of two).
    """

    def __init__(
        self,
        most: int,
        apply: Callable[[int], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads = max(1, most)
        self._counts = counts_up_to(self.threads)
        self._apply = apply
        self._clock = clock
        self._rates: dict[tuple[str, int], deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._settled: dict[tuple[str, int], float] = {}  # the rate at the last decision
        self._known: dict[int, float] = {}  # how fast another count was, as a part of the best's
        self._tried: dict[int, int] = {}  # at which step another count was tried last
        self._steps = 0
        self._next = EVERY[0]  # the step from which another count may be tried
        self._wait = EVERY[0]
        self._renewed = 0  # the step of the last renewal of `_credit`
        self._credit = 1.0  # steps' time that may be lost beyond SHARE
        self._spent = self._lost = 0.0  # seconds
        self._winner: int | None = None  # was faster once
        self._changed = False  # whether another count has ever been taken
        if len(self._counts) > 1:
            apply(self.threads)

    @contextmanager
    def step(self, work: int, kind: str = "") -> Iterator[None]:
        """Around one step of `work` units (tokens), on the thread that computes.

        A step that raises teaches nothing. Between steps the best number known is set.
        """
        if len(self._counts) == 1 or work < 1:
            yield
            return
        size = (kind, work.bit_length())
        count = self._choose(size)
        if count != self.threads:
            self._apply(count)
        try:
            began = self._clock()
            yield
            seconds = max(self._clock() - began, 1e-9)
        except BaseException:
            if count != self.threads:
                self._apply(self.threads)
            raise
        self._steps += 1
        self._spent += seconds
        if count == self.threads:
            self._keep(size, work / seconds)
        else:
            before = self.threads
            self._judge(size, count, work, seconds)
            if self.threads == before:
                self._apply(before)

    def _choose(self, size: tuple[str, int]) -> int:
        rates = self._rates[size]
        if len(rates) < LEAST:
            return self.threads
        if self._winner is not None:
            return self._winner
        if self._steps < self._next:
            return self.threads
        # the one whose last try was longest ago, then the nearest; where that one costs too much
        # yet, the next, from half of the budget, so that the first has its turn in the end
        others = [n for n in self._counts if n != self.threads]
        others.sort(key=lambda n: (self._tried.get(n, -1), abs(n - self.threads)))
        shares = [SHARE, *[SHARE / 2] * len(others)]
        pairs = zip(others, shares, strict=False)
        return next((n for n, share in pairs if self._allowed(n, share)), self.threads)

    def _allowed(self, count: int, share: float) -> bool:
        """Whether a share of the time has room for a step at this count."""
        usual = self._spent / self._steps
        speed = self._known.get(count, min(1.0, count / self.threads))
        return self._lost + usual * (1 / speed - 1) <= share * self._spent + self._credit * usual

    def _keep(self, size: tuple[str, int], rate: float) -> None:
        """Note a step at the best count, and whether the speed is another than it was."""
        rates = self._rates[size]
        rates.append(rate)
        if len(rates) < LEAST:
            return
        now = median(rates)
        before = self._settled.setdefault(size, now)
        if max(now / before, before / now) < CHANGED:
            return
        self._settled[size] = now
        self._known.clear()
        self._wait = EVERY[0]
        self._next = min(self._next, self._steps)
        if self._steps - self._renewed >= EVERY[1] // 2:
            self._renewed, self._credit = self._steps, self._credit + 1

    def _judge(self, size: tuple[str, int], count: int, work: int, seconds: float) -> None:
        """Compare a step at another count with the best's, and take the faster."""
        usual = median(self._rates[size])
        speed = work / seconds / usual
        self._lost += max(0.0, seconds - work / usual)
        self._tried[count], self._known[count] = self._steps, speed
        if speed < FASTER:
            self._winner = None
            self._next = self._steps + self._wait
            self._wait = min(2 * self._wait, EVERY[1])
        elif self._winner is None and (self._changed or speed < SURE):
            self._winner = count
        else:
            self._known = {self.threads: 1 / speed}
            self._tried[self.threads] = self._steps
            self._winner, self.threads = None, count
            self._changed = True
            self._rates.clear()
            self._settled.clear()
            self._wait = EVERY[0]
            self._next = self._steps


def sleep_soon() -> None:
    """Let the threads of torch and llama.cpp (libgomp) sleep soon where they wait for each other.

    To be called before either is imported. One that spins on keeps a processor from the one that
    it waits for: beside busy processes the work is several times as slow. What a user has set
    stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def counts_up_to(most: int) -> list[int]:
    """The numbers of threads that are tried: powers of two, all, and all but one."""
    powers = {1 << n for n in range(most.bit_length()) if 1 << n <= most}
    return sorted({*powers, most, *([most - 1] if most >= 4 else [])})
