"""What every source hands on, and the few readings of a text that later rooms share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cmgr.overlap import UNSPACED
from cmgr.recipe import Culture

_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’）]*|\n\s*\n|\n(?=[-*•] )")
_NO_EDGE = re.compile(f"[{UNSPACED}\uac00-\ud7a3]")  # Hangul: particles follow a name at once
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "e.g", "i.e", "vs", "approx"}


@dataclass(frozen=True)
class Passage:
    """A passage of a source, with what stands over it; `score` is that of the query."""

    url: str
    title: str
    heading: str
    also_asked: tuple[str, ...]
    topic: str
    text: str
    score: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a source answers to a query, and as much of its text as the source itself has.

    `passage`: found and ranked already; `markdown`: the whole text; neither: `url` is to be
    fetched. `language` and `license` are empty where they are not known.
    """

    url: str
    title: str = ""
    passage: Passage | None = None
    markdown: str | None = None
    language: str = ""
    license: str | None = None
    revision: str = ""


def sentence_ends(text: str) -> list[int]:
    """The offsets at which the sentences of a text end; the last is the end of the text."""
    ends = []
    for match in _END.finditer(text):
        if match[0].startswith("."):
            words = text[: match.start()].split()
            word = words[-1].strip("(\"'“‘").lower() if words else ""
            rest = text[match.end() :].lstrip()
            if word in _ABBREVIATIONS or rest[:1].islower():
                continue
        ends.append(match.start() if match[0].startswith("\n") else match.end())
    full = len(text.rstrip())
    return [*(end for end in ends if 0 < end < full), full] if full else []


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the space around them."""
    found, start = [], 0
    for end in sentence_ends(text):
        found.append(text[start:end].strip())
        start = end
    return [sentence for sentence in found if sentence]


def opening(name: str) -> re.Pattern[str]:
    """How a passage begins that says first of which culture it speaks: "In <culture>, "."""
    return re.compile(rf"^In (?:the )?{re.escape(name)}, ")


def first_sentence(text: str) -> str:
    """The sentence a text begins with (empty for an empty text)."""
    ends = sentence_ends(text)
    return text[: ends[0]] if ends else ""


def word_count(text: str) -> int:
    """How many words a text has; where none are set apart, two characters count as one."""
    wide = sum("\u3040" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for c in text)
    return len(text.split()) + wide // 2


def names_of(culture: Culture) -> list[str]:
    """What names a culture in a text: its name, its demonym, its places."""
    return [name for name in (culture.name, culture.demonym, *culture.places) if name]


def mentions(text: str, names: Iterable[str]) -> str | None:
    """The first of these names that stands in a text as a word (also its plural), or None.

    A name in a script that sets no space between words may stand anywhere.
    """
    for name in names:
        if _NO_EDGE.search(name):
            if name in text:
                return name
        elif re.search(rf"(?<!\w){re.escape(name)}(?:s|['’]s)?(?!\w)", text):
            return name
    return None
