"""A task: its fixed instruction, prompt and answer format; cards of those that cmgr knows."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where PyYAML is built with it
LETTERS = "ABCDEFGHIJ"  # of options that are lettered
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Part(BaseModel):
    """A part of a recipe: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


def checked_id(value: str) -> str:
    """An id as it is; ValueError where it is none."""
    if not ID.fullmatch(value) or len(value) > 64:
        raise ValueError(f"id {value!r} must be lower-case letters, digits and single hyphens")
    return value


class Wording(Part):
    """How one question becomes a prompt: `text` may use {question}, {place}, {culture}, {topic}.

    `question` picks which wording of the evidence's question is asked: 0 its heading, 1 and up its
    paraphrases. `split` says what items of this wording are for.
    """

    text: str
    question: int = Field(default=0, ge=0)
    split: Literal["fit", "wording"] = "fit"

    @field_validator("text")
    @classmethod
    def _fields(cls, value: str) -> str:
        names = set(re.findall(r"\{(.*?)\}", value))
        unknown = names - {"question", "place", "culture", "topic"}
        if unknown or "question" not in names:
            raise ValueError("a wording uses {question}, and may use {place}, {culture}, {topic}")
        return value


class Task(Part):
    """A culture-sensitive downstream task: fixed instruction, prompt and answer format.

    `wordings` turn a question of the evidence into a prompt (the extractive generator). A model
    fills `fields` (name: what stands in it) of `prompt`, which may use {culture}, {place} and
    {options} too. The answer is one of `labels`, one of `options` texts that are written with each
    item (by its letter where the prompt shows {options}), or free text of up to `max_words`.
    `shows` says what a prompt may give away. `neutral` is a prompt that asks nothing of any culture
    (`answer.score: pmi`). `examples` are items as they should be: the fields, and `answer`.
    """

    id: str
    name: str
    instruction: str = ""
    queries: list[str] = Field(min_length=1)  # templates with {culture} and {topic}
    wordings: list[Wording] = []
    prompt: str = ""
    fields: dict[str, str] = {}
    labels: list[str] = []
    options: int = Field(default=0, ge=0, le=10)
    max_words: int = Field(default=60, ge=1)
    neutral: str = ""
    shows: list[Literal["culture", "answer"]] = ["culture"]
    examples: list[dict[str, str | list[str]]] = []

    _id = field_validator("id")(checked_id)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.wordings and not self.prompt:
            raise ValueError("a task has `wordings` or a `prompt` with `fields`")
        if self.labels and (self.options or len(set(self.labels)) < max(2, len(self.labels))):
            raise ValueError("`labels` are two or more, distinct, and exclude `options`")
        if self.options == 1:
            raise ValueError("`options` are two or more")
        if self.prompt:
            used = set(re.findall(r"\{(\w+)\}", self.prompt))
            unknown = used - self.fields.keys() - {"culture", "place", "options"}
            if unknown or not used & self.fields.keys():
                raise ValueError(
                    "a prompt uses its {fields}, and may use {culture}, {place}, {options}"
                    + (f"; it has {', '.join(sorted(unknown))}" if unknown else "")
                )
        for name in ("culture", "place", "options", "answer", "quote", "passage"):
            if name in self.fields:
                raise ValueError(f"a field cannot be named {name}")
        return self


class Benchmark(Part):
    """The public benchmark that a card follows. `format` says how its files are known to us."""

    name: str
    loader: str
    citation: str
    url: str
    license: str
    format: str


class Card(Task):
    """A task that cmgr knows, with the benchmark that it follows."""

    metric: Literal["accuracy", "macro-f1", "match"]
    benchmark: Benchmark

    def task(self) -> dict[str, Any]:
        """What a recipe holds of it."""
        return self.model_dump(exclude={"metric", "benchmark"})


def bundled_folder() -> Path:
    """Where the recipes that cmgr ships lie: inside the package, or beside it in a checkout."""
    package = Path(sys.modules["cmgr"].__file__ or "").parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def card_ids() -> list[str]:
    """The ids of all cards."""
    return sorted(path.stem for path in (bundled_folder() / "tasks").glob("*.yaml"))


@cache
def card(task_id: str) -> Card:
    """The card of a task. Raises ValueError that lists those there are."""
    path = bundled_folder() / "tasks" / f"{task_id}.yaml"
    if not ID.fullmatch(task_id) or not path.is_file():
        raise ValueError(f"no task card {task_id!r}: there are {', '.join(card_ids())}")
    try:
        return Card.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path}: {error}") from None
