"""What the search APIs that need a key have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cmgr.errors import MissingError
from cmgr.sources.passages import Result
from cmgr.sources.web import SourceError


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


def results(answer: Any, of: Callable[[Any], list[Any]], kind: str, link: str) -> list[Result]:
    """The hits of an answer; raises SourceError where it does not have the API's shape."""
    try:
        hits = of(answer)
        return [
            Result(hit[link], hit.get("title") or "", markdown=hit.get("raw_content") or None)
            for hit in hits
        ]
    except (KeyError, TypeError, AttributeError):
        raise SourceError("invalid JSON", f"not {kind}'s answer") from None
