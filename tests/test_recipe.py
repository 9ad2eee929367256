"""Bad recipes get one message with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import write_recipe

from cmgr import recipe
from cmgr.errors import UsageError
from cmgr.tasks import card_ids

WRITTEN = {
    "name": "Mine",
    "queries": ["{topic} in {culture}"],
    "prompt": "{question}",
    "fields": {"question": "a question"},
}


def changed(folder: Path, old: str, new: str) -> Path:
    path = folder / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_sound_recipe_loads(recipe_folder: Path) -> None:
    loaded = recipe.load(recipe_folder / "recipe.yaml")
    assert [c.id for c in loaded.cultures] == ["japan", "brazil", "germany"]
    assert loaded.adapter.kind == "activated"


def test_the_bundled_ten_cultures_names_every_card() -> None:
    loaded = recipe.load(recipe.find("ten-cultures"))
    assert len(loaded.cultures) == 10
    assert sorted(task.id for task in loaded.tasks) == card_ids()
    assert len(card_ids()) == 10
    one = next(task for task in loaded.tasks if task.id == "hate-speech")
    assert one.labels == ["yes", "no"] and "{text}" in one.prompt


def test_a_task_may_be_a_card_or_written_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tasks=["etiquette", {**WRITTEN, "id": "mine"}])
    assert [task.id for task in recipe.load(path).tasks] == ["etiquette", "mine"]
    path = write_recipe(tmp_path, tasks=["etikette"])
    with pytest.raises(UsageError, match="no task card 'etikette': there are cultural-inference"):
        recipe.load(path)


def test_the_bundled_quickstart_loads() -> None:
    loaded = recipe.load(recipe.find("quickstart"))
    assert {c.id for c in loaded.cultures} == {"japan", "brazil", "germany"}
    assert len(loaded.tasks) == 2 and loaded.base.model == "smollm2"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: Japan", "name: Japan\n  colour: red", [":5:", "cultures.0.colour", "unknown key"]),
        ("id: brazil", "id: japan", ["one culture id", "japan"]),
        ("id: japan", "id: ../x", ["../x", ":3", "lower-case"]),
        ("search:", "search: {", ["YAML", "recipe.yaml:"]),
        ("'In {place}: {question}'", "'In {country}: {question}'", ["{question}"]),
    ],
)
def test_a_wrong_recipe_names_file_line_and_key(
    recipe_folder: Path, old: str, new: str, words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        recipe.load(changed(recipe_folder, old, new))
    for word in ["recipe.yaml", *words]:
        assert word in str(caught.value)


def test_an_empty_culture_list(recipe_folder: Path) -> None:
    path = recipe_folder / "recipe.yaml"
    data = yaml.safe_load(path.read_text())
    data["cultures"] = []
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(UsageError, match=r"recipe.yaml:2: cultures"):
        recipe.load(path)


def test_an_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(UsageError, match="quickstart"):
        recipe.find("no-such-recipe")
