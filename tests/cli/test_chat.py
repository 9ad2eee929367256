"""`cmgr chat` on a real workspace: data on stdout, talk on stderr, the right exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import cmgr

pytestmark = pytest.mark.model


def test_a_prompt_is_routed_and_answered(trained: Path) -> None:
    done = cmgr("chat", "-p", "How do people greet in Japan?", "--json", cwd=trained)
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["culture"] == answer["adapter"] == "japan"
    assert answer["response"] and answer["probability"] > 0.5
    assert set(answer["probabilities"]) == {"japan", "brazil", "germany"}
    assert answer["usage"]["completion_tokens"] > 0


def test_piped_stdin_a_named_culture_and_the_base(trained: Path) -> None:
    asked = "How do people greet in Japan?"
    answers = {}
    for mode in (["--culture", "brazil"], ["--base"], []):
        done = cmgr("chat", "--max-tokens", "20", *mode, cwd=trained, stdin=asked)
        assert done.returncode == 0 and "\x1b" not in done.stdout
        answers[done.stderr.split("\n")[0].strip("[]").split()[0]] = done.stdout
    assert set(answers) == {"brazil", "base", "japan"} and all(answers.values())


def test_chat_never_imports_torch_or_sklearn(trained: Path) -> None:
    code = (
        "import sys; sys.argv = ['cmgr', 'chat', '-p', 'Hello Japan', '--max-tokens', '2']\n"
        "from cmgr.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'peft', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=trained, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_two_batches_to_one_file_are_told_of_each_other(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    asked = "".join(json.dumps({"id": n, "prompt": f"Question {n}?"}) + "\n" for n in range(16))
    (tmp_path / "in.jsonl").write_text(asked)
    words = ["chat", "--batch", str(tmp_path / "in.jsonl"), "-o", str(out), "--max-tokens", "12"]
    first = subprocess.Popen(
        [sys.executable, "-c", "from cmgr.cli.app import main; main()", *words],
        cwd=trained,
        stderr=subprocess.PIPE,
    )
    while not out.exists() and first.poll() is None:
        time.sleep(0.01)
    second = cmgr(*words, cwd=trained)
    assert second.returncode == 1 and "in use by `cmgr chat --batch`" in second.stderr
    assert f"process {first.pid}" in second.stderr
    first.communicate()
    assert first.returncode == 0 and len(out.read_text().splitlines()) == 16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-p", "x", "--culture", "peru"], 2, "japan, brazil, germany"),
        (["-p", "x", "--culture", "japan", "--base"], 2, "choose one"),
        (["-p", ""], 2, "empty prompt"),
        (["-p", "word " * 3000, "--base"], 2, "context"),
    ],
)
def test_wrong_use(trained: Path, words: list[str], code: int, says: str) -> None:
    done = cmgr("chat", *words, cwd=trained)
    assert done.returncode == code and says in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr


def test_text_that_is_no_utf8_or_would_steer_a_terminal(trained: Path) -> None:
    done = cmgr("chat", "-p", "a\udcff \u202e\x9b31m", "--json", "--max-tokens", "2", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "a\ufffd \u202e\x9b31m"
    assert not set("\u202e\x9b") & set(done.stdout)


def test_where_the_router_abstains_the_nearest_culture_is_named(trained: Path) -> None:
    done = cmgr("chat", "-p", "xyz", "--max-tokens", "2", cwd=trained)
    assert re.search(r"^\[base; nearest: (japan|brazil|germany) 0\.\d\d\]$", done.stderr, re.M)


def test_a_closed_stderr_is_no_failure(trained: Path) -> None:
    code = "from cmgr.cli.app import main; main()"
    line = f'exec "{sys.executable}" -c "{code}" chat -p Hello --max-tokens 2 2>&-'
    done = subprocess.run(["sh", "-c", line], cwd=trained, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip()


def test_a_batch_reads_from_a_pipe_and_never_writes_over_what_is_no_answer(trained: Path) -> None:
    line = json.dumps({"id": 1, "prompt": "Tip?", "choices": ["yes", "no"], "culture": "japan"})
    done = cmgr("chat", "--batch", "/dev/stdin", cwd=trained, stdin=line)
    assert done.returncode == 0 and json.loads(done.stdout)["choice"] in {"yes", "no"}

    asked = trained / "asked.jsonl"
    asked.write_text(line)
    os.mkfifo(trained / "pipe")
    for target, says in ((f"../{trained.name}/asked.jsonl", "both name"), ("pipe", "not a file")):
        done = cmgr("chat", "--batch", "asked.jsonl", "-o", target, cwd=trained)
        assert done.returncode == 2 and says in done.stderr
    assert asked.read_text() == line and (trained / "pipe").is_fifo()
    (trained / "pipe").unlink()
