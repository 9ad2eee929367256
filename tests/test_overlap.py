"""cmgr/overlap.py: near-duplicates are found whole, evaluation items wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr.errors import MissingError, UsageError
from cmgr.overlap import Excluded, NearDuplicates, shingles, words

TEXT = "People bow when they meet, and the depth of a bow follows from rank and occasion."
LATIN = st.text(alphabet="abcdefg ", min_size=1, max_size=60)


def test_words_are_folded_and_signs_count_alone() -> None:
    assert words("Ｂow, and GREET—don't!") == ["bow", "and", "greet", "don", "t"]
    assert words("お辞儀 bow 한국에서") == ["お", "辞", "儀", "bow", "한국에서"]


def test_near_copies_are_found() -> None:
    near: NearDuplicates[str] = NearDuplicates()
    near.add("a", TEXT)
    near.add("b", "Something else entirely stands here, of shoes and slippers at the door.")
    assert near.of(TEXT) == ["a"]
    assert near.of(TEXT.replace("occasion", "age")) == ["a"]
    assert near.of("People bow when they meet, and the depth of a bow") == ["a"]  # held in it
    assert near.of(TEXT + " " + "And a long text follows it, which says much more. " * 3) == []
    assert near.of("People shake hands and kiss.") == []


@given(st.lists(LATIN, max_size=6), LATIN)
def test_near_is_jaccard_or_held(texts: list[str], text: str) -> None:
    near: NearDuplicates[int] = NearDuplicates()  # two keys stand for several texts each
    for number, other in enumerate(texts):
        near.add(number % 2, other)
    mine = shingles(text)
    expected = set()
    for number, other in enumerate(texts):
        theirs = shingles(other)
        common = len(mine & theirs)
        if common and (common >= 0.7 * len(mine | theirs) or common >= 0.9 * len(mine)):
            expected.add(number % 2)
    assert set(near.of(text)) == expected


@given(LATIN, LATIN, LATIN)
def test_an_item_is_found_wherever_it_stands(before: str, item: str, after: str) -> None:
    excluded = Excluded([item])
    assert excluded.holds(f"{before} | {item} | {after}") == (len(words(item)) >= 5)


def test_short_strings_say_nothing_and_long_ones_in_part() -> None:
    excluded = Excluded(["yes", "in the north", "What do people do when they first meet a guest?"])
    assert not excluded.holds("yes, in the north people bow")
    assert excluded.holds("we asked what do people do when they first meet, and why")
    assert not excluded.holds("what do people do at home")
    assert not Excluded([])
    assert Excluded(["日本人は初対面の人に何をしますか"]).holds(
        "問い：日本人は初対面の人に何をしますか？"
    )


def test_files_of_items(tmp_path: Path) -> None:
    lines = tmp_path / "e.jsonl"
    lines.write_text('{"q": {"deep": ["one two three four five"]}, "n": 3}\n\n')
    assert Excluded.read([lines]).holds("zero one two three four five six")
    lines.write_text('{"q": "fine"}\n{broken\n')
    with pytest.raises(UsageError, match=r"e\.jsonl:2"):
        Excluded.read([lines])
    with pytest.raises(MissingError, match="nowhere"):
        Excluded.read([tmp_path / "nowhere.csv"])
    lines.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        Excluded.read([lines])
