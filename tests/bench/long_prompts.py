"""Long prompts with one mention of a country, for `router.py`: real text with no name in it around.

The text around is CREHate's posts, BLEnD's questions without their country, and factbook sentences
without a name, from the folder of `--data`; the router is fitted on none of the three but, in the
factbook, on other countries' passages. The mentions are worded here, or are BLEnD's questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

SIZES = (50, 80, 120)  # words
WHERE = ("beginning", "middle", "end")
IN_PLACE = (
    "I moved to {} for work two years ago.",
    "My brother lives in {}.",
    "We are on holiday in {} just now.",
    "all of this happened in {}",
    "What do people in {} think of that?",
    "Please answer as someone from {} would.",
    "Is this normal in {}?",
    "My sister is going to {}, what should she expect?",
    "This was in {}, by the way.",
    "I grew up in {} and still visit often.",
    "Here in {} we see it differently.",
)
OF_PEOPLE = (
    "My husband is {}.",
    "My new colleague is {} and says little.",
    "What would a {} family do?",
    "I have {} neighbours.",
    "I asked my {} friend about it.",
    "Our {} hosts were silent.",
    "She married a {} man last year.",
    "how would {} people react",
    "Tell it the way a {} grandmother would.",
)
SHORT = {
    "united-states": "the US, the U.S., the USA, the U.S.A.",
    "united-kingdom": "the UK, the U.K.",
    "china": "the PRC, the P.R.C.",
    "south-korea": "the ROK, the R.O.K.",
}
ELSEWHERE = """
    name: Japan, Peru, Kenya, Norway, North Korea, Vietnam, Nigeria, the Philippines, Brazil,
        Germany, India, Turkey, Egypt, Canada, New Zealand, South Africa, Poland, Cuba, Jordan,
        Chad, Georgia, Niger, Guinea-Bissau, Papua New Guinea, Dominica, the Dominican Republic,
        Eritrea, Somalia, Ireland, Portugal
    people: Japanese, Peruvian, Kenyan, Norwegian, North Korean, Vietnamese, Nigerian, Filipino,
        Brazilian, German, Indian, Turkish, Egyptian, Canadian, Polish, Cuban, Jordanian, Irish,
        Portuguese, Somali, Taiwanese, Thai, Dutch, Swiss
    abbreviation: the UAE, the U.A.E., the DRC, the D.R.C., the DPRK, the KSA
"""
# besides the names of countries, their peoples, regions and cities
TOLD = """america britain benidorm ching chong gilbert jan judeo kim korea
nusantara prc qi reading
africa african arab arabs arabic asia asian beijing biden boris brexit christmas clinton
congress democrat dollar dollars england english eu euro europe european fbi cia gop hillary hindi
hindu hispanic islam islamic isis jew jews jewish latina latino lunar muslim muslims nazi hitler
obama parliament pinoy prc prcs republican russia senate sikh taliban tory trump uk us usa vegas
vietnam"""


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def around(folder: Path) -> dict[str, list[str]]:
    """Real texts, by where they are from, that name no place and no people."""
    from cmgr.router import card
    from cmgr.router.cues import english_words

    named = set(TOLD.split())
    for code in card.all_countries():
        found = card.card_of(code, 60)
        named |= {n.casefold() for n in (*found.names, *found.people)}
        rest = {n.casefold() for n in (*found.regions, *found.cities) if n.isascii() and len(n) > 2}
        named |= rest - english_words()

    def clean(text: str) -> bool:
        words = re.findall(r"[a-z]+", text.casefold())
        words += [f"{a} {b}" for a, b in pairwise(words)]
        return text.isascii() and named.isdisjoint({*words, *(w.removesuffix("s") for w in words)})

    posts = [" ".join(r["text"].split()).strip('"') for r in _read(folder / "crehate.jsonl")]
    posts = [p for p in posts if len(p.split()) > 4 and "@" not in p and "http" not in p]
    questions = {}
    for row in _read(folder / "blend_dev.jsonl"):
        name = row["country"].replace("_", " ")
        text = re.sub(rf"\s+(?:in|from|of|at|for)\s+(?:the )?{name}\b(?!')", "", row["question"])
        questions[re.sub(rf"\b(?:the )?{name}'s\b", "the", text)] = None
    sentences = {}
    for row in _read(folder / "factbook.jsonl"):
        for part in re.split(r"(?<=[.;])\s+", row["text"]):
            words = part.split()
            if 5 < len(words) < 41 and not any(w[0].isupper() for w in words[1:]):
                sentences[part.rstrip(";")] = None
    found = {"posts": posts, "questions": list(questions), "sentences": list(sentences)}
    return {source: [t for t in texts if clean(t)] for source, texts in found.items()}


def within(texts: Sequence[str], size: int, mention: str, where: str, rng: random.Random) -> str:
    """About `size` words of these texts, with a mention in one place."""
    parts: list[str] = []
    left = size - len(mention.split())
    while left > 0:
        words = rng.choice(texts).split()[: min(60, left)]
        parts.append(" ".join(words))
        left -= len(words)
    if mention:
        if len(parts) == 1:
            words = parts[0].split()
            parts = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
        parts.insert({"beginning": 0, "middle": len(parts) // 2, "end": len(parts)}[where], mention)
    return " ".join(parts)


def long_rows(
    folder: Path,
    cultures: dict[str, tuple[str, str, list[str]]],
    asked: Sequence[tuple[str, set[str]]],
    seed: int = 7,
) -> Iterator[tuple[str, str, set[str]]]:
    """(kind, text, cultures): long prompts that name one of the recipe's, another country, none.

    `asked` are questions with the country they name.
    """
    rng = random.Random(seed)
    away = {}
    for line in re.sub(r",\s+", ", ", ELSEWHERE).strip().splitlines():
        kind, _, words = line.strip().partition(": ")
        away[kind] = words.split(", ")
    for source, texts in around(folder).items():
        for size in SIZES:
            for _ in range(120):
                yield f"long, neutral, {source}", within(texts, size, "", "", rng), set()
            for where in WHERE:

                def put(
                    mention: str,
                    texts: Sequence[str] = texts,
                    size: int = size,
                    where: str = where,
                ) -> str:
                    return within(texts, size, mention, where, rng)

                for culture, (name, people, _) in cultures.items():
                    the = "the " if name.startswith("United") else ""
                    said = {
                        "name": (IN_PLACE, [f"{the}{name}"]),
                        "people": (OF_PEOPLE, [people]),
                        "abbreviation": (IN_PLACE, SHORT.get(culture, "").split(", ")),
                    }
                    for kind, (frames, words) in said.items():
                        for _ in range(6 if words[0] else 0):
                            mention = rng.choice(frames).format(rng.choice(words))
                            yield f"long, named, {kind}", put(mention), {culture}
                for _ in range(24):
                    question, truth = rng.choice(asked)
                    yield "long, named, BLEnD", put(question), truth
                for kind, words in away.items():
                    frames = OF_PEOPLE if kind == "people" else IN_PLACE
                    for _ in range(24):
                        mention = rng.choice(frames).format(rng.choice(words))
                        yield f"long, elsewhere, {kind}", put(mention), set()
