"""Places evidence comes from: one file each, all with the same one function, `search`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cmgr.recipe import Culture, Recipe, Source
from cmgr.sources.documents import Documents
from cmgr.sources.passages import Passage


class Searchable(Protocol):
    """What a source is for one culture; `fingerprint` changes when its contents do."""

    fingerprint: str

    def search(self, query: str, limit: int) -> list[Passage]:
        """The best passages for a query, best first, none that does not match."""
        ...


def open_source(
    source: Source, culture: Culture, recipe: Recipe, folder: Path, say: Callable[[str], None]
) -> Searchable:
    """The source of a recipe, for one culture; relative paths start at `folder`.

    Raises MissingError where the source is not there.
    """
    return Documents(folder / source.path, culture, recipe.cultures, folder, say)
