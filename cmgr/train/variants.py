"""Which adapters are trained: one per culture, and those that an evaluation compares them with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmgr.base import Base
from cmgr.errors import CmgrError, MissingError
from cmgr.recipe import PREFER, RUNNING, SHARED, Culture, Recipe
from cmgr.records import Example, make_id
from cmgr.retrieval import Index
from cmgr.train.passages import wish

VERSION = 5  # counts up when the same inputs would give other adapters
RIVALS = 3  # wrong answers that an example is preferred to, at most
LEAST_GROUPS = 10  # with fewer pieces of evidence none is held back to choose the best epoch
VARIANTS = {
    "shared": "one adapter for all cultures",
    "broad": "without the task stage",
    "no-broad": "without the broad stage",
    "no-contrast": "without contrast pairs",
    "no-evidence": "on what the model wrote from memory",
}


@dataclass(frozen=True)
class Wanted:
    """An adapter to be made: its name (its folder's), whose it is, how, and from what."""

    name: str
    culture: Culture
    recipe: Recipe
    examples: list[Example]
    inputs: str
    variant: str | None = None
    start: str | None = None  # the adapter whose weights it begins with
    back: frozenset[str] = frozenset()  # the examples to choose the best epoch by
    passages: int = 0  # how many of the prompts carry passages
    also: Sequence[Example] = ()  # those examples as they are, trained on first


def name_of(culture: str, variant: str | None) -> str:
    """The folder's name of a culture's adapter or of its variant; an id never holds a dot."""
    if variant == SHARED:
        return SHARED
    return f"{culture}.{variant}" if variant else culture


def fit_examples(recipe: Recipe, examples: Iterable[Example], culture: str) -> list[Example]:
    """What a culture (or `shared`: all) is trained on: `fit` items, reviewed where wanted."""
    wanted = {"accepted", "edited"} if recipe.train.review == "accepted" else None
    return [
        e
        for e in examples
        if culture in (e.culture, SHARED)
        and e.split == "fit"
        and (wanted is None or e.review in wanted)
    ]


def rivals_of(recipe: Recipe, example: Example) -> list[str]:
    """Wrong answers to an example's prompt: the task's other labels, or the other options.

    Those are other cultures' answers where the example comes from evidence or from a contrast
    request. Up to three, chosen by hash; none for the broad stage.
    """
    task = next((t for t in recipe.tasks if t.id == example.task), None)
    if task is None or example.stage != "task":
        return []
    known = {example.answer.casefold()}
    found = []
    for text in task.labels or example.inputs.get("options") or []:
        if text.strip() and text.casefold() not in known:
            known.add(text.casefold())
            found.append(text)
    return sorted(found, key=lambda text: make_id("rival", example.id, text))[:RIVALS]


def held_back(examples: Sequence[Example], share: float, seed: int) -> set[str]:
    """The ids of examples to choose the best epoch by: about `share`, split by evidence.

    What rests on a common passage, or is of one fact, question or post, stands together, so that
    none of what is held back has been trained in other words. Empty where there are fewer than
    ten such groups.
    """
    groups = _groups(examples)
    if not share or len(groups) < LEAST_GROUPS:
        return set()
    found: set[str] = set()
    for ids in sorted(groups, key=lambda ids: make_id("validation", seed, min(ids))):
        if len(found) >= share * len(examples):
            break
        found |= set(ids)
    return found


def _groups(examples: Sequence[Example]) -> list[list[str]]:
    """The ids of examples that stand together."""
    above: dict[str, str] = {}  # union-find over examples, passages and facts

    def root(node: str) -> str:
        while above.setdefault(node, node) != node:
            above[node] = node = above[above[node]]
        return node

    for example in examples:
        fact = example.inputs.get("fact")
        common = [f"passage {passage}" for passage in example.evidence_ids]
        for node in (*common, *([f"fact {fact}"] if fact else [])):
            above[root(node)] = root(example.id)
    groups: dict[str, list[str]] = {}
    for example in examples:
        groups.setdefault(root(example.id), []).append(example.id)
    return list(groups.values())


def inputs_of(
    recipe: Recipe,
    base: Base,
    examples: Sequence[Example],
    culture: str,
    index: Index | None = None,
) -> str:
    """The hash of all that a culture's adapter is made from, as its manifest holds it."""
    start = _start_inputs(recipe, base, examples, None, index)
    mine = fit_examples(recipe, examples, culture)
    return wanted_inputs(recipe, base, mine, start, wish(recipe, index, culture))


def _start_inputs(
    recipe: Recipe,
    base: Base,
    examples: Sequence[Example],
    variant: str | None,
    index: Index | None,
) -> str | None:
    """The hash of the shared adapter, where cultures' adapters begin with it."""
    if recipe.train.start == "scratch":
        return None
    every = _used(recipe, examples, SHARED, variant)
    changed = _changed(recipe, SHARED)
    return wanted_inputs(changed, base, every, None, wish(recipe, index, SHARED))


def _used(
    recipe: Recipe, examples: Sequence[Example], culture: str, variant: str | None
) -> list[Example]:
    """What a variant of a culture (or of `shared`) is trained on."""
    mine = fit_examples(recipe, examples, culture)
    if variant == "no-contrast":
        return [e for e in mine if not e.inputs.get("contrast")]
    return mine


def wanted_inputs(
    recipe: Recipe,
    base: Base,
    mine: Iterable[Example],
    start: str | None = None,
    passages: str | None = None,
) -> str:
    """The hash of all that an adapter is made from.

    `start` is that of the one it begins with, `passages` that of those that its prompts carry.
    """
    # at the default nothing is said, so that adapters of before stay up to date
    plain = set() if recipe.train.start == "shared" else {"start", "own"}
    if recipe.train.own == 1:
        plain.add("own")
    mine = list(mine)
    prefers = PREFER in recipe.train.stages
    if not prefers:
        plain |= {"prefer_epochs", "prefer_weight"}
    return make_id(
        VERSION,
        base.fingerprint,
        recipe.base.train_from,
        recipe.adapter.model_dump(),
        recipe.train.model_dump(exclude={*RUNNING, "review", "passages", *plain}),
        sorted(
            # what a person has edited is another example
            [e.id, e.answer, *([e.messages[-1].content] if e.review == "edited" else [])]
            for e in mine
        ),
        *([start] if start else []),
        *(["thinking"] if base.thinking else []),
        *([f"passages {passages}"] if passages else []),
        *([sorted([e.id, *rivals_of(recipe, e)] for e in mine)] if prefers else []),
    )


def wanted(
    recipe: Recipe,
    base: Base,
    examples: Sequence[Example],
    cultures: Sequence[str] | None = None,
    variant: str | None = None,
    begin: bool = False,
    index: Index | None = None,
) -> list[Wanted]:
    """The adapters of these cultures (or all), or one variant of each; `shared` is one for all.

    With `begin`: the one that those begin with, where `train.start` is `shared`; a variant has its
    own. `examples` are those that it is trained on (for `no-evidence`: synthesize.bare_examples),
    `index` has the passages that their prompts carry.
    Raises MissingError where there are none, CmgrError where a variant would be the same.
    """
    for_all = begin or variant == SHARED
    given = recipe
    recipe = _changed(recipe, variant)
    whose = recipe.pick(list(cultures) if cultures and not begin else None)
    if for_all:
        recipe = _changed(recipe, SHARED)
        languages = list(dict.fromkeys(lang for c in whose for lang in c.languages))
        whose = [Culture(id=SHARED, name="All cultures", languages=languages)]
    start = _start_inputs(recipe, base, examples, variant, index)
    every = _used(recipe, examples, SHARED, variant) if start else []
    unseen = held_back(every, recipe.train.validation, recipe.train.seed)
    found = []
    for culture in whose:
        own = fit_examples(recipe, examples, culture.id)
        if not own:
            if any(e.culture == culture.id and e.split == "fit" for e in examples):
                raise MissingError(
                    f"no example of {culture.id} has been accepted, and train.review wants that. "
                    "Look at some: cmgr review"
                )
            how = "cmgr synthesize" + (" --no-evidence" if variant == "no-evidence" else "")
            raise MissingError(f"no training examples for {culture.id}. Make them: {how}")
        mine = _used(recipe, examples, culture.id, variant)
        if variant == "no-contrast" and len(mine) == len(own):
            raise CmgrError(f"{culture.id} has no contrast pairs: without them is the same")
        if variant in ("broad", "no-broad"):
            missing = "broad" if variant == "broad" else "task"
            if not any(e.stage == missing for e in mine):
                raise CmgrError(f"{culture.id} has no examples of the {missing} stage")
        name = name_of(culture.id, variant)
        inputs = wanted_inputs(recipe, base, mine, start, wish(given, index, culture.id))
        first = name_of(SHARED, variant) if start else None
        back = held_back(mine, recipe.train.validation, recipe.train.seed)
        if back and start:  # what the shared adapter has learnt by heart would choose no epoch
            back = unseen & {e.id for e in mine}
        found.append(Wanted(name, culture, recipe, mine, inputs, variant, first, frozenset(back)))
    return found


def _changed(recipe: Recipe, variant: str | None) -> Recipe:
    """A variant's recipe. What has to be without the task stage does not begin with what had it."""
    update: dict[str, object] = {}
    if variant == "broad":
        update["stages"] = ["broad"]
    elif variant == "no-broad":
        update["stages"] = [s for s in recipe.train.stages if s != "broad"] or ["task"]
    if variant in (SHARED, "broad"):
        update["start"] = "scratch"
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})
