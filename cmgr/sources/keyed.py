"""What the search APIs that need a key have in common."""

from __future__ import annotations

import json
import os
from typing import Any

from cmgr.errors import MissingError
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


def results(body: bytes, *path: str, link: str = "url") -> list[Result]:
    """The hits that an API's JSON holds at a path, in their order."""
    hits: Any = json.loads(body)
    for step in path:
        hits = hits[step]
    return [
        Result(hit[link], hit.get("title") or "", markdown=hit.get("raw_content") or None)
        for hit in hits
    ]
