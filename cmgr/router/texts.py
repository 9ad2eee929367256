"""What the router is fitted on: cues in sentences, documents, languages, prompts of no culture."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

from cmgr.recipe import Culture
from cmgr.records import Evidence, Example, Label
from cmgr.router import card as cards
from cmgr.router.cues import Cues, common_words, cues_of, english_words, neutral_prompts
from cmgr.sources.passages import names_of, sentence_ends

# What a cue stands in. Cultures and countries elsewhere share them, so that they weigh nothing.
OF_PLACE = (
    "How do people greet each other in {}?",
    "At a restaurant in {}, he was about to pay the bill.",
    "What should I know before I visit {}?",
    "I am in {} and was invited to dinner. What should I bring?",
    "We move to {} next month. How do I address my boss?",
    "Should I take off my shoes at a friend's house in {}?",
    "What do people from {} eat for breakfast?",
    "As she walked through the streets of {}, she remembered what to do.",
    "What is the most popular sport team in {}?",
    "we live near {} now",
    "{}'s schools and offices",
)
OF_PEOPLE = (
    "{} customs and manners",
    "What gift suits my {} host family?",
    "What is a typical {} wedding like?",
    "My boss is {}. How do I address her?",
    "a {} restaurant",
    "He is {} and so are his parents.",
    "What do {} people eat for breakfast?",
)
OF_THING = (
    "What do people bring for {}?",
    "Is {} a big day for families?",
    "How much is that in {}?",
    "We talked about {} over tea.",
    "They said {} and smiled.",
)
OF_ANY = (*OF_PLACE, *OF_THING)
OF_TWO = (
    "What is the difference between {} and {}?",
    "Compare table manners: {}, {}.",
    "Compare table manners in {} and {}.",
    "{} and {}",
    "She comes from {}, he from {}.",
    "half {}, half {}",
    "a {}-{} couple",
    "My wife is {}, I am {}.",
    "{} or {}?",
)
WITH_QUESTION = ("{0} {1}", "In {1}: {0}", "{0} I am in {1}.", "{1}: {0}")
# A thing's origin is only mentioned; where it happens decides.
OBJECTS = (
    *("novel", "car", "film", "song", "phone", "watch", "wine", "brand", "camera", "game"),
    *("poem", "magazine", "newspaper", "radio", "bike", "coin", "stamp", "map", "sweater"),
    *("chair", "lamp", "painting", "actor", "keyboard", "machine", "ship", "knife", "piano"),
    *("company", "bank"),
)
OF_OBJECT = ("I have a {} {}.", "The {} {} is broken.", "How do I clean a {} {}?", "a {} {}")
OBJECT_IN = (
    "He drove a {} {} in {}.",
    "We saw a {} {} in {}.",
    "a {} {} on a train in {}",
    "I read about a {} {} at a party in {}.",
)
THING_IN = (
    "Which {} do people in {} like best?",
    "a {} in {}",
    "I saw a {} in {}.",
    "In {1}, who would give me a {0}?",
    "{}, as they have it in {}",
)
UNNAMED = (
    *("my town", "a small village", "this country", "another country", "my country", "our office"),
    *("a city", "your country", "the world", "a foreign country", "my home", "the capital"),
)
UNNAMED_PEOPLE = ("kind", "old", "rich", "foreign", "strict", "young", "polite", "local")
PASSAGE = 240  # characters of a document at a time


class Row(NamedTuple):
    """A text to fit on, the cultures it is of, and what it was made from.

    Rows of one `origin` (a name, a passage, an item) stay together when a part is held out;
    `kind` is "cue", "rival" (a cue that holds another culture's name: New Mexico), "noun" (a name
    that documents alone have), "pair" (of two cultures), "document", "language", "neutral" or
    "labelled".
    """

    text: str
    cultures: tuple[str, ...]
    origin: str
    kind: str


def prompt_of(example: Example) -> str:
    """What a person would type: the last user message."""
    return next((m.content for m in reversed(example.messages) if m.role == "user"), "")


def cue(cultures: Sequence[Culture]) -> Callable[[str], bool]:
    """Whether a text names one of these; of names like US the capitals count too."""
    names = [n for c in cultures for n in names_of(c)]
    parts = [re.escape(n) if len(n) < 4 else f"(?i:{re.escape(n)})" for n in names]
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)")
    return lambda text: pattern.search(text) is not None


def misspelt(name: str, rng: random.Random) -> str:
    """A name with one letter doubled, left out, or changed with its neighbour."""
    at = rng.randrange(1, len(name) - 1)
    how = rng.randrange(3)
    if how == 0:
        return name[:at] + name[at] + name[at:]
    if how == 1:
        return name[:at] + name[at + 1 :]
    return name[:at] + name[at + 1] + name[at] + name[at + 2 :]


def training_rows(
    cultures: Sequence[Culture],
    examples: Sequence[Example],
    evidence: Sequence[Evidence],
    labels: Sequence[Label] = (),
    seed: int = 1,
) -> list[Row]:
    """What the router is fitted on; a text stands in it once.

    Held-out examples take no part, nor does evidence that only they rest on. A prompt that
    several cultures share names none of them, so it is neutral; a question without a name is too.
    `labels` outweigh all else.
    """
    known = {c.id for c in cultures}
    kept = [e for e in examples if e.culture in known and e.review != "rejected"]
    fitted = {i for e in kept if e.split == "fit" for i in e.evidence_ids}
    held_ids = {i for e in kept if e.split != "fit" for i in e.evidence_ids} - fitted
    held = {prompt_of(e) for e in examples if e.split != "fit"}
    passages = [p for p in evidence if p.culture in known and p.id not in held_ids]

    rng = random.Random(seed)
    rows: list[Row] = []
    names_one = cue(cultures)
    questions = _documents(rows, names_one, kept, passages)
    # "china cups" is neutral only where China is not asked about
    calm = [text for text in (*neutral_prompts(), *questions) if not names_one(text)]
    words = sorted(word for word in common_words(passages) if not names_one(word))
    _neutral(rows, calm, words, rng)
    mine, others = cues_of(cultures, passages)
    _cues(rows, mine, others, calm, questions, rng)
    _mixed(rows, mine, others, rng)
    _languages(rows, cultures, mine, others, rng)
    rows = [r for r in rows if r.text.strip() and r.text not in held]
    for label in labels:
        ids = tuple(i for i in label.cultures if i in known)
        # once more among other words: an n-gram that stands in one row alone would not count
        for text in (label.text, f"{rng.choice(calm)} {label.text}"):
            rows.append(Row(text, ids, label.text, "labelled"))
    return list({row.text: row for row in rows}.values())


def _documents(
    rows: list[Row],
    names_one: Callable[[str], bool],
    examples: Sequence[Example],
    passages: Sequence[Evidence],
) -> list[str]:
    """Rows of examples and passages; returns the questions among them that name no culture."""
    single: dict[str, set[str]] = {}  # text -> the cultures it stands under
    origin: dict[str, str] = {}
    questions: dict[str, None] = {}
    for example in examples:
        if example.split == "fit":
            text = prompt_of(example)
            single.setdefault(text, set()).add(example.culture)
            origin[text] = next(iter(example.evidence_ids), example.id)
    for passage in passages:
        for part in _parts(passage.text[:3000]):
            single.setdefault(part, set()).add(passage.culture)
            origin[part] = passage.id
        for heading in (passage.heading, *passage.also_asked[:1]):
            if names_one(heading):
                single.setdefault(heading, set()).add(passage.culture)
                origin[heading] = passage.id
            elif heading.strip():
                questions[heading] = None
    for text, ids in single.items():
        if text not in questions:
            labels = tuple(ids) if len(ids) == 1 else ()
            rows.append(Row(text, labels, origin[text], "document"))
    return list(questions)


def _parts(text: str) -> list[str]:
    """A text in pieces of whole sentences, about `PASSAGE` characters long."""
    parts, start, last = [], 0, 0
    for end in sentence_ends(text):
        if end - start > PASSAGE and last > start:
            parts.append(text[start:last].strip())
            start = last
        last = end
    parts.append(text[start:].strip())
    return parts


def _neutral(
    rows: list[Row], calm: Sequence[str], words: Sequence[str], rng: random.Random
) -> None:
    rows += [Row(text, (), text, "neutral") for text in calm]
    for n in range(300):
        text = " ".join(rng.sample(calm, 2 + n % 4))
        rows.append(Row(text, (), f"calm {n}", "neutral"))
    for _ in range(3):
        mixed = rng.sample(words, len(words))
        bags = (" ".join(mixed[i : i + 6]) for i in range(0, len(mixed), 6))
        rows += [Row(bag, (), bag, "neutral") for bag in bags]
    rows += [Row(c.format(n), (), n, "neutral") for n in UNNAMED for c in OF_PLACE]
    rows += [Row(c.format(n), (), n, "neutral") for n in UNNAMED_PEOPLE for c in OF_PEOPLE]


def _cues(
    rows: list[Row],
    mine: dict[str, Cues],
    others: Sequence[Cues],
    calm: Sequence[str],
    questions: Sequence[str],
    rng: random.Random,
) -> None:
    """Cues alone, in sentences, in long texts, and (the names) misspelt."""

    by_word: dict[str, set[str]] = {}  # of the recipe's names and peoples: whose it is
    for culture, cues in mine.items():
        for name in (*cues.names, *cues.people):
            for word in name.split():
                by_word.setdefault(word.casefold(), set()).add(culture)
    minor, english = common_words(), english_words()
    whole = "".join(f"{n}\n" for cues in mine.values() for n in (*cues.names, *cues.people))

    def say(name: str, frames: Sequence[str], many: int, ids: tuple[str, ...]) -> None:
        words = [w.casefold() for w in re.split(r"[\s-]", name)]
        theirs = {c for w in words if w not in minor for c in by_word.get(w, ())}
        # North Korea must weigh as much as South Korea, New Mexico as Mexico; but a part of a name
        # ("Republic of China"), or "Hong Kong SAR China", differs in nothing that counts
        rival = (
            1 < len(words) < 4
            and theirs - set(ids)
            and f" {name}\n" not in whole
            and "SAR" not in name
        )
        kind = "rival" if rival else "cue"
        rows.append(Row(name, ids, name, kind))
        # less often where it is a place elsewhere: East New Britain
        often = max(many, 7 if ids or many else 3) if rival else many
        frame = rng.sample(frames, min(often, len(frames)))
        texts = [f.format(name) for f in frame]
        if many > 2:
            for n in range(4):  # a name within a long text must count too
                long = rng.sample(calm, 1 + n)
                long.insert(rng.randrange(len(long) + 1), rng.choice(frames).format(name))
                texts.append(" ".join(long))
            if questions:
                asked = rng.sample(questions, min(6, len(questions)))
                texts += [rng.choice(WITH_QUESTION).format(q, name) for q in asked]
            if len(name) > 4:
                wrong = (misspelt(name, rng) for _ in range(10))
                # "Untied" and "unite" are words
                texts += [
                    rng.choice(frames).format(w)
                    for w in wrong
                    if not english & ({*w.casefold().split()} - {*words})
                ]
        rows.extend(Row(text, ids, name, kind) for text in texts)

    said = {w for c in mine.values() for n in (*c.names, *c.people) for w in n.split()}
    for culture, cues in mine.items():
        for name in cues.names:
            say(name, OF_PLACE, 8, (culture,))
        for name in cues.people:
            say(name, OF_PEOPLE, 8, (culture,))
        for name in cues.places:
            say(name, OF_PLACE, 1, (culture,))
        for name in cues.things:
            say(name, OF_THING, 1, (culture,))
        for name in cues.nouns:
            rows.append(Row(name, (culture,), name, "noun"))
            rows += [Row(f.format(name), (culture,), name, "noun") for f in rng.sample(OF_ANY, 2)]
    for cues in others:
        for name in cues.names:
            say(name, OF_PLACE, 8 if said & set(name.split()) else 1, ())
        for name in cues.places:
            say(name, OF_PLACE, 0, ())
        for name in cues.people:
            say(name, OF_PEOPLE, 8 if said & set(name.split()) else 1, ())
        for name in cues.things:
            say(name, OF_THING, 0, ())
    taken = {n.casefold() for cues in mine.values() for n in cues.all()}
    for names, frames in zip(cards.wider(), (OF_PLACE, OF_PEOPLE), strict=True):
        for name in names:
            if name.casefold() not in taken:
                say(name, frames, 2, ())


def _mixed(
    rows: list[Row], mine: dict[str, Cues], others: Sequence[Cues], rng: random.Random
) -> None:
    """Two cultures at once, one and a country elsewhere, and things only mentioned.

    A thing of elsewhere, or of nowhere, takes nothing from the place that is named beside it.
    """
    strong = {i: [*c.names, *c.people] for i, c in mine.items()}
    every = {i: c.all() for i, c in mine.items()}
    away = [n for c in others for n in (*c.names, *c.people)]
    pairs = list(combinations(mine, 2))
    for pair in pairs:
        for _ in range(max(2, 2400 // len(pairs))):
            one, two = rng.sample(pair, 2)
            source = strong if rng.random() < 0.6 else every
            first, second = rng.choice(source[one]), rng.choice(source[two])
            text = rng.choice(OF_TWO).format(first, second)
            rows.append(Row(text, (one, two), first, "pair"))
    for culture in mine:
        for _ in range(40):
            names = [rng.choice(every[culture])]
            names.insert(rng.randrange(2), rng.choice(away))
            rows.append(Row(rng.choice(OF_TWO).format(*names), (culture,), " ".join(names), "cue"))
    origins = {i: c.people or c.names for i, c in mine.items()}
    for culture, people in origins.items():
        for n, thing in enumerate(2 * OBJECTS):
            who = people[0] if n < len(OBJECTS) else rng.choice(people)
            text = OF_OBJECT[n % len(OF_OBJECT)].format(who, thing)
            rows.append(Row(text, (), f"{who} {thing}", "cue"))
            other = rng.choice([*(i for i in mine if i != culture), ""])
            place = rng.choice(mine[other].names + mine[other].places if other else away)
            text = rng.choice(OBJECT_IN).format(who, thing, place)
            ids = (other,) if other else ()
            rows.append(Row(text, ids, f"{who} {thing}", "cue"))
    feasts = [name for cues in others for name in cues.things]
    for culture, cues in mine.items():
        for thing in (*OBJECTS, *rng.sample(feasts, min(len(OBJECTS), len(feasts)))):
            name = rng.choice(cues.names)
            text = rng.choice(THING_IN).format(thing, name)
            rows.append(Row(text, (culture,), f"{thing} in {name}", "cue"))


def _languages(
    rows: list[Row],
    cultures: Sequence[Culture],
    mine: dict[str, Cues],
    others: Sequence[Cues],
    rng: random.Random,
) -> None:
    """Phrases of each culture's languages, alone and with names; of other languages: no culture.

    A language of two cultures of the recipe names both, until a country is named in it.
    """
    codes = {c.id: cards.country_of(c) for c in cultures}
    speak: dict[str, list[str]] = {}
    for culture, code in codes.items():
        for language in cards.languages_of(code) if code else []:
            if cards.phrases(language):
                speak.setdefault(language, []).append(culture)

    english = common_words()
    # "Georgia" is a language's name in Indonesian, and a country in English
    named = {n.casefold() for cues in others for n in (*cues.names, *cues.people)}

    plain = english | named

    @cache
    def phrases(language: str) -> list[str]:
        return [p for p in cards.phrases(language) if p.casefold() not in plain]

    def some(language: str, n: int) -> str:
        found = phrases(language)
        return " ".join(rng.sample(found, min(n, len(found))))

    def add(text: str, ids: Sequence[str], origin: str) -> None:
        rows.append(Row(text, tuple(ids), origin, "language"))

    def small_words(language: str, passes: int, size: int, ids: Sequence[str]) -> None:
        words = [w for w in cards.function_words(language) if w not in english]
        for n in range(passes):
            mixed = rng.sample(words, len(words))
            for i in range(0, len(mixed), size):
                add(" ".join(mixed[i : i + size]), ids, f"{language} words {n} {i}")

    elsewhere = [c for c in cards.all_countries() if c not in codes.values()]
    for language, ids in speak.items():
        small_words(language, 4, 3, ids)
        for n in range(150):
            add(some(language, 1 + n % 10), ids, f"{language} {n}")
        for culture in ids:
            names = cards.names_in(codes[culture] or "", [language])
            places = [p for p in mine[culture].places if not p.isascii()] or mine[culture].places
            for n in range(60 if len(ids) == 1 else 200):
                for name in (*names, *rng.sample(places, min(1, len(places)))):
                    text = f"{some(language, 1 + n % 12)} {name} {some(language, n % 4)}"
                    add(text, [culture], f"{language} {culture} {n}")
        for code in elsewhere:
            for name in cards.names_in(code, [language])[:1]:
                for n in range(120 if language in cards.spoken_in(code) else rng.random() < 0.25):
                    text = f"{some(language, 1 + n % 12)} {name} {some(language, n % 4)}"
                    # North Korea in Korean must weigh as much as Korean
                    rows.append(Row(text, (), f"{language} {code}", "rival"))
    spoken = {language.split("_")[0] for language in speak}
    for language in cards.all_languages():
        if language.split("_")[0] not in spoken and language != "en":
            small_words(language, 1, 8, ())
            for n in range(6):
                add(some(language, 3 + n), (), f"{language} {n}")
