"""Several cultures at once: a question put to each, a message of one for people of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cmgr.errors import UsageError
from cmgr.names import called, focused
from cmgr.recipe import Culture, Recipe
from cmgr.records import Answer, Part

SEVERAL = {
    "parts": "each culture answers for itself, under its own adapter",
    "blend": "their adapters answer together, scaled by probability",
    "best": "the likeliest culture answers",
}


def prompts(recipe: Recipe, text: str, cultures: Sequence[str]) -> dict[str, str]:
    """The prompt as it is put to each of these cultures, by id."""
    known = [recipe.culture(name) for name in cultures]
    return {c.id: focused(text, c, [o for o in known if o is not c]) for c in known}


def explain(culture: Culture, text: str) -> str:
    """The prompt that asks what a message means where it comes from."""
    return f"Explain what this message means to people in {called(culture)}: {text}"


def rewrite(culture: Culture, text: str, meaning: str) -> str:
    """The prompt that asks for a message anew, for people elsewhere."""
    return (
        f"Write this message for people in {called(culture)}, so that they understand what is "
        f"meant.\n\nMessage: {text}\n\nWhat is meant: {meaning}"
    )


def check_several(name: str | None) -> None:
    """Raise UsageError for a way to answer several cultures that there is not."""
    if name is not None and name not in SEVERAL:
        raise UsageError(f"--several {name}: there are {', '.join(SEVERAL)}")


def head(culture: Culture) -> str:
    """What a part of a reply begins with."""
    return f"In {called(culture)}: "


def join(answer: Answer, parts: Sequence[Answer], cultures: Mapping[str, Culture]) -> None:
    """Make one reply of the parts: texts under their heads, sources numbered through, tokens added.

    What failed in one is an error of the whole.
    """
    answer.adapter = "+".join(str(part.culture) for part in parts) or None
    answer.culture = parts[0].culture if parts else None
    answer.parts, answer.sources, answer.claims = [], [], []
    usage = Counter[str]()
    for part in parts:
        name = str(part.culture)
        before = len(answer.sources)
        for source in part.sources:
            source.number += before
        for claim in part.claims:
            claim.source = claim.source + before if claim.source is not None else None
        answer.sources += part.sources
        answer.claims += part.claims
        answer.parts.append(
            Part(
                culture=name,
                prompt=part.prompt,
                response=part.response,
                usage=part.usage,
                sources=len(part.sources),
            )
        )
        usage.update(part.usage)
        answer.error = answer.error or part.error
    answer.usage = dict(usage)
    answer.timings = parts[0].timings if parts else {}
    answer.response = "\n\n".join(
        head(cultures[str(part.culture)]) + part.response for part in parts if part.response
    )
