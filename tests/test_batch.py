"""Batches on the real SmolLM2: the same answers as one by one, whatever the grouping."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cmgr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmgr import batch as files
from cmgr.base import resolve
from cmgr.conversation import Routes
from cmgr.errors import CmgrError
from cmgr.records import Decision, Message
from cmgr.runtime import Runtime
from cmgr.runtime.batch import Batch, Job, Outcome
from cmgr.runtime.choices import encode_choices
from cmgr.runtime.llama import Context
from cmgr.runtime.text import Writer
from cmgr.workspace import Workspace

PLACES = ["Osaka", "Japan City", "Salvador", "Brazil City", "Hamburg", "Germany City"]
ASKED = ["How is a waiter tipped?", "How do people greet at a first meeting?", "Who pays?"]
PROMPTS = [f"In {place}: {question}" for place in PLACES for question in ASKED]
PAIR = {"japan": "Japan", "brazil": "Brazil"}
CHOICES = ["They bow from the waist.", "They shake hands", "No tip", "Yes"]


@pytest.fixture(scope="module")
def runtime(trained: Path, standard: Path) -> Runtime:
    runtime = Runtime(resolve("smollm2"))
    for culture in ("japan", "brazil"):
        runtime.load_adapter(culture, trained / "adapters" / culture)
        runtime.load_adapter(f"{culture}-all", standard / culture)
    return runtime


def say(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def run(runtime: Runtime, jobs: list[Job], **settings: int) -> list[Outcome]:
    batch = Batch(runtime.model, **settings)
    try:
        found = dict(batch.run(jobs))
    finally:
        batch.close()
    assert sorted(found) == list(range(len(jobs)))
    return [found[number] for number in range(len(jobs))]


SETS: list[dict[str, float]] = [
    {},
    {"japan": 1.0},
    {"brazil": 1.0},
    {"japan-all": 1.0},
    {"japan": 0.6, "brazil": 0.4},
    {"japan": 0.5, "brazil-all": 0.5},
]


@pytest.mark.model
def test_choices_are_weighed_as_one_by_one(runtime: Runtime) -> None:
    """Bound, a token: root mean square 0.1, none above 0.5; the same choice where one leads by 0.5.

    llama.cpp rounds activations to 8 bits: the last bit of a sum, which depends on the shape of a
    batch, decides some of these roundings.
    """
    jobs = [Job(say(p), SETS[i % len(SETS)], CHOICES) for i, p in enumerate(PROMPTS)]
    lengths = [len(runtime.model.tokenize(c, control=False)) for c in CHOICES]
    apart = []
    for job, outcome in zip(jobs, run(runtime, jobs), strict=True):
        alone = np.array(runtime.score(job.messages, CHOICES, job.scales)) * lengths
        assert outcome.choice_logprobs is not None and not outcome.error
        sums = np.array(outcome.choice_logprobs)
        apart.append((sums - alone) / lengths)
        best, second = np.sort(alone)[::-1][:2]
        if best - second > 0.5:
            assert sums.argmax() == alone.argmax()
    assert np.sqrt(np.mean(np.square(apart))) < 0.1 and np.abs(apart).max() < 0.5


@pytest.mark.model
def test_a_line_that_means_two_cultures_is_answered_in_parts_and_kept(
    trained: Path, tmp_path: Path
) -> None:
    ws = Workspace(trained)
    routes = Routes(ws, "auto")
    question = "How do people greet at a first meeting in Japan and Brazil?"
    alone = {c: question.replace("Japan and Brazil", n) for c, n in PAIR.items()}
    lines = [json.dumps({"id": "both", "prompt": question}).encode()]
    lines += [json.dumps({"id": c, "prompt": t, "culture": c}).encode() for c, t in alone.items()]
    lines.append(json.dumps({"id": "pick", "prompt": question, "choices": CHOICES}).encode())
    real = routes.router().decide

    def decide(text: str) -> Decision:  # the router of so few texts is unsure
        found = real(text)
        return found.model_copy(update={"cultures": [*PAIR], "culture": "japan"})

    routes.decide = decide  # type: ignore[method-assign]
    out = tmp_path / "out.jsonl"
    assert files.run(ws, lines, out, routes, max_tokens=8) == (4, 0)
    both, japan, brazil, pick = map(json.loads, out.read_text().splitlines())
    assert both["adapter"] == "japan+brazil" and pick["adapter"] == "japan" and not pick["parts"]
    assert both["response"] == (
        f"In Japan: {both['parts'][0]['response']}\n\nIn Brazil: {both['parts'][1]['response']}"
    )
    for part, one in zip(both["parts"], (japan, brazil), strict=True):
        assert (part["prompt"], part["response"]) == (one["prompt"], one["response"])
    assert both["usage"]["prompt_tokens"] == sum(p["usage"]["prompt_tokens"] for p in both["parts"])
    before = out.read_bytes()
    assert files.run(ws, lines, out, routes, max_tokens=8) == (4, 0)
    assert out.read_bytes() == before  # nothing was made again
    routes.several = "best"
    assert files.run(ws, lines, out, routes, max_tokens=8) == (4, 0)
    assert json.loads(out.read_text().splitlines()[0])["adapter"] == "japan"


@pytest.mark.model
def test_the_first_token_agrees_whatever_the_grouping(runtime: Runtime) -> None:
    """Bound: 90% of first tokens are those of a prompt answered alone; and twice is the same."""
    jobs = [Job(say(p), SETS[i % len(SETS)], max_tokens=1) for i, p in enumerate(PROMPTS)]
    together = run(runtime, jobs)
    assert [o.response for o in run(runtime, jobs)] == [o.response for o in together]
    same = sum(
        o.response == "".join(runtime.generate(j.messages, j.scales, max_tokens=1)).strip()
        for j, o in zip(jobs, together, strict=True)
    )
    assert same >= 0.9 * len(jobs)


@pytest.mark.model
def test_a_prompt_under_several_cultures_is_read_once(runtime: Runtime) -> None:
    jobs = [Job(say(PROMPTS[0]), s, ["Yes", "No"]) for s in ({}, {"japan": 1.0}, {"brazil": 1.0})]
    usage = [o.usage for o in run(runtime, jobs)]
    fresh = [u["prompt_tokens"] - u["cached_tokens"] for u in usage]
    invocation = len(runtime.model.invocation)
    assert sorted(fresh) == [invocation, invocation, usage[0]["prompt_tokens"]]


@pytest.mark.model
def test_a_long_shared_prefix_is_computed_once(runtime: Runtime) -> None:
    system = Message(role="system", content="Answer as people of the place do. " * 12)
    jobs = [Job([system, *say(p)], {}, ["Yes", "No"]) for p in PROMPTS[:6]]
    usage = [o.usage for o in run(runtime, jobs)]
    assert sum(u["cached_tokens"] > 80 for u in usage) == 5


@pytest.mark.model
def test_many_long_answers_in_little_memory(runtime: Runtime) -> None:
    """Where cells are few, answers are written a few at a time; none is lost or cut short."""
    jobs = [Job(say(p), {"japan": 1.0}, max_tokens=60) for p in PROMPTS]
    small = run(runtime, jobs, context=256, cache_mb=6)
    assert all(o.error is None and o.response for o in small)
    assert all(o.usage["completion_tokens"] > 3 for o in small)


@pytest.mark.model
def test_a_prompt_too_long_fails_alone(runtime: Runtime) -> None:
    jobs = [Job(say("word " * 600)), Job(say("Hello"), max_tokens=4)]
    long, fine = run(runtime, jobs, context=256)
    assert long.error and "context holds 256" in long.error
    assert fine.error is None and fine.response


@pytest.mark.model
def test_one_prompt_three_hundred_times_does_not_end_the_process(
    trained: Path, tmp_path: Path
) -> None:
    """Answers filled all sequences of llama.cpp, and choices took the one after them: SIGABRT."""
    line = {"prompt": "Do I tip a waiter?", "choices": ["yes, ten percent", "no, never at all"]}
    lines: list[object] = [{"id": number, **line} for number in range(300)]
    file = write(tmp_path / "in.jsonl", lines)
    done = cmgr("chat", "-w", str(trained), "--base", "--batch", str(file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = answers(done.stdout)
    assert len(found) == 300 and len({str(a["choice_probabilities"]) for a in found}) < 10


@pytest.mark.model
def test_two_families_of_long_prompts_fit(runtime: Runtime) -> None:
    """The second family's room was reckoned with the prefix of the first."""
    systems = [Message(role="system", content="Answer as they do there. " * n) for n in (90, 110)]
    jobs = [
        Job([system, *say(f"{p} ({n})")], {}, ["Yes", "No"])
        for system in systems
        for n in range(3)
        for p in PROMPTS[:6]
    ]
    small = run(runtime, jobs, context=1024, cache_mb=36)
    assert [o.error for o in small] == [None] * len(jobs)


FAMILIES = st.lists(
    st.tuples(
        st.sampled_from([0, 3, 30, 45]),  # the length of what its prompts begin with
        st.integers(1, 6),  # how many prompts
        st.integers(1, 3),  # how often each
        st.sampled_from(SETS),
        st.sampled_from([(), ("Yes", "No"), ("They bow deeply from the waist.", "No", "Ten")]),
        st.integers(1, 20),  # tokens of an answer
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.model
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(FAMILIES, st.sampled_from([4, 8, 12, 20]))
def test_whatever_fits_alone_is_answered(
    runtime: Runtime, families: list[tuple[Any, ...]], cache_mb: int
) -> None:
    jobs = [
        Job([Message(role="system", content="Answer shortly. " * size), *say(p)], s, c, length)
        for number, (size, count, times, s, c, length) in enumerate(families)
        for p in [f"{number}. {PROMPTS[i % len(PROMPTS)]} {i}" for i in range(count)]
        for _ in range(times)
    ]
    for job, outcome in zip(jobs, run(runtime, jobs, context=256, cache_mb=cache_mb), strict=True):
        assert outcome.error is None
        if job.choices:
            assert len(outcome.choice_logprobs or []) == len(job.choices)


@pytest.mark.model
def test_scales_beyond_all_bounds_fail_alone(runtime: Runtime) -> None:
    jobs = [
        Job(say("Hello"), {"japan": 1e300}, max_tokens=4, temperature=1.0),
        Job(say("Hello"), {"japan": 1e300}, ["Yes", "No"]),
        Job(say("Hello"), max_tokens=4),
    ]
    one, two, fine = run(runtime, jobs)
    assert one.error and two.error and "finite" in one.error and one.error == two.error
    assert fine.error is None and fine.response
    with pytest.raises(CmgrError, match="finite"):
        runtime.score(say("Hello"), ["Yes", "No"], {"japan": 1e300})


@pytest.mark.model
def test_a_sequence_that_is_not_there_is_an_error(runtime: Runtime) -> None:
    context = Context(runtime.model, 256, 2)
    try:
        for call in (
            lambda: context.copy(0, 2),
            lambda: context.drop(2),
            lambda: context.decode([(1, 0, 2, True)]),
        ):
            with pytest.raises(CmgrError, match="no sequence 2"):
                call()
    finally:
        context.close()


@pytest.mark.model
def test_a_choice_that_begins_another_is_ended(runtime: Runtime) -> None:
    """ "5" would else always be at least as likely as "50"."""
    five, fifty = encode_choices(runtime.model, ["5", "50"])
    assert five[-1] == fifty[-1] == runtime.model.eot and fifty[:1] == five[:1]
    assert all(runtime.model.eot not in t for t in encode_choices(runtime.model, ["5", "6"]))


@pytest.mark.model
@given(st.lists(st.sampled_from(["a", "b", "ab", "ba"]), min_size=1, max_size=3), st.text("ab"))
def test_stop_texts_end_an_answer_at_their_first_place(
    runtime: Runtime, stop: list[str], text: str
) -> None:
    writer = Writer(runtime.model, 100, stop=stop)
    said = ""
    for letter in text:
        logits = np.zeros(runtime.model.n_vocab, np.float32)
        logits[runtime.model.tokenize(letter, control=False)[0]] = 9
        token, piece = writer.next(logits)
        said += piece
        if token is None:
            break
    said += writer.rest()
    # the first stop text to be complete wins; of those complete at once, the one that began first
    ends = [text.find(s) + len(s) for s in stop if s in text]
    whole = text[: min(ends)] if ends else text
    cut = min((whole.find(s) for s in stop if s in whole), default=len(whole))
    assert said == whole[:cut]


# -- files -------------------------------------------------------------------------------------


def test_lines_that_cannot_be_answered_are_said() -> None:
    lines = [
        b'{"id": 1, "prompt": "x"}',
        b"",
        b"nonsense",
        b'{"prompt": ""}',
        b'{"id": "1", "prompt": "y"}',
        b'{"prompt": "x", "messages": []}',
        b'{"prompt": "x", "choices": ["a", "a"]}',
        b'{"prompt": "x", "max_tokens": "many"}',
        b"[" * 5000,
        b'{"prompt": "z"}',
        b'{"prompt": "z"}',
        b'{"id": "\\ud800", "prompt": "x"}',
    ]
    found = files.parse(lines)
    names = [name for name, _ in found]
    assert len(set(names)) == len(names) == 11 and names[0] == "1"
    said = [line if isinstance(line, str) else "" for _, line in found]
    wanted = [
        "",
        "line 3: not JSON",
        "line 4: the prompt is empty",
        "line 5: the id '1' is there twice",
    ]
    wanted += ["line 6: ", "line 7: choices", "line 8: max_tokens", "line 9: ", "", "", "line 12: "]
    assert all(s.startswith(w) and bool(s) == bool(w) for s, w in zip(said, wanted, strict=True))
    assert [name for name, _ in files.parse(lines)] == names


IDS = st.one_of(
    st.none(), st.integers(1, 2), st.sampled_from(["a", "a-2", "a-2-2", "a-3", "1", "1-2"])
)


@given(st.lists(st.tuples(IDS, st.sampled_from(["x", "y", ""])), max_size=12))
def test_every_line_has_an_id_of_its_own(lines: list[tuple[str | int | None, str]]) -> None:
    """Also where lines bear ids that are made for others: the first to bear an id keeps it."""
    made = [name for name, _ in files.parse([b'{"prompt": "x"}'] * 2)]
    whole = [{"prompt": text} | ({} if i is None else {"id": i}) for i, text in lines]
    whole += [{"id": name, "prompt": "x"} for name in made]
    raw = [json.dumps(line).encode() for line in whole]
    names = [name for name, _ in files.parse(raw)]
    assert len(set(names)) == len(names) == len(whole)
    given = [str(line["id"]) if "id" in line else None for line in whole]
    for number, name in enumerate(given):
        if name is not None and name not in given[:number]:
            assert names[number] == name
    assert [name for name, _ in files.parse(raw)] == names


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def answers(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.model
def test_a_file_is_answered_in_order_and_completed_by_id(trained: Path, tmp_path: Path) -> None:
    lines: list[object] = [
        {"id": "r", "prompt": "How do people greet in Japan?", "max_tokens": 6},
        {"id": "b", "prompt": "How do people greet?", "culture": None, "max_tokens": 6},
        {"id": "c", "prompt": "Who pays in Brazil?", "choices": ["the host", "nobody"]},
        {"id": "p", "prompt": "x", "culture": "peru"},
        {"id": "l", "prompt": "word " * 3000},
        {"id": "m", "messages": [{"role": "user", "content": "Tip?"}], "blend": {"japan": 0.5}},
    ]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    words = ("chat", "--batch", str(source), "--max-tokens", "6")
    done = cmgr(*words, "-o", str(out), cwd=trained)
    assert done.returncode == 4 and "2 of 6 lines failed" in done.stderr and not done.stdout
    first = answers(out.read_text())
    assert [a["id"] for a in first] == ["r", "b", "c", "p", "l", "m"]
    by = {a["id"]: a for a in first}
    assert by["r"]["culture"] == "japan" and by["b"]["adapter"] is None
    assert by["c"]["choice"] in {"the host", "nobody"}
    shares = by["c"]["choice_probabilities"]
    assert isinstance(shares, dict) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert "peru" in str(by["p"]["error"]) and "context" in str(by["l"]["error"])
    assert by["m"]["adapter"] == "japan=0.5"
    # one answer is lost, one line cut off, one line new: these alone are made
    kept = [json.dumps({**a, "mark": 1}) for a in first if a["id"] not in {"b", "p", "l"}]
    out.write_text("\n".join(kept) + '\n{"id": "b", "pro', encoding="utf-8")
    write(source, [*lines[:3], lines[5], {"id": "n", "prompt": "Hi"}])
    done = cmgr(*words, "-o", str(out), cwd=trained)
    assert done.returncode == 0 and "3 answers are there, 2 to go" in done.stderr
    again = answers(out.read_text())
    assert [a["id"] for a in again] == ["r", "b", "c", "m", "n"]
    assert [a["id"] for a in again if a.get("mark")] == ["r", "c", "m"]
    # another wish: what the router decided before is asked anew, what a line fixes stays
    done = cmgr(*words, "-o", str(out), "--base", cwd=trained)
    assert done.returncode == 0 and "2 answers are there, 3 to go" in done.stderr
    assert {a["adapter"] for a in answers(out.read_text())} == {None, "japan=0.5"}
    piped = cmgr(*words[:1], "--batch", "-", "--base", cwd=trained, stdin=source.read_text())
    assert [a["id"] for a in answers(piped.stdout)] == ["r", "b", "c", "m", "n"]


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Iterator[tuple[Workspace, list[str]]]:
    """A copy of the trained workspace, and what it says."""
    said: list[str] = []
    yield Workspace(Path(shutil.copytree(trained, tmp_path / "ws")), said.append), said


def kept_ids(
    ws: Workspace, lines: list[dict[str, object]], out: Path, mode: str = "auto", **settings: float
) -> set[str]:
    """Answer the lines; the ids of those whose answers were kept (which bear a mark)."""
    raw = [json.dumps(line).encode() for line in lines]
    files.run(ws, raw, out, Routes(ws, mode), **{"max_tokens": 4, **settings})  # type: ignore[arg-type] # floats that are whole
    found = answers(out.read_text())
    assert [a["id"] for a in found][: len(lines)] == [line["id"] for line in lines]
    write(out, [{**answer, "mark": 1} for answer in found])
    return {str(a["id"]) for a in found[: len(lines)] if a.get("mark")}


PLAIN: dict[str, object] = {"prompt": "How do people greet in Japan?"}
THREAD: dict[str, object] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How do people greet in Japan?"},
    ]
}


def turns(number: int, content: str) -> dict[str, object]:
    changed = json.loads(json.dumps(THREAD))
    changed["messages"][number]["content"] = content
    return changed  # type: ignore[no-any-return] # of json


CHANGES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "same": (PLAIN, PLAIN),
    "same thread": (THREAD, THREAD),
    "same length, named": (PLAIN, {**PLAIN, "max_tokens": 4}),
    "same, seed of no use": (PLAIN, {**PLAIN, "seed": 7}),
    "same choices": ({**PLAIN, "choices": ["a", "b"]}, {**PLAIN, "choices": ["a", "b"]}),
    "same, length of no use": (
        {**PLAIN, "choices": ["a", "b"]},
        {**PLAIN, "choices": ["a", "b"], "max_tokens": 9, "temperature": 1.0},
    ),
    "prompt": (PLAIN, {"prompt": "How do people greet in  Japan?"}),
    "system": (THREAD, turns(0, "Be long.")),
    "earlier turn": (THREAD, turns(1, "Good day")),
    "earlier answer": (THREAD, turns(2, "Yes?")),
    "no earlier turns": (THREAD, PLAIN),
    "temperature": (PLAIN, {**PLAIN, "temperature": 0.7}),
    "seed": ({**PLAIN, "temperature": 0.7}, {**PLAIN, "temperature": 0.7, "seed": 7}),
    "longer": (PLAIN, {**PLAIN, "max_tokens": 5}),
    "stop": (PLAIN, {**PLAIN, "stop": ["xyz"]}),
    "choices": ({**PLAIN, "choices": ["a", "b"]}, {**PLAIN, "choices": ["a", "c"]}),
    "culture": ({**PLAIN, "culture": "japan"}, {**PLAIN, "culture": "brazil"}),
    "scale": ({**PLAIN, "blend": {"japan": 0.6}}, {**PLAIN, "blend": {"japan": 0.5}}),
    "blend": ({**PLAIN, "blend": {"japan": 0.6}}, {**PLAIN, "culture": "japan"}),
}


@pytest.mark.model
def test_an_answer_is_kept_only_where_all_that_decides_it_is_the_same(
    own: tuple[Workspace, list[str]], tmp_path: Path
) -> None:
    ws, said = own
    out = tmp_path / "out.jsonl"
    first = [{"id": name, **line} for name, (line, _) in CHANGES.items()]
    then = [{"id": name, **line} for name, (_, line) in CHANGES.items()]
    assert kept_ids(ws, first, out) == set() and not said
    same = {name for name in CHANGES if name.startswith("same")}
    assert kept_ids(ws, then, out) == same
    assert "6 answers are there, 13 to go" in said[-1]
    assert "13 of these have other settings now" in said[-1]
    # of the command: the length and the temperature of lines that name none
    plain = [{"id": name, **CHANGES[name][1]} for name in ("same", "same choices", "longer")]
    assert kept_ids(ws, plain, out) == {"same", "same choices", "longer"}
    assert kept_ids(ws, plain, out, max_tokens=6) == {"same choices", "longer"}
    assert kept_ids(ws, plain, out, max_tokens=6, temperature=0.7) == {"same choices"}


@pytest.mark.model
def test_answers_rest_on_passages_and_follow_the_evidence(
    own: tuple[Workspace, list[str]], tmp_path: Path
) -> None:
    ws, _ = own
    out = tmp_path / "out.jsonl"
    lines: list[dict[str, object]] = [
        {"id": "japan", "prompt": "How is a waiter tipped in Japan?"},
        {"id": "choice", "prompt": "How is a waiter tipped in Brazil?", "choices": ["a", "b"]},
        {"id": "base", "prompt": "How is a waiter tipped?", "culture": None},
    ]
    assert kept_ids(ws, lines, out) == set() and kept_ids(ws, lines, out) == set(ids(lines))
    by = {a["id"]: a for a in answers(out.read_text())}
    assert [s["number"] for s in by["japan"]["sources"]] == [1, 2, 3]  # type: ignore[attr-defined] # a list
    assert by["choice"]["sources"] and not by["base"]["sources"]
    assert kept_ids(ws, lines, out, passages=3) == set(ids(lines))
    assert kept_ids(ws, lines, out, passages=0) == {"base"}
    # another text of the passage is another prompt
    path = ws.path("evidence.jsonl")
    text = path.read_text()
    assert "leave no tip at all" in text
    path.write_text(text.replace("leave no tip at all", "leave a very large tip"))
    assert kept_ids(ws, lines, out) == {"base"}
    ws.recipe.base.context = 256  # passages that do not fit are left out, and this is remembered
    long = [{"id": "long", "prompt": "How is a waiter tipped in Japan? " + "Say more. " * 55}]
    assert kept_ids(ws, long, out) == set() and kept_ids(ws, long, out) == {"long"}
    (found,) = [a for a in answers(out.read_text()) if a["id"] == "long"]
    assert len(found["sources"]) < 3 and not found["error"]  # type: ignore[arg-type] # a list


def ids(lines: list[dict[str, object]]) -> list[str]:
    return [str(line["id"]) for line in lines]


@pytest.mark.model
def test_another_adapter_or_router_makes_another_answer(
    own: tuple[Workspace, list[str]], tmp_path: Path
) -> None:
    ws, said = own
    out = tmp_path / "out.jsonl"
    lines: list[dict[str, object]] = [
        {"id": "japan", "prompt": "How do people greet in Japan?"},
        {"id": "brazil", "prompt": "How do people greet in Brazil?"},
        {"id": "base", "prompt": "How do people greet?", "culture": None},
    ]
    kept_ids(ws, lines, out)
    # trained again
    shutil.copy(ws.path("adapters", "brazil", "adapter.gguf"), ws.path("adapters", "japan"))
    assert kept_ids(ws, lines, out) == {"brazil", "base"}
    # gone: the router's choice falls to the base
    shutil.rmtree(ws.path("adapters", "brazil"))
    assert kept_ids(ws, lines, out) == {"japan", "base"}
    by = {a["id"]: a for a in answers(out.read_text())}
    assert by["brazil"]["adapter"] is None and by["brazil"]["response"]
    # a kept answer bears what the router says now
    write(out, [{**a, "probability": 0.1} for a in by.values()])
    assert kept_ids(ws, lines, out) == {"japan", "brazil", "base"}
    assert all(a["probability"] != 0.1 for a in answers(out.read_text()) if a["id"] != "base")
    # of a version that noted no settings
    write(
        out, [{k: v for k, v in a.items() if k not in {"made_from", "mark"}} for a in by.values()]
    )
    assert kept_ids(ws, lines, out) == set()
    assert "3 of these were answered by a version that noted no settings" in said[-1]


@pytest.mark.model
def test_a_larger_context_answers_again_what_the_smaller_one_cut(
    own: tuple[Workspace, list[str]], tmp_path: Path
) -> None:
    ws, _ = own
    out = tmp_path / "out.jsonl"
    lines: list[dict[str, object]] = [
        {"id": "cut", "prompt": "Write a long story. " + "tea " * 200, "max_tokens": 60},
        {"id": "whole", "prompt": "Hello", "max_tokens": 6},
        {"id": "too long", "prompt": "tea " * 400, "max_tokens": 6},
    ]
    ws.recipe.base.context = 256
    kept_ids(ws, lines, out, "base")
    by = {str(a["id"]): a for a in answers(out.read_text())}
    assert by["too long"]["error"] and not by["cut"]["error"]
    assert kept_ids(ws, lines, out, "base") == {"cut", "whole"}
    ws.recipe.base.context = 512
    assert kept_ids(ws, lines, out, "base") == {"whole"}
    assert not any(a["error"] for a in answers(out.read_text()))


@pytest.mark.model
def test_a_killed_batch_keeps_what_is_finished(trained: Path, tmp_path: Path) -> None:
    count = 200
    lines: list[object] = [
        {"id": i, "prompt": f"How do people greet in Japan, case {i}?"} for i in range(count)
    ]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    words = ["chat", "--batch", str(source), "-o", str(out), "--max-tokens", "8"]
    code = "from cmgr.cli.app import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=trained)
    until = time.monotonic() + 120
    while time.monotonic() < until and (not out.exists() or out.read_bytes().count(b"\n") < 20):
        time.sleep(0.02)
    process.kill()
    process.wait()
    whole = [line for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert 20 <= len(whole) < count
    done = cmgr(*words, cwd=trained)
    assert done.returncode == 0 and f"{len(whole)} answers are there" in done.stderr
    assert [a["id"] for a in answers(out.read_text())] == [str(i) for i in range(count)]
    assert set(whole) <= set(out.read_text().splitlines(keepends=True))
