"""Evidence from a folder: Markdown, text, HTML, PDF, JSON lines, CSV; ranked by BM25."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmgr.errors import CmgrError, MissingError, unless_read_only
from cmgr.recipe import Culture, Source
from cmgr.records import Query, make_id
from cmgr.sources import Place
from cmgr.sources.markdown import paragraphs, passages
from cmgr.sources.passages import Passage, Result, mentions, names_of
from cmgr.sources.ranking import Ranking, terms
from cmgr.workspace import write_atomic

VERSION = 4  # of what is read from a file, and of its terms; a change reads every file again
KINDS = {".md", ".markdown", ".txt", ".html", ".htm", ".pdf", ".jsonl", ".ndjson", ".csv"}
TEXT = ("text", "content", "body", "passage", "document", "answer")  # a row's own words
TITLE = ("title", "heading", "question", "name")


class Searcher:
    """The documents of a recipe's folder.

    A subfolder named as a culture belongs to that culture. Without such subfolders the cultures
    share the folder, and each gets the passages that name it. A file that cannot be read is
    skipped and reported. What was read is kept beside the workspace's other caches, by size and
    time of each file. Raises MissingError where the folder does not exist.
    """

    def __init__(self, source: Source, place: Place) -> None:
        self.folder = place.folder / (source.path or "")
        if not self.folder.is_dir():
            raise MissingError(
                f"the document folder {self.folder} does not exist. "
                "Make it, or correct sources.path in recipe.yaml."
            )
        self._place = place
        self._cache = place.cache / "documents"
        self._license = source.license
        self._lock = threading.Lock()
        self._rankings: dict[str, tuple[list[Passage], Ranking]] = {}
        named = [c.id for c in place.cultures if (self.folder / c.id).is_dir()]
        self._shared = not named
        if named:
            for culture in place.cultures:
                if culture.id not in named:
                    place.say(
                        f"{self.folder}: no subfolder {culture.id}: no documents for {culture.name}"
                    )
        self._files = self._read()

    def fingerprint(self, culture: str) -> str:
        """A hash of the documents of a culture: changes with any of them."""
        return make_id([(url, sha) for url, sha, _ in self._of(culture)])

    def search(self, query: Query, limit: int) -> list[Result]:
        """The passages that match a query best, with their scores, best first."""
        with self._lock:
            if query.culture not in self._rankings:
                self._rankings[query.culture] = self._ranked(query.culture)
        found, ranking = self._rankings[query.culture]
        return [
            Result(
                url=found[i].url,
                title=found[i].title,
                passage=replace(found[i], score=score),
                license=self._license,
            )
            for i, score in ranking.best(query.text, limit, query.language)
        ]

    def passages(self, culture: str) -> list[Passage]:
        """Every passage of a culture."""
        found = [p for _, _, read in self._of(culture) for p in read]
        if not self._shared:
            return found
        names = names_of(self._culture(culture))
        return [p for p in found if mentions(f"{p.title}\n{p.heading}\n{p.text}", names)]

    def _culture(self, culture_id: str) -> Culture:
        return next(c for c in self._place.cultures if c.id == culture_id)

    def _of(self, culture: str) -> list[tuple[str, str, list[Passage]]]:
        if self._shared:
            return self._files
        own = self.folder / culture
        start = self._url(own) + "/"
        return [file for file in self._files if file[0].startswith(start)]

    def _ranked(self, culture: str) -> tuple[list[Passage], Ranking]:
        found = self.passages(culture)
        names = names_of(self._culture(culture))
        about = [mentions(p.title, names) is not None for p in found]
        folder = self._cache / f"{make_id(str(self.folder.resolve()), culture)}.index"
        made_from = make_id(VERSION, names, self.fingerprint(culture))
        return found, Ranking(
            lambda: [terms(_searched(p)) for p in found], about, (folder, made_from)
        )

    def _url(self, path: Path) -> str:
        try:
            return path.relative_to(self._place.folder).as_posix()
        except ValueError:
            return path.as_posix()

    def _read(self) -> list[tuple[str, str, list[Passage]]]:
        """(URL, hash, passages) of every file; only what has changed is read again."""
        cache = self._cache / f"{make_id(str(self.folder.resolve()))}.gz"
        known = _load(cache)
        read, changed = {}, False
        for path in self._paths():
            url = self._url(path)
            try:
                stat = path.stat()
                stamp = [stat.st_size, stat.st_mtime_ns]
                if url not in known or known[url][0] != stamp:
                    data = path.read_bytes()
                    found = [asdict(p) for p in _passages_of(path, data, url)]
                    known[url] = [stamp, hashlib.sha256(data).hexdigest(), found]
                    changed = True
            except (OSError, UnicodeDecodeError, ValueError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                mend = " Save it as UTF-8 text." if isinstance(error, UnicodeDecodeError) else ""
                self._place.say(f"{path}: skipped: {reason}.{mend}")
                continue
            except CmgrError as error:
                self._place.say(f"{path}: skipped: {error}")
                continue
            read[url] = known[url]
        if changed or len(read) != len(known):
            text = json.dumps({"version": VERSION, "files": read}, ensure_ascii=False)
            with unless_read_only():
                write_atomic(cache, gzip.compress(text.encode(), compresslevel=1))
        return [
            (url, sha, [Passage(**{**p, "also_asked": tuple(p["also_asked"])}) for p in found])
            for url, (_, sha, found) in read.items()
        ]

    def _paths(self) -> list[Path]:
        folders = [self.folder]
        if not self._shared:
            folders = [self.folder / c.id for c in self._place.cultures]
        return sorted(
            path
            for folder in folders
            for path in folder.rglob("*")
            if path.suffix.lower() in KINDS
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )


def _load(cache: Path) -> dict[str, Any]:
    try:
        value = json.loads(gzip.decompress(cache.read_bytes()))
    except (OSError, ValueError, EOFError):
        return {}
    files: dict[str, Any] = value["files"] if value.get("version") == VERSION else {}
    return files


def _searched(passage: Passage) -> str:
    """What BM25 sees: the topic weighs twice, so that a topic's own passages come first."""
    topic = passage.topic.replace("-", " ").replace("_", " ")
    return " ".join(
        (topic, topic, passage.title, passage.heading, *passage.also_asked, passage.text)
    )


def _passages_of(path: Path, data: bytes, url: str) -> Iterator[Passage]:
    title = re.sub(r"[-_]+", " ", path.stem).capitalize()
    kind = path.suffix.lower()
    if kind in {".html", ".htm", ".pdf"}:
        from cmgr.sources.extract import extract

        page = extract(data, "application/pdf" if kind == ".pdf" else "text/html", path.as_uri())
        yield from passages(page.markdown, url, page.title or title, path.stem)
        return
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    if kind in {".jsonl", ".ndjson", ".csv"}:
        for number, row in (_csv if kind == ".csv" else _jsonl)(text):
            yield from _row(row, f"{url}#L{number}", title, path.stem)
    elif kind == ".txt":
        yield from paragraphs(text, url, title, path.stem)
    else:
        yield from passages(text, url, title, path.stem)


def _jsonl(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: not a JSON object")
            yield number, row


def _csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, {k: v for k, v in row.items() if k}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: not CSV: {error}") from None


def _row(row: dict[str, Any], url: str, title: str, topic: str) -> Iterator[Passage]:
    """A row's text under its title; its other short fields (a country, a section) stand over it."""
    fields = {k.casefold(): v for k, v in row.items() if isinstance(v, str) and v.strip()}
    text = next((fields[name] for name in TEXT if name in fields), "")
    if not text and fields:
        text = max(fields.values(), key=len)
    over = [v for v in fields.values() if v != text and len(v) <= 200 and "://" not in v]
    heading = next((fields[name] for name in TITLE if name in fields and fields[name] != text), "")
    if over and not heading:
        title = " · ".join(over)
    for passage in paragraphs(text, url, title, topic):
        where = str(fields.get("url", passage.url)) if "url" in fields else url
        yield replace(passage, url=where, heading=heading)
