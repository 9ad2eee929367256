"""cmgr/sources/documents.py: what is read, what is found, and the quickstart's own documents."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr import recipe as recipes
from cmgr.errors import MissingError
from cmgr.overlap import words
from cmgr.recipe import Culture, Source, Web
from cmgr.records import Query
from cmgr.sources import Place, markdown, ranking
from cmgr.sources import web as net
from cmgr.sources.documents import Searcher
from cmgr.sources.markdown import MAX_WORDS
from cmgr.sources.passages import Passage, first_sentence, mentions, names_of, word_count
from cmgr.tasks import bundled_folder

JAPAN = Culture(id="japan", name="Japan", demonym="Japanese", places=["Osaka"])
BRAZIL = Culture(id="brazil", name="Brazil", demonym="Brazilian", places=["Salvador"])
QUICKSTART = bundled_folder() / "quickstart" / "documents"

GREETINGS = """# Greetings in Japan

## How do people greet?

*Also asked: What is a normal greeting? | How does one
say hello?*

In Japan, people **bow**, see [bowing](https://example.org).
A light handshake is possible.

## How do people greet?

Again.
"""


class Documents:
    """A folder as one culture sees it."""

    def __init__(
        self, folder: Path, culture: Culture = JAPAN, said: list[str] | None = None
    ) -> None:
        say = (said if said is not None else []).append
        cache = folder.parent / "cache"
        place = Place([JAPAN, BRAZIL], folder.parent, cache, net.Web(Web(), cache), say)
        self.searcher = Searcher(Source(kind="documents", path=folder.name), place)
        self.culture = culture.id

    @property
    def passages(self) -> list[Passage]:
        return self.searcher.passages(self.culture)

    @property
    def fingerprint(self) -> str:
        return self.searcher.fingerprint(self.culture)

    def search(self, text: str, limit: int) -> list[Passage]:
        found = self.searcher.search(Query(culture=self.culture, text=text or " "), limit)
        return [r.passage for r in found if r.passage]


def documents(folder: Path, culture: Culture = JAPAN, said: list[str] | None = None) -> Documents:
    return Documents(folder, culture, said)


def test_a_section_becomes_a_passage(tmp_path: Path) -> None:
    (tmp_path / "docs" / "japan").mkdir(parents=True)
    (tmp_path / "docs" / "japan" / "greetings.md").write_text(GREETINGS)
    first, second = documents(tmp_path / "docs").passages
    assert first.title == "Greetings in Japan"
    assert first.heading == second.heading == "How do people greet?"
    assert first.topic == "greetings"
    assert first.also_asked == ("What is a normal greeting?", "How does one say hello?")
    assert first.text == "In Japan, people bow, see bowing. A light handshake is possible."
    assert first.url == "docs/japan/greetings.md#how-do-people-greet"
    assert second.url == "docs/japan/greetings.md#how-do-people-greet-1"


def test_best_match_first_and_no_match_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "food.txt").write_text("In Japan rice is eaten.\n\nIn Japan tea\nis poured.\n")
    found = documents(tmp_path).search("who pours the tea", 5)
    assert [p.text for p in found] == ["In Japan tea is poured."]
    assert found[0].score > 0
    assert found[0].url.endswith("food.txt#p2")
    assert len(documents(tmp_path).search("Japan", 1)) == 1
    assert documents(tmp_path).search("motorcycle", 5) == []
    assert documents(tmp_path).search("", 5) == []
    assert documents(tmp_path).search("the of", 5) == []


def test_subfolders_belong_to_cultures_and_a_flat_folder_is_shared(tmp_path: Path) -> None:
    (tmp_path / "japan").mkdir()
    (tmp_path / "japan" / "a.txt").write_text("Shoes come off.")
    said: list[str] = []
    assert len(documents(tmp_path, said=said).passages) == 1
    assert documents(tmp_path, BRAZIL, said).passages == []
    assert "brazil" in said[0]

    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.txt").write_text("The Japanese bow.\n\nIn Salvador people hug.\n\nNobody is named.")
    assert [p.text for p in documents(flat).passages] == ["The Japanese bow."]
    assert [p.text for p in documents(flat, BRAZIL).passages] == ["In Salvador people hug."]


def test_a_file_that_is_not_utf8_is_skipped_and_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_bytes(b"# Japan\n\xff\xfe\n")
    (tmp_path / "good.txt").write_text("Japan has trains.")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / ".hidden.txt").write_text("Japan hides.")
    said: list[str] = []
    assert len(documents(tmp_path, said=said).passages) == 1
    assert len(said) == 1
    assert "bad.md" in said[0] and "UTF-8" in said[0]


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    assert documents(tmp_path).search("greetings", 3) == []
    with pytest.raises(MissingError, match="nowhere"):
        documents(tmp_path / "nowhere")


def test_the_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Japan one.")
    before = documents(tmp_path).fingerprint
    assert documents(tmp_path).fingerprint == before
    (tmp_path / "a.txt").write_text("Japan two.")
    assert documents(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Bow. Then speak.", "Bow."),
        ("Meet at 7.30 p.m. sharp. Bring wine.", "Meet at 7.30 p.m. sharp."),
        ("Use titles, e.g. Dr. Sato. Always.", "Use titles, e.g. Dr. Sato."),
        ('Say "hello!" Then sit.', 'Say "hello!"'),
        ("お辞儀をします。握手もします。", "お辞儀をします。"),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_names_are_found_as_words() -> None:
    assert mentions("Many Brazilians hug", names_of(BRAZIL)) == "Brazilian"
    assert mentions("Japan's trains", names_of(JAPAN)) == "Japan"
    assert mentions("a japanned box", names_of(JAPAN)) is None


def test_quickstart_documents_keep_their_format(tmp_path: Path) -> None:
    recipe = recipes.load(recipes.find("quickstart"))
    said: list[str] = []
    facts: dict[tuple[str, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    cache = tmp_path / "cache"
    place = Place(recipe.cultures, QUICKSTART, cache, net.Web(Web(), cache), said.append)
    found = Searcher(Source(kind="documents", path="."), place)
    for culture in recipe.cultures:
        for passage in found.passages(culture.id):
            where = (passage.url, passage.heading)
            assert passage.heading and len(passage.also_asked) == 6, where
            assert passage.text.startswith(f"In {culture.name}, "), where
            assert passage.title.endswith(f"in {culture.name}"), where
            key = (passage.topic, passage.heading)
            assert culture.id not in facts[key], where
            facts[key][culture.id] = passage.also_asked
    assert said == []
    topics = {topic.replace(" ", "-") for topic in recipe.search.topics}
    assert {topic for topic, _ in facts} == topics
    for key, also in facts.items():
        assert set(also) == {c.id for c in recipe.cultures}, key
        assert len(set(also.values())) == 1, key
    # the evaluation asks the second other wording: an index that had it too would find it by that
    asked = [[heading, *also["japan"]] for (_, heading), also in facts.items()]
    every = [wording for wordings in asked for wording in wordings]
    assert len(set(every)) == len(every)
    for wordings in asked:
        held = set(words(wordings[2]))
        for number, wording in enumerate(wordings):
            said = set(words(wording))
            assert number == 2 or len(held & said) < 0.5 * len(held | said), (wording, wordings[2])


def pdf(*lines: str) -> bytes:
    """A page of PDF with these lines, as the format's specification has it."""
    shown = " ".join(f"({line}) Tj 0 -14 Td" for line in lines)
    stream = f"BT /F1 12 Tf 72 720 Td {shown} ET".encode()
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data = b"%PDF-1.4\n"
    places = []
    for number, part in enumerate(parts, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 6\n0000000000 65535 f \n" + table
    return data + head + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(data)


HTML = (
    "<html><head><title>Tea in Japan</title></head><body><nav>Home</nav><article><h1>Tea in Japan"
    "</h1><h2>How is it drunk?</h2><p>In Japan green tea comes with every meal, and nobody asks "
    "for it; one drinks from a cup without a handle.</p></article></body></html>"
)


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "tea.html").write_text(HTML)
    (folder / "bath.pdf").write_bytes(pdf("In Japan one washes", "before the bath."))
    rows = '{"country": "Japan", "section": "Trains", "text": "Nobody phones in a train."}\n'
    (folder / "rows.jsonl").write_text(rows + '{"title": "Q", "text": "Japan naps.", "n": 1}\n')
    (folder / "table.csv").write_text('name,content\nShoes,"In Japan, shoes come off."\n')
    with (folder / "table.csv").open("a", encoding="utf-8") as file:
        file.write("Bags,In Japan bags\u2028are kept\x85close.\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (folder / "broken.jsonl").write_text('{"text": "Japan"}\n{"text":\n')
    said: list[str] = []
    found = {p.text: p for p in documents(folder, said=said).passages}
    tea = next(p for text, p in found.items() if "green tea" in text)
    assert (tea.title, tea.heading, tea.topic) == ("Tea in Japan", "How is it drunk?", "tea")
    assert "In Japan one washes before the bath." in found
    train = found["Nobody phones in a train."]
    assert (train.title, train.url) == ("Japan · Trains", "docs/rows.jsonl#L1")
    assert found["Japan naps."].heading == "Q"
    assert found["In Japan, shoes come off."].heading == "Shoes"
    assert "In Japan bags are kept close." in found
    assert len(found) == 6
    assert sorted(line.split("/")[-1].split(":")[0] for line in said) == [
        "broken.jsonl",
        "broken.pdf",
    ]
    assert "line 2" in "".join(said)


def test_only_what_has_changed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Japan one.")
    (folder / "b.txt").write_text("Japan two.")
    assert len(documents(folder).passages) == 2
    read: list[str] = []
    whole = Path.read_bytes

    def reading(path: Path) -> bytes:
        if path.suffix == ".txt":
            read.append(path.name)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    assert len(documents(folder).passages) == 2
    assert read == []
    (folder / "b.txt").write_text("Japan two and more.")
    (folder / "c.txt").write_text("Japan three.")
    (folder / "a.txt").unlink()
    assert {p.text for p in documents(folder).passages} == {"Japan two and more.", "Japan three."}
    assert sorted(read) == ["b.txt", "c.txt"]
    for cache in (tmp_path / "cache").rglob("*.gz"):
        cache.write_bytes(b"damaged")
    assert len(documents(folder).passages) == 2


def test_the_index_is_built_once_and_follows_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Japan has trains.\n\nJapan has tea.")
    built: list[int] = []
    whole = ranking._index

    def building(texts: Sequence[Sequence[str]]) -> object:
        built.append(len(texts))
        return whole(texts)

    monkeypatch.setattr(ranking, "_index", building)
    for _ in range(2):
        found = documents(folder)
        assert [p.text for p in found.search("tea", 3)] == ["Japan has tea."]
        assert found.search("train", 3)[0].text == "Japan has trains."
    assert built == [2]
    (folder / "b.txt").write_text("Japan has noodles.")
    assert documents(folder).search("noodles", 3)[0].text == "Japan has noodles."
    assert built == [2, 3]
    for part in (tmp_path / "cache").rglob("data*.npy"):
        part.write_bytes(b"damaged")
    assert documents(folder).search("noodles", 3)[0].text == "Japan has noodles."
    assert built == [2, 3, 3]


def test_words_are_matched_by_stem_and_by_what_they_speak_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "Muslims in Japan are few.\n\nTrains in Japan are on time.\n\nJapan has noodles."
    )
    found = documents(tmp_path).search("which faiths does Japan have", 3)
    assert found[0].text == "Muslims in Japan are few."
    assert documents(tmp_path).search("a train", 1)[0].text == "Trains in Japan are on time."


def test_scripts_without_spaces_are_searched(tmp_path: Path) -> None:
    (tmp_path / "japan").mkdir()
    (tmp_path / "japan" / "a.txt").write_text(
        "友人には軽い会釈で十分です。\n\n電車の中では電話をしません。\n\nคนไทยไหว้กัน"
    )
    assert documents(tmp_path).search("会釈", 1)[0].text.startswith("友人")
    assert documents(tmp_path).search("電話", 1)[0].text.startswith("電車")
    assert documents(tmp_path).search("ไหว้", 1)[0].text == "คนไทยไหว้กัน"


SENTENCE = "One takes one's shoes off at the door of a house and of many an inn. "


@pytest.mark.parametrize("joint", ["", "\n\n"])
def test_long_sections_are_cut_where_a_sentence_ends(tmp_path: Path, joint: str) -> None:
    text = f"# Shoes in Japan\n\n## When?\n\n{(SENTENCE + joint) * 60}"
    (tmp_path / "a.md").write_text(text)
    found = documents(tmp_path).passages
    assert len(found) > 2
    assert all(word_count(p.text) <= MAX_WORDS and p.text.endswith(".") for p in found)
    assert all(p.heading == "When?" for p in found)
    assert len({p.url for p in found}) == len(found)
    joined = " ".join(" ".join(p.text.split()) for p in found)
    assert joined == " ".join((SENTENCE * 60).split())


@given(st.text(alphabet="ab. \n#", max_size=400))
def test_cutting_loses_no_word(text: str) -> None:
    kept = [word for p in markdown.paragraphs(text, "u", "t") for word in p.text.split()]
    assert kept == text.split()
