"""What a word that no row has says by its letters alone: misspelt names, endings, languages.

Each word is judged by itself, and counts only where it points to a culture by itself. N-grams of
letters summed over a whole text would not do: each weighs little, but a long text has hundreds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from cmgr.router import Floats, char_ngrams, unknown_words
from cmgr.router.texts import Row, misspelt

C = 3.0
POSITIVE = 3.0  # what a word of a culture weighs for it, against one that is not of it
OF_CULTURE = 0.5  # a word is of a culture where so many of the rows that have it are
WRONG = 6  # misspelt forms of a name


class Letters(NamedTuple):
    """The scikit-learn parts: features of single words, and one model per culture."""

    features: Any  # TfidfVectorizer of one word's character n-grams
    models: list[Any]  # LogisticRegression

    @property
    def bias(self) -> Floats:
        """Per culture, as if its words weighed no more than others."""
        return np.array([m.intercept_[0] - np.log(POSITIVE) for m in self.models], dtype=np.float64)

    def logits(self, words: Sequence[str]) -> Floats:
        """Words x cultures, without the bias."""
        found = self.features.transform(words)
        return np.stack([found @ m.coef_[0] for m in self.models], axis=1)


def analyse(word: str) -> list[str]:
    """The character n-grams of a word, each once."""
    return sorted({*char_ngrams(word)})


def fit_letters(
    texts: Sequence[str],
    rows: Sequence[Row],
    ids: Sequence[str],
    plain: Collection[str],
    most: int,
    run: Callable[[Callable[..., Any], Sequence[Any]], list[Any]],
) -> Letters:
    """Fit on the words of the rows' folded texts, each once, and on names misspelt.

    `plain` words say nothing; `run` maps a function over the cultures.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    where: dict[str, dict[str, int]] = {}
    for text, row in zip(texts, rows, strict=True):
        for word in unknown_words(text, (), plain):
            count = where.setdefault(word, {"": 0})
            count[""] += 1
            for culture in row.cultures:
                count[culture] = count.get(culture, 0) + 1
    of = {w: {c for c in n if c and n[c] >= OF_CULTURE * n[""]} for w, n in where.items()}
    rng = random.Random(0)
    for word, count in where.items():
        if len(word) > 4 and of[word] and count[""] > 2:
            for _ in range(WRONG):
                of.setdefault(misspelt(word, rng), of[word])
    of.update({word: set() for word in sorted(plain)})
    words = list(of)
    # a word of many rows, as countries elsewhere in a culture's language, must weigh more
    often = np.array([1.0 + np.log(where[w][""]) if w in where else 1.0 for w in words])
    features = TfidfVectorizer(
        analyzer=analyse, min_df=2, max_features=most, lowercase=False, dtype=np.float64
    )
    found = features.fit_transform(words)
    found.sort_indices()  # here once: the models below are fitted in threads, which share it

    def one(culture: str) -> Any:
        target = np.array([culture in of[w] for w in words])
        model = LogisticRegression(C=C, solver="liblinear", tol=1e-3, random_state=0)
        return model.fit(found, target, sample_weight=often * np.where(target, POSITIVE, 1.0))

    return Letters(features, run(one, ids))
