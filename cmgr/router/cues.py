"""Cues: the names and things that point to a culture, or to a country elsewhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cmgr.recipe import Culture
from cmgr.records import Evidence
from cmgr.router import CAPITALS
from cmgr.router import card as cards

_WORD = re.compile(r"[^\W\d_]{2,}")
_NOUN = re.compile(r"(?<=[\w,;(] )[^\W\d_a-z][\w'’-]{2,}(?: [^\W\d_a-z][\w'’-]+)*")


@dataclass
class Cues:
    """What points to one culture, or to a country elsewhere."""

    names: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)
    nouns: list[str] = field(default_factory=list)  # names that only its documents have

    def all(self) -> list[str]:
        """Every cue."""
        return [*self.names, *self.people, *self.places, *self.things, *self.nouns]


def neutral_prompts() -> list[str]:
    """The prompts of no culture that cmgr ships."""
    text = (Path(__file__).parent / "neutral.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def common_words(evidence: Iterable[Evidence] = ()) -> set[str]:
    """Words, case-folded, that are no cue though a city may be called so: Mobile, Reading.

    Those of the neutral prompts, and what documents of two cultures write in small letters.
    """
    words = {w for t in neutral_prompts() for w in _WORD.findall(t) if w.islower()}
    words |= {w.casefold() for w in cards.function_words("en")}
    where: dict[str, set[str]] = {}
    for passage in evidence:
        for word in _WORD.findall(passage.text):
            if word.islower():
                where.setdefault(word, set()).add(passage.culture)
    words |= {f"{w}s" for w in words}
    return words | {word for word, cultures in where.items() if len(cultures) > 1}


@cache
def _dictionary() -> frozenset[str]:
    """The words of Hunspell's en_US as they are written, with their endings."""
    from spylls.hunspell import Dictionary

    english: Any = Dictionary.from_files("en_US")
    found: set[str] = set()
    for word in english.dic.words:
        ended = [word.stem]
        for flag in word.flags:
            for suffix in english.aff.SFX.get(flag, ()):
                if suffix.cond_regexp.search(word.stem):
                    ended.append(word.stem.removesuffix(suffix.strip) + suffix.add)
        found.update(ended)
        for flag in word.flags:
            for prefix in english.aff.PFX.get(flag, ()):
                found.update(prefix.add + e for e in ended)
    return frozenset(word for word in found if word.isalpha())


@cache
def english_words() -> frozenset[str]:
    """What English writes in small letters."""
    return frozenset(word for word in _dictionary() if word.islower())


@cache
def english_names() -> frozenset[str]:
    """What English writes with a capital: London, Christmas."""
    return frozenset(word for word in _dictionary() if not word.islower())


def capitals_of(
    mine: Iterable[Cues], others: Iterable[Cues], common: Collection[str]
) -> dict[str, str]:
    """Of which words the capitals say that they are names: by small letters, as they are written.

    Places, things and what is elsewhere that are English words: Liberty, Polish; abbreviations. Of
    the recipe's countries and peoples those alone that neutral prompts write in small letters,
    Turkey: people write "in japan".
    """
    found = dict(CAPITALS)
    mine, others, english = list(mine), list(others), english_words()
    longer = [n for cue in mine for n in (*cue.names, *cue.people, *cue.places)]
    longer += [n for cue in others for n in (*cue.names, *cue.people)]
    # "south korea" is South Korea
    within = {w.lower() for name in longer for w in name.split() if " " in name}
    within -= {n.lower() for cue in mine for n in (*cue.names, *cue.people)}

    def add(names: Iterable[str], words: Collection[str]) -> None:
        for name in names:
            short = name.isascii() and name.isupper() and len(name) < 4
            if name.isalpha() and name.lower() not in within and (name.lower() in words or short):
                found.setdefault(name.lower(), name if short else name.capitalize())

    for cue in mine:
        add((*cue.places, *cue.things, *cue.nouns), english)
        add((n for n in (*cue.names, *cue.people) if not n.isupper()), common)
    for cue in others:
        add((n for n in cue.all() if n not in cue.names or not n.isupper()), english)
    return {small: name for small, name in found.items() if small != name}


def cues_of(
    cultures: Sequence[Culture], evidence: Sequence[Evidence]
) -> tuple[dict[str, Cues], list[Cues]]:
    """The cues of the recipe's cultures, and of each country that is not in it.

    What stands for two cultures of the recipe, or for many countries, is no cue.
    """
    codes = {c.id: cards.country_of(c) for c in cultures}
    own = {i: cards.card_of(code) if code else cards.Card("") for i, code in codes.items()}
    outside = [
        cards.card_of(code, cards.CITIES_ELSEWHERE)
        for code in cards.all_countries()
        if code not in codes.values()
    ]
    common, count = common_words(evidence), cards.countries_with([*own.values(), *outside])
    within = cards.countries_with(own.values())
    biggest = cards.biggest_city()

    def clear(name: str) -> bool:
        key = name.casefold()
        return within[key] < 2 and count[key] <= cards.SHARED and key not in common

    def of_card(card: cards.Card) -> Cues:
        found = Cues(names=list(card.names), people=list(card.people))
        regions = [r for r in card.regions if clear(r)]
        regions = [r for r in regions if biggest.get(r.casefold(), card.country) == card.country]
        cities = [
            c
            for c in card.cities
            if biggest.get(c.casefold(), card.country) == card.country
            and c.casefold() not in common
        ]
        found.places = list(dict.fromkeys([*regions, *cities]))
        found.things = [t for t in card.things if clear(t)]
        return found

    mine = {i: of_card(card) for i, card in own.items()}
    for culture in cultures:
        found = mine[culture.id]
        found.names = list(dict.fromkeys([culture.name, *culture.places, *found.names]))
        found.people = list(dict.fromkeys([*filter(None, [culture.demonym]), *found.people]))
    for found in mine.values():
        # Georgia may be the country
        abroad = {n.casefold() for card in outside for n in card.names}
        found.places = [p for p in found.places if p.casefold() not in abroad]
    taken = {n.casefold() for found in mine.values() for n in found.all()}
    others = []
    for card in outside:
        found = of_card(card)
        for kind in ("names", "people", "places", "things"):
            # what a culture of the recipe claims is not denied it
            kept = [n for n in getattr(found, kind) if n.casefold() not in taken]
            setattr(found, kind, kept)
        others.append(found)
    known = taken | {n.casefold() for o in others for n in o.all()} | common
    known |= {w for p in evidence for w in _WORD.findall(p.text) if w.islower()}
    for culture_id, names in _proper_nouns(evidence, known).items():
        if culture_id in mine:
            mine[culture_id].nouns += names
    return mine, others


def _proper_nouns(evidence: Iterable[Evidence], known: set[str]) -> dict[str, list[str]]:
    """Capitalised names within the sentences of one culture's documents, and of no other's."""
    found: dict[str, dict[str, None]] = {}
    where: dict[str, set[str]] = {}
    english = english_words()
    for passage in evidence:
        for name in _NOUN.findall(passage.text):
            key = name.casefold()
            fresh = key not in known and not all(w in known for w in _WORD.findall(key))
            fresh &= key not in english or name in english_names()  # Java, but not Parliament
            if len(name) > 3 and not name.isupper() and fresh:
                where.setdefault(key, set()).add(passage.culture)
                found.setdefault(passage.culture, {})[name] = None
    return {c: [n for n in names if len(where[n.casefold()]) == 1] for c, names in found.items()}
