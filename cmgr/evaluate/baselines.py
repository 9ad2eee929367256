"""Baselines that read no question: what the answers of the training examples give away by
themselves. A gain of a method is one where it is above the best of these."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

from cmgr.overlap import words
from cmgr.records import Example, make_id

if TYPE_CHECKING:
    from cmgr.evaluate.items import Item

BASELINES = {
    "popular": "reads nothing: the option most frequent among the culture's training answers",
    "words": "reads nothing: the option whose words this culture's answers have, others' have not",
    "majority": "reads nothing: the most frequent label of the culture's training examples",
}
SMOOTHING = 1  # added to each word's count, so that one never seen has a ratio


class Baselines:
    """Chooses among an item's options by the training examples of its task, for its own culture.

    An item's own example is left out where it is one of them. Options that are level are chosen
    from by a hash, so by chance.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for example in examples:
            if example.stage == "task" and example.split == "fit":
                self._answers[str(example.task), example.culture][example.id] = example.answer
        self._counts = {
            key: Counter(map(_plain, answers.values())) for key, answers in self._answers.items()
        }
        self._words = {
            key: Counter(word for answer in answers.values() for word in words(answer))
            for key, answers in self._answers.items()
        }
        of_task: dict[str, Counter[str]] = defaultdict(Counter)
        for (task, _), counts in self._words.items():
            of_task[task].update(counts)
        self._elsewhere = {key: of_task[key[0]] - counts for key, counts in self._words.items()}

    def choose(self, method: str, item: Item) -> str:
        """The option that a baseline names; without options, the culture's most frequent answer."""
        key = (item.task, item.culture)
        counts = Counter(self._counts.get(key, {}))
        own = self._answers.get(key, {}).get(item.id)
        if own is not None:
            counts[_plain(own)] -= 1
        if not item.options:
            said = Counter(
                answer for name, answer in self._answers.get(key, {}).items() if name != item.id
            )
            return min(said, key=lambda a: (-said[a], a), default="")
        ratio = method == "words" and not item.labels
        score = {
            option: self._ratio(key, option, own) if ratio else counts[_plain(option)]
            for option in item.options
        }
        return max(item.options, key=lambda o: (score[o], make_id("level", item.id, o)))

    def _ratio(self, key: tuple[str, str], option: str, own: str | None) -> float:
        """The mean log-ratio of an option's words: their share here over that in other cultures.

        Counts of others are scaled to as many words as this culture has, so that a word that
        nobody has says nothing.
        """
        mine, theirs = self._words.get(key, Counter()), self._elsewhere.get(key, Counter())
        left_out = Counter(words(own or ""))
        scale = (mine.total() - left_out.total()) / max(theirs.total(), 1)
        found = [
            log((mine[w] - left_out[w] + SMOOTHING) / (theirs[w] * scale + SMOOTHING))
            for w in words(option)
        ]
        return sum(found) / len(found) if found else 0.0


def _plain(answer: str) -> str:
    return " ".join(words(answer)) or answer.strip()
