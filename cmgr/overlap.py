"""What two texts have in common: near-duplicates, and evaluation items that stand in a page."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from math import ceil, log
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
EACH = 64  # shingles up to which texts of each size are kept apart
FEW, PAYS = 16, 8  # texts that are looked at one by one; what a look costs in counts of one more
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
    """Texts by key; finds those that a new one all but repeats. A key may stand for several texts.

    Exact, and fast where texts share a frame. A text with `a` shingles is near one with `b` where
    they have c in common with c >= near * (a + b - c), or c >= HELD * a; so c is at least

        needed = min(near / (1 + near) * (a + b), HELD * a),

    and of any a - needed + 1 shingles of the new text the other has at least one (of one more, at
    least two, and so on). Only those few are looked up, the rarest first: a frame that all texts
    begin with is among them only where it alone makes two texts near. Texts are kept by size, for
    `needed` depends on it. (Prefix filtering: Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and
    Srikant 2007; of lengths that adapt: Wang, Li and Feng 2012.) Shingles are compared by a hash of
    64 bits: of a million, two have the same by chance once in 30 million times.

    MinHash with LSH would miss what HELD finds, for that is no Jaccard similarity; and bands that
    find 0.99 of the pairs at 0.65 (38 bands of 5) make candidates of 0.1 of all pairs at 0.3, which
    is what a frame of half of each text gives to all of them.
    """

    def __init__(self, near: float = NEAR, size: int = SHINGLE) -> None:
        self.near = near
        self.size = size
        self._texts: list[tuple[Key, tuple[int, ...]]] = []  # key, hashes of its shingles
        self._having: dict[int, int] = {}  # hash of a shingle -> how many texts have it
        self._classes: dict[int, _OfOneSize] = {}
        self._last: tuple[str, frozenset[int]] = "", frozenset()

    def of(self, text: str) -> list[Key]:
        """The keys of all texts added so far that are near this one, or hold it, nearest first."""
        mine = self._hashes(text)
        known = [h for h in mine if h in self._having]
        known.sort(key=self._having.__getitem__)
        near = []
        for texts in self._classes.values():
            jaccard = self.near / (1 + self.near) * (len(mine) + texts.least)
            needed = max(1, ceil(min(jaccard, HELD * len(mine)) - 1e-9))
            if needed > min(len(known), texts.most):
                continue
            for number in texts.with_some(known, needed):
                key, theirs = self._texts[number]
                count = len(mine.intersection(theirs))
                union = len(mine) + len(theirs) - count
                if count >= self.near * union or count >= HELD * len(mine):
                    near.append((-count / union, number, key))
        return list(dict.fromkeys(key for _, _, key in sorted(near, key=lambda n: n[:2])))

    def add(self, key: Key, text: str) -> None:
        """Keep a text."""
        mine = self._hashes(text)
        if not mine:
            return
        size = len(mine)
        place = size if size <= EACH else EACH + int(log(size / EACH) * EACH / 2)
        self._classes.setdefault(place, _OfOneSize(size)).add(len(self._texts), mine)
        for h in mine:
            self._having[h] = self._having.get(h, 0) + 1
        self._texts.append((key, tuple(mine)))

    def _hashes(self, text: str) -> frozenset[int]:
        if self._last[0] != text:  # what is asked for is often added next
            self._last = text, frozenset(map(hash, shingles(text, self.size)))
        return self._last[1]


class _OfOneSize:
    """Texts, by number, with about as many shingles: the same up to EACH, then by steps of 3 %."""

    def __init__(self, size: int) -> None:
        self.least = self.most = size
        # hash of a shingle -> the one text that has it, or several: most have one
        self._having: dict[int, int | list[int]] = {}

    def add(self, number: int, hashes: Collection[int]) -> None:
        self.least = min(self.least, len(hashes))
        self.most = max(self.most, len(hashes))
        for h in hashes:
            have = self._having.get(h)
            if have is None:
                self._having[h] = number
            elif isinstance(have, list):
                have.append(number)
            else:
                self._having[h] = [have, number]

    def with_some(self, rarest: Sequence[int], needed: int) -> Iterable[int]:
        """All texts that have `needed` of these shingles, the rarest first, and some that do not.

        Where too many have one of the first, they must have two of one more, and so on.
        """
        first = len(rarest) - needed + 1
        found: Counter[int] = Counter()
        for h in rarest[:first]:
            found.update(self._with(h))
        for have, h in enumerate(rarest[first:], 2):
            more = self._with(h)
            if len(found) <= FEW or len(more) > PAYS * len(found):
                break
            found.update(more)
            found = Counter({number: n for number, n in found.items() if n >= have})
        return found

    def _with(self, shingle: int) -> Sequence[int]:
        have = self._having.get(shingle, ())
        return (have,) if isinstance(have, int) else have


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
        """Every string of JSON, JSON lines, a CSV file, or a text file of one item a line.

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
        for row in csv.reader(io.StringIO(text, newline="")):
            yield from row
    elif path.suffix.lower() in {".jsonl", ".ndjson", ".json"}:
        yield from _json_strings(path, text)
    else:
        yield from text.split("\n")  # splitlines would cut inside an item (U+2028)


def _json_strings(path: Path, text: str) -> Iterator[str]:
    """Every string of one JSON value, on as many lines as it takes, or of a value a line."""
    try:
        yield from strings(json.loads(text))
        return
    except json.JSONDecodeError as error:
        # another value comes after the first, or the first is no more than a line
        if error.msg != "Extra data" and error.lineno > 1 and path.suffix.lower() == ".json":
            raise UsageError(f"{path}:{error.lineno}: not JSON: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
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
