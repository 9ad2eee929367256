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
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from cmgr.workspace import Workspace, read_json, write_atomic, write_json

Floats = NDArray[np.float64]
VERSION = 5  # of the training texts and of the files; a change makes every router out of date
MOST = 5  # characters of an n-gram
# scripts without spaces between words, or (Hangul) with words that many endings change
UNSPACED = {
    *("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
}

SURER = 1.0  # the logit from which letters count in a foreign text, above that in English
SPELT = ("spelt_bias", "spelt_least", "spelt_most")
ARRAYS = ("idf", "weights", "bias", *SPELT)
AGAIN = "Make it again: cmgr route --fit"

_TOKEN = re.compile(r"\b\w\w+\b")
_LETTERS = re.compile(r"[^\W\d_]+")
# U.S. and u.k., U. S., and words with a capital
_DOTTED = r"(?<![\w.])(?:(?:[^\W\d_]\.)+[^\W\d_](?!\w)\.?|(?:[A-Z]\. )+[A-Z]\.(?!\w))"
_CAPITAL = re.compile(rf"(?P<dotted>{_DOTTED})|\b[A-Z]\w*")
_OPENS, _GOES_ON = re.compile(r"(?:^|[.!?\n])[\s\"'(]*$"), re.compile(r"[,'’]? ?[a-z]")
CAPITALS = {"us": "US"}  # `us` is a pronoun, and no country


def fold(text: str, capitals: Mapping[str, str] = CAPITALS) -> str:
    """Lower-case, but for words whose capitals say that they are names; U.S. is US.

    `capitals` has, by a word in small letters, how it is written as a name: "US" counts only so,
    and not where the whole text is in capitals; "Liberty" with its first letter a capital.
    """
    found, last = [], 0
    shouted = False
    for match in _CAPITAL.finditer(text):
        word = match[0]
        if match["dotted"]:
            word = word.replace(".", "").replace(" ", "")
            name = capitals.get(word.lower(), "")
            kept = name if name.isupper() else word.lower()
            # the dot that ends a sentence is taken too, but not the break
            kept += " " * (match.end() < len(text) and text[match.end()].isalnum())
        else:
            name = capitals.get(word.lower(), "")
            if not name:
                continue
            if name.isupper():
                shouted = text.isupper() and len(text.split()) > 3
            if name.isupper() and (word != name or shouted):
                continue
            if (
                not name.isupper()
                and _OPENS.search(text[max(match.start() - 4, 0) : match.start()])
                and (_GOES_ON.match(text, match.end()))
            ):
                continue  # "Reading this": any word has a capital there
            kept = name
        found += [text[last : match.start()].lower(), kept]
        last = match.end()
    return "".join([*found, text[last:].lower()])


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


def unknown_words(text: str, known: Collection[str], plain: Collection[str]) -> list[str]:
    """The words of a folded text, each once, that nothing is known of but their letters.

    Of ASCII words those of five letters on: shorter ones are like too many others.
    """
    found = dict.fromkeys(_LETTERS.findall(text))
    long = (w for w in found if len(w) > (4 if w.isascii() else 1))
    return [w for w in long if w not in known and w not in plain]


def is_foreign(text: str, plain: Collection[str]) -> bool:
    """Whether most words of a folded text are not English."""
    words = _LETTERS.findall(text)
    return 2 * sum(word in plain for word in words) < len(words)


class Spelt(NamedTuple):
    """What unknown words say by their letters: per culture a bias, and two bounds of logits.

    A word counts from `least` on; a text's words together say `most` at most.
    """

    bias: Floats
    least: Floats
    most: Floats

    def says(self, sums: Floats, foreign: bool) -> Floats:
        """A text's words x cultures -> what each adds to the text's logit; 0 for most.

        In a foreign text they count by their mean: many words of a near language, each a little
        like one's own, are no stronger sign than one.
        """
        logits = sums + self.bias
        if foreign:
            mean = logits.mean(axis=0)
            counted = np.where(mean >= self.least + SURER, logits / len(logits), 0.0)
        else:
            counted = np.where(logits >= self.least, logits, 0.0)
        total = counted.sum(axis=0)
        return np.asarray(counted * (self.most / np.maximum(total, self.most)), dtype=np.float64)


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
        spelt: Spelt | None = None,
        capitals: Mapping[str, str] = CAPITALS,
    ) -> None:
        self.cultures = list(cultures)
        self.settings = settings or Settings()
        self.idf, self.weights, self.bias = idf, weights, bias  # weights: n-grams x cultures
        self.plain = frozenset(plain)
        self.capitals = dict(capitals)
        self.spelt = spelt or Spelt(*np.ones((3, len(cultures))))
        self.words = {g: i for i, g in enumerate(vocabularies[0])}
        offset = len(self.words)
        self.chars = {g: i + offset for i, g in enumerate(vocabularies[1])}
        self.ngrams = [*vocabularies[0], *vocabularies[1]]

    def _said(self, folded: str) -> tuple[NDArray[np.intp], Floats]:
        """The columns of a folded text's known word n-grams, and their values."""
        counts = Counter(word_ngrams(folded))
        found = [(self.words[g], n) for g, n in counts.items() if g in self.words]
        at = np.array([c for c, _ in found], dtype=np.intp)
        times = np.array([n for _, n in found], dtype=np.float64)
        return at, (1.0 + np.log(times)) * self.idf[at]

    def _spelt(self, folded: str) -> tuple[list[str], Floats]:
        """The unknown words of a folded text, and what each says of each culture by its letters.

        Most say nothing: what a word says counts where it points to a culture by itself.
        """
        unknown: list[str] = []
        columns: list[int] = []
        starts: list[int] = []
        for word in unknown_words(folded, self.words, self.plain):
            grams = [self.chars[g] for g in {*char_ngrams(word)} if g in self.chars]
            if grams:
                unknown.append(word)
                starts.append(len(columns))
                columns += grams
        if not unknown:
            return [], np.zeros((0, len(self.cultures)))
        at = np.array(columns, dtype=np.intp)
        values = self.idf[at]
        lengths = np.sqrt(np.add.reduceat(values * values, starts))
        sums = np.add.reduceat(values[:, None] * self.weights[at], starts)
        foreign = is_foreign(folded, self.plain)
        return unknown, self.spelt.says(sums / lengths[:, None], foreign)

    def probabilities(self, text: str) -> Floats:
        """One probability per culture, each on its own (they need not sum to one)."""
        folded = fold(text, self.capitals)
        columns, values = self._said(folded)
        logits = values @ self.weights[columns] + self.bias + self._spelt(folded)[1].sum(axis=0)
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
        decision, folded = self.decide(text), fold(text, self.capitals)
        columns, values = self._said(folded)
        unknown, letters = self._spelt(folded)
        grams = [*(self.ngrams[c] for c in columns), *unknown]
        parts = []
        for culture in decision.cultures or list(decision.probabilities)[:1]:
            at = self.cultures.index(culture)
            weight = [*(values * self.weights[columns, at]), *letters[:, at]]
            parts += [(culture, g, float(w)) for g, w in zip(grams, weight, strict=True) if w]
        return sorted(parts, key=lambda part: (-abs(part[2]), part[0], part[1]))[:top]

    def save(self, folder: Path) -> None:
        """Write router.npz, then router.json, which holds its hash."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            ngrams=_packed(self.ngrams),
            plain=_packed(sorted(self.plain)),
            capitals=_packed(sorted(self.capitals.values())),
            idf=self.idf,
            weights=self.weights.astype(np.float32),
            bias=self.bias,
            spelt_bias=self.spelt.bias,
            spelt_least=self.spelt.least,
            spelt_most=self.spelt.most,
        )
        data = buffer.getvalue()
        write_atomic(folder / "router.npz", data)
        head = {
            "version": VERSION,
            "cultures": self.cultures,
            "words": len(self.words),
            "chars": len(self.chars),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_json(folder / "router.json", {**head, "self": make_id(head)})

    @classmethod
    def of(cls, ws: Workspace) -> Router:
        """The workspace's router, with the recipe's threshold and margin. Raises as `load` does."""
        return cls.load(ws.path("router"), ws.recipe.router)

    @classmethod
    def load(cls, folder: Path, settings: Settings | None = None) -> Router:
        """Read a saved router: arrays and plain values, nothing that could be executed.

        When to name a culture is no part of the file: it needs no new fit.
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
                parts = {name: file[name] for name in ARRAYS}
                grams, plain = _unpacked(file["ngrams"]), _unpacked(file["plain"])
                capitals = {name.lower(): name for name in _unpacked(file["capitals"])}
            words, cultures = int(head["words"]), list(head["cultures"])
            shape = (words + int(head["chars"]), len(cultures))
            shapes = (*(part.shape for part in parts.values()), (len(grams),))
            if not cultures or shapes != (shape[:1], shape, *[shape[1:]] * 4, shape[:1]):
                raise ValueError("its parts do not fit together")
            if not all(np.isfinite(part).all() for part in parts.values()):
                raise ValueError("it holds values that are no numbers")
            spelt = Spelt(*(parts.pop(name) for name in SPELT))
        except (KeyError, TypeError, ValueError, OSError, BadZipFile) as error:
            raise CmgrError(f"the router in {folder} is damaged: {error}. {AGAIN}") from None
        vocabularies = (grams[:words], grams[words:])
        return cls(
            *(cultures, vocabularies),
            **parts,
            settings=settings,
            plain=plain,
            spelt=spelt,
            capitals=capitals,
        )


def _packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(texts).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _unpacked(data: NDArray[np.uint8]) -> list[str]:
    text = data.tobytes().decode("utf-8", "surrogatepass")
    return text.split("\n") if text else []
