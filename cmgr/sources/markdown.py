"""Markdown (and plain text) cut into passages: by heading, on paragraph and sentence borders."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cmgr.sources.passages import Passage, sentence_ends, word_count

MAX_WORDS = 250  # of a passage; what is longer is cut

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_ALSO = re.compile(r"\*Also asked:(.*)\*", re.DOTALL)
_BULLET = re.compile(r"([-*+]|\d+[.)])\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")


def passages(text: str, url: str, title: str, topic: str = "") -> Iterator[Passage]:
    """The passages of a Markdown text; each section's heading stands over its passages.

    A heading of the first level is the title of what follows. A paragraph `*Also asked: A | B*`
    holds other wordings of the heading.
    """
    anchors: dict[str, int] = {}
    for level, heading, body in _sections(text):
        if level == 1:
            title, heading = heading, ""
        anchor = re.sub(r"[^\w\- ]", "", (heading or title).lower()).replace(" ", "-")
        count = anchors[anchor] = anchors.get(anchor, -1) + 1
        anchor += f"-{count}" if count else ""
        also: tuple[str, ...] = ()
        kept = []
        for part in _PARAGRAPH.split(body):
            if asked := _ALSO.fullmatch(part.strip()):
                also += tuple(q for q in (_flow(s) for s in asked[1].split("|")) if q)
            elif flowed := _flow(_plain(part)):
                kept.append(flowed)
        for number, cut in enumerate(_cut(kept)):
            where = f"{url}#{anchor}" + (f"~{number + 1}" if number else "")
            yield Passage(where, title, heading, also, topic, cut)


def paragraphs(text: str, url: str, title: str, topic: str = "") -> Iterator[Passage]:
    """The passages of a plain text: its paragraphs, set apart by empty lines."""
    flowed = [_flow(part) for part in _PARAGRAPH.split(text) if part.strip()]
    for number, paragraph in enumerate(flowed, 1):
        for part, cut in enumerate(_cut([paragraph])):
            where = f"{url}#p{number}" + (f"~{part + 1}" if part else "")
            yield Passage(where, title, "", (), topic, cut)


def _cut(texts: list[str]) -> Iterator[str]:
    """Paragraphs joined while they fit; one that does not fit is cut where a sentence ends."""
    held: list[str] = []
    size = 0
    for part in [piece for text in texts for piece in _pieces(text)]:
        more = word_count(part)
        if held and size + more > MAX_WORDS:
            yield "\n\n".join(held)
            held, size = [], 0
        held.append(part)
        size += more
    if held:
        yield "\n\n".join(held)


def _pieces(paragraph: str) -> Iterator[str]:
    if word_count(paragraph) <= MAX_WORDS:
        yield paragraph
        return
    start = last = 0
    for end in sentence_ends(paragraph):
        if last > start and word_count(paragraph[start:end]) > MAX_WORDS:
            yield paragraph[start:last].strip()
            start = last
        last = end
    yield paragraph[start:].strip()


def _sections(text: str) -> Iterator[tuple[int, str, str]]:
    """(level, heading, body) of each section; level 0 is what stands before any heading."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    level, heading, fenced = 0, "", False
    body: list[str] = []
    for line in text.split("\n"):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        match = None if fenced else _HEADING.match(line)
        if match:
            yield level, heading, "\n".join(body)
            level, heading, body = len(match[1]), _plain(match[2]), []
        else:
            body.append(line)
    yield level, heading, "\n".join(body)


def _plain(text: str) -> str:
    """Markdown without images, link targets and bold marks."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)


def _flow(text: str) -> str:
    """Wrapped lines joined; an item of a list keeps its own line."""
    lines: list[str] = []
    for raw in text.split("\n"):
        line = " ".join(raw.split())
        if line and (not lines or _BULLET.match(line)):
            lines.append(line)
        elif line:
            lines[-1] += " " + line
    return "\n".join(lines)
