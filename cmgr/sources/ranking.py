"""BM25 over passages: words reduced to stems, and a query's other words for the same thing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from cmgr.overlap import words

KIN = 0.5  # what a word of the same ring is worth beside the query's own
ABOUT = 2.0  # what a passage is worth more whose title names the culture
# Snowball's names of the languages it has
_STEMMERS = {
    **{"ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek"},
    **{"en": "english", "es": "spanish", "eu": "basque", "fi": "finnish", "fr": "french"},
    **{"ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian"},
    **{"it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian"},
    **{"pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish"},
    **{"ta": "tamil", "tr": "turkish"},
}


class Ranking:
    """Texts that queries are matched against, by BM25 (Lucene's variant, k1 1.5, b 0.75)."""

    def __init__(
        self,
        texts: Callable[[], Sequence[Sequence[str]]],
        about: Sequence[bool],
        keep: tuple[Path, str] | None = None,
    ) -> None:
        """`texts` gives lists of terms, as `terms` makes them; `about`: which say more by title.

        With `keep`, a folder and a hash of what it was made from, the index is kept there, and
        `texts` is asked only when the hash is another.
        """
        self.size = len(about)
        self._lift = np.where(about, ABOUT, 1.0)
        self._index: Any = _load(*keep) if keep else None
        if self._index is None:
            self._index = _index(texts())
            if keep and self._index is not None:
                _save(self._index, *keep)

    def scores(self, query: str, language: str = "en") -> np.ndarray[Any, np.dtype[np.float32]]:
        """A score per text, zero where no word of the query stands in it.

        Words of the same ring as one of the query's count for less, and lift no text that has
        none of the query's own.
        """
        own = dict.fromkeys(terms(query, language))
        scores = self._sum(own)
        if language == "en":
            kin = {other for term in own for other in _rings().get(term, ())}
            scores += np.where(scores > 0, KIN * self._sum(kin.difference(own)), 0)
        return scores

    def _sum(self, wanted: Iterable[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        known = [t for t in wanted if t in self._index.vocab_dict] if self._index else []
        if not known:
            return np.zeros(self.size, dtype=np.float32)
        scores: np.ndarray[Any, np.dtype[np.float32]] = self._index.get_scores(known)
        return scores

    def best(
        self,
        query: str,
        limit: int,
        language: str = "en",
        among: Iterable[int] | None = None,
        beside: str = "",
    ) -> list[tuple[int, float]]:
        """The texts (of `among`) that match best, best first, with their scores.

        `beside` are words that count for less, as those of a ring do.
        """
        scores = self.scores(query, language)
        if beside:
            more = self._sum(dict.fromkeys(terms(beside, language)))
            scores += np.where(scores > 0, KIN * more, 0)
        scores = scores * self._lift
        chosen = range(self.size) if among is None else sorted(set(among))
        matching = [i for i in chosen if scores[i] > 0]
        matching.sort(key=lambda i: (-float(scores[i]), i))
        return [(i, round(float(scores[i]), 4)) for i in matching[:limit]]


def _index(texts: Sequence[Sequence[str]]) -> Any:
    import bm25s

    if not any(texts):
        return None
    index = bm25s.BM25()
    index.index(list(texts), show_progress=False)
    return index


def _save(index: Any, folder: Path, made_from: str) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    index.save(part)
    (part / "made_from").write_text(made_from)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def _load(folder: Path, made_from: str) -> Any:
    import bm25s

    try:
        if (folder / "made_from").read_text() != made_from:
            return None
        return bm25s.BM25.load(folder)
    except (OSError, ValueError, KeyError):  # not there, or damaged
        return None


def terms(text: str, language: str = "en") -> list[str]:
    """A text's terms: stems without stop words; of scripts without spaces, signs and pairs."""
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    stop = STOPWORDS_EN_PLUS if language == "en" else ()
    found = []
    last = ""
    for word in words(text):
        sign = len(word) == 1 and not word.isascii()
        if sign and last:
            found.append(last + word)
        if word not in stop:
            found.append(word)
        last = word if sign else ""
    return [_stem(word, language) for word in found]


@cache
def _stem(word: str, language: str) -> str:
    stemmer = _stemmer(language)
    return stemmer.stemWord(word) if stemmer and len(word) > 2 else word


@cache
def _stemmer(language: str) -> Any:
    import Stemmer

    name = _STEMMERS.get(language)
    return Stemmer.Stemmer(name) if name in Stemmer.algorithms() else None


@cache
def _rings() -> dict[str, frozenset[str]]:
    """For an English stem, those of the other words that speak of the same thing."""
    text = files("cmgr.sources").joinpath("rings.txt").read_text(encoding="utf-8")
    kin: dict[str, frozenset[str]] = {}
    for line in text.splitlines():
        ring = frozenset(terms(re.sub(r"#.*", "", line)))
        for term in ring:
            kin[term] = kin.get(term, frozenset()) | ring
    return kin
