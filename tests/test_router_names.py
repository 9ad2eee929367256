"""The router on names as people write them, and on one name within a long prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgr.recipe import Culture
from cmgr.router import Router, card, fold
from cmgr.router.card import IN_USE
from cmgr.router.cues import english_words
from cmgr.router.fitting import fit

CULTURES = [
    Culture(id="us", name="United States", demonym="American", places=["US"]),
    Culture(id="uk", name="United Kingdom", demonym="British", places=["UK"]),
    Culture(id="south-korea", name="South Korea", demonym="Korean"),
    Culture(id="mexico", name="Mexico", demonym="Mexican"),
    Culture(id="indonesia", name="Indonesia", demonym="Indonesian"),
    Culture(id="guinea", name="Guinea", demonym="Guinean"),
    Culture(id="turkey", name="Turkey", demonym="Turkish"),
    Culture(id="uae", name="United Arab Emirates", demonym="Emirati"),
    Culture(id="congo", name="Democratic Republic of the Congo", demonym="Congolese", country="CD"),
    Culture(id="china", name="China", demonym="Chinese"),
]
ROUTER: Router = fit(CULTURES, [], [])

SENTENCES = [
    "The kettle in our kitchen has started to whistle long before the water is hot.",
    "I repainted the fence on Sunday and my arms still ache.",
    "Nobody at the meeting could agree whether the deadline had been moved.",
    "My uncle collects broken clocks and never repairs a single one of them.",
    "Yesterday's thunderstorm flooded the cellar, and we spent hours carrying boxes upstairs.",
    "Honestly, I can't decide between the cheaper apartment and the quieter one.",
    "She keeps rewriting the opening paragraph because it sounds pompous.",
    "Our neighbours adopted a three-legged greyhound that chases squirrels.",
    "The printer jammed twice, so the handouts were late and everyone was grumpy.",
    "He apologised for the misunderstanding, though it hardly mattered by then.",
    "Several volunteers swept the playground while the others sorted donations.",
    "I've been practising the same difficult chord for a fortnight.",
    "lol my roommate ate the whole lasagne and then blamed the hamster",
    "Regulators postponed the hearing after lawyers requested additional documents.",
    "A gentle breeze rattled the shutters as the candles flickered out.",
    "The triangle at the top is divided diagonally into stripes.",
]


@pytest.mark.parametrize(
    ("text", "culture"),
    [
        ("How do people greet each other in the U.S.?", "us"),
        ("Do they tip in the U.S.A.? I never know.", "us"),
        ("is it rude in the u.s. to be late", "us"),
        ("I am a U.S.-born cook.", "us"),
        ("We live in the U. S. now.", "us"),
        ("What do people in the USA eat for breakfast?", "us"),
        ("Who pays in the U.K.?", "uk"),
        ("The U.K.'s offices close early. Why?", "uk"),
        ("Is it rude to be late in the R.O.K.?", "south-korea"),
        ("My boss moved to the ROK last year.", "south-korea"),
        ("What should I wear in the U.A.E.?", "uae"),
        ("What should I wear in the UAE?", "uae"),
        ("I visit the D.R.C. in June.", "congo"),
        ("Which gifts suit a family in the DRC?", "congo"),
        ("Do shops open on Sundays in the P.R.C.?", "china"),
        ("Do shops open on Sundays in the PRC?", "china"),
    ],
)
def test_abbreviations_with_and_without_dots(text: str, culture: str) -> None:
    assert ROUTER.decide(text).culture == culture


@pytest.mark.parametrize("short", sorted(IN_USE))
def test_every_abbreviation_in_use_stands_on_its_card_and_folds_alike(short: str) -> None:
    assert short in card.card_of(IN_USE[short]).names
    dotted = "".join(f"{letter}." for letter in short)
    for text in ("in the {}", "in the {} now", "the {}'s office", "({})", "the {}, and then"):
        assert fold(text.format(dotted)) == fold(text.format(short))
    assert fold(f"in the {dotted[:-1]}") == fold(f"in the {short}")


@pytest.mark.parametrize("code", card.all_countries())
def test_a_region_in_use_is_of_one_country(code: str) -> None:
    found = card._regions_in_use().get(code, [])
    others = {
        n.casefold() for c in card.all_countries() if c != code for n in card.card_of(c).names
    }
    assert not {name.casefold() for name in found} & others and len(set(found)) == len(found)


@pytest.mark.parametrize("code", card.all_countries())
def test_a_code_of_iso_is_a_cue_of_its_country_alone(code: str) -> None:
    """Alpha-3 codes; two letters are English words too often: IN, IT, NO, AM, BE."""
    found = card.card_of(code)
    codes = [n for n in (*found.names, *found.things) if n.isascii() and n.isupper()]
    assert not [n for n in codes if len(n) == 2 and n not in IN_USE]
    assert all(IN_USE.get(n, code) == code for n in codes)


def test_a_pronoun_is_no_country() -> None:
    for text in (
        "Tell us what to bring.",
        "TELL US WHAT TO BRING FOR US",
        "Us? We never tip.",
        "it is no use, am i in or out, can they be there and are you",
        "Meet at 9 a.m. or 5 p.m., e.g. at the gate, i.e. outside",
    ):
        assert ROUTER.decide(text).abstained, text


@pytest.mark.parametrize(
    ("text", "culture"),
    [
        # a part of a country stands for it
        ("How do neighbours greet each other in Wales?", "uk"),
        ("What do people eat for breakfast in Scotland?", "uk"),
        ("Is punctuality a big deal in Northern Ireland?", "uk"),
        ("What do families cook in Inner Mongolia?", "china"),
        ("What do families cook in West Java?", "indonesia"),
        ("How do people dress in Yorkshire?", "uk"),
        ("We move to New Mexico next month.", "us"),
        ("Who pays for dinner in New Jersey?", "us"),
        ("What should I wear in West Virginia?", "us"),
        ("Do people tip in Indiana?", "us"),
        # a name within another's
        ("What do people eat in Mexico?", "mexico"),
        ("What do people eat in Guinea?", "guinea"),
        ("What do people eat in Papua New Guinea?", None),
        ("What do people eat in Equatorial Guinea?", None),
        ("What do people eat in Guinea-Bissau?", None),
        ("What do people eat in North Korea?", None),
        ("How do North Korean families celebrate?", None),
        ("How do South Korean families celebrate?", "south-korea"),
        ("What do people eat in Latin America?", None),
        ("My South American friend is late.", None),
        ("My South Asian friend is late.", None),
        ("My Asian friend is late.", None),
        ("What do people eat in Mongolia?", None),
        ("What do people eat in Jersey?", None),
        ("What do people eat in Ireland?", None),
        ("What do people eat in Niger?", None),
        ("What do people eat in Nigeria?", None),
        ("What do people eat in the Dominican Republic?", None),
        ("What do people eat in Dominica?", None),
        # a country, or a state of another
        ("What do people eat in Georgia?", None),
        # a bird
        ("How long do I roast a turkey?", None),
        ("How do people greet each other in Turkey?", "turkey"),
    ],
)
def test_names_as_people_write_them(text: str, culture: str | None) -> None:
    assert ROUTER.decide(text).culture == culture


NAMED = st.sampled_from(
    [
        ("us", "My brother lives in the U.S. now."),
        ("us", "What would an American family do?"),
        ("uk", "I asked my British colleague about it."),
        ("uk", "Is that normal in the UK?"),
        ("south-korea", "We moved to South Korea two years ago."),
        ("mexico", "how would mexican people react"),
        ("indonesia", "My landlady is Indonesian."),
        ("turkey", "All of it happened in Turkey."),
        ("china", "Please answer as someone from China would."),
    ]
)


@settings(max_examples=150, deadline=None)
@given(NAMED, st.lists(st.sampled_from(SENTENCES), min_size=3, max_size=10), st.data())
def test_a_long_prompt_weighs_no_more_than_the_name_in_it(
    named: tuple[str, str], around: list[str], data: st.DataObject
) -> None:
    """A name decides wherever it stands, and what is around it names nothing."""
    culture, mention = named
    at = data.draw(st.integers(0, len(around)))
    text = " ".join([*around[:at], mention, *around[at:]])
    assert ROUTER.decide(text).cultures == [culture]
    assert ROUTER.decide(" ".join(around)).abstained


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(sorted(english_words())), min_size=1, max_size=120))
def test_no_number_of_english_words_says_anything_by_its_letters(words: list[str]) -> None:
    said = ROUTER._spelt(fold(" ".join(words), ROUTER.capitals))
    assert not said[1].any()


def test_unknown_words_say_no_more_than_a_bound() -> None:
    text = " ".join(f"mexicaan{ending}" for ending in "abcdefgh")
    logits = np.log(1 / (1 / ROUTER.probabilities(text) - 1))
    assert logits.max() < 3
