"""Cultures' names in a prompt: put about another culture, or about one of those that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from cmgr.benchmarks import spellings
from cmgr.recipe import Culture

ARTICLE = re.compile(r"United |(?:Netherlands|Philippines|Gambia|Bahamas|Maldives)$", re.IGNORECASE)
# between two names that are asked about alike: "Japan and Brazil", "Japan, or in Brazil"
_JOINS = r"(?:and|or|vs\.?|versus|compared\s+(?:to|with)|than|&|/)"
BETWEEN = rf"(?:\s*,\s*(?:{_JOINS}\s*)?|\s*{_JOINS}\s*)(?:(?:in|to|from)\s+)?"


def called(culture: Culture) -> str:
    """A culture's name as it stands in a sentence: "Japan", "the United States"."""
    return f"the {culture.name}" if ARTICLE.search(culture.name) else culture.name


def swap(text: str, culture: Culture, other: Culture) -> str | None:
    """A text with the names of another culture in place of one's; None where it names none.

    A name becomes the name, a demonym the demonym (or the name), a place one of the other's places.
    """
    named = False

    def put(match: re.Match[str]) -> str:
        nonlocal named
        named = True
        the, word = match["the"] or "", match["name"].casefold()
        if word == culture.demonym.casefold() and other.demonym:
            return the + other.demonym
        at = [place.casefold() for place in culture.places]
        if word in at and other.places:
            return other.places[at.index(word) % len(other.places)]
        new = called(other)
        return new[0].upper() + new[1:] if match.start() == 0 else new

    new = re.sub(rf"(?<!\w)(?P<the>[Tt]he )?(?P<name>{pattern_of(culture)})(?!\w)", put, text)
    return new if named else None


def focused(text: str, culture: Culture, others: Sequence[Culture]) -> str:
    """A prompt that names several cultures, about one of them.

    Where names stand together ("in Japan and Brazil") its own alone is left; where others are
    named elsewhere, or it is not named at all, a line at the end says whom the answer is for.
    """
    own = rf"(?:the\s+)?(?:{pattern_of(culture)})(?!\w)"
    if not re.search(rf"(?<!\w){own}", text):
        return _said(text, culture)
    every = "|".join([own, *(rf"(?:the\s+)?(?:{pattern_of(o)})(?!\w)" for o in others)])

    def put(match: re.Match[str]) -> str:
        mine = re.search(rf"(?<!\w){own}", match["list"])
        if mine is None:
            return match[0]
        before = match["before"] or ""
        if before:
            before = "In " if before[0].isupper() else "in "
        return before + mine[0]

    before = r"(?P<before>\b[Bb](?:oth|etween)\s+(?:in\s+)?)?"
    together = rf"(?P<list>(?:{every})(?:{BETWEEN}(?:{every}))+)"
    new = re.sub(rf"{before}(?<!\w){together}", put, text)
    rest = "|".join(pattern_of(other) for other in others)
    return _said(new, culture) if rest and re.search(rf"(?<!\w)(?:{rest})(?!\w)", new) else new


def _said(text: str, culture: Culture) -> str:
    return f"{text}\n\nAnswer for {called(culture)}."


def pattern_of(culture: Culture) -> str:
    """A regular expression for every name of a culture: its own, its demonym, its places."""
    return _pattern(culture.model_dump_json())


@cache
def _pattern(culture: str) -> str:
    """The longest name first; short ones in capitals alone: US, UK."""
    known = Culture.model_validate_json(culture)
    told = [known.name, known.demonym, *known.places, *spellings(known)]
    every = sorted({n for n in told if n}, key=lambda n: (-len(n), n))
    return "|".join(map(_spelt, every))


def _spelt(name: str) -> str:
    """A pattern for a name in any case; "u s" is U.S., and "of" and "the" may stand within."""
    words = name.split()
    if len(words) > 1 and all(len(word) == 1 for word in words):
        return r"\.\s?".join(word.upper() for word in words) + r"\.?"
    if len(name) <= 3 and name.isascii():
        return re.escape(name.upper())
    within = r"\s+(?:(?:of|and|the)\s+)*"
    return f"(?i:{within.join(map(re.escape, words))})"
