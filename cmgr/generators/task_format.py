"""The target task's own format: a task, its fields and an answer become prompt and answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cmgr.recipe import Culture
from cmgr.records import make_id
from cmgr.tasks import LETTERS, Task


class MalformedError(Exception):
    """An item of an answer that has not the form of an example; says why."""


def task_of(task: Task) -> Task:
    """A task as a model writes for it: where it has wordings alone, their question is the field."""
    if task.prompt:
        return task
    wording = next(w for w in task.wordings if w.split == "fit")
    text = wording.text.replace("{topic}", "this")
    fields = {"question": "a question on what one does or expects, which names no country"}
    return task.model_copy(update={"prompt": text, "fields": fields, "options": task.options or 3})


def in_format(
    task: Task,
    culture: Culture,
    fields: dict[str, str],
    answer: str,
    wrong: Sequence[str] | None,
    named: bool = True,
    order: Sequence[str] = (),
) -> tuple[str, str, dict[str, Any]]:
    """The prompt in the task's exact format, the answer in it, and what they were made from.

    We place the right option ourselves, by hash: a model likes some letters better; `order` is a
    published one, the answer in it, and stays. Without `named` the prompt says "this country".
    Raises MalformedError for too few options, or an answer that is none of them.
    """
    inputs: dict[str, Any] = dict(fields)
    spread = int(make_id("place", fields, culture.id), 16)
    places = [culture.name, *culture.places]
    values = {**fields, "culture": "this country", "place": "this country"}
    if named:
        values |= {"culture": culture.name, "place": places[spread % len(places)]}
    if task.labels:
        inputs["options"] = task.labels
    elif task.options:
        if order:
            options = list(order)
            at = next((n for n, o in enumerate(order) if same(o) == same(answer)), -1)
            if at < 0 or len(order) < 2:
                raise MalformedError("the answer is none of the options")
            answer = options[at]
        else:
            others = [o for o in wrong or () if same(o) != same(answer)][: task.options - 1]
            if len({same(o) for o in others}) < task.options - 1:
                raise MalformedError("too few options")
            at = spread % task.options
            options = [*others[:at], answer, *others[at:]]
        inputs["options"] = options
        if "{options}" in task.prompt:
            letters = LETTERS[: len(options)]
            lines = [f"{c}. {o}" for c, o in zip(letters, options, strict=True)]
            values["options"] = "\n".join(lines)
            inputs |= {"options": list(letters), "texts": options}
            answer = letters[at]
    content = re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), task.prompt)
    if task.instruction:
        content = f"{task.instruction}\n\n{content}"
    return content, answer, inputs


def same(text: str) -> str:
    """A text as it is compared: options that differ in case, spaces or a full stop are one."""
    return " ".join(text.split()).casefold().rstrip(".")
