"""Free answers: right when they match one that counts, or when a judge model says so."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmgr.checks.texts import support
from cmgr.errors import UsageError
from cmgr.generators import writing
from cmgr.generators.calls import Budget, price_of
from cmgr.overlap import UNSPACED, words
from cmgr.sources import hygiene
from cmgr.stats import kappa
from cmgr.synthesize.asking import answers, calls_of
from cmgr.workspace import Progress, Workspace

if TYPE_CHECKING:
    from cmgr.evaluate.items import Item
    from cmgr.evaluate.tables import Result

FLOOR = 0.4  # token F1 with a right answer from which one in other words counts
STANDS = 0.8  # share of a right answer's terms that a passage has which covers it
REPEATED = 4  # words in a row that an answer says at most twice
LONG = 30  # characters from which on a text's language can be told
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


def is_right(said: str, accepted: Sequence[str], others: Sequence[str] = ()) -> bool:
    """Whether a free answer is right: it matches, or its words are nearest those of a right one.

    Nearest: token F1 (as in SQuAD; Rajpurkar and others, 2016) with a right answer is 0.4 or more,
    and higher than with any of the `others` (what is right elsewhere, say).
    """
    if matches(said, accepted) and not matches(said, others):
        return True
    own = max((token_f1(said, answer) for answer in accepted), default=0.0)
    return own >= FLOOR and own > max((token_f1(said, other) for other in others), default=0.0)


def stands(accepted: Sequence[str], prompt: str) -> bool:
    """Whether a right answer's words stand together in what was read: a line has most of them."""
    lines = prompt.split("\n")
    return any(support(line, answer) >= STANDS for answer in accepted for line in lines if line)


def flaw(said: str, answer: str) -> str:
    """What is wrong with an answer as a text, whatever it says; empty where nothing is.

    Nothing said, a sentence or four words said again and again, or another language than the right
    answer's (where both are long enough to tell).
    """
    mine = words(said)
    if not mine:
        return "empty"
    runs = Counter(tuple(mine[i : i + REPEATED]) for i in range(len(mine) - REPEATED + 1))
    if runs and runs.most_common(1)[0][1] >= 3:
        return "repetition"
    sentences = Counter(" ".join(words(s)) for s in re.split(r"[.!?。！？\n]+", said))
    del sentences[""]
    if sentences and sentences.most_common(1)[0][1] > 1:
        return "repetition"
    found, wanted = hygiene.language_of(said), hygiene.language_of(answer)
    if len(said) >= LONG and found and wanted and found != wanted:
        return "another language"
    return ""


def token_f1(said: str, answer: str) -> float:
    """The harmonic mean of the shares of words that two texts have in common, 0 to 1."""
    mine, theirs = Counter(words(said)), Counter(words(answer))
    common = (mine & theirs).total()
    return 2 * common / (mine.total() + theirs.total()) if common else 0.0


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
    by_id = {item.id: item for item in items if not item.options or item.free}
    looks: list[tuple[Result, str, writing.Request]] = []
    for result in results:
        item = by_id.get(result.id)
        if item is None or (item.options and not result.answers):
            continue
        question = item.messages[-1].content
        for method, said in (result.answers or result.said).items():
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
        pair = (str(right), str(result.answered[method]))
        both.setdefault(result.task, []).append(pair)
        result.answered[method] = right
        if not result.answers:  # there were no options: this is all that it was asked
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
