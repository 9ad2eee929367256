"""Which culture's adapter a text needs: TF-IDF and one logistic regression per culture.

scikit-learn fits it (`fitting.py`); a decision needs numpy alone, and equals the scikit-learn
pipeline's.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmgr.errors import CmgrError, MissingError
from cmgr.recipe import Router as Settings
from cmgr.records import Decision
from cmgr.workspace import read_json, write_atomic, write_json

Floats = NDArray[np.float64]
VERSION = 1  # of the training texts and of the files; a change makes every router out of date
CHAR_NGRAMS = (2, 5)

AGAIN = "Make it again: cmgr route --fit"

_TOKEN = re.compile(r"(?u)\b\w\w+\b")
_US = re.compile(r"\b(US)\b")
_SPACES = re.compile(r"\s\s+")


def fold(text: str) -> str:
    """Lower-case, but for the capitals of US: `us` is a pronoun, and no country."""
    return "".join(part if part == "US" else part.lower() for part in _US.split(text))


def word_ngrams(text: str) -> list[str]:
    """The word 1-2-grams of a folded text, as scikit-learn's word analyser makes them."""
    tokens: list[str] = _TOKEN.findall(text)
    return tokens + [f"{a} {b}" for a, b in pairwise(tokens)]


def char_ngrams(text: str) -> list[str]:
    """The character 2-5-grams within words of a folded text: scikit-learn's `char_wb`."""
    low, high = CHAR_NGRAMS
    found: list[str] = []
    for word in _SPACES.sub(" ", text).split():
        padded = f" {word} "
        for n in range(low, high + 1):
            found.extend(padded[i : i + n] for i in range(max(len(padded) - n, 0) + 1))
            if len(padded) <= n:
                break  # a word shorter than n counts once
    return found


class Block(NamedTuple):
    """One TF-IDF vectoriser: its analyser, its n-grams' columns, their inverse frequencies."""

    analyse: Callable[[str], list[str]]
    columns: dict[str, int]
    idf: Floats


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
    ) -> None:
        self.cultures = list(cultures)
        self.settings = settings or Settings()
        self.idf, self.weights, self.bias = idf, weights, bias  # weights: n-grams x cultures
        self.ngrams = [gram for vocabulary in vocabularies for gram in vocabulary]
        cut = len(vocabularies[0])
        self.blocks = (
            Block(word_ngrams, {g: i for i, g in enumerate(vocabularies[0])}, idf[:cut]),
            Block(char_ngrams, {g: i for i, g in enumerate(vocabularies[1])}, idf[cut:]),
        )

    def _features(self, text: str) -> tuple[NDArray[np.intp], Floats]:
        folded = fold(text)
        offset, columns, values = 0, [], []
        for block in self.blocks:
            counts = Counter(g for g in block.analyse(folded) if g in block.columns)
            at = np.fromiter((block.columns[g] for g in counts), dtype=np.intp, count=len(counts))
            tf = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
            value = (1.0 + np.log(tf)) * block.idf[at]
            columns.append(at + offset)
            values.append(value / (np.sqrt(value @ value) or 1.0))
            offset += len(block.columns)
        return np.concatenate(columns), np.concatenate(values)

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
        grams = "\n".join(self.ngrams).encode("utf-8", "surrogatepass")
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ngrams=np.frombuffer(grams, dtype=np.uint8),
            idf=self.idf,
            weights=self.weights,
            bias=self.bias,
        )
        data = buffer.getvalue()
        write_atomic(folder / "router.npz", data)
        write_json(
            folder / "router.json",
            {
                "version": VERSION,
                "cultures": self.cultures,
                "settings": self.settings.model_dump(),
                "words": len(self.blocks[0].columns),
                "chars": len(self.blocks[1].columns),
                "sha256": hashlib.sha256(data).hexdigest(),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Read a saved router.

        Raises MissingError where there is none, CmgrError when it is damaged or altered.
        """
        about, arrays = folder / "router.json", folder / "router.npz"
        if not about.is_file() or not arrays.is_file():
            raise MissingError(f"there is no router in {folder}. Make it: cmgr route --fit")
        head = read_json(about)
        data = arrays.read_bytes()
        if head is None:
            raise CmgrError(f"{about} is damaged. {AGAIN}")
        if head.get("version") != VERSION:
            raise CmgrError(f"{about} is of version {head.get('version')}, not {VERSION}. {AGAIN}")
        if hashlib.sha256(data).hexdigest() != head.get("sha256"):
            raise CmgrError(f"{arrays} is damaged: its hash is not the one in {about}. {AGAIN}")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                text = file["ngrams"].tobytes().decode("utf-8", "surrogatepass")
                idf, weights, bias = file["idf"], file["weights"], file["bias"]
            grams, words, cultures = text.split("\n"), int(head["words"]), list(head["cultures"])
            shape = (words + int(head["chars"]), len(cultures))
            shapes = (weights.shape, idf.shape, bias.shape, (len(grams),))
            if not cultures or shapes != (shape, shape[:1], shape[1:], shape[:1]):
                raise ValueError("its parts do not fit together")
            settings = Settings.model_validate(head["settings"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CmgrError(f"the router in {folder} is damaged: {error}. {AGAIN}") from None
        return cls(cultures, (grams[:words], grams[words:]), idf, weights, bias, settings)
