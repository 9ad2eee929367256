"""cmgr/threads.py: the fastest number of threads is found at little cost, by a made-up clock."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgr.threads import EVERY, FASTER, SHARE, Pace, counts_up_to


class Machine:
    """A machine whose rate depends on the number of threads, with noise; its clock is its own."""

    def __init__(
        self, rates: Callable[[int], float], most: int, noise: float = 0.0, seed: int = 0
    ) -> None:
        self.rates, self.noise, self.now = rates, noise, 0.0
        self.chance = random.Random(seed)
        self.applied: list[int] = []
        self.used: list[int] = []
        self.pace = Pace(most, self.applied.append, lambda: self.now)

    def run(self, steps: int, work: Callable[[int], int] = lambda n: 100, kind: str = "") -> float:
        """Seconds of that many steps."""
        before = self.now
        for number in range(steps):
            units = work(number)
            with self.pace.step(units, kind):
                count = self.applied[-1]
                self.used.append(count)
                wobble = 1 + self.chance.uniform(-self.noise, self.noise)
                self.now += units / self.rates(count) * wobble
            assert self.applied[-1] == self.pace.threads  # what runs between steps has the best
        return self.now - before


def quiet(count: int) -> float:
    return 100.0 * float(count**0.8)


def busy(count: int) -> float:
    """What 2 processors beside 2 busy processes do with SmolLM2: one thread is the faster."""
    return {1: 66.0, 2: 14.0}.get(count, 5.0)


def test_what_is_tried() -> None:
    assert [counts_up_to(n) for n in (1, 2, 3, 4, 6, 16)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 4, 5, 6],
        [1, 2, 4, 8, 15, 16],
    ]


def test_one_processor_is_left_alone() -> None:
    machine = Machine(quiet, 1)
    with machine.pace.step(10):
        pass
    assert machine.applied == [] and machine.pace.threads == 1


@pytest.mark.parametrize("most", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_quiet_machine_keeps_all_and_loses_little(most: int, noise: float) -> None:
    machine = Machine(quiet, most, noise)
    seconds = machine.run(2000)
    assert machine.pace.threads >= most - 1
    assert seconds < (1 + 1.5 * SHARE) * 2000 * 100 / quiet(most)


def test_beside_busy_processes_fewer_are_taken_soon() -> None:
    machine = Machine(busy, 2, 0.1)
    seconds = machine.run(30)
    assert machine.pace.threads == 1
    assert 30 * 100 / seconds > 0.5 * busy(1)
    assert machine.run(500) < 1.1 * 500 * 100 / busy(1)


def test_a_few_steps_of_many_sizes_are_enough_to_choose() -> None:
    """Prompts that are read before training: 18 steps, of which few are of one size."""
    sizes = [35, 192, 224, 288, 33, 176, 208, 304, 45, 135, 43, 150, 44, 150, 43, 120, 43, 108]
    machine = Machine(busy, 2, 0.1)
    machine.run(len(sizes), lambda number: sizes[number])
    assert machine.used.index(1) <= 6 and set(machine.used[machine.used.index(1) :]) == {1}


def test_only_the_first_change_needs_one_measure() -> None:
    machine = Machine(busy, 2)
    machine.run(20)
    assert machine.pace.threads == 1
    lucky = {1: 66.0, 2: 300.0}
    machine.rates = lambda count: lucky[count]
    while machine.used[-1] == 1:
        machine.run(1)
    machine.rates = busy  # it was one step
    before = len(machine.used)
    machine.run(100)
    assert machine.pace.threads == 1 and machine.used[before:].count(2) < 10


def test_it_follows_what_the_machine_does() -> None:
    machine = Machine(quiet, 2, 0.05)
    machine.run(300)
    assert machine.pace.threads == 2
    machine.rates = busy
    machine.run(40)
    assert machine.pace.threads == 1
    machine.rates = quiet
    machine.run(40)
    assert machine.pace.threads == 2


def test_noise_flips_nothing() -> None:
    """Steps that take up to a third more or less, and a number of threads that changes nothing."""
    for seed in range(20):
        machine = Machine(lambda count: 50.0 if count == 1 else 80.0, 2, 0.3, seed)
        machine.run(1000)
        used = [count for count in machine.used if count == 1]
        assert machine.pace.threads == 2 and len(used) < 100


def test_steps_are_compared_with_those_of_their_size_and_kind() -> None:
    """A long prompt is read at a higher rate than a token is written: no gain of its threads."""
    machine = Machine(quiet, 2)
    for number in range(600):
        long = number % 3 == 0
        machine.rates = (lambda n: 20 * quiet(n)) if long else quiet
        machine.run(1, (lambda _: 500) if long else (lambda _: 3))
        machine.rates = lambda n: quiet(n) / 5
        machine.run(1, lambda _: 3, "backward")
    assert machine.pace.threads == 2
    assert machine.used.count(1) < 0.05 * len(machine.used)


def test_a_step_that_fails_teaches_nothing_and_puts_the_best_back() -> None:
    machine = Machine(quiet, 2)
    machine.run(EVERY[0])
    with pytest.raises(KeyboardInterrupt), machine.pace.step(100):
        assert machine.applied[-1] == 1  # it was a try
        machine.now += 1e-6
        raise KeyboardInterrupt
    assert machine.applied[-1] == 2 == machine.pace.threads
    machine.run(200)
    assert machine.pace.threads == 2


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 16).flatmap(
        lambda most: st.tuples(
            st.just(most),
            st.lists(
                st.floats(10, 1000),
                min_size=len(counts_up_to(most)),
                max_size=len(counts_up_to(most)),
            ),
        )
    ),
    st.floats(0, 0.04),
    st.integers(0, 99),
)
def test_in_the_end_it_is_about_the_fastest_at_a_bounded_cost(
    found: tuple[int, list[float]], noise: float, seed: int
) -> None:
    most, listed = found
    rates = dict(zip(counts_up_to(most), listed, strict=True))
    machine = Machine(rates.__getitem__, most, noise, seed)
    machine.run(6000)
    best = max(listed)
    assert rates[machine.pace.threads] * FASTER * (1 + 2 * noise) ** 2 >= best
    after = machine.run(2000)
    worst = 100 / min(listed)
    usual = 100 / rates[machine.pace.threads]
    # the last try may be slower than was known of it
    assert after < 2000 * usual * (1 + noise) * (1 + 2 * SHARE) + 2 * worst
