"""cmgr/train/variants.py: each variant leaves out exactly what its name says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CULTURES, cmgr, write_recipe
from safetensors.numpy import load_file

from cmgr import recipe as recipes
from cmgr.base import resolve
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.records import Example
from cmgr.train import variants
from cmgr.workspace import Workspace, read_json


def example(number: int, culture: str, stage: str = "task", **inputs: Any) -> Example:
    return Example(
        **{"id": f"e{number}", "culture": culture, "task": "everyday", "stage": stage},
        **{"inputs": inputs, "answer": "They bow.", "messages": [], "evidence_ids": []},
        **{"quote": "", "generator": "test", "created_at": ""},
    )


EXAMPLES = [
    example(0, "japan"),
    example(1, "japan", "broad"),
    example(2, "japan", contrast="c"),
    example(3, "brazil"),
    example(4, "brazil", "broad"),
    example(5, "germany"),
    example(6, "germany").model_copy(update={"split": "fact"}),
]


@pytest.fixture
def recipe(tmp_path: Path) -> recipes.Recipe:
    return recipes.load(write_recipe(tmp_path))


def wanted(recipe: recipes.Recipe, **changes: Any) -> list[variants.Wanted]:
    return variants.wanted(recipe, resolve("smollm2"), EXAMPLES, **changes)


def ids(one: variants.Wanted) -> set[str]:
    return {e.id for e in one.examples}


def test_an_adapter_of_a_base_that_thinks_is_another(recipe: recipes.Recipe) -> None:
    off, on = (
        variants.wanted(recipe, resolve("smollm2", None, thinking), EXAMPLES)[0].inputs
        for thinking in (False, True)
    )
    assert off != on


def test_each_variant_leaves_out_what_it_says(recipe: recipes.Recipe) -> None:
    plain = {w.name: w for w in wanted(recipe)}
    assert list(plain) == list(CULTURES)
    assert ids(plain["japan"]) == {"e0", "e1", "e2"} and ids(plain["germany"]) == {"e5"}
    (shared,) = wanted(recipe, variant="shared")
    assert shared.name == "shared" and ids(shared) == {f"e{n}" for n in range(6)}
    (broad,) = wanted(recipe, cultures=["japan"], variant="broad")
    assert (broad.name, broad.recipe.train.stages) == ("japan.broad", ["broad"])
    (no_broad,) = wanted(recipe, cultures=["japan"], variant="no-broad")
    assert (no_broad.name, no_broad.recipe.train.stages) == ("japan.no-broad", ["task"])
    (no_contrast,) = wanted(recipe, cultures=["japan"], variant="no-contrast")
    assert ids(no_contrast) == {"e0", "e1"}
    every = [*plain.values(), shared, broad, no_broad, no_contrast]
    assert len({w.inputs for w in every}) == len(every)
    assert recipe.train.stages == ["broad", "task"]  # the recipe itself is as it was


def test_an_answer_is_preferred_to_other_labels_and_options(recipe: recipes.Recipe) -> None:
    task = next(t for t in recipe.tasks if t.id == "everyday")
    options = ["They bow.", "THEY BOW.", " ", "They hug.", "They nod.", "They kiss.", "They wave."]
    one = example(0, "japan", options=options)
    rivals = variants.rivals_of(recipe, one)
    assert len(set(rivals)) == variants.RIVALS == len(rivals)
    assert set(rivals) <= {"They hug.", "They nod.", "They kiss.", "They wave."}
    again = example(0, "japan", options=options[::-1])
    assert variants.rivals_of(recipe, again) == rivals  # by content, not by place
    assert not variants.rivals_of(recipe, example(0, "japan", "broad", options=options))
    assert not variants.rivals_of(recipe, example(0, "japan"))
    assert not variants.rivals_of(recipe, one.model_copy(update={"task": "another"}))
    task.labels = ["yes", "no", "maybe"]
    label = example(0, "japan").model_copy(update={"answer": "yes"})
    assert set(variants.rivals_of(recipe, label)) == {"no", "maybe"}


def test_only_a_recipe_that_prefers_depends_on_preferences(recipe: recipes.Recipe) -> None:
    base = resolve("smollm2")
    few, more = (
        [*EXAMPLES, example(8, "japan", options=["They bow.", *wrong])]
        for wrong in (["They hug."], ["They hug.", "They nod."])
    )

    def inputs(examples: list[Example]) -> str | None:
        return variants.inputs_of(recipe, base, examples, "japan")

    plain = inputs(few)
    assert inputs(more) == plain
    recipe.train.prefer_epochs, recipe.train.prefer_weight = 3, 0.5
    assert inputs(few) == plain
    recipe.train.stages = ["broad", "task", "prefer"]
    found = {inputs(few), inputs(more)}
    recipe.train.prefer_weight = 0.7
    found.add(inputs(few))
    assert len(found | {plain}) == 4
    (no_broad,) = wanted(recipe, cultures=["japan"], variant="no-broad")
    assert no_broad.recipe.train.stages == ["task", "prefer"]


def test_what_would_be_the_same_is_refused(recipe: recipes.Recipe) -> None:
    with pytest.raises(CmgrError, match="brazil has no contrast pairs"):
        wanted(recipe, cultures=["brazil"], variant="no-contrast")
    with pytest.raises(CmgrError, match="germany has no examples of the broad stage"):
        wanted(recipe, cultures=["germany"], variant="broad")
    recipe.train.review = "accepted"
    with pytest.raises(MissingError, match="no example of japan has been accepted"):
        wanted(recipe)


def test_what_begins_with_the_shared_adapter_depends_on_it(recipe: recipes.Recipe) -> None:
    base = resolve("smollm2")
    scratch = {w.name: w.inputs for w in wanted(recipe)}
    recipe.train.start = "shared"
    (shared,) = wanted(recipe, variant="shared")
    (broad,) = wanted(recipe, cultures=["japan"], variant="broad")
    assert shared.start is None and broad.start is None
    mine = {w.name: w for w in wanted(recipe)}
    assert all(w.start == "shared" and w.inputs != scratch[n] for n, w in mine.items())
    assert variants.inputs_of(recipe, base, EXAMPLES, "japan") == mine["japan"].inputs
    # a variant begins with its own: another would know what the variant is to be without
    (plain,) = wanted(recipe, begin=True)
    assert plain.name == "shared" and plain.inputs == shared.inputs
    (bare,) = wanted(recipe, cultures=["japan"], variant="no-broad", begin=True)
    assert bare.name == "shared.no-broad" and bare.start is None
    assert bare.recipe.train.stages == ["task"] and len(bare.examples) == len(plain.examples)
    assert wanted(recipe, cultures=["japan"], variant="no-broad")[0].start == "shared.no-broad"
    (calm,) = wanted(recipe, variant="no-contrast", begin=True)
    assert calm.examples == [e for e in plain.examples if not e.inputs.get("contrast")]
    assert len(calm.examples) < len(plain.examples)
    # another culture's example makes another shared adapter, and so another of this one
    more = [*EXAMPLES, example(9, "germany", "broad")]
    assert variants.inputs_of(recipe, base, more, "japan") != mine["japan"].inputs
    # what is kept of its own stages makes another adapter, and the same shared one
    recipe.train.own = 0.5
    assert wanted(recipe, begin=True)[0].inputs == plain.inputs
    assert wanted(recipe, cultures=["japan"])[0].inputs != mine["japan"].inputs
    recipe.train.start = "scratch"
    assert variants.inputs_of(recipe, base, more, "japan") == scratch["japan"]


def test_what_chooses_an_epoch_is_new_to_the_shared_adapter_too(recipe: recipes.Recipe) -> None:
    """The shared one has learnt a culture's examples, and other cultures' of the same posts."""
    posts = [
        example(n, culture, fact=f"post {n // 2}")
        for n, culture in enumerate(["japan", "brazil"] * 60 + ["germany"] * 9)
    ]
    recipe.train.start, recipe.train.validation = "shared", 0.1
    base = resolve("smollm2")
    (shared,) = variants.wanted(recipe, base, posts, variant="shared")
    trained = {e.inputs["fact"] for e in posts if e.id not in shared.back}
    assert 0.1 * len(posts) <= len(shared.back) < 0.1 * len(posts) + 2
    japan, brazil, germany = variants.wanted(recipe, base, posts)
    assert japan.back | brazil.back <= shared.back and japan.back and brazil.back
    assert not any(e.inputs["fact"] in trained for e in japan.examples if e.id in japan.back)
    assert not germany.back  # too few to choose by


def test_no_culture_is_called_shared(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, cultures=[{"id": "shared", "name": "Shared"}])
    with pytest.raises(UsageError, match="all cultures' adapter"):
        recipes.load(path)


@pytest.mark.model
def test_training_goes_on_from_the_shared_adapter(trained: Path, tmp_path: Path) -> None:
    """The shared weights are still in its own, and little in those that began at scratch."""
    folder = tmp_path / "ws"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("adapters", "eval"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["train"] |= {"start": "shared"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = cmgr("train", "--variant", "shared", cwd=folder)
    assert done.returncode == 0, done.stderr
    shared = load_file(folder / "adapters" / "shared" / "adapter_model.safetensors")
    done = cmgr("train", "--culture", "japan", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "train shared" not in done.stderr  # it was there
    mine = load_file(folder / "adapters" / "japan" / "adapter_model.safetensors")
    assert mine.keys() == shared.keys()
    manifest = read_json(folder / "adapters" / "japan" / "manifest.json") or {}
    assert manifest["start"] == "shared" and "variant" not in manifest
    scratch = load_file(trained / "adapters" / "japan" / "adapter_model.safetensors")

    def share_of_shared(weights: dict[str, Any]) -> float:
        """How much of the shared adapter's B, which begins at zero, is in others: 1 is all."""
        up = [k for k in shared if "lora_B" in k]
        common = sum(float((weights[k] * shared[k]).sum()) for k in up)
        return common / sum(float((shared[k] ** 2).sum()) for k in up)

    assert share_of_shared(mine) > 0.8 > 0.6 > share_of_shared(scratch)
    assert any((mine[k] != shared[k]).any() for k in mine)
    # with `own`, the weights are between the shared ones and these
    recipe["train"] |= {"own": 0.25}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = cmgr("train", "--culture", "japan", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "train shared" not in done.stderr
    near = load_file(folder / "adapters" / "japan" / "adapter_model.safetensors")
    off = [abs(near[k] - 0.75 * shared[k] - 0.25 * mine[k]).max() for k in near]
    assert max(off) < 0.1 * max(abs(near[k] - mine[k]).max() for k in near)
    ws = Workspace(folder)
    assert ws.variants() == ["shared"] and ws.merges() == []
    ws.check_adapter("shared")
    done = cmgr("chat", "--culture", "shared", "-p", "Do I tip?", "--json", cwd=folder)
    assert done.returncode == 0 and '"adapter": "shared"' in done.stdout
    assert cmgr("train", "--variant", "magic", cwd=folder).returncode == 2
