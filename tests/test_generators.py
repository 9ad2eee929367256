"""cmgr/generators: every call has one outcome, is paid for once, and stops where money ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CULTURES, cmgr, write_recipe
from hypothesis import given
from hypothesis import strategies as st
from model_server import FAULTS, ModelServer, write_examples
from pytest_httpserver import HTTPServer
from werkzeug import Response

from cmgr import search, synthesize
from cmgr.base import resolve
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.generators import openai_compatible
from cmgr.generators.calls import Budget, Calls, price_of, tokens_of
from cmgr.generators.openai_compatible import Level
from cmgr.generators.writing import Request
from cmgr.llm import Completion, repair
from cmgr.recipe import Generator, Price
from cmgr.records import Example, Message, Record
from cmgr.train import variants
from cmgr.workspace import Workspace, read_json

NO_PRICE = Price(input=0, output=0)


def generator(server: ModelServer, **changes: Any) -> Generator:
    quick = {"kind": "openai_compatible", "model": "m", "timeout": 1, "backoff": 0.01}
    return Generator.model_validate({**quick, "base_url": server.url, **changes})


def request(number: int) -> Request:
    message = Message(role="user", content=f"Passage 1 (Japan):\nIn Japan, people bow {number}.")
    return Request(
        f"{number:016x}", "task", "japan", "", "t", "en", (), (message,), {"type": "object"}, 100
    )


class Outcomes:
    """What `write` told, per request."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []

    def __call__(self, request: Request, reason: str | None) -> None:
        self.told.append((request.key, reason))


def plain(_: dict[str, Any]) -> str:
    return '{"examples": []}'


def test_a_thousand_calls_with_faults_have_a_thousand_outcomes(tmp_path: Path) -> None:
    def plan(number: int) -> str | None:
        return FAULTS[(number // 5) % len(FAULTS)] if number % 5 == 0 else None

    with ModelServer(plan, plain) as server:
        calls, done = Calls(tmp_path), Outcomes()
        requests = [request(n) for n in range(1000)]
        budget = Budget(NO_PRICE)
        failed = openai_compatible.write(generator(server), requests, calls, budget, done)
        assert Counter(key for key, _ in done.told) == Counter(r.key for r in requests)
        assert all(server.met[fault] > 20 for fault in FAULTS)
        assert failed.total() < 5  # five more tries each: one in 5^6 fails for good
        assert all(
            (calls.get(r) is not None) == (reason is None)
            for r, reason in zip(
                sorted(requests, key=lambda r: r.key),
                [t[1] for t in sorted(done.told)],
                strict=True,
            )
        )
        assert server.answered == 1000 - failed.total()  # none was paid for twice
        before = len(server.asked)
        missing = [r for r in requests if calls.get(r) is None]
        openai_compatible.write(generator(server), missing, calls, budget, done)
        assert len(server.asked) - before >= len(missing)


@pytest.mark.parametrize(("fault", "told"), [("key", "refuses the key"), ("model", "no model 'm'")])
def test_a_bad_key_or_model_stops_at_once(tmp_path: Path, fault: str, told: str) -> None:
    with ModelServer(lambda _: fault) as server:
        with pytest.raises(MissingError, match=told) as caught:
            openai_compatible.write(
                generator(server),
                [request(n) for n in range(200)],
                Calls(tmp_path),
                Budget(NO_PRICE),
                Outcomes(),
            )
        assert caught.value.exit_code == 3
        assert len(server.asked) <= 8


def test_what_a_server_does_not_mend_is_told_and_not_kept(tmp_path: Path) -> None:
    with ModelServer(lambda _: "broken") as server:
        calls, done = Calls(tmp_path), Outcomes()
        settings = generator(server, retries=2)
        failed = openai_compatible.write(settings, [request(1)], calls, Budget(NO_PRICE), done)
        assert failed == {"status 500": 1}
        assert len(server.asked) == 3
        assert calls.get(request(1)) is None


def test_as_many_at_once_as_the_server_takes(tmp_path: Path) -> None:
    with ModelServer(answer=plain, latency=0.1, at_once=16) as server:
        calls, done = Calls(tmp_path), Outcomes()
        requests = [request(n) for n in range(300)]
        budget = Budget(NO_PRICE)
        failed = openai_compatible.write(
            generator(server, timeout=10), requests, calls, budget, done
        )
        assert not failed
        assert len(done.told) == server.answered == 300
        assert server.met["limited"] < 200
        assert budget.calls == 300


def test_the_level_rises_and_halves() -> None:
    level = Level(64)
    for _ in range(100):
        level.answered()
    assert level.now == 64
    level.limited(32, 0)
    assert level.now == 32
    level.limited(31, 0)  # of the same crowd: not halved again, but no more than it holds
    assert level.now == 31
    time.sleep(0.25)
    level.limited(30, 0)
    assert level.now == 15.5
    for _ in range(20):
        level.answered()
    assert 29 < level.now < 31


def test_a_pause_that_the_server_asks_for_is_kept(tmp_path: Path) -> None:
    with ModelServer(lambda n: "limited" if n == 0 else None, plain) as server:
        server_wait = Level(8)
        server_wait.limited(1, 0.5)
        assert server_wait.paused_until > time.monotonic() + 0.4
        done = Outcomes()
        openai_compatible.write(
            generator(server), [request(1)], Calls(tmp_path), Budget(NO_PRICE), done
        )
        assert done.told == [(request(1).key, None)]


# -- money ----------------------------------------------------------------------------------------


def test_prices() -> None:
    assert price_of(Generator(kind="openai_compatible")) == Price(input=2.5, output=10)
    dated = Generator(kind="openai_compatible", model="gpt-4o-mini-2024-07-18")
    assert price_of(dated) == Price(input=0.15, output=0.6)
    assert price_of(Generator(kind="openai_compatible", model="gpt-99")) is None
    local = Generator(kind="openai_compatible", model="x", base_url="http://localhost:1/v1")
    assert price_of(local) == price_of(Generator(kind="llama")) == NO_PRICE
    own = Generator(kind="openai_compatible", model="gpt-99", price=Price(input=1, output=2))
    assert price_of(own) == Price(input=1, output=2)
    with pytest.raises(UsageError, match=r"generator\.price"):
        Budget(None, max_cost=1.0)


@given(st.floats(0, 0.01), st.integers(0, 40), st.lists(st.integers(1, 400), max_size=60))
def test_no_bound_is_ever_exceeded(max_cost: float, max_calls: int, answers: list[int]) -> None:
    budget = Budget(Price(input=2.5, output=10), max_cost, max_calls)
    under_way: list[Request] = []
    for number, tokens in enumerate(answers):
        one = request(number)
        if budget.begin(one):
            under_way.append(one)
        if len(under_way) > 3:
            first = under_way.pop(0)
            budget.end(first, Completion("x", 20, min(tokens, first.tokens)))
    for one in under_way:
        budget.end(one, Completion("x", 20, one.tokens))
    assert budget.cost <= max_cost + 1e-12
    assert budget.calls <= max_calls


MONEY = st.lists(
    st.tuples(
        st.sampled_from(["begin", "answer", "fail", "collect", "stray"]),
        st.integers(0, 5),
        st.integers(1, 400),
    ),
    max_size=80,
)


@given(st.floats(0, 0.01), MONEY)
def test_in_any_order_the_bound_holds_for_what_is_begun(
    max_cost: float, acts: list[tuple[str, int, int]]
) -> None:
    """What an earlier process began counts, but sets nothing free that this one has set aside."""
    budget = Budget(Price(input=2.5, output=10), max_cost)
    under_way: list[Request] = []
    begun = collected = 0.0
    for act, number, tokens in acts:
        answer = Completion("x", 20, min(tokens, 100))
        if act == "begin" and budget.begin(request(number)):
            under_way.append(request(number))
            worst = sum(budget.most(r) for r in under_way)
            assert budget.cost + worst <= max_cost + 1e-12
        elif act == "collect":
            collected += budget.collect("of old", answer, Price(input=1, output=tokens)) or 0
        elif act == "stray" and request(number).key not in {r.key for r in under_way}:
            collected += budget.end(request(number), answer) or 0
        elif act in {"answer", "fail"} and under_way:
            ended = under_way.pop(number % len(under_way))
            begun += budget.end(ended, answer if act == "answer" else None) or 0
        held = sum(budget.most(r) for r in under_way)
        assert budget.reserved >= 0 and abs(budget.reserved - held) < 1e-9
    assert begun <= max_cost + 1e-12
    assert budget.cost == pytest.approx(begun + collected)
    assert budget.cost <= max_cost + collected + 1e-12


def test_tokens_are_estimated_in_every_script() -> None:
    assert 10 <= tokens_of("People bow when they meet, and shake hands.") <= 16
    assert 10 <= tokens_of("人に会うときはお辞儀をします") <= 20


# -- what a model writes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure!\n```json\n{"a": [1, 2,]}\n```\nEnjoy.', {"a": [1, 2]}),
        ('{"examples": [{"a": "}"}, {"b": "x', {"examples": [{"a": "}"}]}),
        ('{"examples": [{"a": 1}, {"b": 2}], "c', {"examples": [{"a": 1}, {"b": 2}]}),
        ("no json", None),
        ("{broken", None),
        ("", None),
    ],
)
def test_json_is_repaired(text: str, value: Any) -> None:
    assert repair(text) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.integers(0, 200))
def test_a_cut_answer_gives_what_is_whole(value: dict[str, Any], at: int) -> None:
    text = json.dumps(value)
    assert repair(f"talk {text} talk") == value
    cut = repair(text[:at])
    assert cut is None or isinstance(cut, dict)


CHOICE = {
    "id": "choice",
    "name": "Everyday choices",
    "instruction": "Choose.",
    "queries": ["{topic} in {culture}"],
    "prompt": "In {culture}: {question}\n{options}",
    "fields": {"question": "what one asks"},
    "options": 3,
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Workspace]:
    def made(server: ModelServer, **changes: Any) -> Workspace:
        folder = tmp_path / "ws"
        folder.mkdir(exist_ok=True)
        settings = generator(server).model_dump(exclude_none=True)
        settings |= {"contrast": False, **changes.pop("generator", {})}
        write_recipe(folder, generator=settings, tasks=[CHOICE], **changes)
        ws = Workspace(folder)
        search.build(ws)
        return ws

    return made


def test_examples_have_the_task_s_format_and_their_evidence(
    make: Callable[..., Workspace],
) -> None:
    with ModelServer() as server:
        ws = make(server)
        assert synthesize.build(ws)
        examples = synthesize.current_examples(ws)
        tasks = [e for e in examples if e.stage == "task"]
        assert {e.culture for e in tasks} == {"japan", "brazil", "germany"}
        evidence = {e.id: e for e in search.current_evidence(ws)}
        for example in tasks:
            prompt = example.messages[0].content
            assert prompt.startswith("Choose.\n\nIn ")
            assert (
                f"\n{example.answer}. {example.inputs['texts'][ord(example.answer) - 65]}" in prompt
            )
            assert example.quote in evidence[example.evidence_ids[0]].text
            assert example.inputs["options"] == ["A", "B", "C"]
            assert example.split in {"fit", "fact"}
        assert {e.split for e in examples if e.stage == "broad"} <= {"fit"}
        trained = {i for e in examples if e.split == "fit" for i in e.evidence_ids}
        held = {i for e in examples if e.split == "fact" for i in e.evidence_ids}
        assert not trained & held
        # nothing is asked again
        count = len(server.asked)
        assert not synthesize.build(ws)
        assert synthesize.build(ws, force=True)
        assert len(server.asked) == count
        assert {e.id for e in synthesize.current_examples(ws)} == {e.id for e in examples}


def test_what_is_no_example_goes_to_quarantine_with_its_reason(
    make: Callable[..., Workspace],
) -> None:
    def spoilt(body: dict[str, Any]) -> str:
        value = json.loads(write_examples(body))
        for number, item in enumerate(value["examples"]):
            if number == 0:
                item["quote"] = "Nobody has ever said so anywhere."
            if number == 1:
                del item["answer"]
        return json.dumps(value)

    with ModelServer(answer=spoilt) as server:
        ws = make(server)
        synthesize.build(ws)
        reasons = Counter(r.model_dump()["reason"] for r in ws.read("quarantine", Record))
        assert reasons["the quote is not in the cited evidence"] >= 3
        assert reasons["schema: no answer"] >= 3
        parts = (read_json(ws.manifest_path("synthesize")) or {})["cultures"]
        for part in parts.values():
            for counts in part["yield"].values():
                assert counts["came"] == counts["kept"] + sum(counts["left_out"].values())


@pytest.mark.parametrize("fault", ["refused", "truncated", "wrong schema"])
def test_answers_that_are_no_good_are_paid_for_once(
    make: Callable[..., Workspace], fault: str
) -> None:
    with ModelServer(lambda _: fault) as server:
        ws = make(server)
        synthesize.build(ws)
        count = len(server.asked)
        assert not synthesize.build(ws)
        assert synthesize.build(ws, force=True)
        assert len(server.asked) == count
        if fault != "truncated":
            assert ws.read("examples", Example) == []


def test_a_bound_on_calls_and_the_rest_later(make: Callable[..., Workspace]) -> None:
    with ModelServer() as server:
        ws = make(server)
        said: list[str] = []
        ws.say = said.append
        synthesize.build(ws, max_calls=2)
        assert len(server.asked) == 2
        assert any("--max-calls 2" in line for line in said)
        assert not ws.is_current("synthesize", synthesize.wanted_inputs(ws))
        done = cmgr("synthesize", "-w", str(ws.folder), "--max-calls", "1", cwd=ws.folder)
        assert done.returncode == 4 and "no answer yet" in done.stderr
        assert len(server.asked) == 3
        synthesize.build(ws)
        assert len(server.asked) == len(synthesize._requests(ws, {"japan", "brazil", "germany"}))
        assert ws.is_current("synthesize", synthesize.wanted_inputs(ws))


def test_a_dry_run_and_the_prompts(make: Callable[..., Workspace]) -> None:
    with ModelServer() as server:
        ws = make(server, generator={"price": {"input": 1, "output": 2}})
        done = cmgr("synthesize", "-w", str(ws.folder), "--dry-run", "--json", cwd=ws.folder)
        facts = json.loads(done.stdout)
        assert facts["calls"] == len(synthesize.planned(ws)) > 0
        assert facts["cost"] > 0 and facts["input_tokens"] > 100 * facts["calls"]
        shown = cmgr("synthesize", "-w", str(ws.folder), "--show-prompt", cwd=ws.folder).stdout
        assert "--- task choice · user" in shown and "--- broad · user" in shown
        assert "Passage 1 (Japan):" in shown and "{" not in shown.replace("{}", "")
        assert server.asked == []


def test_prompts_may_be_replaced(make: Callable[..., Workspace]) -> None:
    with ModelServer() as server:
        ws = make(server, generator={"prompts": {"task": "Mine, on {culture}.\n{passages}"}})
        synthesize.build(ws)
        assert any(b["messages"][1]["content"].startswith("Mine, on Japan.") for b in server.asked)


def test_a_judge_and_a_second_answer(make: Callable[..., Workspace]) -> None:
    scores = iter([5, 1] * 500)

    def answer(body: dict[str, Any]) -> str:
        told = body["messages"][-1]["content"]
        if "Judge how well" in told:
            return json.dumps({"score": next(scores), "why": "so"})
        if "from this passage alone" in told:
            return json.dumps({"answer": "Z"})
        return write_examples(body)

    with ModelServer(answer=answer) as server:
        ws = make(server, generator={"judge": 3})
        synthesize.build(ws)
        kept = synthesize.current_examples(ws)
        assert kept and {e.judge for e in kept} == {5}
        reasons = Counter(r.model_dump()["reason"] for r in ws.read("quarantine", Record))
        assert reasons["judge: 1 of 5"] >= 1
        ws = make(server, generator={"again": True})
        synthesize.build(ws)
        assert not [e for e in synthesize.current_examples(ws) if e.stage == "task"]


def test_contrasts_ask_the_same_of_two_cultures(make: Callable[..., Workspace]) -> None:
    def answer(body: dict[str, Any]) -> str:
        value = json.loads(write_examples(body))
        told = body["messages"][-1]["content"]
        if "Cultures:" not in told:
            return json.dumps({"examples": []})
        parts = value["examples"]
        half = len(parts) // 2
        item = {**parts[0], "question": "A guest comes to the door, what happens?"}
        item |= {f"other_{k}": parts[half][k] for k in ("answer", "passage", "quote")}
        return json.dumps({"examples": [item]})

    with ModelServer(answer=answer) as server:
        ws = make(server, generator={"contrast": True})
        synthesize.build(ws)
        made = synthesize.current_examples(ws)
        assert made
        by_prompt: dict[str, set[str]] = {}
        for example in made:
            assert example.inputs["contrast"]
            by_prompt.setdefault(example.inputs["contrast"], set()).add(example.culture)
        assert any(len(cultures) == 2 for cultures in by_prompt.values())


def pairs(body: dict[str, Any]) -> str:
    """One example a passage; of a contrast one pair; what no culture is named in, all say alike."""
    value = json.loads(write_examples(body))
    parts = value["examples"]
    if "Cultures:" in body["messages"][-1]["content"]:
        half = len(parts) // 2
        item = {**parts[0], "question": f"A guest comes, case {len(parts[0]['answer'])}?"}
        item |= {f"other_{k}": parts[half][k] for k in ("answer", "passage", "quote")}
        parts = [item]
    elif "options" not in parts[0]:
        same = {"answer": "It is learnt at home.", "quote": "It is learnt at home."}
        parts.append({**parts[0], **same, "question": "Where is such a habit learnt, and when?"})
    return json.dumps({"examples": parts})


def forget(ws: Workspace) -> None:
    """Take away what a synthesis has made."""
    shutil.rmtree(ws.path("cache", "calls"))
    for name in ("examples.jsonl", "quarantine.jsonl", "logs/synthesize.json"):
        ws.path(name).unlink(missing_ok=True)


def made_of(ws: Workspace) -> dict[str, Any]:
    """The examples in their order and what was left out, by culture."""
    parts = ws.parts("synthesize")
    return {c: {k: part[k] for k in ("ids", "yield", "unanswered")} for c, part in parts.items()}


def test_stopped_and_run_again_it_makes_the_same_pairs(make: Callable[..., Workspace]) -> None:
    """A contrast belongs to both its cultures, and what one culture has is compared with all."""
    with ModelServer(answer=pairs) as server:
        ws = make(server, generator={"contrast": True, "most_at_once": 1})
        synthesize.build(ws)
        whole = made_of(ws)
        total = len(server.asked)
        assert "the same for another culture" in str(whole["germany"]["yield"])
        paired = Counter(
            e.culture for e in synthesize.current_examples(ws) if "contrast" in e.inputs
        )
        assert len(paired) == 3 and min(paired.values()) > 0
        contrasts = sum(r.kind == "contrast" for r in synthesize._requests(ws, set(CULTURES)))
        for stops in ([total - contrasts], [total - 1], [3, 4], []):
            forget(ws)
            for most in stops:
                synthesize.build(ws, max_calls=most)
                assert not ws.is_current("synthesize", synthesize.wanted_inputs(ws))
            for culture in [] if stops else reversed(CULTURES):  # one culture after the other
                synthesize.build(ws, cultures=[culture])
            synthesize.build(ws)
            assert made_of(ws) == whole
            assert ws.is_current("synthesize", synthesize.wanted_inputs(ws))
            assert not synthesize.build(ws)
        forget(ws)
        words = ("synthesize", "-w", str(ws.folder))
        stopped = cmgr(*words, "--max-calls", str(total - contrasts), cwd=ws.folder)
        assert stopped.returncode == 4
        for culture in ("Japan", "Brazil", "Germany"):
            assert f"{culture}: {contrasts * 2 // 3}" in stopped.stderr


def test_without_evidence_is_a_set_of_its_own(make: Callable[..., Workspace]) -> None:
    """For the ablation: on the same topics, no passage shown, never trained on by itself."""

    def answer(body: dict[str, Any]) -> str:
        told = body["messages"][-1]["content"]
        if "Passage" in told:
            return write_examples(body)
        asked = body["response_format"]["json_schema"]["schema"]["properties"]["examples"]
        wanted = asked["items"]["properties"]
        assert not {"passage", "quote"} & wanted.keys()
        topic = re.search(r"Topic: (.+)", told)
        country = re.search(r"Culture: (.+)", told)
        assert topic and country and "passage" not in told.lower()
        item: dict[str, Any] = {name: f"What is usual for {topic[1]}?" for name in wanted}
        if "options" in wanted:
            item["options"] = [f"Thing {n} of {topic[1]}" for n in range(2)]
        else:
            item["question"] = f"What is usual for {topic[1]} in {country[1]}?"
        item["answer"] = f"People here do what fits {topic[1]} best."
        return json.dumps({"examples": [item]})

    with ModelServer(answer=answer) as server:
        ws = make(server)
        synthesize.build(ws)
        grounded = {e.id for e in synthesize.current_examples(ws)}
        parts = synthesize.build_bare(ws)
        bare = synthesize.bare_examples(ws)
        assert {e.culture for e in bare} == set(parts) == {"japan", "brazil", "germany"}
        assert {e.stage for e in bare} == {"broad", "task"}
        assert all(not e.quote and not e.evidence_ids and e.split == "fit" for e in bare)
        assert all(e.generator.startswith("bare:") for e in bare)
        assert {e.id for e in synthesize.current_examples(ws)} == grounded
        assert not grounded & {e.id for e in bare}
        asked = len(server.asked)
        synthesize.build_bare(ws)
        assert len(server.asked) == asked
        assert len(synthesize.bare_examples(ws)) == len(bare)
    wanted = variants.wanted(ws.recipe, resolve("smollm2"), bare, variant="no-evidence")
    assert [w.name for w in wanted] == [f"{c}.no-evidence" for c in ("japan", "brazil", "germany")]


def test_killed_and_run_again_nothing_is_paid_twice(make: Callable[..., Workspace]) -> None:
    with ModelServer(latency=0.3) as server:
        ws = make(server, generator={"most_at_once": 2, "timeout": 10})
        code = "from cmgr.cli.app import main; main()"
        command = [sys.executable, "-c", code, "synthesize", "-w", str(ws.folder)]
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while server.answered < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        time.sleep(0.5)
        paid = server.answered
        total = len(synthesize._requests(ws, {"japan", "brazil", "germany"}))
        kept = total - len(synthesize.planned(ws))
        assert 3 <= kept <= paid < total
        assert paid - kept <= 2  # those on their way
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert server.answered == paid + total - kept
        ids = [json.loads(line)["id"] for line in ws.path("examples.jsonl").open()]
        assert len(ids) == len(set(ids)) > 0


@pytest.mark.model
def test_a_model_in_this_process(make: Callable[..., Workspace]) -> None:
    """A 135M model writes poorly: what it writes is checked, and the yield adds up."""
    with ModelServer() as server:
        ws = make(
            server, generator={"kind": "llama", "model": "smollm2", "per_call": 1, "base_url": None}
        )
    synthesize.build(ws, max_calls=6)
    parts = (read_json(ws.manifest_path("synthesize")) or {})["cultures"]
    counts = [c for part in parts.values() for c in part["yield"].values()]
    assert sum(c["came"] for c in counts) >= 1
    assert all(c["came"] == c["kept"] + sum(c["left_out"].values()) for c in counts)


# -- a person's own -------------------------------------------------------------------------------


ADVICE = {
    "id": "advice",
    "name": "Advice",
    "queries": ["{topic} in {culture}"],
    "prompt": "{situation}",
    "fields": {"situation": "a situation"},
    "shows": [],
    "max_words": 20,
}


@pytest.fixture
def own(tmp_path: Path) -> Workspace:
    folder = tmp_path / "own"
    folder.mkdir()
    write_recipe(folder, tasks=[ADVICE, CHOICE])
    return Workspace(folder)


def test_a_table_becomes_examples_with_the_same_checks(own: Workspace, tmp_path: Path) -> None:
    table = tmp_path / "labelled.csv"
    table.write_text(
        "text,label,who\n"
        "A guest arrives at the door of a house.,Take your shoes off.,japan\n"
        "A guest arrives at the door of a house.,Take your shoes off.,japan\n"
        "A waiter brings the bill in Japan.,Leave no tip.,japan\n"
        f"You are late for a meeting.,{'Call ' * 30},germany\n"
        "You meet a friend.,,brazil\n"
        "You meet a friend.,Kiss on the cheek.,france\n"
    )
    words = ("--import", str(table), "--task", "advice", "--json")
    mapped = ("--map", "text=situation,label=answer,who=culture")
    done = cmgr("synthesize", *words, *mapped, cwd=own.folder)
    assert done.returncode == 0, done.stderr
    rows = {row["culture"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert (rows["japan"]["came"], rows["japan"]["kept"]) == (3, 1)
    assert set(rows["japan"]["left_out"]) == {"duplicate", "the prompt names a culture (Japan)"}
    assert rows["germany"]["left_out"] == {"the answer has more than 20 words": 1}
    assert rows[""]["left_out"].keys() == {
        "schema: no answer",
        "no culture 'france' in the recipe. It has: japan, brazil, germany",
    }
    (example,) = synthesize.current_examples(own)
    assert example.messages[0].content == "A guest arrives at the door of a house."
    assert (example.answer, example.generator) == ("Take your shoes off.", "import:labelled.csv")
    assert cmgr("synthesize", *words, *mapped, cwd=own.folder).returncode == 0
    assert len(synthesize.current_examples(own)) == 1
    search.build(own)
    synthesize.build(own)  # and it stays when others are made
    assert example.id in {e.id for e in synthesize.current_examples(own)}


def test_several_wordings_of_one_thing_are_all_taken(own: Workspace, tmp_path: Path) -> None:
    """What people wrote they mean, also where many rows have the same answer in other wordings."""
    lines = tmp_path / "wordings.jsonl"
    at = [f"At a long {meal} with old friends at home, who pours the tea?" for meal in MEALS]
    rows = [{"situation": text, "answer": "The youngest guest."} for text in at]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = synthesize.import_file(own, lines, "advice", {}, "japan")
    assert found["japan"] == {"came": 4, "kept": 4, "left_out": {}}
    # but of another culture they would tell the two nothing apart
    found = synthesize.import_file(own, lines, "advice", {}, "brazil")
    assert found["brazil"]["left_out"] == {"the same for another culture": 4}


def test_a_file_imported_again_adds_nothing(own: Workspace, tmp_path: Path) -> None:
    """Whatever the order of its labels: another example more would train every adapter anew."""
    write_recipe(own.folder, tasks=[NOISE])
    own = Workspace(own.folder)
    lines = tmp_path / "noise.jsonl"
    rows = [
        {"sound": sound, "answer": "loud" if n < 14 else "soft"} for n, sound in enumerate(SOUNDS)
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = synthesize.import_file(own, lines, "noise", {}, "japan")
    assert found["japan"] == {"came": len(rows), "kept": len(rows), "left_out": {}}
    before = own.path("examples.jsonl").read_bytes()
    assert synthesize.import_file(own, lines, "noise", {}, "japan") == {}
    assert own.path("examples.jsonl").read_bytes() == before


SOUNDS = [
    f"{size} {of}"
    for size in ("big", "old", "far")
    for of in ("bell", "drum", "gong", "horn", "train")
]
NOISE = {
    "id": "noise",
    "name": "Noise",
    "instruction": "Is this sound loud or soft?",
    "queries": ["noise in {culture}"],
    "prompt": "Sound: {sound}",
    "fields": {"sound": "a sound"},
    "labels": ["loud", "soft"],
}


MEALS = ("meal", "lunch", "dinner", "supper")


def test_json_lines_with_options(own: Workspace, tmp_path: Path) -> None:
    lines = tmp_path / "items.jsonl"
    row = {"question": "What is left?", "answer": "Nothing", "options": ["Much", "A coin"]}
    lines.write_text(json.dumps(row) + "\n")
    found = synthesize.import_file(own, lines, "choice", {}, "japan")
    assert found["japan"]["kept"] == 1
    (example,) = synthesize.current_examples(own)
    assert example.inputs["options"] == ["A", "B", "C"]
    assert example.inputs["texts"][ord(example.answer) - 65] == "Nothing"


@pytest.mark.parametrize(
    ("name", "text", "words", "code", "told"),
    [
        ("a.csv", "text\nx\n", ["--task", "nope"], 2, "no task 'nope'"),
        ("a.csv", "text\nx\n", [], 2, "needs --task"),
        ("a.csv", "text\nx\n", ["--task", "advice", "--map", "text"], 2, "COLUMN=FIELD"),
        ("a.csv", "text\nx\n", ["--task", "advice", "--map", "text=mood"], 2, "no field mood"),
        ("a.csv", "text\nx\n", ["--task", "advice", "--map", "t=situation"], 2, "no column t"),
        ("a.jsonl", "{broken\n", ["--task", "advice"], 2, "cannot be read"),
        ("a.xls", "", ["--task", "advice"], 2, "give a .csv"),
        ("", "", ["--task", "advice"], 3, "no such file"),
    ],
)
def test_what_cannot_be_imported_is_told(
    own: Workspace, tmp_path: Path, name: str, text: str, words: list[str], code: int, told: str
) -> None:
    path = tmp_path / (name or "nowhere.csv")
    if name:
        path.write_text(text)
    done = cmgr("synthesize", "--import", str(path), *words, cwd=own.folder)
    assert done.returncode == code and told in done.stderr, done.stderr
    assert not own.path("examples.jsonl").exists()


# -- a batch --------------------------------------------------------------------------------------


class BatchApi:
    """The Batch API's shapes, served here: files, batches, their content."""

    def __init__(self, server: HTTPServer) -> None:
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.status = "in_progress"
        self.fails = 0  # lines of the output that are errors
        self.expires = 0  # calls that the batch did not get to
        self.cut = 0  # bytes that the output lacks at its end
        self.sent = 0  # files of answers
        server.expect_request("/v1/files", method="POST").respond_with_handler(self.upload)
        server.expect_request("/v1/batches", method="POST").respond_with_handler(self.create)
        server.expect_request("/v1/batches", method="GET").respond_with_handler(self.all)
        one = re.compile(r"/v1/batches/.+")
        server.expect_request(one, method="GET").respond_with_handler(self.one)
        content = re.compile(r"/v1/files/.+/content")
        server.expect_request(content, method="GET").respond_with_handler(self.content)

    def upload(self, request: Any) -> Response:
        name = f"file-{len(self.files)}"
        self.files[name] = request.files["file"].read().decode()
        assert request.form["purpose"] == "batch"
        made = {
            "id": name,
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "r.jsonl",
            "purpose": "batch",
            "status": "processed",
        }
        return Response(json.dumps(made), content_type="application/json")

    def create(self, request: Any) -> Response:
        body = request.get_json()
        assert body["endpoint"] == "/v1/chat/completions"
        name = f"batch-{len(self.batches)}"
        self.batches[name] = body
        return self.shown(name)

    def shown(self, name: str) -> Response:
        return Response(json.dumps(self.value(name)), content_type="application/json")

    def value(self, name: str) -> dict[str, Any]:
        asked = self.batches[name]
        ended = self.status not in {"in_progress", "validating"}
        return {
            "id": name,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "created_at": 1,
            "completion_window": "24h",
            "input_file_id": asked["input_file_id"],
            "status": self.status,
            "output_file_id": f"out-{name}" if ended else None,
            "error_file_id": f"err-{name}" if ended and self.expires else None,
            "request_counts": {"total": 9, "completed": 4, "failed": 0},
        }

    def all(self, _: Any) -> Response:
        listed = [self.value(name) for name in self.batches]
        value = {"object": "list", "data": listed, "has_more": False}
        return Response(json.dumps(value), content_type="application/json")

    def one(self, request: Any) -> Response:
        return self.shown(request.path.rpartition("/")[2])

    def content(self, request: Any) -> Response:
        kind, _, batch = request.path.split("/")[3].partition("-")
        self.sent += 1
        lines = []
        asked = self.files[self.batches[batch]["input_file_id"]].splitlines()
        for number, line in enumerate(asked):
            value = json.loads(line)
            expired = number >= len(asked) - self.expires
            if expired:
                error = {"code": "batch_expired", "message": "This request could not be executed."}
                late = {"custom_id": value["custom_id"], "response": None, "error": error}
                lines += [json.dumps(late)] if kind == "err" else []
            if expired or kind == "err":
                continue
            body: dict[str, Any] = {
                "choices": [
                    {
                        "message": {"role": "assistant", "content": write_examples(value["body"])},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            }
            status = 200
            if number < self.fails:
                body, status = {"error": {"message": "server error"}}, 500
            response = {"status_code": status, "body": body}
            answered = {"custom_id": value["custom_id"], "response": response}
            lines.append(json.dumps(answered, ensure_ascii=False))
        data = "\n".join(reversed(lines)).encode()
        return Response(data[: len(data) - self.cut], content_type="application/jsonl")


def batched(make: Callable[..., Workspace], httpserver: HTTPServer) -> tuple[BatchApi, Workspace]:
    """The API, and a workspace that writes through it."""
    settings = {"kind": "openai_batch", "base_url": httpserver.url_for("/v1")}
    with ModelServer() as server:
        return BatchApi(httpserver), make(server, generator=settings)


def test_a_batch_is_submitted_left_and_collected(
    make: Callable[..., Workspace], httpserver: HTTPServer
) -> None:
    api, ws = batched(make, httpserver)
    said: list[str] = []
    ws.say = said.append
    synthesize.build(ws)
    total = len(synthesize.planned(ws))
    assert len(api.files["file-0"].splitlines()) == total > 3
    assert synthesize.current_examples(ws) == []
    assert any("submitted" in line for line in said)
    synthesize.build(ws)
    assert len(api.batches) == 1  # still on its way: not submitted twice
    assert any("4 of 9" in line for line in said)
    api.status, api.fails = "completed", 2
    synthesize.build(ws)
    assert len(synthesize.planned(ws)) == 2
    assert synthesize.current_examples(ws)
    assert not ws.is_current("synthesize", synthesize.wanted_inputs(ws))
    api.fails = 0
    synthesize.build(ws)
    assert len(api.files["file-1"].splitlines()) == 2  # what failed, and nothing else
    synthesize.build(ws)
    assert synthesize.planned(ws) == []
    assert ws.is_current("synthesize", synthesize.wanted_inputs(ws))


def test_a_batch_that_a_crash_left_half_known_is_found_again(
    make: Callable[..., Workspace], httpserver: HTTPServer
) -> None:
    api, ws = batched(make, httpserver)
    synthesize.build(ws)
    state = ws.path("cache", "batch.json")
    way = read_json(state) or {}
    state.write_text(json.dumps({**way, "batch": None}))
    synthesize.build(ws)
    assert len(api.batches) == 1
    assert (read_json(state) or {})["batch"] == "batch-0"


def test_what_a_batch_brought_is_kept_whatever_is_asked_now(
    make: Callable[..., Workspace], httpserver: HTTPServer
) -> None:
    """Of other cultures, and of an earlier recipe: all of it was paid for."""
    api, ws = batched(make, httpserver)
    synthesize.build(ws)
    before = {r.key for r in synthesize.planned(ws)}
    api.status = "completed"
    said: list[str] = []
    ws.say = said.append
    synthesize.build(ws, cultures=["japan"])
    assert synthesize.planned(ws) == [] and len(api.batches) == 1
    assert any("answers to other calls are kept" in line for line in said)
    synthesize.build(ws)
    assert {e.culture for e in synthesize.current_examples(ws)} == set(CULTURES)
    # the recipe changes while a batch is on its way
    settings = ws.recipe.generator.model_dump(exclude_none=True)
    write_recipe(ws.folder, generator={**settings, "temperature": 0.3}, tasks=[CHOICE])
    changed = Workspace(ws.folder)
    api.status = "in_progress"
    synthesize.build(changed)
    paid = {r.key for r in synthesize.planned(changed)}
    assert len(api.batches) == 2 and len(paid) == len(before) and not paid & before
    write_recipe(ws.folder, generator={**settings, "temperature": 0.4}, tasks=[CHOICE])
    again = Workspace(ws.folder)
    api.status = "completed"
    synthesize.build(again)
    assert len(api.batches) == 3
    assert synthesize.planned(changed) == []


def test_a_judge_throws_no_other_batch_away(
    make: Callable[..., Workspace], httpserver: HTTPServer
) -> None:
    api, ws = batched(make, httpserver)
    synthesize.build(ws, cultures=["japan"])
    api.status = "completed"
    synthesize.build(ws, cultures=["japan"])
    settings = ws.recipe.generator.model_dump(exclude_none=True)
    write_recipe(ws.folder, generator={**settings, "judge": 3}, tasks=[CHOICE])
    judged = Workspace(ws.folder)
    api.status = "in_progress"
    synthesize.build(judged, cultures=["brazil"])
    assert len(api.batches) == 2
    api.status = "completed"
    synthesize.build(judged, cultures=["japan"])  # nothing to write, much to judge
    assert {r.culture for r in synthesize.planned(judged)} == {"germany"}
    assert len(api.batches) == 3  # the judge's


def test_a_batch_that_expired_gives_what_it_has(
    make: Callable[..., Workspace], httpserver: HTTPServer
) -> None:
    api, ws = batched(make, httpserver)
    synthesize.build(ws)
    total = len(synthesize.planned(ws))
    api.status, api.expires = "expired", 3
    said: list[str] = []
    ws.say = said.append
    synthesize.build(ws)
    assert len(synthesize.planned(ws)) == 3
    assert any("batch_expired" in line and "None" not in line for line in said)
    assert not ws.path("cache", "batch.json").exists()
    synthesize.build(ws)
    assert [len(text.splitlines()) for text in api.files.values()] == [total, 3]


def test_a_batch_is_remembered_until_all_of_it_is_on_disk(
    make: Callable[..., Workspace], httpserver: HTTPServer
) -> None:
    api, ws = batched(make, httpserver)
    synthesize.build(ws)
    state = ws.path("cache", "batch.json")
    api.status, api.cut = "completed", 40
    with pytest.raises(CmgrError, match="cannot be read"):
        synthesize.build(ws, cultures=["germany"])
    way = state.read_bytes()  # and what is whole in it is kept
    assert len(synthesize.planned(ws)) == 1
    api.cut = 0
    synthesize.build(ws)
    assert synthesize.planned(ws) == [] and not state.exists()
    # killed after the last answer was kept and before the state was deleted
    state.write_bytes(way)
    sent = api.sent
    synthesize.build(ws, force=True)
    write_recipe(ws.folder, generator=ws.recipe.generator.model_dump(), tasks=[CHOICE, ADVICE])
    synthesize.build(Workspace(ws.folder))
    assert api.sent == sent and len(api.batches) == 2


def test_an_answer_with_a_line_separator_in_it_is_one_line(
    make: Callable[..., Workspace], httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, ws = batched(make, httpserver)
    monkeypatch.setitem(globals(), "write_examples", lambda _: '{"examples": ["a\u2028b\x85c"]}')
    synthesize.build(ws)
    api.status = "completed"
    synthesize.build(ws)
    assert synthesize.planned(ws) == []


def test_a_batch_costs_half() -> None:
    assert price_of(Generator(kind="openai_batch")) == Price(input=1.25, output=5)
