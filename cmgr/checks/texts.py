"""What can be seen of a quote, its passage and an answer from their texts alone."""

from __future__ import annotations

import math
import re
import unicodedata

from cmgr.overlap import words
from cmgr.sources.ranking import terms

SAME = 0.9  # share of a quote's words that stand in its passage, in order, and nothing else
SUPPORT = 0.2  # share of an answer's terms that its quote must have
GIVEN = 0.6  # share of an answer's words in a row that, standing in the prompt, give it away
ALIKE = 0.6  # Jaccard similarity of two clauses' terms from which they say nearly the same words

# what turns a clause round ("t" is that of "don't") ...
_TURNING = frozenset(
    (
        *("not", "no", "never", "nobody", "none", "neither", "nor", "without", "hardly", "rarely"),
        *("seldom", "cannot", "t", "dont", "doesnt", "isnt", "arent"),
    )
)
# ... and what may: of such a clause nothing is said
_DOUBTFUL = re.compile(
    r"\b(?:avoid\w*|refrain\w*|rather|instead|than|otherwise|unless|until|but|only|except|else"
    r"|taboo|frowned|impolite|rude|forbidden|out|away|off|free|less|later|earlier)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[,;:.!?…]+(?=\s|$)|\b(?:and|but|though|although|since|because|so|while|whereas|or)\b",
    re.IGNORECASE,
)
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        (
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
            *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
            *("seventeen", "eighteen", "nineteen", "twenty"),
        )
    )
} | {
    **{"third": "3", "fourth": "4", "fifth": "5", "sixth": "6", "seventh": "7", "eighth": "8"},
    **{"ninth": "9", "tenth": "10", "twelfth": "12", "fifteenth": "15", "twentieth": "20"},
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "ninety": "90",
    "hundred": "100",
}


_QUOTES = str.maketrans({c: "'" for c in "‘’‚`´“”„«»\"'"} | {c: "-" for c in "‐‑‒–—―"})


def normal(text: str) -> str:
    """A text without what copying changes: case, spaces, forms of quotes and dashes, markup."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).replace("'", "")
    text = re.sub(r"[*_#>`]+|\[\d+\]", " ", text)
    return " ".join(text.casefold().split()).strip(" .,;:!?…-")


def stands_in(quote: str, passage: str) -> bool:
    """Whether a quote stands in a passage: as it is, normalised, or all but a few words of it.

    Fuzzy means: its words stand there in their order with at most a tenth of the passage's words
    between them left out (an ellipsis, a bracket), none added, and none of those left out or kept
    turns the sentence round ("not", a number).
    """
    if not words(quote):
        return False
    if normal(quote) in normal(passage):
        return True
    mine, theirs = words(quote), words(passage)
    if len(mine) < 6:
        return False
    starts = [i for i, word in enumerate(theirs) if word == mine[0]]
    for start in starts:
        at, skipped = start, []
        for word in mine[1:]:
            at += 1
            while at < len(theirs) and theirs[at] != word:
                skipped.append(theirs[at])
                at += 1
            if at >= len(theirs) or len(skipped) > (1 - SAME) * (len(mine) + len(skipped)):
                break
        else:
            if not any(word in _TURNING or word.isdigit() for word in skipped):
                return True
    return False


def supports(quote: str, answer: str, language: str = "en") -> bool:
    """Whether an answer speaks of what its quote says: a fifth of its terms stand in it."""
    return support(quote, answer, language) >= SUPPORT


def support(quote: str, answer: str, language: str = "en") -> float:
    """The share of an answer's terms that its quote has (1 for an answer without any)."""
    mine = set(terms(answer, language))
    theirs = set(terms(quote, language))
    starts = {t[:5] for t in theirs if len(t) >= 5}  # fifteen, fifteenth
    shared = sum(t in theirs or (len(t) >= 5 and t[:5] in starts) for t in mine)
    return shared / len(mine) if mine else 1.0


def turned(answer: str, quote: str, language: str = "en") -> bool:
    """Whether the answer says no where its quote says yes in nearly the same words, or the other

    way round, or names another number there. What is worded otherwise is for a judge.
    """
    theirs = [(_clause_terms(c, language), c) for c in _clauses(quote)]
    for clause in _clauses(answer):
        mine = _clause_terms(clause, language)
        alike = [
            (terms_of, other)
            for terms_of, other in theirs
            if len(mine & terms_of) >= max(2, ALIKE * len(mine | terms_of))
        ]
        if not alike:
            continue
        others = [other for terms_of, other in theirs if mine & terms_of]
        if not any(_DOUBTFUL.search(text) for text in (clause, *others)) and all(
            _says_no(clause) != _says_no(other) for other in others
        ):
            return True
        numbers, known = _numbers(clause), _numbers(quote)
        if numbers and not numbers <= known and any(_numbers(other) for _, other in alike):
            return True
    return False


def _clauses(text: str) -> list[str]:
    return [c for c in _CLAUSE.split(text) if c and c.strip()]


def _says_no(clause: str) -> bool:
    return not _TURNING.isdisjoint(words(clause))


def _clause_terms(clause: str, language: str) -> set[str]:
    kept = " ".join(w for w in words(clause) if w not in _TURNING and w not in _NUMBERS)
    return {t for t in terms(kept, language) if not t.isdigit()}


def _numbers(clause: str) -> set[str]:
    joined = re.sub(r"(?<=\d)[.,](?=\d{3}\b)", "", clause)
    found = {_NUMBERS.get(w, w) for w in words(joined)}
    return {w for w in found if w.isdigit() and w != "1"}  # "one" is often nobody's number


def gives_away(prompt: str, answer: str) -> bool:
    """Whether an answer stands in a prompt: all of it, or most of its words in a row."""
    mine, theirs = words(answer), words(prompt)
    if not mine or len(answer) <= 3:
        return False
    size = len(mine) if len(mine) < 4 else max(4, math.ceil(GIVEN * len(mine)))
    runs = {tuple(theirs[i : i + size]) for i in range(len(theirs) - size + 1)}
    return any(tuple(mine[i : i + size]) in runs for i in range(len(mine) - size + 1))
