"""`cmgr chat` on a real workspace: data on stdout, talk on stderr, the right exit codes."""

from __future__ import annotations

import json
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
        answers[done.stderr.strip().strip("[]").split()[0]] = done.stdout
    assert set(answers) == {"brazil", "base", "japan"} and all(answers.values())


def test_chat_never_imports_torch_or_sklearn(trained: Path) -> None:
    import subprocess
    import sys

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


def test_a_session_on_a_terminal(trained: Path) -> None:
    """Slash commands, a routed turn, a wrong command that does not end it, Ctrl-D."""
    import os
    import pty
    import subprocess
    import sys

    master, slave = pty.openpty()
    code = "from cmgr.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "chat", "--max-tokens", "6"],
        cwd=trained,
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(slave)
    os.write(master, b"How do people greet in Brazil?\n/culture japan\nHello\n/nope\n\x04")
    _, talk = process.communicate(timeout=120)
    os.close(master)
    said = talk.decode()
    assert process.returncode == 0, said
    assert "[brazil" in said and "mode japan" in said and "[japan]" in said
    assert "no command '/nope'" in said
