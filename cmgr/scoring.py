"""How options are scored: which prompts are read for them, and how log-probabilities add up.

An option's log-probability holds how common the option is by itself, which drowns what the question
says. `pmi` takes away the score that it has after a prompt that asks nothing (Holtzman and others,
arXiv 2104.08315). `contrast` adds what the culture changes: how much likelier the bare base finds
the option after this question than after the same question about other cultures (in the manner of
experts and anti-experts: Liu and others, arXiv 2105.03023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmgr.errors import UsageError
from cmgr.names import swap
from cmgr.recipe import Culture, Recipe
from cmgr.records import Message, make_id
from cmgr.tasks import Task
from cmgr.workspace import Workspace, read_json

SCORES = {
    "mean": "the mean log-probability of its tokens",
    "sum": "the sum of their log-probabilities",
    "pmi": "the mean, less that after a prompt that asks nothing",
    "contrast": "the mean, and what naming this culture and not another adds to it in the base",
}
SWAPS = 3  # other cultures that a question is put about

Turn = tuple[str, str]  # role, content
Scales = tuple[tuple[str, float], ...]


class Reading(NamedTuple):
    """A prompt that is read for a score, under adapters at scales, and how much it counts."""

    turns: tuple[Turn, ...]
    scales: Scales
    weight: float


def turns_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """Messages as values that can be compared and hashed."""
    return tuple((message.role, message.content) for message in messages)


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """The messages that `turns_of` has made turns of."""
    return [Message.model_validate({"role": role, "content": text}) for role, text in turns]


class Scorer:
    """Which prompts are read to score options by a recipe's rule (`answer.score`)."""

    def __init__(self, recipe: Recipe, score: str | None = None) -> None:
        self.score = score or recipe.answer.score
        self.weight = recipe.answer.contrast_weight
        self._cultures = {culture.id: culture for culture in recipe.cultures}
        self._tasks = {task.id: task for task in recipe.tasks}

    @property
    def rule(self) -> list[str | float]:
        """All that decides how readings become scores, for a hash."""
        return [self.score, *([self.weight, SWAPS] if self.score == "contrast" else [])]

    def readings(
        self,
        turns: Sequence[Turn],
        scales: Scales,
        culture: str | None,
        task: str | None = None,
        plain: Sequence[Turn] | None = None,
    ) -> list[Reading]:
        """What is read to score a prompt's options; the first is the prompt itself.

        `plain` is the prompt without passages, `culture` the one whose difference counts: without
        one, or where the recipe has no other, `contrast` is `mean`.
        """
        asked = tuple(turns)
        found = [Reading(asked, scales, 1.0)]
        bare = tuple(plain if plain is not None else turns)
        if self.score == "pmi":
            known = self._tasks.get(task or "") or next(iter(self._tasks.values()))
            found.append(Reading((("user", neutral(known)),), scales, -1.0))
        elif self.score == "contrast" and culture in self._cultures and self.weight:
            own, others = self._about(bare, self._cultures[culture])
            if others:
                found.append(Reading(own, (), self.weight))
                found += [Reading(one, (), -self.weight / len(others)) for one in others]
        return found

    def _about(
        self, turns: tuple[Turn, ...], culture: Culture
    ) -> tuple[tuple[Turn, ...], list[tuple[Turn, ...]]]:
        """A prompt, and the same about other cultures.

        Other names stand in it; where it names none, a system text does, before all of them.
        """
        others = [c for c in self._cultures.values() if c.id != culture.id]
        text = turns[-1][1]
        others = sorted(others, key=lambda c: make_id("swap", text, c.id))[:SWAPS]
        swapped = [swap(text, culture, other) for other in others]
        if all(one is not None for one in swapped):
            return turns, [(*turns[:-1], ("user", one)) for one in swapped if one is not None]
        rest = turns[1:] if turns[0][0] == "system" else turns
        return (persona(culture), *rest), [(persona(other), *rest) for other in others]

    def combine(
        self,
        readings: Sequence[Reading],
        means: Sequence[Sequence[float]],
        sizes: Sequence[int],
    ) -> list[float]:
        """The options' scores from their mean log-probabilities after each reading.

        `means` is readings x options, `sizes` are the options' tokens.
        """
        if self.score == "sum":
            return [mean * size for mean, size in zip(means[0], sizes, strict=True)]
        weights = [reading.weight for reading in readings]
        return [
            math.fsum(w * m for w, m in zip(weights, column, strict=True))
            for column in zip(*means, strict=True)
        ]


def check_score(name: str | None) -> None:
    """Raise UsageError for a score that there is not, and name those there are."""
    if name is not None and name not in SCORES:
        raise UsageError(f"--score {name}: there are {', '.join(SCORES)}")


def persona(culture: Culture) -> Turn:
    """The system text that names a culture to a base."""
    return (
        "system",
        f"You live in {culture.name} and know its culture well. "
        f"Answer as people in {culture.name} would.",
    )


def neutral(task: Task) -> str:
    """A prompt of a task that asks nothing: its own, or made from the task's."""
    if task.neutral:
        return task.neutral
    blank = re.sub(r"\{(culture|place)\}", "the country", task.prompt)
    blank = re.sub(r"\{\w+\}", "...", blank)
    return blank if re.search(r"[^\W_]", blank) else task.instruction or "Answer the question."


# -- probabilities --------------------------------------------------------------------------------


def probabilities(scores: Sequence[float], temperature: float = 1.0) -> NDArray[np.float64]:
    """One probability per option, from scores at a temperature."""
    logits = np.asarray(scores, dtype=np.float64) / temperature
    shares = np.exp(logits - logits.max())
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def fit_temperature(scores: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature at which the right options are likeliest (Guo and others, 2017).

    `scores` is items x options (of any number), `right` the place of each item's right option. Of
    n items the right option counts as 1 - 1 / (n + 2), the others share the rest (after Platt,
    1999): a few items that are all right do not make every later one certain. 1 without items.
    Between 0.01 and 100.
    """
    rest = 1 / (len(scores) + 2)
    known = [(one, at) for one, at in zip(scores, right, strict=True) if len(one) > 1]
    if not known:
        return 1.0

    wide = max(len(one) for one, _ in known)
    logits = np.full((len(known), wide), -np.inf)
    target = np.zeros((len(known), wide))
    for row, (values, at) in enumerate(known):
        logits[row, : len(values)] = values
        target[row, : len(values)] = rest / (len(values) - 1)
        target[row, at] = 1 - rest

    def loss(log_temperature: float) -> float:
        sharp = (logits - logits.max(axis=1, keepdims=True)) / math.exp(log_temperature)
        logs = sharp - np.log(np.exp(sharp).sum(axis=1, keepdims=True))
        return -float((target * np.where(target > 0, logs, 0.0)).sum())

    low, high = math.log(0.01), math.log(100)
    ratio = (math.sqrt(5) - 1) / 2
    one, two = high - ratio * (high - low), low + ratio * (high - low)
    at_one, at_two = loss(one), loss(two)
    while high - low > 1e-3:
        if at_one < at_two:
            high, two, at_two = two, one, at_one
            one = high - ratio * (high - low)
            at_one = loss(one)
        else:
            low, one, at_one = one, two, at_two
            two = low + ratio * (high - low)
            at_two = loss(two)
    return math.exp((low + high) / 2)


TEMPERATURES = "temperatures.json"
# (under adapters, passages before the question): the method of an evaluation that is such
MEASURED = {
    **{(True, True): "routed+evidence", (True, False): "routed"},
    **{(False, True): "evidence", (False, False): "base"},
}


def temperatures(ws: Workspace, scorer: Scorer, fingerprint: str) -> dict[tuple[bool, bool], float]:
    """The temperatures of the last evaluation by this rule and base; 1 where it has none.

    Of answers under adapters (or the base), with passages before the question (or none).
    """
    found = read_json(ws.path("eval", TEMPERATURES)) or {}
    same = found.get("rule") == scorer.rule and found.get("base") == fingerprint
    known = found.get("temperatures", {}) if same else {}
    return {key: float(known.get(method, 1.0)) for key, method in MEASURED.items()}
