"""What two texts have in common: near-duplicates, and evaluation items that stand in a page."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from cmgr.errors import MissingError, UsageError

Key = TypeVar("Key", bound=Hashable)

# the scripts that set no space between words: Thai, Lao, Burmese, Khmer, kana, Han
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
SHINGLE = 4  # words
NEAR = 0.7  # Jaccard similarity of two texts' shingles from which one is a copy of the other
HELD = 0.9  # share of a text's shingles that stand in another which holds it
ITEM = 8  # words in a row that a page and an evaluation item have in common


def words(text: str) -> list[str]:
    """A text's words, folded; of scripts without spaces the signs."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str, size: int = SHINGLE) -> set[tuple[str, ...]]:
    """Every run of `size` words; of a shorter text the whole."""
    found = words(text)
    if not found:
        return set()
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


class NearDuplicates(Generic[Key]):
    """Texts by key; finds those that a new one all but repeats (exact Jaccard, no hashing).

    A key may stand for several texts.
    """

    def __init__(self, near: float = NEAR, size: int = SHINGLE) -> None:
        self.near = near
        self.size = size
        self._texts: list[tuple[Key, int]] = []  # key, number of shingles
        self._having: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def of(self, text: str) -> list[Key]:
        """The keys of all texts added so far that are near this one, or hold it, nearest first."""
        mine = shingles(text, self.size)
        common: Counter[int] = Counter()
        for shingle in mine:
            common.update(self._having.get(shingle, ()))
        near = []
        for number, count in common.items():
            key, size = self._texts[number]
            union = len(mine) + size - count
            if count >= self.near * union or count >= HELD * len(mine):
                near.append((count / union, key))
        return list(dict.fromkeys(key for _, key in sorted(near, key=lambda n: -n[0])))

    def add(self, key: Key, text: str) -> None:
        """Keep a text."""
        mine = shingles(text, self.size)
        for shingle in mine:
            self._having[shingle].append(len(self._texts))
        self._texts.append((key, len(mine)))


class Excluded:
    """Evaluation items that must not be learnt from.

    A text holds an item where eight words in a row are the same, or, of an item of five to seven
    words, all of them. Shorter strings (options, labels) say nothing.
    """

    def __init__(self, items: Iterable[str]) -> None:
        self._runs: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        for item in items:
            length = min(ITEM, len(words(item)))
            if length >= 5:
                self._runs[length] |= shingles(item, length)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def holds(self, text: str) -> bool:
        """Whether an item stands in a text."""
        return any(not runs.isdisjoint(shingles(text, n)) for n, runs in self._runs.items())

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Excluded:
        """Every string of JSON lines, a CSV file, or a text file of one item a line.

        Raises MissingError where a file is not there, UsageError that names a line that is no JSON.
        """
        return cls(item for path in paths for item in _items(path))


def _items(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file of items to exclude") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}. Give UTF-8 text.") from None
    if path.suffix.lower() == ".csv":
        for row in csv.reader(text.splitlines()):
            yield from row
        return
    for number, line in enumerate(text.splitlines(), 1):
        if path.suffix.lower() not in {".jsonl", ".ndjson", ".json"}:
            yield line
        elif line.strip():
            try:
                yield from strings(json.loads(line))
            except ValueError as error:
                raise UsageError(f"{path}:{number}: not JSON: {error}") from None


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
