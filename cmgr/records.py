"""What the stages hand on: one JSON line each, with an id that is a hash of what made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Stage = Literal["broad", "task"]
# fit: trained on; wording: another wording of a trained fact; fact: a fact never trained
Split = Literal["fit", "wording", "fact"]


def make_id(*parts: Any) -> str:
    """A stable 16-digit id of what made a record (any JSON values)."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """The SHA-256 of what a file holds. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time now, UTC, ISO 8601 in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Record(BaseModel):
    """A JSON line; fields that a later version adds are kept."""

    model_config = ConfigDict(extra="allow")


def json_lines(records: Iterable[Record]) -> str:
    """Records as a file holds them, one a line."""
    return "".join(record.model_dump_json() + "\n" for record in records)


class Query(Record):
    """One search for a culture; `id` and `kind` follow from the rest, also in an edited line."""

    id: str = ""
    culture: str
    kind: Literal["task-specific", "task-agnostic"] = "task-agnostic"
    task: str | None = None
    topic: str = ""
    language: str = "en"
    text: str = Field(min_length=1)

    @model_validator(mode="after")
    def _derived(self) -> Self:
        self.id = make_id("query", self.culture, self.task, self.text)
        self.kind = "task-specific" if self.task else "task-agnostic"
        return self


class Evidence(Record):
    """A passage found for a query, with its source.

    `heading` is the question or section title that stands over the passage, `also_asked` its other
    wordings (both empty where the source has none); `topic` groups passages of one subject.
    `shared_with` names other cultures that the same passage was found for, `revision` that of a
    wiki's page; `flags` may hold `instructions`: the text addresses a language model.
    """

    id: str
    culture: str
    query_id: str
    source: str
    url: str
    title: str
    text: str
    language: str = "en"
    retrieved_at: str
    license: str | None = None
    score: float
    sha256: str
    topic: str = ""
    heading: str = ""
    also_asked: list[str] = []
    shared_with: list[str] = []
    revision: str = ""
    flags: list[str] = []


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Example(Record):
    """One training or held-out item: `messages` is the prompt, `answer` what follows it.

    `judge` is a judge model's score, 1 to 5; `reviewer` and `reason` are those of a review.
    """

    id: str
    culture: str
    task: str | None
    stage: Stage
    split: Split = "fit"
    inputs: dict[str, Any]
    answer: str
    messages: list[Message]
    evidence_ids: list[str]
    quote: str
    generator: str
    created_at: str
    review: Literal["pending", "accepted", "edited", "rejected"] = "pending"
    judge: int | None = None
    reviewer: str = ""
    reason: str = ""


class Label(Record):
    """What a person says of a text: the cultures it is of, or none. `id` is made from the text."""

    id: str
    text: str
    cultures: list[str]


class Decision(Record):
    """What the router says of one text; `culture` is null when it abstains."""

    text: str
    culture: str | None
    probability: float
    probabilities: dict[str, float]
    cultures: list[str]
    abstained: bool


class Source(BaseModel):
    """A passage that stood before a question, under the number that the prompt gave it.

    `text` is as it was shown, `sentence` the one that the answer follows (empty: none).
    """

    number: int
    evidence_id: str
    culture: str
    title: str
    url: str
    text: str
    sentence: str = ""
    score: float = 0.0


class Claim(BaseModel):
    """A sentence of an answer, and the number of the source that says so (null: none of them)."""

    sentence: str
    source: int | None


class Part(BaseModel):
    """One culture's answer to a prompt that means several, and the prompt as it was put to it."""

    culture: str
    prompt: str
    response: str
    usage: dict[str, int] = {}
    sources: int = 0  # how many passages it read


class Answer(Record):
    """One reply of the runtime.

    `adapter` names what was on (`japan`, or `japan=0.6,brazil=0.4`; `japan+brazil` where each
    answered for itself, in `parts`), `culture` the strongest of it; `decided_by` says who chose:
    the user, the router, or the thread (a follow-up that names no culture). `made_from` is of a
    batch: a hash of all that decides the answer. `sources` are the passages of the culture's
    evidence that the model read before the question, `claims` which sentence of the answer stands
    in which of them.
    """

    id: str
    prompt: str
    culture: str | None
    adapter: str | None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    decided_by: Literal["user", "router", "thread"] | None = None
    system: str | None = None
    response: str = ""
    choice: str | None = None
    choice_probabilities: dict[str, float] | None = None
    usage: dict[str, int] = {}
    timings: dict[str, float] = {}
    error: str | None = None
    made_from: str | None = None
    sources: list[Source] = []
    claims: list[Claim] = []
    parts: list[Part] = []
