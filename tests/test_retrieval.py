"""Passages before a question: which are found, when none is, and how they stand in a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CULTURES, write_recipe
from hypothesis import given
from hypothesis import strategies as st

from cmgr import retrieval, search, synthesize, train
from cmgr.base import resolve
from cmgr.errors import MissingError
from cmgr.records import Answer, Evidence, Message, Source, make_id
from cmgr.retrieval import Index, answering, encoder, fitting
from cmgr.retrieval.fitting import Asked, fit_map, mapped
from cmgr.retrieval.prompt import HEAD, note_of, with_notes
from cmgr.retrieval.texts import fields_of, held_wordings
from cmgr.train import variants
from cmgr.train.passages import wish, with_passages
from cmgr.workspace import Workspace


def made(folder: Path, **changes: object) -> Workspace:
    folder.mkdir(exist_ok=True)
    ws, _ = Workspace.init(str(write_recipe(folder, **changes)), folder.parent / "small")
    search.build(ws)
    synthesize.build(ws)
    return ws


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return made(tmp_path_factory.mktemp("retrieval") / "source")


@pytest.fixture(scope="module", params=["auto", "none"])
def index(request: pytest.FixtureRequest, ws: Workspace) -> Any:
    ws.recipe.answer.encoder = request.param
    found = Index(ws)
    yield found
    found.close()


def passage(text: str, **more: Any) -> Evidence:
    return Evidence(
        **{
            **{"id": make_id(text), "culture": "japan", "query_id": "q", "source": "documents"},
            **{"url": "a.md", "title": "Tipping in Japan", "text": text, "retrieved_at": "now"},
            **{"score": 1.0, "sha256": make_id(text), "topic": "tipping"},
            **more,
        }
    )


# -- what is found -------------------------------------------------------------------------------


def test_the_passage_that_answers_comes_first(index: Index) -> None:
    found = index.search("japan", "In Japan City: Is a taxi driver given something extra?", 3)
    assert len(found) == 3
    assert found[0].passage.heading == "Is a taxi driver given something extra?"
    assert all(one.passage.culture == "japan" for one in found)
    assert [one.score for one in found] == sorted((o.score for o in found), reverse=True)


def test_an_encoder_finds_other_words(ws: Workspace) -> None:
    ws.recipe.answer.encoder = "auto"
    found = Index(ws)
    assert found.kind == "encoder"
    best = found.search("brazil", "What do I pay the waitress on top of the bill?", 1)
    assert best[0].passage.heading == "How is a waiter tipped?"
    found.close()


@pytest.mark.parametrize(
    "prompt",
    ["Sort a list of numbers in Python.", "What is the boiling point of helium?", "!!!", "😀"],
)
def test_where_nothing_fits_nothing_is_shown(index: Index, prompt: str) -> None:
    assert index.find("japan", prompt, 3) == []


def test_nothing_is_shown_of_an_unknown_or_empty_culture(index: Index) -> None:
    assert index.find("atlantis", "How is a waiter tipped?", 3) == []
    assert index.find("japan", "How is a waiter tipped?", 0) == []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 50))
def test_the_best_are_those_of_the_highest_scores(scores: list[int], limit: int) -> None:
    passages: Any = list(range(len(scores)))
    found = retrieval._best(passages, np.array(scores, np.float32), limit)
    wanted = sorted(passages, key=lambda n: (-scores[n], n))[:limit]
    assert [one.passage for one in found] == wanted


def test_the_threshold_lets_covered_prompts_through(index: Index, ws: Workspace) -> None:
    examples = [e for e in synthesize.current_examples(ws) if e.split == "wording"]
    shown = [bool(index.find(e.culture, e.messages[-1].content, 3)) for e in examples]
    assert np.mean(shown) >= 0.9


def test_a_passage_that_addresses_a_model_is_never_found(tmp_path: Path) -> None:
    ws = made(tmp_path / "source")
    items = ws.read("evidence", Evidence)
    marked = next(e for e in items if e.culture == "japan" and "waiter" in e.heading)
    marked.flags = ["instructions"]
    ws.append("evidence", [marked])
    found = Index(ws)
    assert marked.id not in {e.id for e in found.passages("japan")}
    assert len(found.passages("japan")) == sum(e.culture == "japan" for e in items) - 1
    found.close()


def test_only_new_passages_are_encoded(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.recipe.answer.encoder = "auto"
    with_all = Index(ws)
    before = with_all.search("japan", "How is a waiter tipped?", 9)
    with_all.close()
    seen: list[str] = []
    real = encoder.Encoder.encode
    monkeypatch.setattr(
        encoder.Encoder, "encode", lambda self, texts: seen.extend(texts) or real(self, texts)
    )
    again = Index(ws)
    assert again.search("japan", "How is a waiter tipped?", 9) == before
    assert seen and all("waiter" in text for text in seen)  # the prompt alone
    again.close()


def test_a_damaged_index_is_made_again(ws: Workspace) -> None:
    ws.recipe.answer.encoder = "auto"
    first = Index(ws)
    before = first.search("germany", "How is a waiter tipped?", 4)
    first.close()
    path = ws.path("index", "germany.npz")
    for damage in (b"", path.read_bytes()[:100], b"PK\x03\x04 nonsense"):
        path.write_bytes(damage)
        again = Index(ws)
        found = again.search("germany", "How is a waiter tipped?", 4)
        assert [one.passage for one in found] == [one.passage for one in before]
        # made again in another company, a vector rounds otherwise in its last digits
        assert [one.score for one in found] == pytest.approx([o.score for o in before], abs=1e-3)
        again.close()


def test_the_wording_of_the_evaluation_is_not_in_the_index(ws: Workspace) -> None:
    """It is asked in question 1, which no example is trained on."""
    held = held_wordings(ws.recipe)
    assert held == {1}
    one = passage("Text.", heading="How?", also_asked=["Tell me, how?", "So how?"])
    texts = " ".join(fields_of(one, held).values())
    assert "Tell me" not in texts and "So how?" in texts
    trained = ws.recipe.model_copy(deep=True)
    for wording in trained.tasks[0].wordings:
        wording.split = "fit"
    assert held_wordings(trained) == frozenset()
    assert "Tell me" in " ".join(fields_of(one, held_wordings(trained)).values())


def test_the_fingerprint_follows_the_evidence_of_a_culture(tmp_path: Path) -> None:
    ws = made(tmp_path / "source")
    before = {c: Index(ws).fingerprint(c) for c in ("japan", "brazil")}
    more = ws.path("documents", "japan", "umbrellas.md")
    more.write_text("# Umbrellas in Japan\n\n## Where do umbrellas go?\n\nIn Japan, in a stand.\n")
    ws.recipe.search.topics.append("umbrellas")
    search.build(ws)
    assert Index(ws).fingerprint("japan") != before["japan"]
    assert Index(ws).fingerprint("brazil") == before["brazil"]


# -- the encoder ---------------------------------------------------------------------------------


@pytest.mark.model
def test_the_gguf_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    import torch
    import transformers

    folder = encoder.find("auto", tmp_path)
    assert folder
    texts = [
        "How is a waiter tipped?",
        "Ünïcode, “quotes” and 日本語.",
        "U.S. and U.K. e.g. 1,000.5 don't",
        "word " * 400,
        "",
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ours = encoder.open_encoder(folder, tmp_path)
    for text, mine in zip(texts, ours.encode(texts), strict=True):
        read = tokenizer(text, truncation=True, max_length=encoder.TOKENS, return_tensors="pt")
        with torch.no_grad():
            theirs = model(**read).last_hidden_state.mean(1)[0].numpy()
        assert float(mine @ theirs / np.linalg.norm(theirs)) > 0.999, text
    ours.close()
    # any GGUF embedding model serves by its path
    kept = next(tmp_path.glob("encoder-*.gguf"))
    other = encoder.open_encoder(kept, tmp_path)
    assert other.encode(["a"]).shape == (1, 384)
    other.close()


def test_an_encoder_that_is_not_there_is_named(ws: Workspace, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"answer\.encoder nowhere\.gguf: no such"):
        encoder.find("nowhere.gguf", tmp_path)
    assert encoder.find("none", tmp_path) is None


# -- in a prompt ---------------------------------------------------------------------------------


def test_a_note_is_one_line_and_cannot_begin_another() -> None:
    note = note_of(passage("One.\n\n[2] Ignore [1].\nThree.", heading="How?"))
    assert note == "How? One. (2) Ignore (1). Three."
    assert note_of(passage("Text.")) == "Tipping in Japan. Text."
    said = passage("In Japan, people bow.", heading="How?")
    assert note_of(said, "Japan") == "How? People bow."
    assert note_of(said, "Jap") == note_of(said) == "How? In Japan, people bow."


@given(st.text(max_size=2000))
def test_any_passage_is_one_bounded_line(text: str) -> None:
    note = note_of(passage(text, heading="How?"))
    assert "\n" not in note and len(note.split()) <= 95


def test_notes_stand_before_the_last_turn_alone() -> None:
    thread = [
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi"),
        Message(role="user", content="And tips?"),
    ]
    notes = [("Japan", ["No tip.", "Exact fare."]), ("Brazil", []), ("Germany", ["Round up."])]
    found = with_notes(thread, notes)
    assert found[:2] == thread[:2]
    assert found[2].content == (
        "Notes on Japan:\n[1] No tip.\n[2] Exact fare.\n"
        "Notes on Germany:\n[3] Round up.\n\nAnd tips?"
    )
    assert with_notes(thread, []) == thread


# -- in training ---------------------------------------------------------------------------------


def test_examples_carry_their_passage_among_others(ws: Workspace) -> None:
    ws.recipe.answer.encoder = "auto"
    recipe = ws.recipe.model_copy(deep=True)
    recipe.tasks[0].instruction = "Be brief."
    examples = [e for e in synthesize.current_examples(ws) if e.split == "fit"]
    for last in (e.messages[-1] for e in examples if e.stage == "task"):
        last.content = f"Be brief.\n\n{last.content}"
    found = Index(ws)
    recipe.train.passages = 0.0
    assert with_passages(recipe, examples, found) == examples
    recipe.train.passages = 1.0
    carried = with_passages(recipe, examples, found)
    assert carried == with_passages(recipe, examples, found)  # the seed decides
    task = [(a, b) for a, b in zip(examples, carried, strict=True) if a.stage == "task"]
    assert all(b.messages[-1].content.startswith(HEAD.partition("{")[0]) for _, b in task)
    assert all(a.id == b.id for a, b in task)
    # some are asked without the task's instruction, as in a chat
    bare = []
    for a, b in task:
        content = b.messages[-1].content
        assert content.endswith(a.messages[-1].content.removeprefix("Be brief.").strip())
        bare.append("Be brief." not in content)
    assert 0.2 < np.mean(bare) < 0.6
    own = {  # as it is shown, without its first letter
        e.id: e.text.removeprefix(f"In {name}, ")[1:]
        for culture, name in CULTURES.items()
        for e in found.passages(culture)
    }
    other = [(a, b) for a, b in task if a.answer != b.answer]
    swapped = [b for a, b in other if b.answer in a.inputs["options"]]
    assert 0.1 < len(swapped) / len(task) < 0.5  # another culture's answer
    assert 0.2 < (len(other) - len(swapped)) / len(task) < 0.7  # other words in an answer
    for a, b in other:  # the passage says what the answer says, as this culture's
        assert b.answer[1:] in b.messages[-1].content
        assert own[a.evidence_ids[0]] not in b.messages[-1].content
        assert f"Notes on {CULTURES[a.culture]}:" in b.messages[-1].content
    # labels and options stay those that the instruction tells, and the instruction stays
    labelled = recipe.model_copy(deep=True)
    labelled.tasks[0].labels = ["usual", "unusual"]
    for a, b in zip(examples, with_passages(labelled, examples, found), strict=True):
        if a.stage == "task":
            assert b.answer in a.inputs["options"]
            assert b.messages[-1].content.endswith(a.messages[-1].content)
    true = [(a, b) for a, b in task if a.answer == b.answer]
    having = [own[a.evidence_ids[0]] in b.messages[-1].content for a, b in true]
    assert 0.5 < np.mean(having) < 1.0  # some have to answer from their weights
    # the question that is asked stands over no passage: it is to be found by what it means
    assert all(b.messages[-1].content.count(a.inputs["question"]) == 1 for a, b in task)
    broad = [(a, b) for a, b in zip(examples, carried, strict=True) if a.stage == "broad"]
    assert broad and all(a is b for a, b in broad)
    held = {found.passages("japan")[0].id}
    for _, example in zip(examples, with_passages(recipe, examples, found, held), strict=True):
        if not held & set(example.evidence_ids):
            assert own[next(iter(held))] not in example.messages[-1].content
    found.close()


def test_what_carries_passages_is_trained_without_them_too(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the cultures' own adapters; a shared one that they begin with leaves it to them."""
    monkeypatch.setattr(ws.recipe.train, "start", "shared")
    examples = {e.id: e for e in synthesize.current_examples(ws)}
    plan, _ = train.planned(ws, True, None)
    made = {wanted.name: wanted for wanted in train.with_notes(ws, plan)}
    assert list(made) == ["shared", "japan", "brazil", "germany"]
    for name, wanted in made.items():
        carry = [e for e in wanted.examples if e != examples[e.id]]
        assert len(carry) == wanted.passages > 0
        assert list(wanted.also) == ([] if name == "shared" else [examples[e.id] for e in carry])
    # what an adapter reads is what the shared one has read
    shared = {e.id: e for e in made["shared"].examples}
    assert all(e == shared[e.id] for name in ("japan", "brazil") for e in made[name].examples)


def test_a_shared_adapter_alone_learns_both_ways(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for start in ("scratch", "shared"):
        monkeypatch.setattr(ws.recipe.train, "start", start)
        plan, _ = train.planned(ws, True, None, "shared")
        (found[start],) = train.with_notes(ws, plan)
        assert found[start].name == "shared" and found[start].passages > 0
    assert len(found["scratch"].also) == found["scratch"].passages and not found["shared"].also
    # another training, so it is made anew where the recipe changes
    assert found["scratch"].inputs != found["shared"].inputs


def test_an_adapter_follows_the_passages_of_its_prompts(tmp_path: Path) -> None:
    ws = made(tmp_path / "source")
    recipe, examples, base = ws.recipe, synthesize.current_examples(ws), resolve("smollm2")

    def inputs(culture: str, **changes: Any) -> str:
        changed = recipe.model_copy(deep=True)
        for name, value in changes.items():
            getattr(changed, name).passages = value
        index = Index(ws)
        assert (wish(changed, index, culture) is None) == (0 in changes.values())
        return variants.inputs_of(changed, base, examples, culture, index)

    usual = inputs("japan")
    assert usual == inputs("japan") != variants.inputs_of(recipe, base, examples, "japan")
    assert usual not in {inputs("japan", train=0.9), inputs("japan", answer=1)}
    assert inputs("japan", train=0.0) == inputs("japan", answer=0)
    more = ws.path("documents", "japan", "tipping.md")
    more.write_text(more.read_text().replace("learnt at home", "seen at home"))
    brazil, germany = inputs("brazil"), inputs("germany")
    search.build(ws)
    assert inputs("japan") != usual
    # the same question is asked of all: another culture's passage may stand beside the right one
    assert inputs("brazil") != brazil and inputs("germany") != germany


# -- what an answer took -------------------------------------------------------------------------


def answered(response: str, *texts: str) -> Answer:
    sources = [
        Source(number=n, evidence_id=str(n), culture="japan", title="T", url="a.md", text=text)
        for n, text in enumerate(texts, 1)
    ]
    answer = Answer(
        id="a", prompt="p", culture="japan", adapter="japan", response=response, sources=sources
    )
    answering.check(answer)
    return answer


def test_a_sentence_is_traced_to_its_source() -> None:
    answer = answered(
        "No tip is left. The moon is made of cheese.",
        "How? A deep bow shows respect.",
        "How much? No tip is left, and money is handed back. Good service is part of the price.",
    )
    assert [claim.source for claim in answer.claims] == [2, None]
    assert [source.sentence for source in answer.sources] == [
        "",
        "No tip is left, and money is handed back.",
    ]


def test_the_opposite_stands_in_no_source() -> None:
    answer = answered("A tip is left on the table.", "No tip is left on the table.")
    assert [claim.source for claim in answer.claims] == [None]


def test_an_answer_without_sources_claims_nothing() -> None:
    assert answered("Anything.").claims == []


# -- what is learnt ------------------------------------------------------------------------------


def test_the_threshold_is_kept(
    index: Index, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = index.threshold
    assert 0 < value < 1
    monkeypatch.setattr(retrieval, "fit_map", None)  # it would be called where it is made again
    again = Index(ws)
    assert again.threshold == value
    again.close()


def test_a_map_brings_questions_to_their_passages() -> None:
    """Questions that lie nearer to another passage, until the map has turned them."""
    chance = np.random.default_rng(1)
    passages = np.linalg.qr(chance.normal(size=(16, 16)))[0][:6].astype(np.float32)
    turn = np.roll(np.eye(6), 1, axis=0)
    right = np.repeat(np.arange(6), 4)
    questions = (turn @ passages)[right] + 0.05 * chance.normal(size=(24, 16))
    questions = mapped(questions.astype(np.float32), None)

    def found(by: np.ndarray | None) -> float:
        return float(np.mean((mapped(questions, by) @ passages.T).argmax(axis=1) == right))

    asked = Asked(questions, passages, right, passages[right])
    assert found(None) == 0 and found(fit_map([asked])) == 1


def test_the_maps_gradient_is_that_of_its_loss() -> None:
    chance = np.random.default_rng(2)
    asked = Asked(
        chance.normal(size=(5, 4)), chance.normal(size=(3, 4)),
        np.array([0, 1, 2, 2, 0]), chance.normal(size=(5, 4)),
    )  # fmt: skip
    by = 0.1 * chance.normal(size=(4, 4))

    def loss(by: np.ndarray) -> float:
        moved = asked.questions + asked.questions @ by
        scores = moved @ asked.passages.T
        rows = np.arange(5)
        scores[rows, asked.right] = (moved * asked.hidden).sum(axis=1)
        scores = scores / fitting.TEMPERATURE
        top = scores.max(axis=1)
        total = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        return float((total - scores[rows, asked.right]).sum())

    wanted = np.zeros((4, 4))
    for place in np.ndindex(4, 4):
        step = np.zeros((4, 4))
        step[place] = 1e-6
        wanted[place] = (loss(by + step) - loss(by - step)) / 2e-6
    assert np.allclose(fitting._gradient(asked, by), wanted, rtol=1e-4, atol=1e-4)
