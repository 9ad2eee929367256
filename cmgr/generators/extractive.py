"""Examples cut from the evidence itself, without a language model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from cmgr.recipe import Culture, Recipe, Task, Wording
from cmgr.records import Evidence, Example, Message, Split, make_id, now
from cmgr.sources.passages import first_sentence, mentions, names_of, sentence_ends, word_count

NAME = "extractive"
MAX_WORDS = 60  # of an answer

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
    name = re.escape(culture.name)
    text = re.sub(rf"^In (?:the )?{name}, ", "", first_sentence(item.text)).strip()
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
    """All cultures' answers, the right one where it has stood least often."""
    right, item = by_culture[culture]
    others = {_same(a): a for a, _ in by_culture.values() if _same(a) != _same(right)}
    wrong = sorted(others.values(), key=lambda a: make_id(item.id, a))
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
    prompt = f"Tell me something about {subject}" + (f": {item.heading}" if item.heading else ".")
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


def _words(topic: str) -> str:
    return re.sub(r"[-_]+", " ", topic)
