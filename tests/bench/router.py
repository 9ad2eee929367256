"""The router on text it never saw, beside a rule that looks for country names and demonyms.

    python tests/bench/router.py --data FOLDER

FOLDER holds `factbook.jsonl` ({"country", "section", "text"}: the documents of a ten-culture
workspace, which is made in a temporary folder and is all that the router is fitted on),
`blend_dev.jsonl` and `fork.jsonl` (questions of BLEnD and FORK). The prompts with cues, with two
cultures and of no culture stand below; none of their wordings is one that the router is fitted on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

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
            name = CULTURES[culture][0] if culture not in ids.values() else row["country"]
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


def rows(folder: Path) -> list[tuple[str, str, set[str]]]:
    return [*data_rows(folder), *cue_rows(), *pair_rows()]
