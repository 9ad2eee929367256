"""Small workspaces, written here, for the rooms that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pytest_httpserver import HTTPServer


@pytest.fixture(scope="session")
def make_httpserver() -> Iterator[HTTPServer]:
    """pytest-httpserver's server, with a thread per request: a slow page holds up no other."""
    server = HTTPServer(threaded=True)
    server.start()
    yield server
    server.clear()
    if server.is_running():
        server.stop()


CULTURES = {"japan": "Japan", "brazil": "Brazil", "germany": "Germany"}
# topic -> question -> what people do in Japan, Brazil, Germany
FACTS = {
    "greetings": {
        "How do people greet at a first meeting?": (
            "bow from the waist",
            "kiss on the cheek",
            "shake hands firmly",
        ),
        "How do people address a new colleague?": (
            "add a suffix to the surname",
            "use the first name at once",
            "use title and surname",
        ),
    },
    "tipping": {
        "How is a waiter tipped?": (
            "leave no tip at all",
            "find ten percent on the bill",
            "round the bill up",
        ),
        "Is a taxi driver given something extra?": (
            "take all their change back",
            "rarely add anything to the fare",
            "add a coin or two",
        ),
    },
}


def write_recipe(folder: Path, **changes: object) -> Path:
    """A recipe of three cultures over four facts each, with its documents."""
    for number, (culture, name) in enumerate(CULTURES.items()):
        for topic, facts in FACTS.items():
            lines = [f"# {topic.title()} in {name}"]
            for question, answers in facts.items():
                lines += [
                    f"\n## {question}",
                    f"\n*Also asked: Tell me, {question.lower()} | So {question.lower()}*",
                    f"\nIn {name}, people usually {answers[number]}. It is learnt at home.",
                ]
            path = folder / "documents" / culture / f"{topic}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe: dict[str, object] = {
        "name": "small",
        "cultures": [{"id": i, "name": n, "places": [f"{n} City"]} for i, n in CULTURES.items()],
        "tasks": [
            {
                "id": "everyday",
                "name": "Everyday life",
                "queries": ["{topic} in {culture}"],
                "wordings": [
                    {"text": "In {place}: {question}"},
                    {"text": "I moved to {place}. {question}", "question": 1, "split": "wording"},
                ],
            }
        ],
        "sources": [{"kind": "documents", "path": "documents"}],
        "search": {"topics": list(FACTS)},
        "train": {"broad_epochs": 1, "task_epochs": 1, "batch_size": 4},
        "adapter": {"rank": 4, "alpha": 8},
        "evaluate": {"trained": 1, "wordings": 1, "facts": 1},
        "try_prompts": ["Do I tip a waiter in Japan?"],
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def cmgr(*words: str, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from cmgr.cli.app import main; main()", *words],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "120", **env},
    )


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    """A folder that holds a sound recipe.yaml and its documents."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_recipe(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that `cmgr run` has made from end to end with the real SmolLM2."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "source").mkdir()
    write_recipe(folder / "source")
    done = cmgr("run", "source/recipe.yaml", "-w", "small", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "small"


SMOLLM2_CONFIG = {
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
}


def make_standard(source: Path, target: Path) -> Path:
    """The same weights as an adapter that acts on every token: without invocation tokens."""
    from cmgr import gguf_lora
    from cmgr.workspace import read_json, write_json

    target.mkdir(parents=True)
    shutil.copy(source / "adapter_model.safetensors", target)
    config = read_json(source / "adapter_config.json")
    assert config and config.pop("alora_invocation_tokens")
    write_json(target / "adapter_config.json", config)
    manifest = read_json(source / "manifest.json")
    write_json(target / "manifest.json", {**(manifest or {}), "kind": "standard"})
    gguf_lora.export(target, target / "adapter.gguf", SMOLLM2_CONFIG)
    return target


@pytest.fixture(scope="session")
def standard(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of standard adapters, one per culture of `trained`."""
    folder = tmp_path_factory.mktemp("standard")
    for culture in CULTURES:
        make_standard(trained / "adapters" / culture, folder / culture)
    return folder
