"""`cmgr route`: what it prints, where, and how it fails."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_router import workspace

from cmgr.cli.route import command
from cmgr.errors import CmgrError, MissingError, PartialError, UsageError
from cmgr.router.fitting import build

app = typer.Typer()
app.command("route")(command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ws = workspace(tmp_path_factory.mktemp("ws"))
    build(ws)
    return ws.folder


def call(folder: Path, *args: str, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(app, ["-w", str(folder), *args], input=stdin)


def lines(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_person_reads_one_line_a_text(folder: Path) -> None:
    result = call(folder, "Is it rude to tip in Osaka?", "sort this list")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("japan ") and first.endswith("(Is it rude to tip in Osaka?)")
    assert second.startswith("abstain ") and result.stderr == ""


def test_escape_sequences_do_not_reach_the_terminal(folder: Path) -> None:
    result = call(folder, "Osaka \x1b[31mred\nnext")
    assert "\x1b" not in result.stdout and len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_stdin_lines_keep_their_order(folder: Path, dash: list[str]) -> None:
    result = call(folder, "--json", *dash, stdin="In Recife?\r\nsort this\n大阪 Osaka".encode())
    found = lines(result)
    assert [f["culture"] for f in found] == ["brazil", None, "japan"]
    assert [f["text"] for f in found] == ["In Recife?", "sort this", "大阪 Osaka"]
    assert set(found[0]) == {
        *("text", "culture", "probability", "probabilities", "cultures", "abstained")
    }


def test_bad_lines_are_told_and_the_rest_goes_on(folder: Path) -> None:
    result = call(folder, "--json", stdin=b"In Osaka?\n\n\xff\xfe\nIn Recife?\n")
    found = lines(result)
    assert [("error" in f, f.get("culture")) for f in found] == [
        (False, "japan"),
        (True, None),
        (True, None),
        (False, "brazil"),
    ]
    assert "UTF-8" in found[2]["error"] and found[2]["line"] == 3
    assert isinstance(result.exception, PartialError) and "2 of 4" in str(result.exception)
    plain = call(folder, stdin=b"\nIn Osaka?\n")
    assert "line 1: empty text" in plain.stderr and plain.stdout.startswith("japan")


def test_an_argument_that_is_no_utf8(folder: Path) -> None:
    result = call(folder, "--json", os.fsdecode(b"Osaka \xff"), "Osaka")
    assert ["error" in f for f in lines(result)] == [True, False]
    assert isinstance(result.exception, PartialError)


def test_a_file_of_lines(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("In Osaka?\nIn Boston?\n")
    assert [f["culture"] for f in lines(call(folder, "--json", "--file", str(path)))] == [
        "japan",
        "us",
    ]
    result = call(folder, "--file", str(tmp_path / "none"))
    assert isinstance(result.exception, UsageError) and "none" in str(result.exception)


def test_explain(folder: Path) -> None:
    found = lines(call(folder, "--json", "--explain", "In Osaka?"))[0]
    assert found["explain"][0]["culture"] == "japan"
    assert any("osaka" in part["ngram"] for part in found["explain"])
    shown = call(folder, "--explain", "In Osaka?").stdout
    assert "osaka" in shown.split("\n", 1)[1]


def test_threshold_and_margin_override_the_recipe(folder: Path) -> None:
    assert lines(call(folder, "--json", "--threshold", "0.99999", "In Osaka?"))[0]["abstained"]
    low = lines(call(folder, "--json", "--threshold", "0.0001", "--margin", "0", "sort this"))[0]
    assert not low["abstained"]


def test_threshold_and_margin_are_read_from_the_recipe(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "router: {threshold: 0.9999}\n")
    assert lines(call(copy, "--json", "In Osaka?"))[0]["abstained"]
    assert not lines(call(copy, "--json", "--threshold", "0.3", "In Osaka?"))[0]["abstained"]
    assert "up to date" in call(copy, "--fit").stderr


def test_eval(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    rows = [
        ("In Osaka?", "japan"),
        ("In Recife?", "brazil"),
        ("sort this", None),
        ("sort that list", "us"),
    ]
    path.write_text("".join(json.dumps({"text": t, "culture": c}) + "\n" for t, c in rows))
    found = lines(call(folder, "--json", "--eval", str(path)))[0]
    assert found["n"] == 4 and found["accuracy"] == 0.75 and found["abstention_rate"] == 0.5
    assert found["macro_f1"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert found["confusion"]["us"] == {"(none)": 1}
    assert 0.0 < found["ece"] < 0.5
    low, high = found["intervals"]["accuracy"]
    assert low < 0.75 < high and found["keyword_rule"] == 0.25
    shown = call(folder, "--eval", str(path)).stdout
    for part in ("accuracy", "0.750 [0.30, 0.95]", "keyword rule", "Confusion", "██", "macro f1"):
        assert part in shown


def test_several_cultures_are_scored_and_taught(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    both = {"text": "Compare table manners in Japan and Brazil.", "cultures": ["japan", "brazil"]}
    path.write_text(json.dumps(both))
    assert lines(call(folder, "--json", "--eval", str(path)))[0]["all_found"] == 1
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    text = "When is the garden fair of our valley?"
    assert lines(call(copy, "--json", text))[0]["abstained"]
    path.write_text(json.dumps({"text": text, "culture": "brazil"}))
    taught = call(copy, "--learn", str(path))
    assert taught.exit_code == 0 and taught.stdout == "" and "1 labels added" in taught.stderr
    assert lines(call(copy, "--json", text))[0]["culture"] == "brazil"
    assert "up to date" in call(copy, "--fit").stderr
    path.write_text(json.dumps({"text": text, "culture": "peru"}))
    assert isinstance(call(copy, "--learn", str(path)).exception, UsageError)
    assert len((copy / "labels.jsonl").read_text().splitlines()) == 1


def test_a_culture_of_no_country_is_said(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    recipe = copy / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("name: US", "name: Ruritania").replace("id: us", "id: r")
    )
    result = call(copy, "--fit")
    assert result.exit_code == 0 and "r: no country is called so" in result.stderr


def test_top_shows_the_most_probable(folder: Path) -> None:
    found = lines(call(folder, "--json", "--top", "1", "Compare Japan and Brazil"))[0]
    assert len(found["probabilities"]) == len(found["cultures"]) == 1
    shown = call(folder, "--top", "2", "In Osaka?").stdout.splitlines()
    assert len(shown) == 3 and shown[1].split() == ["japan", shown[0].split()[1]]


def test_explain_says_where_there_is_no_cue(folder: Path) -> None:
    assert "nothing in it is a cue" in call(folder, "--explain", "sort this").stdout
    shown = call(folder, "--explain", "大阪で").stdout
    assert "cjk script" in shown and "\0" not in shown


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"text": "x"}',
        b'{"text": 3, "culture": null}',
        b"\xff",
        b'{"text": "x", "culture": "france"}',
        b'{"text": "x", "culture": 1}',
    ],
)
def test_a_bad_line_of_eval_is_named(folder: Path, tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_bytes(b'{"text": "x", "culture": null}\n' + line + b"\n")
    result = call(folder, "--eval", str(path))
    assert isinstance(result.exception, UsageError) and f"{path}:2:" in str(result.exception)


@pytest.mark.parametrize(
    "args",
    [
        ("--threshold", "2", "x"),
        ("--threshold", "nan", "x"),
        ("--margin", "-1", "x"),
        ("--eval", "f", "x"),
        ("--file", "f", "x"),
        ("--force", "x"),
        ("--eval", "f", "--explain"),
    ],
)
def test_wrong_options(folder: Path, args: tuple[str, ...]) -> None:
    assert isinstance(call(folder, *args).exception, UsageError)


def test_no_router_and_fit(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "router")
    result = call(copy, "In Osaka?")
    assert isinstance(result.exception, MissingError) and "--fit" in str(result.exception)
    made = call(copy, "--fit")
    assert made.exit_code == 0 and made.stdout == "" and "fitted" in made.stderr
    again = call(copy, "--fit", "In Osaka?")
    assert "up to date" in again.stderr and again.stdout.startswith("japan")
    (copy / "router" / "router.npz").write_bytes(b"x")
    damaged = call(copy, "In Osaka?").exception
    assert isinstance(damaged, CmgrError) and damaged.exit_code == 1
