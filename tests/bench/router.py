"""The router on text it never saw, beside a rule that looks for country names and demonyms.

    python tests/bench/router.py --data FOLDER
    python tests/bench/router.py --data FOLDER --without card      # or documents
    python tests/bench/router.py --data FOLDER --softmax           # instead of one-vs-rest

FOLDER holds `factbook.jsonl` ({"country", "section", "text"}: the documents of a ten-culture
workspace, which is made in a temporary folder and is all that the router is fitted on),
`blend_dev.jsonl` and `fork.jsonl` (questions of BLEnD and FORK), and `crehate.jsonl` (posts that
long prompts are made of, `long_prompts.py`). The prompts with cues, with two
cultures and of no culture stand below; none of their wordings is one that the router is fitted on.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from long_prompts import long_rows

CULTURES = {
    "united-states": ("United States", "American", ["US"]),
    "united-kingdom": ("United Kingdom", "British", ["UK"]),
    "china": ("China", "Chinese", []),
    "south-korea": ("South Korea", "Korean", []),
    "spain": ("Spain", "Spanish", []),
    "mexico": ("Mexico", "Mexican", []),
    "iran": ("Iran", "Iranian", []),
    "indonesia": ("Indonesia", "Indonesian", []),
    "greece": ("Greece", "Greek", []),
    "ethiopia": ("Ethiopia", "Ethiopian", []),
}
CUES = {
    "united-states": """
        city: Chicago, Seattle, New Orleans, Nashville, Boise
        region: Texas, Vermont, Appalachia, the Midwest
        dish: biscuits and gravy, a corn dog, clam chowder, grits
        festival: Thanksgiving, the Fourth of July, Super Bowl Sunday
        currency: US dollars
        title: the Honorable Judge, Coach
        name: Tyler Johnson, Madison Miller""",
    "united-kingdom": """
        city: Leeds, Cardiff, Edinburgh, Norwich, Brighton
        region: Yorkshire, Cornwall, the Scottish Highlands, Wales
        dish: bangers and mash, a Sunday roast, Marmite, a cream tea
        festival: Bonfire Night, Boxing Day, Burns Night
        currency: pounds sterling
        title: Sir, Dame
        name: Nigel Pemberton, Fiona Campbell""",
    "china": """
        city: Chengdu, Guangzhou, Xi'an, Hangzhou, Qingdao
        region: Sichuan, Yunnan, Guangdong, Inner Mongolia
        dish: mapo tofu, jiaozi, hotpot with chilli oil, baijiu
        festival: the Dragon Boat Festival, Qingming, the Mid-Autumn Festival
        currency: yuan, renminbi
        title: Laoshi, Shifu
        name: Wang Xiaoming, Zhang Wei""",
    "south-korea": """
        city: Daejeon, Gyeongju, Incheon, Busan, Jeonju
        region: Jeju Island, Gangwon, Gyeonggi, Jeolla
        dish: kimchi jjigae, bulgogi, tteokbokki, soju
        festival: Chuseok, Seollal, Pepero Day
        currency: won
        title: -ssi, seonsaengnim
        name: Kim Ji-woo, Park Min-jun""",
    "spain": """
        city: Seville, Bilbao, Zaragoza, Salamanca, Granada
        region: Andalusia, Galicia, Catalonia, the Basque Country
        dish: paella, gazpacho, jamón ibérico, churros with chocolate
        festival: San Fermín, La Tomatina, Las Fallas
        currency: pesetas
        title: Don, Señorita
        name: Íñigo Etxeberria, Montserrat Puig""",
    "mexico": """
        city: Guadalajara, Monterrey, Puebla, Tijuana, Oaxaca
        region: Yucatán, Jalisco, Chiapas, Baja California
        dish: mole poblano, tamales, pozole, chilaquiles
        festival: the Day of the Dead, Las Posadas, Cinco de Mayo
        currency: Mexican pesos
        title: Licenciado, compadre
        name: Guadalupe Hernández, Cuauhtémoc Ramírez""",
    "iran": """
        city: Tehran, Isfahan, Shiraz, Tabriz, Mashhad
        region: Khuzestan, Gilan, Fars province, Mazandaran
        dish: ghormeh sabzi, fesenjan, tahdig, doogh
        festival: Nowruz, Yalda night, Chaharshanbe Suri
        currency: rials, tomans
        title: Agha, Khanom
        name: Reza Hosseini, Shirin Ahmadi""",
    "indonesia": """
        city: Bandung, Surabaya, Medan, Makassar, Jakarta
        region: Bali, West Java, Sumatra, Sulawesi
        dish: nasi goreng, rendang, gado-gado, sambal
        festival: Nyepi, Lebaran, Galungan
        currency: rupiah
        title: Pak, Ibu
        name: Budi Santoso, Siti Rahayu""",
    "greece": """
        city: Athens, Thessaloniki, Patras, Heraklion, Volos
        region: Crete, Macedonia, the Peloponnese, Thessaly
        dish: moussaka, souvlaki, tzatziki, ouzo
        festival: Ohi Day, Greek Orthodox Easter, the Dormition
        currency: drachmas
        title: Kyrios, Kyria
        name: Giorgos Papadopoulos, Eleni Nikolaidou""",
    "ethiopia": """
        city: Addis Ababa, Gondar, Mekelle, Bahir Dar, Hawassa
        region: Tigray, Oromia, Amhara, the Afar region
        dish: injera, doro wat, kitfo, tej
        festival: Timkat, Meskel, Enkutatash
        currency: birr
        title: Ato, Weyzero
        name: Abebe Bekele, Tigist Haile""",
    "": """
        city: Lima, Oslo, Nairobi, Hanoi, Kraków, Casablanca, Melbourne, Kyoto, Recife, Hamburg
        region: Tuscany, Bavaria, Hokkaido, Patagonia, Punjab, Quebec
        dish: pierogi, ceviche, pho, sushi, feijoada, pasta carbonara
        festival: Diwali, Oktoberfest, Songkran, Bastille Day
        currency: yen, Swiss francs, zloty, rupees
        title: Herr Doktor, -san
        name: Hiroshi Tanaka, Lars Svensson, Giulia Rossi, Nguyen Van Anh""",
}
WHERE = (  # city, region
    "My sister moved to {} last spring. How do neighbours there say hello?",
    "we're opening a small office in {}, is punctuality a big deal?",
    "Planning a funeral visit in {} - what colour should I wear?",
    "In {}, who usually pays when friends eat out?",
)
WHAT = {
    "dish": (
        "She was served {} at her in-laws' place. Should she finish everything?",
        "which hand do people use when eating {}?",
    ),
    "festival": (
        "A colleague invited us for {}. What present is right?",
        "Do shops close on {}?",
    ),
    "currency": (
        "The bill came to a lot in {}. Do I leave something for the waiter?",
        "How much in {} goes into the envelope for newlyweds?",
    ),
    "title": (
        "May I leave out {} when I speak to my boss?",
        "Is it polite to call an older man {} plus the name?",
    ),
    "name": (
        "I will meet the parents of {} on Friday. How do I greet them?",
        "{} gave me a wrapped gift. Should I open it now?",
    ),
}
PAIRS = (
    "a {a}-{b} wedding: whose customs first?",
    "My mother is {a}, my father {b}. How will their families see our late arrival?",
    "Our team is half in {A} and half in {B}; what do we do about lunch breaks?",
    "I moved from {A} to {B}. Which of my table manners will seem odd?",
    "Is tipping expected more in {B} or in {A}?",
)
MENTIONED = (  # a thing from there, somewhere else: only the place decides
    ("I read a {a} novel on the train in {B}. May I put my bag on the next seat?", True),
    ("We drove a {a} car through {B}. Do drivers wave to thank each other?", True),
    ("He wore a {a} watch at a dinner in {B}. Is that showing off?", True),
    ("My {a} keyboard types wrong letters. How do I reset it?", False),
    ("Fix this regex: it should match {a} phone numbers.", False),
)
MISSPELT = (
    "united-states: Amercian, Chigago, Untied States",
    "united-kingdom: Brittish, Edinborough, Untied Kingdom",
    "china: Chineese, Shangai, Bejing",
    "south-korea: Koreean, Soeul, South Koera",
    "spain: Spannish, Barcelon, Sevillle",
    "mexico: Mexcian, Guadaljara, Mexcio",
    "iran: Iraniann, Tehrann, Irann",
    "indonesia: Indonesain, Jakrata, Indonisia",
    "greece: Greeek, Athenns, Thesaloniki",
    "ethiopia: Ethopian, Adis Abeba, Etiopia",
)
MIXED = (
    ("china", "My host said 谢谢 and 干杯 all evening. Must I drink each time?"),
    ("china", "What do I answer to 你吃了吗?"),
    ("south-korea", "When my boss says 수고하셨습니다, what do I reply?"),
    ("south-korea", "Do I bow when I say 안녕하세요 to my teacher?"),
    ("spain mexico", "My landlady wrote: ¿puede usted venir mañana por la tarde? How do I reply?"),
    ("iran", "They keep saying قابل ندارد at the shop. Do I pay?"),
    ("iran", "What does دست شما درد نکند mean at table?"),
    ("indonesia", "My neighbour said 'silakan masuk, jangan malu-malu'. Shoes off?"),
    ("indonesia", "Someone told me 'terima kasih banyak, tidak usah repot'. Do I insist?"),
    ("greece", "At the door they said Καλώς ήρθατε. What do I answer?"),
    ("greece", "Everyone shouts Στην υγειά μας! Do I have to drink?"),
    ("ethiopia", "My friend's mother says እንኳን ደህና መጣችሁ. What do I do?"),
    ("ethiopia", "What is the answer to ሰላም ነው?"),
)
NEUTRAL = """
Draft a polite reminder about an unpaid invoice
my bike chain keeps slipping, what now
summarise the attached minutes in five bullets
What rhymes with orange?
How long should I boil an egg?
def f(x): return x+ # why is this a syntax error
translate 'good morning' please
Write a limerick about a lazy cat
Give me three names for a puppy
is 0.1 + 0.2 equal to 0.3 in floating point
Explain photosynthesis to a ten-year-old
A colleague invited me for dinner. Should I bring something?
How do I tell my boss that I will be late?
Which side of the plate does the fork go on?
My neighbour plays loud music at night. What can I say?
What should one wear to a funeral?
Do guests take their shoes off?
When is it polite to leave a party?
Should I tip the hairdresser?
How do people greet each other?
Rewrite this paragraph in the passive voice
compute the eigenvalues of [[2,1],[1,2]]
What's the weather like on Mars?
Recommend a book about black holes
How do vaccines work?
Turn these notes into a to-do list
i can't sleep, any tips?
Plan a birthday party for a six-year-old
Which vitamins are in carrots?
Write a cover letter for a data analyst
What does the idiom 'break the ice' mean?
How can I remove a red wine stain?
Suggest a 20 minute workout without equipment
My printer says offline
Convert 3.5 hours to minutes
Explain how a bill of exchange works
How do I prune roses?
Who pays on a first date?
Is it rude to look at one's phone during a meal?
How should I address a professor in an e-mail?
"""


def items(table: str) -> Iterator[tuple[str, str]]:
    for line in table.strip().splitlines():
        kind, _, words = line.strip().partition(": ")
        for word in words.split(", "):
            yield kind, word


def cue_rows() -> Iterator[tuple[str, str, set[str]]]:
    for culture, table in CUES.items():
        for n, (kind, word) in enumerate(items(table)):
            carriers = WHAT.get(kind, WHERE)
            for step in range(2):
                text = carriers[(n + step) % len(carriers)].format(word)
                yield f"{kind}{'' if culture else ', outside'}", text, {culture} - {""}
    for line in MISSPELT:
        culture, _, words = line.partition(": ")
        for word in words.split(", "):
            people = word.endswith(("an", "ish", "ese", "eek", "ann"))
            text = (f"Is my {word} host offended?", f"Do people queue in {word}?")[not people]
            yield "misspelt", text, {culture}
    for cultures, text in MIXED:
        yield "mixed language", text, set(cultures.split())


def pair_rows() -> Iterator[tuple[str, str, set[str]]]:
    for n, (one, two) in enumerate(combinations(CULTURES, 2)):
        for step in range(2):
            (big_a, a, _), (big_b, b, _) = CULTURES[one], CULTURES[two]
            text = PAIRS[(n + step) % len(PAIRS)].format(a=a, b=b, A=big_a, B=big_b)
            yield "two cultures", text, {one, two}
        cities = [dict(items(CUES[c]))["city"] for c in (one, two)]
        yield (
            "two cultures, by city",
            f"They commute between {cities[0]} and {cities[1]}",
            {one, two},
        )
        text, place = MENTIONED[n % len(MENTIONED)]
        yield "only mentioned", text.format(a=a, B=big_b), {two} if place else set()


def data_rows(folder: Path) -> Iterator[tuple[str, str, set[str]]]:
    ids = {"South_Korea": "south-korea", "US": "united-states", "UK": "united-kingdom"}
    ids |= {c.capitalize(): c for c in CULTURES if "-" not in c}
    for line in (folder / "blend_dev.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        culture = ids.get(row["country"])
        if culture:
            yield "named, BLEnD", row["question"], {culture}
            if culture not in {"united-states", "united-kingdom"}:
                yield "local language, BLEnD", row["question_local"], {culture}
            name = row["country"].replace("_", " ")
            masked = re.sub(rf"(the )?{name}('s)?", "my country", row["question"])
            if masked != row["question"]:
                yield "neutral, BLEnD masked", masked, set()
        elif row["country"] == "West_Java":
            yield "region, BLEnD", row["question"], {"indonesia"}
            yield "local language, Sundanese", row["question_local"], {"indonesia"}
        else:
            yield "outside, BLEnD", row["question"], set()
            yield "outside, local language", row["question_local"], set()
    ids = {"China": "china", "USA": "united-states", "South Korea": "south-korea"}
    for line in (folder / "fork.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        culture, how = ids.get(row["Country"]), row["Type"]
        truth = {culture} if culture else set()
        if how == "Underspecified":
            yield "neutral, FORK", row["Question"], set()
        elif how == "Explicit":
            yield "named, FORK" if culture else "outside, FORK", row["Question"], truth
        else:
            yield "implicit, FORK" if culture else "outside implicit, FORK", row["Question"], truth
    for text in NEUTRAL.strip().splitlines():
        yield "neutral", text, set()


GOALS = {  # goal -> (least share, kinds of prompts)
    "the country is named": (0.99, ("named",)),
    "only a region or a city": (0.85, ("city", "region", "region, BLEnD")),
    "in a local language": (0.97, ("local language",)),
    "neutral: abstains": (0.95, ("neutral",)),
    "a country outside the recipe: abstains": (0.90, ("outside",)),
    "two cultures: both found": (0.90, ("two cultures",)),
    "long (50 to 120 words), named once": (0.97, ("long, named",)),
    "long, neutral: abstains": (0.97, ("long, neutral",)),
    "long, another country: abstains": (0.97, ("long, elsewhere",)),
}
NOT_CITIES = ("city, outside", "region, outside")


def workspace(data: Path, folder: Path, documents: bool) -> Any:
    """A workspace of the ten cultures, whose evidence is their factbook passages."""
    import yaml

    from cmgr.records import Evidence, make_id
    from cmgr.workspace import Workspace

    recipe = {
        "name": "ten",
        "cultures": [
            {"id": i, "name": name, "demonym": people, "places": places}
            for i, (name, people, places) in CULTURES.items()
        ],
        "tasks": [
            {"id": "qa", "name": "QA", "queries": ["x"], "wordings": [{"text": "{question}"}]}
        ],
        "sources": [{"kind": "documents", "path": "docs"}],
        "search": {"topics": ["all"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    ids = {name: i for i, (name, _, _) in CULTURES.items()}
    found = []
    for line in (data / "factbook.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if documents and row["country"] in ids:
            key = make_id(row)
            found.append(
                Evidence(
                    **{"id": key, "culture": ids[row["country"]], "query_id": "all", "url": key},
                    **{"source": "documents", "title": "", "text": row["text"], "score": 1},
                    **{"heading": row["section"], "retrieved_at": "2026-01-01", "sha256": key},
                )
            )
    ws = Workspace(folder)
    ws.append("evidence", found)
    parts = {i: {"ids": [e.id for e in found if e.culture == i]} for i in CULTURES}
    ws.finish("search", "by hand", cultures=parts)
    return ws


def softmax(ws: Any) -> Any:
    """The same features under one multinomial model, none being a class: text -> cultures."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from cmgr.router import fitting
    from cmgr.search import current_evidence

    evidence = current_evidence(ws)
    made = fitting.training_rows(ws.recipe.cultures, [], evidence)
    features = fitting.fit_rows(made, ws.recipe.cultures, evidence).features
    single = [r for r in made if len(r.cultures) < 2]
    labels = [r.cultures[0] if r.cultures else "" for r in single]
    weights = np.array([fitting.WEIGHTS[r.kind] for r in single])
    model = LogisticRegression(C=fitting.C, max_iter=2000)
    model.fit(features.transform([r.text for r in single]), labels, sample_weight=weights)

    def decide(text: str) -> tuple[set[str], float]:
        found = model.predict_proba(features.transform([text]))[0]
        shares = dict(zip(model.classes_, found, strict=True))
        best = max(shares, key=shares.__getitem__)
        return {c for c in shares if c and shares[c] > 0.2} or {best} - {""}, shares[best]

    return decide


def main() -> None:
    import numpy as np

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--without", choices=("card", "documents"))
    parser.add_argument("--softmax", action="store_true")
    options = parser.parse_args()
    from cmgr.router import Router, card
    from cmgr.router.fitting import build
    from cmgr.router.scoring import ece
    from cmgr.stats import wilson

    rows = [*data_rows(options.data), *cue_rows(), *pair_rows()]
    asked = [(text, truth) for kind, text, truth in rows if kind == "named, BLEnD"]
    rows += long_rows(options.data, CULTURES, asked)
    with tempfile.TemporaryDirectory() as scratch:
        ws = workspace(options.data, Path(scratch), options.without != "documents")
        if options.without == "card":
            card.country_of = lambda culture: None
        began = time.perf_counter()
        if options.without == "documents":
            fit_bare(ws)
        else:
            build(ws, force=True)
        fitted = time.perf_counter() - began
        router = Router.of(ws)
        size = ws.path("router", "router.npz").stat().st_size / 1e6
        many = softmax(ws) if options.softmax else None
        names = {
            i: re.compile(rf"\b(?:{'|'.join(map(re.escape, (name, people, *more)))})\b")
            for i, (name, people, more) in CULTURES.items()
        }
        found: dict[str, list[tuple[bool, bool, float, bool]]] = {}
        for kind, text, truth in rows:
            if many:
                said, sure = many(text)
                best = next(iter(said)) if len(said) == 1 else None
            else:
                decision = router.decide(text)
                said, best = set(decision.cultures), decision.culture
                sure = 1 - decision.probability if decision.abstained else decision.probability
            right = (best in truth or bool(said & truth)) if truth else not said
            exact = said >= truth if len(truth) > 1 else right
            rule = {i for i, pattern in names.items() if pattern.search(text)}
            found.setdefault(kind, []).append((right, exact, sure, rule == truth))
        print(f"fitted in {fitted:.1f} s, {size:.1f} MB")
        print(f"{'prompts':42} {'n':>5} {'router':>8} {'95%':>14} {'keyword rule':>13}")

        def line(name: str, part: list[tuple[bool, bool, float, bool]], goal: str = "") -> None:
            share = sum(p[1] for p in part)
            low, high = wilson(share, len(part))
            keywords = sum(p[3] for p in part) / len(part)
            print(
                f"{name:42} {len(part):5} {share / len(part):8.3f}   [{low:.3f}, {high:.3f}]"
                f" {keywords:10.3f}  {goal}"
            )

        judged = []
        for name, (goal, kinds) in GOALS.items():
            part = [
                p
                for kind, some in found.items()
                if kind.startswith(kinds) and not (kinds[0] == "city" and kind in NOT_CITIES)
                for p in some
            ]
            if name.startswith("a country outside"):
                part += [p for k, some in found.items() if k.endswith(", outside") for p in some]
            if not name.startswith("long"):
                judged += part
            line(name, part, f"goal {goal}")
        sure = np.array([p[2] for p in judged])
        right = np.array([p[0] for p in judged])
        print(f"ECE over these: {ece(sure, right):.3f} (goal 0.03)\n")
        for kind in sorted(found):
            line(kind, found[kind])


def fit_bare(ws: Any) -> None:
    """A router on the cards alone."""
    from cmgr.router.fitting import fit

    fit(ws.recipe.cultures, [], [], settings=ws.recipe.router).save(ws.path("router"))


if __name__ == "__main__":
    main()
