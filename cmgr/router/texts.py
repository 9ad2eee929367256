"""What the router is fitted on: the workspace's texts, carriers of names, prompts of no culture."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

from cmgr.recipe import Culture
from cmgr.records import Evidence, Example
from cmgr.sources.passages import names_of

# Countries as negatives, where the recipe does not name them itself: "name/demonym"
OTHERS = (
    "Peru/Peruvian Norway/Norwegian Kenya/Kenyan Vietnam/Vietnamese Poland/Polish Chile/Chilean "
    "Ghana/Ghanaian Austria/Austrian Nepal/Nepali Iceland/Icelandic Jordan/Jordanian "
    "Finland/Finnish Taiwan/Taiwanese Mongolia/Mongolian Portugal/Portuguese Sweden/Swedish "
    "Ukraine/Ukrainian Canada/Canadian Cambodia/Cambodian Ireland/Irish Iran/Iranian "
    "Colombia/Colombian Denmark/Danish Egypt/Egyptian Thailand/Thai Greece/Greek Morocco/Moroccan "
    "Australia/Australian Italy/Italian Malaysia/Malaysian Argentina/Argentinian "
    "Switzerland/Swiss Russia/Russian Ethiopia/Ethiopian Spain/Spanish Turkey/Turkish "
    "France/French China/Chinese Germany/German India/Indian Mexico/Mexican Brazil/Brazilian "
    "Japan/Japanese Nigeria/Nigerian"
)
OF_PLACE = (
    "{}",
    "How do people greet each other in {}?",
    "As she walked through the streets of {}, she came to a shop and remembered what to do.",
    "At a restaurant in {}, he was about to pay the bill.",
    "What should I know before I visit {}?",
    "I am in {} and was invited to dinner. What should I bring?",
    "We move to {} next month. How do I address my boss?",
    "What do people in {} eat for breakfast?",
    "Should I take off my shoes at a friend's house in {}?",
)
OF_PEOPLE = (
    "{}",
    "{} customs and manners",
    "What gift suits my {} host family?",
    "What is a typical {} wedding like?",
)
OF_TWO = ("What is the difference between {} and {}?", "Compare table manners in {} and {}.")
UNNAMED = ("my town", "a small village", "this country", "another country", "our office", "a city")


def neutral_prompts() -> list[str]:
    """The prompts of no culture that cmgr ships."""
    text = (Path(__file__).parent / "neutral.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def prompt_of(example: Example) -> str:
    """What a person would type: the last user message."""
    return next((m.content for m in reversed(example.messages) if m.role == "user"), "")


def cue(cultures: Sequence[Culture]) -> Callable[[str], bool]:
    """Whether a text names one of these; of names like US the capitals count too."""
    names = [n for c in cultures for n in names_of(c)]
    parts = [re.escape(n) if len(n) < 4 else f"(?i:{re.escape(n)})" for n in names]
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)")
    return lambda text: pattern.search(text) is not None


def training_texts(
    cultures: Sequence[Culture],
    examples: Sequence[Example],
    evidence: Sequence[Evidence],
    seed: int = 1,
) -> list[tuple[str, list[str]]]:
    """(text, its cultures) pairs; no culture for neutral ones.

    Held-out examples take no part, nor does evidence that only they rest on. A prompt that
    several cultures share names none of them, so it is neutral; a question without a name is too.
    """
    rng = random.Random(seed)
    known = {c.id for c in cultures}
    names_one = cue(cultures)
    kept = [e for e in examples if e.culture in known and e.review != "rejected"]
    fitted = {i for e in kept if e.split == "fit" for i in e.evidence_ids}
    held_ids = {i for e in kept if e.split != "fit" for i in e.evidence_ids} - fitted
    held = {prompt_of(e) for e in examples if e.split != "fit"}
    passages = [p for p in evidence if p.culture in known and p.id not in held_ids]

    single: dict[str, set[str]] = {}  # text -> the cultures it stands under
    rows: list[tuple[str, list[str]]] = [(text, []) for text in neutral_prompts()]
    questions: dict[str, None] = {}
    for example in kept:
        if example.split == "fit":
            single.setdefault(prompt_of(example), set()).add(example.culture)
    for passage in passages:
        single.setdefault(passage.text[:1000], set()).add(passage.culture)
        for heading in (passage.heading, *passage.also_asked[:1]):
            if names_one(heading):
                single.setdefault(heading, set()).add(passage.culture)
            else:
                questions[heading] = None
    rows += [(q, []) for q in questions]
    rows += [(t, list(c) if len(c) == 1 else []) for t, c in single.items() if t not in questions]

    asked = [q for q in questions if q.strip()]
    calm = [*neutral_prompts(), *asked]
    rows += [(" ".join(rng.sample(calm, 2 + n % 5)), []) for n in range(100)]

    def carried(names: Iterable[str], people: Iterable[str], ids: list[str], more: int) -> None:
        for carriers, fillers in ((OF_PLACE, names), (OF_PEOPLE, people)):
            for filler in filter(str.strip, fillers):
                rows.extend((carrier.format(filler), ids) for carrier in carriers)
                for question in rng.sample(asked, min(more, len(asked))):
                    form = rng.choice(("{0} {1}", "In {1}: {0}", "{0} I am in {1}.", "{1}: {0}"))
                    rows.append((form.format(question, filler), ids))
                for n in range(2 * more):  # a name within a long text must count too
                    long = rng.sample(calm, 1 + n % 6)
                    long.insert(rng.randrange(len(long) + 1), rng.choice(carriers).format(filler))
                    rows.append((" ".join(long), ids))

    for culture in cultures:
        carried((culture.name, *culture.places), (culture.demonym,), [culture.id], 12)
    for one, two in list(combinations(cultures, 2))[:150]:
        for carrier in OF_TWO:
            pair = [one, two] if rng.random() < 0.5 else [two, one]
            rows.append((carrier.format(pair[0].name, pair[1].name), [one.id, two.id]))
    others = [p.split("/") for p in OTHERS.split() if not names_one(p.replace("/", " "))]
    carried((name for name, _ in others), (people for _, people in others), [], 3)
    carried(UNNAMED, (), [], 3)
    return [(t, ids) for t, ids in dict(rows).items() if t.strip() and t not in held]
