"""Examples cut from the evidence itself, without a language model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from cmgr.overlap import words
from cmgr.recipe import Culture, Recipe
from cmgr.records import Evidence, Example, Message, Split, make_id, now
from cmgr.sources.passages import (
    first_sentence,
    mentions,
    names_of,
    opening,
    sentence_ends,
    word_count,
)
from cmgr.tasks import Task, Wording

NAME = "extractive"
MAX_WORDS = 60  # of an answer
MOST = 4  # options of an item: of many cultures' answers the wrong ones nearest to the right one
# how broad knowledge is asked for; which of these, a hash decides
FRAMES = (
    "Tell me something about {subject}",
    "What should I know about {subject}",
    "Explain {subject} to somebody who has never been there",
    "Describe what is usual: {subject}",
    "I want to understand {subject}",
    "What do people there find normal: {subject}",
)
BOTH = (
    "Two questions about {subject}. {one} {two}",
    "About {subject}: {one} And then: {two}",
    "Before I go there, I would like to know two things about {subject}. {one} {two}",
)

Answers = dict[str, dict[str, tuple[str, Evidence]]]  # fact -> culture -> (answer, evidence)


def generate(recipe: Recipe, evidence: Sequence[Evidence]) -> Iterator[Example]:
    """Broad and task examples of every culture, in a fixed order.

    The heading over a passage is the question, its first sentence the answer; the other cultures'
    answers to the same heading are the wrong options. A share of the facts is held out whole.
    """
    answers = _answers(recipe, evidence)
    unseen = unseen_facts(answers, recipe.generator.unseen_facts)
    for culture in recipe.cultures:
        mine = [e for e in evidence if e.culture == culture.id]
        for item in sorted(mine, key=lambda e: (e.topic, e.url, e.id)):
            if fact_of(item) not in unseen and (example := _broad(culture, item)):
                yield example
        yield from _two_hops(culture, [e for e in mine if fact_of(e) not in unseen])
        positions: dict[tuple[str, Split], Counter[int]] = defaultdict(Counter)
        for task in recipe.tasks:
            turn: Counter[int] = Counter()
            for fact, by_culture in sorted(answers.items()):
                if culture.id not in by_culture:
                    continue
                for number, wording, split in _wordings(
                    task, by_culture[culture.id][1], fact in unseen
                ):
                    places = [culture.name, *culture.places]
                    place = places[(turn[number] + number) % len(places)]
                    turn[number] += 1
                    options = _options(by_culture, culture.id, positions[task.id, split])
                    yield _task(culture, task, wording, split, place, by_culture, options, fact)


def fact_of(item: Evidence) -> str:
    """What a passage is about, whatever the culture: a hash of its topic and heading."""
    return make_id(item.topic, item.heading or item.id)


def unseen_facts(answers: Answers, share: float) -> set[str]:
    """The facts never trained, for no culture: spread over the topics, chosen by hash."""
    by_topic: dict[str, list[str]] = defaultdict(list)
    for fact, by_culture in answers.items():
        by_topic[next(iter(by_culture.values()))[1].topic].append(fact)
    chosen: set[str] = set()
    seen = 0
    for _, facts in sorted(by_topic.items()):
        seen += len(facts)
        wanted = int(seen * share + 0.5 + 1e-9) - len(chosen)
        chosen.update(sorted(facts)[:wanted])
    return chosen


def answer_of(item: Evidence, culture: Culture, names: Sequence[str]) -> str | None:
    """The first sentence without its "In <culture>, "; None where it still names a culture."""
    text = opening(culture.name).sub("", first_sentence(item.text)).strip()
    if not text or mentions(text, names) or word_count(text) > MAX_WORDS:
        return None
    return text[0].upper() + text[1:]


def _answers(recipe: Recipe, evidence: Sequence[Evidence]) -> Answers:
    """The facts that two cultures or more answer differently."""
    names = [name for culture in recipe.cultures for name in names_of(culture)]
    found: Answers = defaultdict(dict)
    order = {culture.id: culture for culture in recipe.cultures}
    for item in sorted(evidence, key=lambda e: (e.topic, e.url, e.id)):
        if item.heading and item.culture in order:
            answer = answer_of(item, order[item.culture], names)
            if answer:
                found[fact_of(item)].setdefault(item.culture, (answer, item))
    return {
        fact: by_culture
        for fact, by_culture in found.items()
        if len({_same(answer) for answer, _ in by_culture.values()}) > 1
    }


def _same(answer: str) -> str:
    return answer.casefold().rstrip(".")


def _wordings(task: Task, item: Evidence, unseen: bool) -> list[tuple[int, Wording, Split]]:
    """The wordings this evidence has a question for; of an unseen fact only the last."""
    usable: list[tuple[int, Wording, Split]] = [
        (number, wording, wording.split)
        for number, wording in enumerate(task.wordings)
        if wording.question <= len(item.also_asked)
    ]
    return [(n, w, "fact") for n, w, _ in usable[-1:]] if unseen else usable


def _options(
    by_culture: dict[str, tuple[str, Evidence]], culture: str, positions: Counter[int]
) -> list[str]:
    """The cultures' answers, the right one where it has stood least often.

    Of many the hardest are taken: those that share most words with the right one.
    """
    right, item = by_culture[culture]
    others = {_same(a): a for a, _ in by_culture.values() if _same(a) != _same(right)}
    hardest = sorted(others.values(), key=lambda a: (-_alike(a, right), make_id(item.id, a)))
    wrong = sorted(hardest[: MOST - 1], key=lambda a: make_id(item.id, a))
    place = min(range(len(wrong) + 1), key=lambda p: (positions[p], make_id(item.id, p)))
    positions[place] += 1
    return [*wrong[:place], right, *wrong[place:]]


def _task(
    culture: Culture,
    task: Task,
    wording: Wording,
    split: Split,
    place: str,
    by_culture: dict[str, tuple[str, Evidence]],
    options: list[str],
    fact: str,
) -> Example:
    answer, item = by_culture[culture.id]
    question = [item.heading, *item.also_asked][wording.question]
    values = {
        "question": question,
        "place": place,
        "culture": culture.name,
        "topic": _words(item.topic),
    }
    prompt = re.sub(r"\{(\w+)\}", lambda m: values[m[1]], wording.text)
    if task.instruction:
        prompt = f"{task.instruction}\n\n{prompt}"
    inputs = {
        "question": question,
        "options": options,
        "place": place,
        "topic": item.topic,
        "wording": wording.text,
        "fact": fact,
    }
    return Example(
        id=make_id(NAME, culture.id, task.id, split, inputs, prompt, answer, item.id),
        culture=culture.id,
        task=task.id,
        stage="task",
        split=split,
        inputs=inputs,
        answer=answer,
        messages=[Message(role="user", content=prompt)],
        evidence_ids=[item.id],
        quote=first_sentence(item.text),
        generator=NAME,
        created_at=now(),
    )


def _broad(culture: Culture, item: Evidence) -> Example | None:
    """What is known, as it stands in the source: as many whole sentences as an answer may have."""
    ends = [e for e in sentence_ends(item.text) if word_count(item.text[:e]) <= MAX_WORDS]
    if not ends:
        return None
    answer = item.text[: ends[-1]]
    subject = f"{_words(item.topic)} in {culture.name}"
    frame = _chosen(FRAMES, culture.id, item.id).format(subject=subject)
    prompt = frame + (f": {item.heading}" if item.heading else ".")
    return Example(
        id=make_id(NAME, culture.id, "broad", prompt, answer, item.id),
        culture=culture.id,
        task=None,
        stage="broad",
        split="fit",
        inputs={"question": item.heading, "topic": item.topic, "fact": fact_of(item)},
        answer=answer,
        messages=[Message(role="user", content=prompt)],
        evidence_ids=[item.id],
        quote=answer,
        generator=NAME,
        created_at=now(),
    )


def _two_hops(culture: Culture, items: Sequence[Evidence]) -> Iterator[Example]:
    """Items that need two passages: two questions of one topic, answered one after the other."""
    by_topic: dict[str, list[Evidence]] = defaultdict(list)
    for item in sorted(items, key=lambda e: (e.topic, e.url, e.id)):
        if item.heading.endswith("?"):
            by_topic[item.topic].append(item)
    for topic, mine in by_topic.items():
        for one, two in zip(mine[::2], mine[1::2], strict=False):
            answer = f"{first_sentence(one.text)} {first_sentence(two.text)}"
            if one.heading == two.heading or word_count(answer) > MAX_WORDS:
                continue
            frame = _chosen(BOTH, culture.id, one.id, two.id)
            subject = f"{_words(topic)} in {culture.name}"
            prompt = frame.format(subject=subject, one=one.heading, two=two.heading)
            yield Example(
                id=make_id(NAME, culture.id, "two", prompt, answer, one.id, two.id),
                culture=culture.id,
                task=None,
                stage="broad",
                split="fit",
                inputs={"question": one.heading, "topic": topic, "fact": fact_of(one)},
                answer=answer,
                messages=[Message(role="user", content=prompt)],
                evidence_ids=[one.id, two.id],
                quote=first_sentence(one.text),
                generator=NAME,
                created_at=now(),
            )


def _chosen(frames: Sequence[str], *what: str) -> str:
    return frames[int(make_id("frame", *what), 16) % len(frames)]


def _alike(one: str, two: str) -> float:
    """How many words two answers share, of all that they have."""
    a, b = set(words(one)), set(words(two))
    return len(a & b) / len(a | b) if a | b else 0.0


def _words(topic: str) -> str:
    return re.sub(r"[-_]+", " ", topic)
