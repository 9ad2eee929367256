"""cmgr/overlap.py: near-duplicates are found whole, evaluation items wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr import overlap
from cmgr.errors import MissingError, UsageError
from cmgr.overlap import HELD, Excluded, NearDuplicates, shingles, words

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


def near_by_hand(texts: list[str], text: str, near: float, size: int) -> set[int]:
    """What is near a text, each pair compared."""
    mine, found = shingles(text, size), set()
    for number, other in enumerate(texts):
        theirs = shingles(other, size)
        common = len(mine & theirs)
        if common and (common >= near * len(mine | theirs) or common >= HELD * len(mine)):
            found.add(number)
    return found


@pytest.mark.parametrize(("near", "size"), [(0.65, 2), (0.7, 4)])
@pytest.mark.parametrize("known", [12, 60, 2000])
@pytest.mark.parametrize("longest", [8, 40, 300])
def test_what_is_found_is_what_each_pair_compared_gives(
    near: float, size: int, known: int, longest: int
) -> None:
    """Of texts with a frame, of all lengths, in few words or many, that repeat or hold others."""
    random = Random(f"{size} {known} {longest}")
    lexicon = [f"w{n}" for n in range(known)]
    frames = ["in south korea people usually", "when one visits a home there", ""]
    texts: list[str] = []
    pairs = 0
    index: NearDuplicates[int] = NearDuplicates(near, size)
    for number in range(250 if longest < 100 else 60):
        some = random.choices(lexicon, k=random.randint(1, longest))
        if texts and random.random() < 0.5:  # of one before: some words changed, or a part of it
            some = random.choice(texts).split()
            for _ in range(random.randint(0, max(1, len(some) // 8))):
                some[random.randrange(len(some))] = random.choice(lexicon)
            start = random.randint(0, len(some) // 4)
            some = some[start : len(some) - random.randint(0, len(some) // 4)]
        text = f"{random.choice(frames)} {' '.join(some)}"
        found = index.of(text)
        assert set(found) == near_by_hand(texts, text, near, size) and len(found) == len(set(found))
        pairs += len(found)
        index.add(number, text)
        texts.append(text)
    assert pairs > 5


def test_a_frame_that_all_share_makes_no_two_texts_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the work grows with the square of the texts."""
    looked = 0
    plain = overlap._OfOneSize.with_some

    def counted(self: Any, rarest: Any, needed: int) -> Any:
        nonlocal looked
        found = plain(self, rarest, needed)
        looked += len(list(found))
        return found

    monkeypatch.setattr(overlap._OfOneSize, "with_some", counted)
    random = Random(1)
    lexicon = [f"w{n}" for n in range(2000)]
    index: NearDuplicates[int] = NearDuplicates(0.65, 2)
    for frame, tail in (
        ("In South Korea, people usually", 6),
        ("In the east of Asia all would", 4),
    ):
        for number in range(2000):
            text = f"{frame} {' '.join(random.choices(lexicon, k=tail))}."
            assert not index.of(text)
            index.add(number, text)
    assert looked < 400  # of 8 million pairs


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
    parted = "one two three\u2028four five\x85six seven eight"
    for text in (
        json.dumps({"q": parted}, ensure_ascii=False) + "\n" + json.dumps({"q": "fine"}),
        json.dumps([{"q": parted}, {"q": "fine"}], ensure_ascii=False, indent=2),
        json.dumps({"items": [parted]}, indent=1),
    ):
        for name in ("e.json", "e.jsonl"):
            (tmp_path / name).write_text(text, encoding="utf-8")
            assert Excluded.read([tmp_path / name]).holds(
                "zero one two three four five six seven eight"
            )
    whole = tmp_path / "e.json"
    whole.write_text('[\n  {"q": "fine"},\n  {broken\n]\n')
    with pytest.raises(UsageError, match=r"e\.json:3"):
        Excluded.read([whole])
    for name, text in (("e.txt", f"{parted}\n"), ("e.csv", f'1,"{parted}\nand nine ten"\n')):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert Excluded.read([tmp_path / name]).holds(
            "two three four five six seven eight and one"
        ) is (name == "e.csv")
        assert Excluded.read([tmp_path / name]).holds("one two three four five six seven eight")
    with pytest.raises(MissingError, match="nowhere"):
        Excluded.read([tmp_path / "nowhere.csv"])
    lines.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        Excluded.read([lines])
