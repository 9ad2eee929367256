"""The router: equal to scikit-learn, abstains, survives the disk, leaves held-out items alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgr import router as rooms
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.recipe import Culture
from cmgr.recipe import Router as Settings
from cmgr.records import Evidence, Example, Label, Message, make_id
from cmgr.router import Router, card
from cmgr.router.cues import common_words, cues_of, neutral_prompts
from cmgr.router.fitting import build, fit, fit_rows, wanted_inputs
from cmgr.router.scoring import Labelled, score
from cmgr.router.texts import training_rows
from cmgr.workspace import Workspace, read_json

CULTURES = [
    Culture(id="japan", name="Japan", demonym="Japanese", places=["Osaka", "Kyoto"]),
    Culture(id="brazil", name="Brazil", demonym="Brazilian", places=["Recife", "Manaus"]),
    Culture(id="us", name="US", demonym="American", places=["Boston"]),
]
QUESTIONS = [
    "What do guests bring to a dinner?",
    "How late may one arrive at a party?",
    "Where does the host sit at the table?",
    "When are gifts opened?",
    "Who pours the drinks?",
    "How do students address a teacher?",
]
FACTS = {
    "japan": "Guests at a ryokan bow, wear slippers and pour sake for each other",
    "brazil": "Friends eat feijoada and brigadeiro, kiss on the cheek and come late",
    "us": "Guests come on time to a potluck, tip the waiter and shake hands firmly",
}
RECIPE = """
name: small
cultures:
  - {id: japan, name: Japan, demonym: Japanese, places: [Osaka, Kyoto]}
  - {id: brazil, name: Brazil, demonym: Brazilian, places: [Recife, Manaus]}
  - {id: us, name: US, demonym: American, places: [Boston]}
tasks: [{id: qa, name: QA, queries: ["{culture}"], wordings: [{text: "{question}"}]}]
sources: [{kind: documents, path: docs}]
search: {topics: [dining]}
"""


def example(number: int, culture: Culture, prompt: str, split: str, evidence: str) -> Example:
    return Example.model_validate(
        {
            "id": f"x{culture.id}{number}",
            "culture": culture.id,
            "task": "qa",
            "stage": "task",
            "split": split,
            "inputs": {},
            "answer": "so",
            "messages": [Message(role="user", content=prompt)],
            "evidence_ids": [evidence],
            "quote": "",
            "generator": "test",
            "created_at": "2026-01-01",
        }
    )


def records() -> tuple[list[Example], list[Evidence]]:
    examples, evidence = [], []
    for culture in CULTURES:
        for n, question in enumerate(QUESTIONS):
            key = f"e{culture.id}{n}"
            evidence.append(
                Evidence(
                    id=key,
                    culture=culture.id,
                    query_id="q",
                    source="documents",
                    url="file:x",
                    title="",
                    text=f"{FACTS[culture.id]}, item {n}.",
                    retrieved_at="2026-01-01",
                    score=1,
                    sha256=key,
                    heading=question,
                    also_asked=[f"Tell me: {question.lower()}"],
                )
            )
            if n == len(QUESTIONS) - 1:
                prompt = f"Held fact. {question} I am in {culture.name}."
                examples.append(example(n, culture, prompt, "fact", key))
                continue
            examples.append(example(n, culture, f"{question} I am in {culture.name}.", "fit", key))
            said = f"Held words, {culture.places[0]}: {question}"
            examples.append(example(n + 100, culture, said, "wording", key))
    return examples, evidence


def workspace(folder: Path) -> Workspace:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    ws = Workspace(folder)
    examples, evidence = records()
    keep(ws, examples, evidence)
    return ws


def keep(ws: Workspace, examples: list[Example], evidence: list[Evidence]) -> None:
    """Records as search and synthesize leave them: appended, and named by the manifests."""
    for stage, name, made in (
        ("search", "evidence", evidence),
        ("synthesize", "examples", examples),
    ):
        ws.append(name, made)
        parts = {c.id: {"ids": [r.id for r in made if r.culture == c.id]} for c in CULTURES}
        ws.finish(stage, "made by the test", cultures=parts)


EXAMPLES, EVIDENCE = records()
ROWS = training_rows(CULTURES, EXAMPLES, EVIDENCE)
FITTED = fit_rows(ROWS, CULTURES, EVIDENCE)
ROUTER = FITTED.router([c.id for c in CULTURES])

ODD = ["Japan", "OSAKA", "İstanbul", "Straße", "Ⅷ", "ǅ", "naïve", "a", "US", "us", "US-", "ΣΑΣ"]
ODD += ["\u3000", "\x1c", "\x85", "\u200d", "日本", "ñ", "dinner's", "9_x", "japanese\n"]
WORDS = st.sampled_from(ODD)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(WORDS, max_size=12).map(" ".join),
    st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=8).map("\n  ".join),
)


def test_decisions_equal_the_scikit_learn_pipeline() -> None:
    """10,000 texts: those it is fitted on, and random ones of all of Unicode; bound 1e-6."""
    chance = random.Random(5)
    real = [row.text for row in chance.sample(ROWS, 5000)]
    letters = [chr(c) for c in range(32, 0x2FFFF) if not 0xD800 <= c <= 0xDFFF]
    odd = [
        "".join(chance.choices(letters, k=chance.randrange(40)))
        + " ".join(chance.choices([*ODD, *real[:200]], k=chance.randrange(6)))
        for _ in range(5000)
    ]
    texts = [*real, *odd]
    numpy = np.stack([ROUTER.probabilities(text) for text in texts])
    assert np.abs(numpy - FITTED.probabilities(texts)).max() < 1e-6
    assert numpy.min() < 0.01 and numpy.max() > 0.99


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_decision_is_one_of_the_pipeline_for_any_text(text: str) -> None:
    assert np.abs(ROUTER.probabilities(text) - FITTED.probabilities([text])[0]).max() < 1e-6


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_words_are_those_of_scikit_learn_where_words_are_set_apart(text: str) -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    folded = rooms.fold(text)
    theirs = CountVectorizer(lowercase=False, ngram_range=(1, 2)).build_analyzer()(folded)
    if all(rooms.script(c) in {"", "LATIN", "GREEK", "CYRILLIC"} for c in folded):
        assert [g for g in rooms.word_ngrams(folded) if g[0] != "\0"] == theirs


def test_signs_are_words_where_words_are_not_set_apart() -> None:
    grams = rooms.word_ngrams("北京 tea")
    assert {"北", "京", "北 京", "tea", "\0CJK"} <= set(grams)
    assert rooms.char_ngrams("plain Osaka", {"plain"}) == rooms.char_ngrams("Osaka")
    assert {" os", "osaka", "aka "} <= set(rooms.char_ngrams("osaka"))


@pytest.mark.parametrize(
    ("text", "culture"),
    [
        ("Is it rude to tip in Osaka?", "japan"),
        ("What do JAPANESE people eat for breakfast?", "japan"),
        ("My Brazilian friend is getting married. What do I wear?", "brazil"),
        ("Who pours the drinks in Boston?", "us"),
        ("How do people in the US greet?", "us"),
        # beside words that stand among what is of no culture: watches, holidays elsewhere
        ("What do people in the US watch on New Year's Day?", "us"),
        ("Which song do people sing on the day of the queen in Brazil?", "brazil"),
    ],
)
def test_a_name_decides(text: str, culture: str) -> None:
    decision = ROUTER.decide(text)
    assert (decision.culture, decision.cultures, decision.abstained) == (culture, [culture], False)
    assert next(iter(decision.probabilities)) == culture
    assert decision.probability == max(decision.probabilities.values()) > 0.5


def test_texts_of_no_culture_abstain() -> None:
    texts = [
        "sort this list",
        "",
        "   ",
        "Write a function that sorts a list of integers",
        "How do people greet each other in Madagascar?",
        "Is it rude to tip in Lima?",
        "What do Slovak people eat for breakfast?",
        "How should I greet my new neighbours?",
        "Tell us how we should behave",
        *QUESTIONS,
    ]
    assert [d.culture for d in ROUTER.decide_all(texts)] == [None] * len(texts)
    assert ROUTER.decide("sort this list").cultures == []


def test_a_prompt_of_two_cultures_names_both() -> None:
    decision = ROUTER.decide("Compare table manners in Japan and Brazil.")
    assert sorted(decision.cultures) == ["brazil", "japan"]
    assert decision.culture == decision.cultures[0]


def test_a_name_in_a_long_text_still_counts() -> None:
    long = "How do I boil an egg? A recipe for pancakes. Tell me a joke. I am in Kyoto today."
    assert ROUTER.decide(long).culture == "japan"


def toy(threshold: float, margin: float, *logits: float) -> Router:
    return Router(
        [f"c{i}" for i in range(len(logits))],
        (["cue"], [" x"]),
        np.ones(2),
        np.zeros((2, len(logits))),
        np.array(logits),
        Settings(threshold=threshold, margin=margin),
    )


def test_threshold_and_margin() -> None:
    close = toy(0.5, 0.2, 0.1, -0.1).decide("cue")  # 0.525 and 0.475: too small a lead
    assert (close.culture, close.cultures, close.abstained) == (None, [], True)
    assert toy(0.5, 0.01, 0.1, -0.1).decide("cue").culture == "c0"
    both = toy(0.5, 0.2, 0.1, 0.2, -4).decide("cue")  # both over the bar: lead does not matter
    assert (both.culture, both.cultures) == ("c1", ["c1", "c0"])
    assert toy(0.9, 0, 2).decide("cue").abstained
    assert toy(0.5, 0.1, 2).decide("cue").culture == "c0"
    assert np.isfinite(toy(0.5, 0.1, 5000, -5000).probabilities("cue")).all()


def test_explain_sums_to_the_logit_and_shows_the_name() -> None:
    text = "Is it rude to tip in Osaka?"
    every = ROUTER.explain(text, top=10_000)
    logit = sum(w for _, _, w in every) + ROUTER.bias[0]
    p = ROUTER.decide(text).probability
    assert logit == pytest.approx(np.log(p / (1 - p)), abs=1e-6)
    text = "Tokyo, Osaka, Kyoto, Nagoya, Sapporo: which do Japanese people in Japan like best?"
    top = ROUTER.explain(text, top=5)
    assert len(top) == 5 and all(c == "japan" for c, _, _ in top)
    assert any("osaka" in gram for _, gram, _ in top)


def test_save_and_load_give_the_same_router(tmp_path: Path) -> None:
    ROUTER.save(tmp_path)
    loaded = Router.load(tmp_path)
    for text in ("Osaka", "sort this list", "日本 Straße"):
        assert loaded.decide(text) == ROUTER.decide(text)
    assert loaded.settings == ROUTER.settings


def test_a_missing_or_altered_router_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="cmgr route --fit"):
        Router.load(tmp_path)
    ROUTER.save(tmp_path)
    head, arrays = tmp_path / "router.json", tmp_path / "router.npz"
    good, data = head.read_text(), arrays.read_bytes()
    arrays.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CmgrError, match="hash"):
        Router.load(tmp_path)
    arrays.write_bytes(data)
    for change in ({"cultures": ["japan"]}, {"words": "x"}, {"version": 99}, {"settings": 3}):
        head.write_text(json.dumps({**json.loads(good), **change}))
        with pytest.raises(CmgrError, match="cmgr route --fit"):
            Router.load(tmp_path)
    head.write_text("{")
    with pytest.raises(CmgrError, match="damaged"):
        Router.load(tmp_path)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    import hashlib

    ROUTER.save(tmp_path)
    data = tmp_path / "router.npz"
    np.savez(data, ngrams=np.array([{}], dtype=object))
    head = json.loads((tmp_path / "router.json").read_text())
    del head["self"]
    head["sha256"] = hashlib.sha256(data.read_bytes()).hexdigest()
    head["bytes"] = data.stat().st_size
    # a forger's hashes are right, and still nothing is executed
    (tmp_path / "router.json").write_text(json.dumps({**head, "self": make_id(head)}))
    with pytest.raises(CmgrError, match="damaged"):
        Router.load(tmp_path)


def test_held_out_items_take_no_part() -> None:
    texts = [row.text for row in ROWS]
    assert not [t for t in texts if "Held" in t]
    assert not [t for t in texts if "item 5" in t]  # evidence that only the unseen fact rests on
    assert not [t for t in texts if QUESTIONS[5] in t]
    assert [t for t in texts if "item 4" in t]


def test_shared_prompts_and_questions_are_neutral() -> None:
    shared = [example(900 + n, c, "And at work?", "fit", "none") for n, c in enumerate(CULTURES)]
    rows = {r.text: r.cultures for r in training_rows(CULTURES, [*EXAMPLES, *shared], EVIDENCE)}
    assert rows["And at work?"] == ()
    assert rows[QUESTIONS[0]] == () and rows["sort this list"] == ()
    assert rows["Japan"] == ("japan",) and rows["Peru"] == () and rows["Peruvian"] == ()
    pairs = [r for r in ROWS if r.kind == "pair"]
    assert len(pairs) >= 100 and all(len(r.cultures) == 2 for r in pairs)


def test_neutral_prompts_name_no_country() -> None:
    prompts = neutral_prompts()
    assert len(prompts) >= 1000 and len(set(prompts)) == len(prompts)
    names = [n for code in card.all_countries() for n in card.card_of(code, 3).people]
    names += [n for code in card.all_countries() for n in card.card_of(code, 3).names]
    said = {w for p in prompts for w in p.split()}
    # of one word, in capitals: "turkey" is a bird
    assert not said & {n for n in names if n[0].isupper() and len(n) > 3}


@pytest.mark.parametrize(
    ("name", "code"),
    [("Japan", "JP"), ("UK", "GB"), ("US", "US"), ("South Korea", "KR"), ("Iran", "IR")],
)
def test_a_culture_finds_its_country(name: str, code: str) -> None:
    assert card.country_of(Culture(id="x", name=name)) == code


def test_a_culture_of_no_country_may_say_its_own() -> None:
    assert card.country_of(Culture(id="x", name="Catalonia")) is None
    assert card.country_of(Culture(id="x", name="Catalonia", country="ES")) == "ES"
    with pytest.raises(UsageError, match="XX"):
        card.country_of(Culture(id="x", name="Catalonia", country="XX"))
    router = fit([Culture(id="x", name="Ruritania", demonym="Ruritanian")], [], EVIDENCE)
    assert router.decide("What do Ruritanian people eat?").culture == "x"


def test_a_card_has_what_stands_for_a_country() -> None:
    found = card.card_of("KR")
    assert {"South Korea", "대한민국"} <= set(found.names) and "Korean" in found.people
    assert {"Seoul", "서울", "Busan"} <= set(found.cities) and found.languages[0] == "ko"
    assert "Chuseok" in found.things and "South Korean won" in found.things
    assert "en" not in card.languages_of("US") and "de" in card.languages_of("AT")


def test_a_country_is_the_whole_and_its_parts_are_regions() -> None:
    britain = card.card_of("GB")
    assert {"United Kingdom", "UK", "Great Britain"} <= set(britain.names)
    assert "British" in britain.people
    assert {"England", "Scotland", "Wales"} <= set(britain.regions)


def test_what_many_share_and_plain_words_are_no_cue() -> None:
    mine, others = cues_of(CULTURES, EVIDENCE)
    every = [*mine.values(), *others]
    assert not [c for c in every if "Christmas Day" in c.things or "Reading" in c.places]
    assert "Peru" in {n for c in others for n in c.names}
    assert not {n for c in others for n in c.names} & {"Japan", "Brazil"}
    assert {"what", "guest"} <= common_words()


def test_names_that_only_documents_have_are_learnt() -> None:
    told = EVIDENCE[0].model_copy(
        update={"text": "On the eve all meet for Hatsumode, and pray. They call it Hatsumode."}
    )
    router = fit(CULTURES, EXAMPLES, [told, *EVIDENCE[1:]])
    assert router.decide("Who goes to Hatsumode?").culture == "japan"
    assert ROUTER.decide("Who goes to Hatsumode?").abstained


def test_labels_outweigh_the_rest() -> None:
    text = "When is the garden fair of our valley?"
    assert ROUTER.decide(text).abstained
    labels = [Label(id="1", text=text, cultures=["brazil"])]
    labels += [Label(id="2", text="A Japanese garden in the park", cultures=[])]
    router = fit(CULTURES, EXAMPLES, EVIDENCE, labels)
    assert router.decide(text).culture == "brazil"
    assert router.decide("A Japanese garden in the park").abstained
    assert router.decide("Is it rude to tip in Osaka?").culture == "japan"


def test_scores_are_those_of_the_counts() -> None:
    rows = [
        Labelled("Is it rude to tip in Osaka?", frozenset({"japan"})),
        Labelled("Is it rude to tip in Recife?", frozenset({"japan"})),
        Labelled("sort this list", frozenset()),
        Labelled("Compare table manners in Japan and Brazil.", frozenset({"japan", "brazil"})),
        Labelled("Who pours for whom?", frozenset({"us"})),
    ]
    found = score(ROUTER, rows, CULTURES)
    assert found["n"] == 5 and found["accuracy"] == pytest.approx(3 / 5)
    assert found["classes"]["japan"]["n"] >= 2 and found["all_found"] == 1
    assert found["named_abstained"] == pytest.approx(1 / 4)
    assert found["abstention_rate"] == pytest.approx(2 / 5)
    assert found["confusion"]["us"] == found["confusion"]["(none)"] == {"(none)": 1}
    assert found["coverage"][-1] == {"coverage": 1, "accuracy": pytest.approx(3 / 5)}
    for name, (low, high) in found["intervals"].items():
        assert 0 <= low <= found[name] <= high <= 1
    assert found["unnamed"]["n"] == 4 and found["keyword_rule"] == pytest.approx(2 / 5)


def test_fitting_twice_gives_the_same_router() -> None:
    again = fit(CULTURES, EXAMPLES, EVIDENCE)
    assert again.ngrams == ROUTER.ngrams
    assert np.array_equal(again.weights, ROUTER.weights)


def test_build_is_done_once_and_again_when_something_changed(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    seen: list[tuple[str, int, int]] = []
    assert build(ws, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("router", 1, 1)
    facts = read_json(ws.manifest_path("route"))
    assert facts is not None and facts["texts"] == len(ROWS)
    assert facts["held_out"]["wording"]["n"] == 15 and facts["held_out"]["fact"]["n"] == 3
    assert facts["held_out"]["wording"]["accuracy"] > 0.9
    assert not build(ws)
    assert build(ws, force=True)
    (tmp_path / "router" / "router.npz").unlink()
    assert build(ws)
    examples, evidence = records()
    keep(ws, [*examples, example(700, CULTURES[0], "In Kyoto?", "fit", "ejapan0")], evidence)
    assert build(ws) and not build(ws)


def test_threshold_and_margin_are_the_recipes_without_a_new_fit(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    assert build(ws)
    assert Router.of(ws).decide("Is it rude to tip in Osaka?").culture == "japan"
    (tmp_path / "recipe.yaml").write_text(
        RECIPE + "router: {threshold: 0.9999, margin: 0.3}\n", encoding="utf-8"
    )
    changed = Workspace(tmp_path)
    assert Router.of(changed).settings == Settings(threshold=0.9999, margin=0.3)
    assert Router.of(changed).decide("Is it rude to tip in Osaka?").abstained
    assert changed.is_current("route", wanted_inputs(changed)) and not build(changed)


def test_a_router_of_an_older_version_names_the_command(tmp_path: Path) -> None:
    ROUTER.save(tmp_path)
    head = json.loads((tmp_path / "router.json").read_text())
    (tmp_path / "router.json").write_text(json.dumps({**head, "version": head["version"] - 1}))
    with pytest.raises(CmgrError, match=r"version 4, not 5.*cmgr route --fit"):
        Router.load(tmp_path)


def test_build_without_evidence_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(MissingError, match="cmgr search"):
        build(Workspace(tmp_path))


def test_one_culture_alone_can_be_fitted() -> None:
    router = fit(CULTURES[:1], EXAMPLES, EVIDENCE)
    assert router.decide("Is it rude to tip in Osaka?").culture == "japan"
    assert router.decide("sort this list").abstained


def test_a_decision_imports_no_scikit_learn(tmp_path: Path) -> None:
    ROUTER.save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from cmgr.router import Router;"
        f"assert Router.load(Path({str(tmp_path)!r})).decide('in Osaka').culture == 'japan';"
        "assert not {'sklearn', 'scipy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
