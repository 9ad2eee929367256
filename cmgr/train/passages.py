"""Which training examples carry passages, and which: their own among others that mislead.

So an adapter learns to answer from the passage that fits, and from what it knows where none does
(RAFT; Zhang and others, arXiv 2403.10131). A small model would rather learn its few facts by heart
than to read. So some examples have another culture's passage on the same question in the place of
their own, and its answer; and in some, words of the answer are replaced in the passage and in the
answer alike (as in Longpre and others, arXiv 2109.05052). Such answers can only be read. The same
examples without passages come before them, in the first stage, for all but the shared adapter that
others begin with: so an adapter keeps what it is to know, and learns to read last.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil

from cmgr.generators import extractive
from cmgr.generators.extractive import answer_of
from cmgr.recipe import SHARED, Recipe
from cmgr.records import Evidence, Example, Message, make_id
from cmgr.retrieval import Index
from cmgr.retrieval.prompt import FORMAT, note_of, with_notes
from cmgr.sources.passages import names_of, opening

VERSION = 5  # of how passages are chosen, and what is trained beside them
ALONE = 0.1  # share of prompts with passages from which the example's own is left out
OTHER = 0.25  # share of them in which one passage is another culture's on the same question
SWAPPED = 0.5  # share of them in which another culture's passage, and its answer, replace their own
CHANGED = 0.5  # share of them in which words of the answer are replaced, in its passage too
WORDS = 0.5  # share of an answer's words that are replaced then
BARE = 0.4  # share of them without the task's instruction, as people ask in a chat
WORD = re.compile(r"[^\W\d_]{4,}")  # what is replaced: of four letters or more, as most nouns are


def with_passages(
    recipe: Recipe,
    examples: Sequence[Example],
    index: Index,
    held: Iterable[str] = (),
    answers: Iterable[str] = (),
) -> list[Example]:
    """Examples as they are trained on: `train.passages` of the task ones carry passages.

    What misleads is what the index finds best for the same prompt. `held` are passages of facts
    that no example is trained on: were they to mislead in training, an adapter would learn never to
    answer from them. The words that replace others come from `answers` too. Which carry passages,
    and their order, follow from `train.seed`.
    """
    count = recipe.answer.passages
    if not recipe.train.passages or not count:
        return list(examples)
    left_out, chosen = set(held), _chosen(recipe, examples)
    said = [*answers, *(example.answer for example in examples)]
    words = sorted({word.lower() for answer in said for word in WORD.findall(answer)})
    return [
        _carrying(recipe, example, index, count, left_out, words)
        if example.id in chosen
        else example
        for example in examples
    ]


def wish(recipe: Recipe, index: Index | None, culture: str) -> str | None:
    """A hash of all that decides which examples of a culture carry passages, and which.

    `recipe` is the workspace's own: that of the shared adapter says nothing of those it is for.
    """
    if index is None or not recipe.train.passages or not recipe.answer.passages:
        return None
    whose = None if culture == SHARED else culture
    how = [VERSION, FORMAT, recipe.train.passages, recipe.answer.passages]
    if culture == SHARED and recipe.train.start != "shared":
        how.append("alone")  # no other adapter learns the examples without passages
    return make_id(*how, index.fingerprint(whose))


def _chosen(recipe: Recipe, examples: Sequence[Example]) -> set[str]:
    """The ids of the examples that carry passages: of each culture the share, by hash."""
    by_culture: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        if example.stage == "task":
            by_culture[example.culture].append(example.id)
    found: set[str] = set()
    for ids in by_culture.values():
        ids.sort(key=lambda i: make_id("passages", recipe.train.seed, i))
        found.update(ids[: ceil(recipe.train.passages * len(ids))])
    return found


def _carrying(
    recipe: Recipe,
    example: Example,
    index: Index,
    count: int,
    left_out: set[str],
    words: Sequence[str],
) -> Example:
    chance = random.Random(make_id("shown", recipe.train.seed, example.id))
    prompt = example.messages[-1].content
    own_ids = set(example.evidence_ids)
    own = [e for e in index.passages(example.culture) if e.id in own_ids][:1]
    if not own:  # one that people brought: as it would be asked
        near = index.find(example.culture, prompt, count)
        return _with(recipe, example, [one.passage for one in near])
    found = [
        one.passage
        for one in index.search_unasked(example, count + len(left_out) + 1)
        if one.passage.id not in left_out - own_ids
    ]
    if chance.random() < ALONE:
        found = [passage for passage in found if passage.id not in own_ids]
    shown = found[:count]
    wrong = [n for n, passage in enumerate(shown) if passage.id not in own_ids]
    other = _elsewhere(recipe, own[0], index, left_out, chance)
    if other and wrong and chance.random() < OTHER:
        shown[chance.choice(wrong)] = other
    other = _elsewhere(recipe, own[0], index, left_out, chance)
    if other and own[0] in shown and chance.random() < SWAPPED:
        example, other = _swapped(recipe, example, own[0], other)
        shown = [other if passage == own[0] else passage for passage in shown]
    # a label or an option is one of a fixed few, which the instruction tells
    task = next((t for t in recipe.tasks if t.id == example.task), None)
    free = task is not None and not task.labels and not task.options
    if task and chance.random() < BARE and free:
        example = _bare(example, task.instruction)
    asked = example.messages[-1].content
    example = _with(recipe, example, [_unasked(p, example, index, chance) for p in shown])
    if chance.random() < CHANGED and free:
        example = _changed(recipe, example, asked, words, chance)
    return example


def _bare(example: Example, instruction: str) -> Example:
    """An example without its task's instruction."""
    *before, last = example.messages
    content = last.content.removeprefix(instruction).lstrip()
    messages = [*before, Message(role=last.role, content=content)]
    return example.model_copy(update={"messages": messages}) if content else example


def _changed(
    recipe: Recipe, example: Example, asked: str, words: Sequence[str], chance: random.Random
) -> Example:
    """An example with other words in its answer, and in the passage that says it word for word.

    The prompt as it is `asked` behind the passages stays as it is.
    """
    *before, last = example.messages
    notes = last.content.removesuffix(asked)
    said = re.compile(rf"(?<!\w){re.escape(example.answer)}(?!\w)")
    if not said.search(notes):
        return example
    known = {word for name in _names(recipe) for word in WORD.findall(name)}
    table: dict[str, str] = {}
    for word in WORD.findall(example.answer):
        if word not in known and chance.random() < WORDS:
            other = chance.choice(words)
            table[word] = other.capitalize() if word[0].isupper() else other
    answer = WORD.sub(lambda found: table.get(found[0], found[0]), example.answer)
    content = said.sub(lambda _: answer, notes) + asked
    messages = [*before, Message(role=last.role, content=content)]
    return example.model_copy(update={"answer": answer, "messages": messages})


def _names(recipe: Recipe) -> list[str]:
    """What names a culture of the recipe in a text."""
    return [name for culture in recipe.cultures for name in names_of(culture)]


def _swapped(
    recipe: Recipe, example: Example, own: Evidence, other: Evidence
) -> tuple[Example, Evidence]:
    """An example with another culture's answer, and the passage that says so, as its own culture's.

    Only where the answer is a passage's first sentence: what a model wrote has no other answer.
    """
    whose = recipe.culture(other.culture)
    wrote = example.generator == extractive.NAME
    answer = answer_of(other, whose, _names(recipe)) if wrote else None
    if answer is None:
        return example, own
    here = recipe.culture(example.culture).name
    text = opening(whose.name).sub(lambda _: f"In {here}, ", other.text)
    passage = own.model_copy(update={"text": text})
    return example.model_copy(update={"answer": answer}), passage


def _unasked(passage: Evidence, example: Example, index: Index, chance: random.Random) -> Evidence:
    """A passage under another wording of its question, where the example asks it word for word.

    Were it to stand there as asked, an adapter would learn to look for the same words, and find
    nothing where a user has others.
    """
    asked = str(example.inputs.get("question", ""))
    if not asked or passage.heading != asked:
        return passage
    others = [wording for wording in index.questions(passage) if wording != asked]
    heading = chance.choice(others) if others else ""
    return passage.model_copy(update={"heading": heading})


def _with(recipe: Recipe, example: Example, shown: Sequence[Evidence]) -> Example:
    name = recipe.culture(example.culture).name
    messages = with_notes(example.messages, [(name, [note_of(p, name) for p in shown])])
    return example.model_copy(update={"messages": messages})


def _elsewhere(
    recipe: Recipe, own: Evidence, index: Index, left_out: set[str], chance: random.Random
) -> Evidence | None:
    """What another culture does in the same situation, where the evidence says so."""
    if not own.heading:
        return None
    found = [
        passage
        for culture in recipe.cultures
        if culture.id != own.culture
        for passage in index.passages(culture.id)
        if (passage.topic, passage.heading) == (own.topic, own.heading)
        and passage.id not in left_out
    ]
    return chance.choice(found) if found else None
