"""Evidence from a folder of Markdown and text files, ranked by BM25."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmgr.errors import MissingError
from cmgr.recipe import Culture
from cmgr.records import make_id
from cmgr.sources.passages import Passage, mentions, names_of

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_ALSO = re.compile(r"\*Also asked:(.*)\*", re.DOTALL)
_BULLET = re.compile(r"([-*+]|\d+[.)])\s+")


class Documents:
    """The documents of one culture.

    A subfolder named as a culture belongs to that culture. Without such subfolders the cultures
    share the folder, and each gets the passages that name it. A file that is not UTF-8 is skipped
    and reported. Raises MissingError where the folder does not exist.
    """

    def __init__(
        self,
        folder: Path,
        culture: Culture,
        cultures: Sequence[Culture],
        relative_to: Path,
        say: Callable[[str], None],
    ) -> None:
        if not folder.is_dir():
            raise MissingError(
                f"the document folder {folder} does not exist. "
                "Make it, or correct sources.path in recipe.yaml."
            )
        own = folder / culture.id
        shared = not any((folder / c.id).is_dir() for c in cultures)
        files = _files(folder if shared else own)
        if not shared and not own.is_dir():
            say(f"{folder}: no subfolder {culture.id}: no documents for {culture.name}")
        self.passages: list[Passage] = []
        contents = []
        for path in files:
            try:
                data = path.read_bytes()
                text = data.decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                say(f"{path}: skipped: {reason}. Save it as UTF-8 text.")
                continue
            try:
                url = path.relative_to(relative_to).as_posix()
            except ValueError:
                url = path.as_posix()
            contents.append((url, hashlib.sha256(data).hexdigest()))
            self.passages.extend(read_passages(path, text.replace("\r\n", "\n"), url))
        if shared:
            names = names_of(culture)
            self.passages = [
                p for p in self.passages if mentions(f"{p.title}\n{p.heading}\n{p.text}", names)
            ]
        self.fingerprint = make_id(contents)  # of what was read; changes with any document
        self._index: Any = None

    def search(self, query: str, limit: int) -> list[Passage]:
        """The passages that match a query best, with their scores, best first."""
        import bm25s

        def tokens(texts: list[str]) -> Any:
            return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)

        wanted = tokens([query])[0]
        if not self.passages or not wanted:
            return []
        if self._index is None:
            corpus = tokens([_searched(p) for p in self.passages])
            if not any(corpus):
                return []
            index = bm25s.BM25()
            index.index(corpus, show_progress=False)
            self._index = index
        known = [word for word in wanted if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        order = sorted(range(len(self.passages)), key=lambda i: (-float(scores[i]), i))
        return [
            replace(self.passages[i], score=round(float(scores[i]), 4))
            for i in order[:limit]
            if scores[i] > 0
        ]


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in {".md", ".markdown", ".txt"}
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _searched(passage: Passage) -> str:
    """What BM25 sees: the topic weighs twice, so that a topic's own passages come first."""
    topic = passage.topic.replace("-", " ").replace("_", " ")
    return " ".join(
        (topic, topic, passage.title, passage.heading, *passage.also_asked, passage.text)
    )


def read_passages(path: Path, text: str, url: str) -> Iterator[Passage]:
    """The passages of one file: sections of Markdown by heading, or paragraphs of plain text."""
    title = re.sub(r"[-_]+", " ", path.stem).capitalize()
    if path.suffix.lower() == ".txt":
        paragraphs = [_flow(part) for part in re.split(r"\n\s*\n", text) if part.strip()]
        for number, paragraph in enumerate(paragraphs, 1):
            yield Passage(f"{url}#p{number}", title, "", (), path.stem, paragraph)
        return
    anchors: dict[str, int] = {}
    for level, heading, body in _sections(text):
        if level == 1:
            title, heading = heading, ""
        anchor = re.sub(r"[^\w\- ]", "", (heading or title).lower()).replace(" ", "-")
        count = anchors[anchor] = anchors.get(anchor, -1) + 1
        anchor += f"-{count}" if count else ""
        also: tuple[str, ...] = ()
        kept = []
        for part in re.split(r"\n\s*\n", body):
            if asked := _ALSO.fullmatch(part.strip()):
                also += tuple(q for q in (_flow(s) for s in asked[1].split("|")) if q)
            elif flowed := _flow(_plain(part)):
                kept.append(flowed)
        if kept:
            yield Passage(f"{url}#{anchor}", title, heading, also, path.stem, "\n\n".join(kept))


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
