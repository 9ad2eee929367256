"""What is asked: held-out examples of the workspace, or the rows of a published benchmark."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmgr import benchmarks
from cmgr.errors import UsageError
from cmgr.generators.task_format import MalformedError, in_format, task_of
from cmgr.recipe import Recipe
from cmgr.records import Example, Message, Record, make_id
from cmgr.tasks import Task, card
from cmgr.workspace import Workspace

TEST = "test"  # the split of items that come from a file


class Item(Record):
    """One question: `options` are scored as its answer; without any, the answer is written.

    `labels` are the options that all items of a task have. `group` holds items that are no
    independent evidence: wordings of one fact, one post for several cultures; in a `contested` one
    the right answer depends on the culture.
    """

    id: str
    culture: str
    task: str
    split: str
    group: str
    messages: list[Message]
    answer: str
    options: list[str] = []
    labels: list[str] = []
    accepted: list[str] = []
    contested: bool = False
    free: bool = True  # whether an answer in its own words can be judged
    evidence_ids: list[str] = []


def of_examples(recipe: Recipe, examples: Iterable[Example]) -> list[Item]:
    """Examples as items."""
    tasks = {task.id: task for task in recipe.tasks}
    found = []
    for example in examples:
        task = tasks.get(example.task or "")
        found.append(
            Item(
                id=example.id,
                culture=example.culture,
                task=str(example.task),
                split=example.split,
                group=str(example.inputs.get("fact") or example.id),
                messages=example.messages,
                answer=example.answer,
                options=list(example.inputs.get("options") or []),
                labels=task.labels if task else [],
                accepted=[example.answer],
                contested=bool(example.inputs.get("contrast")),
                free=_is_free(task),
                evidence_ids=example.evidence_ids,
            )
        )
    return found


def _is_free(task: Task | None) -> bool:
    """Whether a task's answers are texts: no labels, and no letters of options in the prompt."""
    return task is None or not (task.labels or "{options}" in task.prompt)


def pick(ws: Workspace, examples: Sequence[Example]) -> list[Example]:
    """The workspace's items: per culture and split up to the recipe's number.

    Chosen by a hash, spread evenly over the tasks, so that every run takes the same ones.
    """
    wanted = ws.recipe.evaluate
    limits = {"fit": wanted.trained, "wording": wanted.wordings, "fact": wanted.facts}
    grouped: dict[tuple[str, str, str | None], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: make_id("eval", e.id)):
        if example.stage == "task":
            grouped[example.culture, example.split, example.task].append(example)
    chosen: list[Example] = []
    for culture in ws.recipe.cultures:
        for split, limit in limits.items():
            by_task = [grouped[culture.id, split, task.id] for task in ws.recipe.tasks]
            longest = max(map(len, by_task), default=0)
            turns = [
                items[turn] for turn in range(longest) for items in by_task if turn < len(items)
            ]
            chosen += turns[:limit]
    return chosen


def task_named(recipe: Recipe, task_id: str) -> Task:
    """A task of the recipe, or of a bundled card. Raises UsageError that names both."""
    for task in recipe.tasks:
        if task.id == task_id:
            return task
    try:
        return Task.model_validate(card(task_id).task())
    except ValueError as error:
        known = ", ".join(task.id for task in recipe.tasks)
        raise UsageError(f"{error}; the recipe has {known}") from None


def loader_of(task_id: str) -> str:
    """The loader of a task's card; the table's where it has no card."""
    try:
        return card(task_id).benchmark.loader
    except ValueError:
        return "table"


def of_file(
    recipe: Recipe,
    task: Task,
    path: Path,
    loader: str,
    columns: Mapping[str, str] | None = None,
    part: str | None = None,
    cultures: Sequence[str] | None = None,
) -> tuple[list[Item], Counter[str]]:
    """(the items of a benchmark's file, why other rows are none: counted).

    `part` "2/3" is the second third of its groups, chosen by hash, so that what is trained on one
    part can be asked the other. With `cultures`, others are left out without a word. Raises
    UsageError for another format, MissingError where there is no file.
    """
    task = task_of(task)
    whose = {c.id for c in recipe.pick(list(cultures) if cultures else None)}
    items: dict[str, Item] = {}
    left_out: Counter[str] = Counter()
    for _, culture, row in benchmarks.of_cultures(recipe.cultures, loader, path, columns, part):
        if isinstance(row, str):
            left_out[row] += 1
            continue
        if culture is None:
            if not cultures:
                left_out[benchmarks.stranger(row)] += 1
            continue
        if culture.id not in whose:
            continue
        fields = {name: row.fields.get(name, "") for name in task.fields}
        if empty := [name for name, value in fields.items() if not value]:
            left_out[f"no {', '.join(empty)}"] += 1
            continue
        if task.labels and row.answer not in task.labels:
            left_out[f"the label is none of the task's: {row.answer or 'empty'}"] += 1
            continue
        # short answers of a benchmark that has options too are asked freely
        form = task if row.options or not task.options else task.model_copy(update={"options": 0})
        try:
            content, answer, inputs = in_format(
                form, culture, fields, row.answer, None, order=row.options
            )
        except MalformedError as error:
            left_out[str(error)] += 1
            continue
        item = Item(
            id=make_id("item", task.id, culture.id, content, answer),
            culture=culture.id,
            task=task.id,
            split=TEST,
            group=row.group or make_id(fields),
            messages=[Message(role="user", content=content)],
            answer=answer,
            options=list(inputs.get("options") or []),
            labels=task.labels,
            accepted=list(row.accepted) or [row.answer],
            free=_is_free(form),
        )
        items[item.id] = item
    return _contested(list(items.values())), left_out


def limited(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """Up to `limit` items of each culture, task and split, chosen by hash.

    Whole groups come first, so that a post is asked for every culture.
    """
    if limit is None:
        return list(items)
    kept: Counter[tuple[str, str, str]] = Counter()
    found = []
    for item in sorted(items, key=lambda i: (make_id("limit", seed, i.group), i.id)):
        kind = (item.culture, item.task, item.split)
        kept[kind] += 1
        if kept[kind] <= limit:
            found.append(item)
    return found


def _contested(items: list[Item]) -> list[Item]:
    """Mark items that differ in nothing but the culture, and in the right answer."""
    answers: dict[Any, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for item in items:
        answers[item.task, item.group, *sorted(item.options)][item.culture].add(item.answer)
    for item in items:
        found = answers[item.task, item.group, *sorted(item.options)].values()
        item.contested = bool(item.options) and len({frozenset(a) for a in found}) > 1
    return items


def problems(items: Sequence[Item]) -> list[str]:
    """What is wrong with the items of a task as a whole: one class only."""
    by_task: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_task[item.task].append(item)
    return [
        f"{task}: every one of {len(mine)} items has the label {mine[0].answer!r}: a method that "
        "always says so is right"
        for task, mine in by_task.items()
        if mine[0].labels and len(mine) > 1 and len({item.answer for item in mine}) == 1
    ]
