"""cmgr/names: a prompt put about another culture, or about one of those that it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr.names import focused, swap
from cmgr.recipe import Culture

US = Culture(id="united-states", name="United States")
UK = Culture(id="united-kingdom", name="United Kingdom", demonym="British")
JAPAN = Culture(id="japan", name="Japan", demonym="Japanese", places=["Osaka", "Kyoto"])
BRAZIL = Culture(id="brazil", name="Brazil", demonym="Brazilian", places=["Salvador"])


@pytest.mark.parametrize(
    ("text", "one", "other", "new"),
    [
        ("What do people in the US eat?", US, JAPAN, "What do people in Japan eat?"),
        ("In the U.S., what?", US, BRAZIL, "In Brazil, what?"),
        ("the united states of america eats", US, JAPAN, "Japan eats"),
        ("What is eaten in Japan?", JAPAN, US, "What is eaten in the United States?"),
        ("Japan eats rice.", JAPAN, UK, "The United Kingdom eats rice."),
        ("The Japanese bow", JAPAN, BRAZIL, "The Brazilian bow"),
        ("A Japanese inn", JAPAN, US, "A the United States inn"),
        ("Tips in Osaka and Kyoto", JAPAN, BRAZIL, "Tips in Salvador and Salvador"),
        ("in osaka", JAPAN, US, "in the United States"),
        ("Japan's food", JAPAN, BRAZIL, "Brazil's food"),
        ("What in UK?", UK, JAPAN, "What in Japan?"),
        ("Show us how people eat", US, JAPAN, None),
        ("Japanned boxes", JAPAN, BRAZIL, None),
        ("Who bows?", JAPAN, BRAZIL, None),
    ],
)
def test_a_text_is_put_about_another_culture(
    text: str, one: Culture, other: Culture, new: str | None
) -> None:
    assert swap(text, one, other) == new


@given(st.sampled_from([US, UK, JAPAN, BRAZIL]), st.sampled_from([US, UK, JAPAN, BRAZIL]))
def test_no_name_of_the_first_culture_is_left(one: Culture, other: Culture) -> None:
    if one.id == other.id:
        return
    text = f"In {one.name}, {one.demonym or one.name} food, in {' and '.join(one.places) or 'it'}"
    new = swap(text, one, other)
    assert new is not None and swap(new, one, other) is None and other.name in new


@pytest.mark.parametrize(
    ("text", "japan", "brazil"),
    [
        (
            "What do people in Japan and Brazil eat at New Year?",
            "What do people in Japan eat at New Year?",
            "What do people in Brazil eat at New Year?",
        ),
        (
            "Is it common in Japan, or in Brazil?",
            "Is it common in Japan?",
            "Is it common in Brazil?",
        ),
        ("Japanese and Brazilian weddings", "Japanese weddings", "Brazilian weddings"),
        (
            "both in Osaka and in Salvador, who pays?",
            "in Osaka, who pays?",
            "in Salvador, who pays?",
        ),
        (
            "How do gifts differ between Japan and Brazil?",
            "How do gifts differ in Japan?",
            "How do gifts differ in Brazil?",
        ),
        (
            "In Japan I bow. What do I do in Brazil?",
            "In Japan I bow. What do I do in Brazil?\n\nAnswer for Japan.",
            "In Japan I bow. What do I do in Brazil?\n\nAnswer for Brazil.",
        ),
        (
            "sushi at Carnival",
            "sushi at Carnival\n\nAnswer for Japan.",
            "sushi at Carnival\n\nAnswer for Brazil.",
        ),
        (
            "A Japanese Brazilian family",
            "A Japanese Brazilian family\n\nAnswer for Japan.",
            "A Japanese Brazilian family\n\nAnswer for Brazil.",
        ),
    ],
)
def test_a_prompt_of_two_cultures_is_put_about_each(text: str, japan: str, brazil: str) -> None:
    assert focused(text, JAPAN, [BRAZIL]) == japan
    assert focused(text, BRAZIL, [JAPAN]) == brazil


def test_of_three_in_a_list_one_is_left() -> None:
    text = "Do people in the US, Japan or Brazil tip?"
    every = [US, JAPAN, BRAZIL]
    said = [focused(text, c, [o for o in every if o is not c]) for c in every]
    assert said == [
        "Do people in the US tip?",
        "Do people in Japan tip?",
        "Do people in Brazil tip?",
    ]


@given(st.permutations([US, UK, JAPAN, BRAZIL]), st.sampled_from([" and ", " or ", ", ", " vs. "]))
def test_a_list_of_any_cultures_leaves_no_other_name(order: list[Culture], join: str) -> None:
    text = f"What is eaten in {join.join(c.name for c in order)} today?"
    for culture in order:
        others = [o for o in order if o is not culture]
        new = focused(text, culture, others)
        assert culture.name in new and "Answer for" not in new
        assert not any(o.name in new for o in others)
