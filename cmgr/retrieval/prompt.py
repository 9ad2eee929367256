"""Passages in a prompt: numbered notes before the question, the same in training and in use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cmgr.records import Evidence, Message, make_id
from cmgr.sources.passages import opening, sentence_ends, word_count

HEAD = "Notes on {culture}:"
NOTE = "[{number}] {text}"
MOST_WORDS = 90  # of a passage that are shown
FORMAT = make_id(HEAD, NOTE, MOST_WORDS, 2)  # part of the template lock


def note_of(passage: Evidence, culture: str = "") -> str:
    """A passage as it is shown: its question or title, and whole sentences of its text, in a line.

    "In <culture>, " goes from its beginning, for the line above says so, and an answer begins
    without it. What looks like the number of a note is no number: a passage cannot begin another.
    """
    text = opening(culture).sub("", passage.text) if culture else ""
    text = text[:1].upper() + text[1:] if text and text != passage.text else passage.text
    if word_count(text) > MOST_WORDS:
        ends = [end for end in sentence_ends(text) if word_count(text[:end]) <= MOST_WORDS]
        text = text[: ends[-1]] if ends else " ".join(text.split()[:MOST_WORDS])
    over = passage.heading or passage.title
    if over and over[-1] not in ".?!:。？！":
        over += "."
    return re.sub(r"\[(\d+)\]", r"(\1)", " ".join(f"{over} {text}".split()))


def with_notes(
    messages: Sequence[Message], notes: Sequence[tuple[str, Sequence[str]]]
) -> list[Message]:
    """Messages whose last turn has notes before it: (a culture's name, its notes), in order."""
    lines: list[str] = []
    number = 0
    for culture, mine in notes:
        if mine:
            lines.append(HEAD.format(culture=culture))
        for text in mine:
            number += 1
            lines.append(NOTE.format(number=number, text=text))
    if not lines:
        return list(messages)
    *before, last = messages
    content = "\n".join(lines) + f"\n\n{last.content}"
    return [*before, Message(role=last.role, content=content)]
