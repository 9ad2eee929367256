"""What the search APIs that need a key have in common."""

from __future__ import annotations

import json
import os
from typing import Any

from cmgr.errors import MissingError
from cmgr.recipe import Source
from cmgr.sources import Place
from cmgr.sources.passages import Result


def key(kind: str) -> str:
    """The key, from the environment and from nowhere else. Raises MissingError."""
    name = f"{kind.upper()}_API_KEY"
    value = os.environ.get(name, "").strip()
    if not value:
        raise MissingError(
            f"the source {kind} needs a key in the environment variable {name}: "
            f"export {name}=..., or take {kind} out of `sources` in recipe.yaml"
        )
    if not (value.isascii() and value.isprintable()):
        raise MissingError(f"{name} holds characters that no key has. Set it again.")
    return value


class Keyed:
    """A search API with a key: its usual address, and seconds between two requests.

    Raises MissingError where the key is not there.
    """

    kind: str
    url: str
    delay: float

    def __init__(self, source: Source, place: Place) -> None:
        self._web = place.web
        self._key = key(self.kind)
        self._url = place.web.name(source.url) if source.url else self.url
        self._delay = self.delay if source.delay is None else source.delay


def results(body: bytes, *path: str, link: str = "url") -> list[Result]:
    """The hits that an API's JSON holds at a path, in their order."""
    hits: Any = json.loads(body)
    for step in path:
        hits = hits[step]
    return [
        Result(hit[link], hit.get("title") or "", markdown=hit.get("raw_content") or None)
        for hit in hits
    ]
