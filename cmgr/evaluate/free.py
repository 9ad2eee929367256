"""Free answers: right when they match one that counts, or when a judge model says so."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmgr.errors import UsageError
from cmgr.generators import writing
from cmgr.generators.calls import Budget, price_of
from cmgr.overlap import UNSPACED
from cmgr.stats import kappa
from cmgr.synthesize.asking import answers, calls_of
from cmgr.workspace import Progress, Workspace

if TYPE_CHECKING:
    from cmgr.evaluate.items import Item
    from cmgr.evaluate.tables import Result

_SMALL = {"a", "an", "the"}
_UNSPACED = re.compile(f"[{UNSPACED}]")


def matches(said: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of these, or holds it as whole words.

    Case, punctuation, accents of width (NFKC) and articles do not matter; where words are not set
    apart by spaces, it holds it anywhere.
    """
    for answer in accepted:
        wanted = _words(answer)
        # an answer of articles alone ("A") is looked for among all words
        small = all(word in _SMALL for word in wanted)
        text, sought = (
            " ".join(w for w in words if small or w not in _SMALL)
            for words in (_words(said), wanted)
        )
        if not sought:
            continue
        if _UNSPACED.search(answer):
            if sought.replace(" ", "") in text.replace(" ", ""):
                return True
        elif f" {sought} " in f" {text} ":
            return True
    return False


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"\w+", folded)


def judged(
    ws: Workspace, items: Sequence[Item], results: Sequence[Result], progress: Progress | None
) -> list[dict[str, Any]]:
    """Let the recipe's model judge the free answers; what it says replaces the match.

    Returns a row per task: how many were judged, and how far judge and match agree (share and
    Cohen's kappa), with the prompt that the judge was shown. Calls are kept and never paid for
    twice. Raises UsageError where the recipe has no model.
    """
    generator = ws.recipe.generator
    if generator.kind == "extractive":
        raise UsageError("--judge needs a model: set generator.kind and model in recipe.yaml")
    by_id = {item.id: item for item in items if not item.options}
    looks: list[tuple[Result, str, writing.Request]] = []
    for result in results:
        item = by_id.get(result.id)
        if item is None:
            continue
        question = item.messages[-1].content
        for method, said in result.said.items():
            request = writing.verdict(
                ws.recipe, item.culture, item.task, question, item.accepted, said
            )
            looks.append((result, method, request))
    budget = Budget(price_of(generator))
    verdicts = answers(ws, [request for _, _, request in looks], calls_of(ws), budget, progress)
    both: dict[str, list[tuple[str, str]]] = {}
    unanswered: dict[str, int] = {}
    for result, method, request in looks:
        right = verdicts.get(request.key, {}).get("right")
        if not isinstance(right, bool):
            unanswered[result.task] = unanswered.get(result.task, 0) + 1
            continue
        pair = (str(right), str(result.right[method]))
        both.setdefault(result.task, []).append(pair)
        result.right[method] = right
    shown = writing.prompt(generator, "verdict", {})
    return [
        {
            "kind": "judge",
            "task": task,
            "model": generator.model,
            "n": len(pairs),
            "unanswered": unanswered.get(task, 0),
            "agreement": sum(a == b for a, b in pairs) / len(pairs),
            "kappa": kappa([a for a, _ in pairs], [b for _, b in pairs]),
            "prompt": shown,
        }
        for task, pairs in both.items()
    ]
