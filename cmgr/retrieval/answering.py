"""Passages for a turn: which cultures', how many, and what the answer took from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from cmgr.checks.texts import support, turned
from cmgr.records import Answer, Claim, Message, Source
from cmgr.retrieval import Index
from cmgr.retrieval.prompt import FORMAT, note_of, with_notes
from cmgr.sources.passages import sentences
from cmgr.workspace import Workspace, read_json

SAYS = 0.6  # share of a sentence's terms that one of a source has, from which it says so


class Sources:
    """Finds the passages that go before a question; opens the index when first needed.

    `count` is how many of each culture: the recipe's `answer.passages`, unless a user says
    otherwise. An adapter that was trained without passages, or with others' form, is given none,
    unless a user asks for them. Close it after use.
    """

    def __init__(self, ws: Workspace, count: int | None = None) -> None:
        self.count = ws.recipe.answer.passages if count is None else count
        self._forced = count is not None
        self._ws = ws
        self._index: Index | None = None
        self._trained: dict[str, bool] = {}

    def close(self) -> None:
        """Free the index's encoder."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def of(self, cultures: Iterable[str], prompt: str, before: str = "") -> list[Source]:
        """The passages of these cultures for a prompt; none where nothing fits.

        `before` is the turn before: a prompt that finds nothing alone is looked for behind it.
        """
        found: list[Source] = []
        known = {c.id: c.name for c in self._ws.recipe.cultures}
        for culture in cultures:
            if not self.count or culture not in known or not self._takes(culture):
                continue
            if self._index is None:
                self._index = Index(self._ws)
            shown = self._index.find(culture, prompt, self.count)
            if not shown and before:
                shown = self._index.find(culture, f"{before} {prompt}", self.count)
            for passage, score in shown:
                found.append(
                    Source(
                        number=len(found) + 1,
                        evidence_id=passage.id,
                        culture=culture,
                        title=passage.heading or passage.title,
                        url=passage.url,
                        text=note_of(passage, known[culture]),
                        score=score,
                    )
                )
        return found

    def _takes(self, culture: str) -> bool:
        """Whether the culture's adapter has learnt to read passages in this form."""
        if self._forced:
            return True
        if culture not in self._trained:
            manifest = read_json(self._ws.path("adapters", culture, "manifest.json")) or {}
            form = manifest.get("passages")
            self._trained[culture] = form == FORMAT
            if form not in (None, FORMAT):
                self._ws.say(
                    f"{culture}: its adapter was trained with passages in another form, and is "
                    f"shown none. Train it again: cmgr train --culture {culture}"
                )
        return self._trained[culture]


def before(
    messages: Sequence[Message], sources: Sequence[Source], names: Mapping[str, str]
) -> list[Message]:
    """Messages whose last turn has these sources before it; `names` are the cultures' by id."""
    notes = [
        (names.get(culture, culture), [source.text for source in mine])
        for culture, mine in groupby(sources, key=lambda source: source.culture)
    ]
    return with_notes(messages, notes)


def leave_out(sources: list[Source], fits: Callable[[], bool]) -> None:
    """Leave the last sources out until a prompt with the rest fits, or none is left."""
    while sources and not fits():
        sources.pop()


def check(answer: Answer) -> None:
    """Note in an answer which of its sentences stand in which source, and that source's sentence.

    A sentence stands in one that has most of its words and does not say the opposite.
    """
    if not answer.sources:
        return
    answer.claims = []
    said = [(source, sentence) for source in answer.sources for sentence in sentences(source.text)]
    for source in answer.sources:
        source.sentence = ""
    for claim in sentences(answer.response):
        best = max(said, key=lambda pair: support(pair[1], claim), default=None)
        stands = best and support(best[1], claim) >= SAYS and not turned(claim, best[1])
        found = best[0] if best and stands else None
        answer.claims.append(Claim(sentence=claim, source=found.number if found else None))
        if found and best and not found.sentence:
            found.sentence = best[1]
