"""Places evidence comes from: one file each, all with the same one function, `search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from cmgr.recipe import Culture, Source
from cmgr.records import Query
from cmgr.sources.passages import Result
from cmgr.sources.web import Web


@dataclass(frozen=True)
class Place:
    """Where a source works: the recipe's cultures, the workspace, its cache, the network."""

    cultures: Sequence[Culture]
    folder: Path
    cache: Path
    web: Web
    say: Callable[[str], None]


class Searchable(Protocol):
    """What the class `Searcher` of each source's file is; see README.md beside this file."""

    def search(self, query: Query, limit: int) -> list[Result]:
        """The results for a query, best first; raises SourceError."""
        ...


def open_source(source: Source, place: Place) -> Searchable:
    """The source of a recipe; relative paths start at the workspace's folder.

    Raises MissingError where the source is not there, or its key is not.
    """
    module = import_module(f"cmgr.sources.{source.kind}")
    searcher: Searchable = module.Searcher(source, place)
    return searcher
