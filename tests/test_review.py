"""cmgr/review.py: verdicts are kept, change what is used, and say something of the rest."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import sys
import time
from pathlib import Path
from random import Random

import pytest
from conftest import cmgr, write_recipe
from hypothesis import given
from hypothesis import strategies as st

from cmgr import review, search, synthesize
from cmgr.errors import MissingError, UsageError
from cmgr.records import Example
from cmgr.stats import kappa
from cmgr.train.variants import fit_examples
from cmgr.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    write_recipe(tmp_path)
    made = Workspace(tmp_path)
    search.build(made)
    synthesize.build(made)
    return made


def test_a_random_sample_is_the_same_for_everybody(ws: Workspace) -> None:
    found = review.items(ws)
    one = [i.example.id for i in review.queue(found, {}, "random", 10)]
    assert one == [i.example.id for i in review.queue(reversed(found), {}, "random", 10)]
    assert len(set(one)) == 10
    left = review.queue(found, {one[0]: "accepted", one[1]: "pending"}, "random", 10)
    assert [i.example.id for i in left] == one[1:]
    risky = review.queue(found, {}, "risk", None)
    assert [i.risk for i in risky] == sorted((i.risk for i in found), reverse=True)


def test_a_judge_s_low_score_and_a_stray_answer_are_risky(ws: Workspace) -> None:
    example = review.items(ws)[0].example
    low, high = (review.risk(example.model_copy(update={"judge": n})) for n in (1, 5))
    stray = review.risk(example.model_copy(update={"answer": "Quite other matters entirely."}))
    assert high < review.risk(example) < low
    assert stray > review.risk(example)


def test_verdicts_change_what_is_used(ws: Workspace) -> None:
    one, two, three = [i.example for i in review.items(ws) if i.example.split == "fit"][:3]
    review.give(ws, one, "rejected", "ann", "random", "not so")
    review.give(ws, two, "accepted", "ann", "random")
    changed = review.edited(ws, three, three.messages[-1].content + " Please.", three.answer)
    review.give(ws, changed, "edited", "ann", "random")
    current = {e.id: e for e in synthesize.current_examples(ws)}
    assert one.id not in current
    assert (current[two.id].review, current[two.id].reviewer) == ("accepted", "ann")
    assert current[three.id].messages[-1].content.endswith("Please.")
    assert not synthesize.build(ws)  # a review makes nothing out of date
    fitted = fit_examples(ws.recipe, current.values(), two.culture)
    assert len(fitted) > 2
    ws.recipe.train.review = "accepted"
    fitted = fit_examples(ws.recipe, current.values(), two.culture)
    assert {e.review for e in fitted} <= {"accepted", "edited"}
    review.give(ws, one, "pending", "ann", "random")
    assert one.id in {e.id for e in synthesize.current_examples(ws)}


def test_an_edit_must_stand_its_checks(ws: Workspace) -> None:
    example = next(i.example for i in review.items(ws) if i.example.stage == "task")
    with pytest.raises(UsageError, match="not among the options"):
        review.edited(ws, example, example.messages[-1].content, "Something else.")
    with pytest.raises(UsageError, match="prompt is empty"):
        review.edited(ws, example, " ", example.answer)


def test_kappa_equals_the_published_example() -> None:
    # two readers on 50 proposals, 20 yes by both, 15 no by both (a textbook example): 0.4
    one = ["yes"] * 25 + ["no"] * 25
    two = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(one, two) == pytest.approx(0.4)
    assert kappa([], []) is None
    assert kappa(["a"], ["a"]) is None


@given(st.lists(st.sampled_from("arx"), min_size=2, max_size=30), st.randoms())
def test_kappa_is_one_for_the_same_and_at_most_one(verdicts: list[str], rng: Random) -> None:
    if len(set(verdicts)) > 1:
        assert kappa(verdicts, verdicts) == pytest.approx(1)
    other = list(verdicts)
    rng.shuffle(other)
    value = kappa(verdicts, other)
    assert value is None or value <= 1 + 1e-9


def test_agreement_and_error_rate(ws: Workspace) -> None:
    found = [i.example for i in review.items(ws)]
    assert review.error_rate(ws, found) is None
    assert review.told(None) == "not known"
    for n, example in enumerate(found[:10]):
        review.give(ws, example, "rejected" if n == 0 else "accepted", "ann", "random")
        review.give(ws, example, "rejected" if n < 2 else "accepted", "bob", "random")
    (row,) = review.agreement(ws)
    assert (row["examples"], row["agreed"]) == (10, 0.9)
    assert row["kappa"] == pytest.approx(0.615, abs=0.001)
    rate = review.error_rate(ws, found)
    assert rate and rate["sample"] == rate["reviewed"] == 10
    assert rate["error_rate"] == pytest.approx(0.2)  # the last verdict on each counts
    assert rate["unreviewed"] == len(found) - 10
    assert review.told(rate) == "20% [6%, 51%]"
    status = json.loads(cmgr("status", "--json", cwd=ws.folder).stdout)
    assert any(c["review"] for c in status["cultures"])


def test_examples_chosen_by_risk_give_a_bound_only(ws: Workspace) -> None:
    found = [i.example for i in review.items(ws)]
    review.give(ws, found[0], "rejected", "ann", "risk")
    assert review.told(review.error_rate(ws, found)).startswith("at most 100%")
    review.give(ws, found[1], "accepted", "ann", "random")
    rate = review.error_rate(ws, found)
    assert rate and rate["random"] and rate["error_rate"] == 0


def test_a_sheet_goes_out_and_comes_back(ws: Workspace, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    done = cmgr("review", "--export", str(sheet), "--sample", "6", cwd=ws.folder)
    assert done.returncode == 0, done.stderr
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf")
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and set(rows[0]) == set(review.COLUMNS)
    rows[0]["verdict"], rows[0]["reason"] = "reject", "no"
    rows[1]["verdict"] = "Accept"
    rows[2] |= {"verdict": "edit", "new_prompt": rows[2]["prompt"] + " Really?"}
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, review.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    done = cmgr("review", "--import", str(sheet), "--reviewer", "cy", "--json", cwd=ws.folder)
    assert done.returncode == 0, done.stderr
    assert review.of_reviewer(ws, "cy") == {
        rows[0]["id"]: "rejected",
        rows[1]["id"]: "accepted",
        rows[2]["id"]: "edited",
    }
    for change, told in (
        ({"id": "nobody", "verdict": "accept"}, "row 2: no example 'nobody'"),
        ({"verdict": "perhaps"}, "row 2: verdict 'perhaps'"),
        ({"verdict": "edit", "new_answer": "None of these."}, "row 2: not as edited"),
    ):
        with sheet.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, review.COLUMNS)
            writer.writeheader()
            writer.writerows([{**rows[3], **change}, {**rows[4], "verdict": "accept"}])
        before = len(ws.read("reviews", review.Review))
        done = cmgr("review", "--import", str(sheet), cwd=ws.folder)
        if "new_answer" in change and rows[3]["task"] == "broad":
            continue
        assert done.returncode == 2 and told in done.stderr
        assert len(ws.read("reviews", review.Review)) == before
    with pytest.raises(MissingError, match="--export"):
        review.read_sheet(ws, tmp_path / "nowhere.csv", "cy")


def filled(sheet: Path, verdict: dict[int, str]) -> list[dict[str, str]]:
    """A sheet filled in by row; returns its rows."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, review.COLUMNS)
        writer.writeheader()
        writer.writerows([{**row, "verdict": verdict.get(n, "")} for n, row in enumerate(rows)])
    return rows


def test_a_sheet_of_a_random_sample_counts_in_the_error_rate(ws: Workspace) -> None:
    sheet, risky = ws.path("sheet.csv"), ws.path("risky.csv")
    assert cmgr("review", "--export", "sheet.csv", "--sample", "8", cwd=ws.folder).returncode == 0
    rows = filled(sheet, {0: "reject", **dict.fromkeys(range(1, 7), "accept")})
    done = cmgr("review", "--import", "sheet.csv", "--reviewer", "cy", "--json", cwd=ws.folder)
    assert done.returncode == 0 and "1 examples of the random sample have no verdict" in done.stderr
    every = [item.example for item in review.items(ws)]
    rate = review.error_rate(ws, every)
    assert rate and rate["random"] and (rate["sample"], rate["error_rate"]) == (7, 1 / 7)
    assert review.told(rate).startswith("14% [")
    by_culture = [row["unreviewed_error_rate"] for row in map(json.loads, done.stdout.splitlines())]
    assert sum(r["sample"] for r in by_culture if r) == 7 and all(
        r["random"] for r in by_culture if r
    )
    status = json.loads(cmgr("status", "--json", cwd=ws.folder).stdout)
    assert [c["review"] for c in status["cultures"] if c["review"]] == [r for r in by_culture if r]
    # what was chosen by risk does not count, and changes a verdict of the sample all the same
    words = ["--export", "risky.csv", "--by-risk"]
    assert cmgr("review", *words, cwd=ws.folder).returncode == 0
    place = [row["id"] for row in filled(risky, {})].index(rows[1]["id"])
    others = [n for n in range(len(every)) if n != place][:5]
    filled(risky, {place: "reject", **dict.fromkeys(others, "reject")})
    words = ["--import", "risky.csv", "--reviewer", "di"]
    assert cmgr("review", *words, cwd=ws.folder).returncode == 0
    rate = review.error_rate(ws, every)
    assert rate and rate["random"] and rate["sample"] == 7 and rate["error_rate"] >= 2 / 7


def test_no_cell_is_a_formula() -> None:
    assert review._cell("=1+1") == "'=1+1"
    assert review._cell("-2") == "'-2"
    assert review._cell("plain = text") == "plain = text"


def test_without_a_terminal_the_sheet_is_named(ws: Workspace) -> None:
    done = cmgr("review", cwd=ws.folder)
    assert done.returncode == 2 and "--export" in done.stderr
    done = cmgr("review", "--report", cwd=ws.folder)
    assert done.returncode == 0 and "pending" in done.stdout


def talk(folder: Path, steps: list[tuple[str, str]], *words: str, **env: str) -> str:
    """`cmgr review` in a terminal of its own: a key is typed once the text before it is there."""
    code = "from cmgr.cli.app import main; main()"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update({"COLUMNS": "120", "LINES": "40", "TERM": "xterm", **env})
        os.execv(sys.executable, [sys.executable, "-c", code, "review", *words])
    seen, at = "", 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                part = os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                part = ""
            if not part:
                break
            seen += part
        elif steps and steps[0][0] in seen[at:]:
            at = len(seen)
            os.write(terminal, steps.pop(0)[1].encode())
    os.close(terminal)
    os.waitpid(pid, 0)
    assert not steps, seen
    return seen


def test_a_session_at_a_terminal(ws: Workspace) -> None:
    ask = "uit"
    steps = [(ask, "a"), (ask, "r"), ("empty", "too old\r"), (ask, "s"), (ask, "u"), (ask, "a")]
    seen = talk(ws.folder, [*steps, (ask, "q")], "--reviewer", "dee")
    assert "passage" in seen and "[a]ccept" in seen
    assert "documents/" in seen  # the source of the passage
    assert "left of this sample" in seen
    given = review.of_reviewer(ws, "dee")
    assert sorted(given.values()) == ["accepted", "accepted"]
    reasons = [r.reason for r in ws.read("reviews", review.Review)]
    assert "too old" in reasons


def test_ctrl_d_leaves_and_keeps_what_was_decided(ws: Workspace) -> None:
    ask = "uit"
    steps = [(ask, "a"), (ask, "r"), ("empty", "\x04"), (ask, "\x04")]
    seen = talk(ws.folder, steps, "--reviewer", "flo")
    assert "unexpected" not in seen and "2 reviewed by flo" in seen
    assert sorted(review.of_reviewer(ws, "flo").values()) == ["accepted", "rejected"]


def test_an_edit_in_an_editor(ws: Workspace, tmp_path: Path) -> None:
    script = tmp_path / "edit.py"
    script.write_text(
        "import sys, pathlib\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text().replace('?', '? Well?', 1))\n"
    )
    editor = f"{sys.executable} {script}"
    words = ("--reviewer", "eve", "--culture", "japan")
    talk(ws.folder, [("uit", "e"), ("uit", "q")], *words, EDITOR=editor)
    ((example_id, verdict),) = review.of_reviewer(ws, "eve").items()
    assert verdict == "edited"
    changed = {e.id: e for e in ws.read("examples", Example)}[example_id]
    assert changed.review == "edited" and "? Well?" in changed.messages[-1].content
