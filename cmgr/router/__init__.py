"""Which culture's adapter a text needs: TF-IDF and one logistic regression per culture.

scikit-learn fits it (`fitting.py`); a decision needs numpy alone, and equals the scikit-learn
pipeline's.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cmgr.errors import CmgrError, MissingError
from cmgr.recipe import Router as Settings
from cmgr.records import Decision, make_id
from cmgr.workspace import read_json, write_atomic, write_json

Floats = NDArray[np.float64]
VERSION = 4  # of the training texts and of the files; a change makes every router out of date
MOST = 5  # characters of an n-gram
# scripts without spaces between words, or (Hangul) with words that many endings change
UNSPACED = {
    *("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
}

AGAIN = "Make it again: cmgr route --fit"

_TOKEN = re.compile(r"\b\w\w+\b")
_US = re.compile(r"\b(US)\b")
_LETTERS = re.compile(r"[^\W\d_]+")


def fold(text: str) -> str:
    """Lower-case, but for the capitals of US: `us` is a pronoun, and no country."""
    return "".join(part if part == "US" else part.lower() for part in _US.split(text))


def word_ngrams(text: str) -> list[str]:
    """The word 1-2-grams of a folded text, and the scripts of its letters.

    Words are scikit-learn's; where none are set apart, a sign is one. The script of Latin letters
    says nothing.
    """
    if text.isascii():
        tokens: list[str] = _TOKEN.findall(text)
        return tokens + [f"{a} {b}" for a, b in pairwise(tokens)]
    tokens = []
    every: set[str] = set()
    for token in _TOKEN.findall(text):
        scripts = {script(letter) for letter in token}
        every |= scripts
        if UNSPACED.isdisjoint(scripts):
            tokens.append(token)
        else:
            tokens += token
    return (
        tokens
        + [f"{a} {b}" for a, b in pairwise(tokens)]
        + [f"\x00{name}" for name in sorted(every - {"", "LATIN"})]
    )


def char_ngrams(text: str, plain: Collection[str] = ()) -> list[str]:
    """The character 3-5-grams of a folded text's words; of what is not ASCII 2-grams too.

    Words in `plain` have none: they are known, and what they look like says nothing.
    """
    found: list[str] = []
    for word in _LETTERS.findall(text):
        if word in plain:
            continue
        padded = f" {word} "
        ascii = padded.isascii()
        for n in range(3 if ascii else 2, MOST + 1):
            grams = [padded[i : i + n] for i in range(max(len(padded) - n, 0) + 1)]
            found += grams if ascii or n > 2 else [g for g in grams if not g.isascii()]
            if len(padded) <= n:
                break  # a word shorter than n counts once
    return found


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """The script of a letter by its Unicode name: LATIN, HANGUL, CJK ...; "" for the rest."""
    return unicodedata.name(letter, "").partition(" ")[0] if letter.isalpha() else ""


class Block(NamedTuple):
    """One TF-IDF vectoriser: its analyser, and its n-grams' columns."""

    analyse: Callable[[str], list[str]]
    columns: dict[str, int]


class Router:
    """A fitted router; made by `fit` or `load`."""

    def __init__(
        self,
        cultures: Sequence[str],
        vocabularies: Sequence[Sequence[str]],
        idf: Floats,
        weights: Floats,
        bias: Floats,
        settings: Settings | None = None,
        plain: Collection[str] = (),
    ) -> None:
        self.cultures = list(cultures)
        self.settings = settings or Settings()
        self.idf, self.weights, self.bias = idf, weights, bias  # weights: n-grams x cultures
        self.plain = frozenset(plain)
        self.ngrams = [gram for vocabulary in vocabularies for gram in vocabulary]
        self.blocks = (
            Block(word_ngrams, {g: i for i, g in enumerate(vocabularies[0])}),
            Block(self._chars, {g: i for i, g in enumerate(vocabularies[1])}),
        )

    def _chars(self, text: str) -> list[str]:
        return char_ngrams(text, self.plain)

    def _features(self, text: str) -> tuple[NDArray[np.intp], Floats]:
        folded = fold(text)
        offset = 0
        columns: list[int] = []
        times: list[int] = []
        for block in self.blocks:
            counts = Counter(block.analyse(folded))
            found = [(block.columns[g], n) for g, n in counts.items() if g in block.columns]
            columns += [c + offset for c, _ in found]
            times += [n for _, n in found]
            offset += len(block.columns)
        at = np.array(columns, dtype=np.intp)
        return at, (1.0 + np.log(np.array(times, dtype=np.float64))) * self.idf[at]

    def probabilities(self, text: str) -> Floats:
        """One probability per culture, each on its own (they need not sum to one)."""
        columns, values = self._features(text)
        logits = values @ self.weights[columns] + self.bias
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)

    def decide(self, text: str) -> Decision:
        """The culture of a text, or an abstention.

        The most probable culture is named when it reaches `threshold` and leads the second by
        `margin`. Where the second reaches the threshold too, the text is of several cultures:
        `cultures` lists them all, best first, and `culture` is the best one however small its
        lead. On abstention `culture` is null and `cultures` empty; `probability` is always the
        best culture's.
        """
        found = [float(p) for p in self.probabilities(text)]
        order = sorted(range(len(found)), key=lambda i: -found[i])
        best, second = found[order[0]], found[order[1]] if len(order) > 1 else 0.0
        bar = self.settings.threshold
        named = best >= bar and (second >= bar or best - second >= self.settings.margin)
        return Decision(
            text=text,
            culture=self.cultures[order[0]] if named else None,
            probability=best,
            probabilities={self.cultures[i]: found[i] for i in order},
            cultures=[self.cultures[i] for i in order if found[i] >= bar] if named else [],
            abstained=not named,
        )

    def decide_all(self, texts: Iterable[str]) -> list[Decision]:
        """The decisions of many texts, in their order."""
        return [self.decide(text) for text in texts]

    def explain(self, text: str, top: int = 8) -> list[tuple[str, str, float]]:
        """The n-grams that weighed most, as (culture, n-gram, part of its logit).

        For the cultures named, or for the most probable one on abstention; strongest first.
        """
        decision = self.decide(text)
        columns, values = self._features(text)
        parts = []
        for culture in decision.cultures or list(decision.probabilities)[:1]:
            weight = values * self.weights[columns, self.cultures.index(culture)]
            grams = [self.ngrams[c] for c in columns]
            parts += [(culture, g, float(w)) for g, w in zip(grams, weight, strict=True)]
        return sorted(parts, key=lambda part: (-abs(part[2]), part[0], part[1]))[:top]

    def save(self, folder: Path) -> None:
        """Write router.npz, then router.json, which holds its hash."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            ngrams=_packed(self.ngrams),
            plain=_packed(sorted(self.plain)),
            idf=self.idf,
            weights=self.weights.astype(np.float32),
            bias=self.bias,
        )
        data = buffer.getvalue()
        write_atomic(folder / "router.npz", data)
        head = {
            "version": VERSION,
            "cultures": self.cultures,
            "settings": self.settings.model_dump(),
            "words": len(self.blocks[0].columns),
            "chars": len(self.blocks[1].columns),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_json(folder / "router.json", {**head, "self": make_id(head)})

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Read a saved router: arrays and plain values, nothing that could be executed.

        Raises MissingError where there is none, CmgrError when it is damaged, altered or foreign.
        """
        about, arrays = folder / "router.json", folder / "router.npz"
        if not about.is_file() or not arrays.is_file():
            raise MissingError(f"there is no router in {folder}. Make it: cmgr route --fit")
        head = read_json(about)
        if head is None:
            raise CmgrError(f"{about} is damaged. {AGAIN}")
        if head.get("version") != VERSION:
            raise CmgrError(f"{about} is of version {head.get('version')}, not {VERSION}. {AGAIN}")
        if head.pop("self", None) != make_id(head):
            raise CmgrError(f"{about} has been altered. {AGAIN}")
        size = arrays.stat().st_size
        if size != head["bytes"]:
            raise CmgrError(f"{arrays} is damaged: {size} bytes, not {head['bytes']}. {AGAIN}")
        data = arrays.read_bytes()
        if hashlib.sha256(data).hexdigest() != head["sha256"]:
            raise CmgrError(f"{arrays} is damaged: its hash is not the one in {about}. {AGAIN}")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                parts = {name: file[name] for name in ("idf", "weights", "bias")}
                grams, plain = _unpacked(file["ngrams"]), _unpacked(file["plain"])
            words, cultures = int(head["words"]), list(head["cultures"])
            shape = (words + int(head["chars"]), len(cultures))
            shapes = (*(part.shape for part in parts.values()), (len(grams),))
            if not cultures or shapes != (shape[:1], shape, shape[1:], shape[:1]):
                raise ValueError("its parts do not fit together")
            if not all(np.isfinite(part).all() for part in parts.values()):
                raise ValueError("it holds values that are no numbers")
            settings = Settings.model_validate(head["settings"])
        except (KeyError, TypeError, ValueError, OSError, BadZipFile) as error:
            raise CmgrError(f"the router in {folder} is damaged: {error}. {AGAIN}") from None
        vocabularies = (grams[:words], grams[words:])
        return cls(cultures, vocabularies, **parts, settings=settings, plain=plain)


def _packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(texts).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _unpacked(data: NDArray[np.uint8]) -> list[str]:
    text = data.tobytes().decode("utf-8", "surrogatepass")
    return text.split("\n") if text else []
