"""What the user wants: one YAML file, read into pydantic models; messages name the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from cmgr.errors import UsageError
from cmgr.tasks import ID, LOADER, Part, Task, bundled_folder, card, checked_id

SHARED = "shared"  # the adapter of all cultures together
PREFER = "prefer"  # the training stage of right answers against wrong ones


class Culture(Part):
    """A national culture: how people name it, and places that stand for it in prompts.

    `country` is its ISO 3166-1 code, where `name` does not say it.
    """

    id: str
    name: str = Field(min_length=1)
    country: str | None = None
    demonym: str = ""
    places: list[str] = []
    languages: list[str] = []

    _id = field_validator("id")(checked_id)


# where evidence can come from: a file of cmgr/sources/, and the key that it cannot do without
SOURCES = {
    "documents": "path",
    "searxng": "url",
    "kiwix": "url",
    "wikipedia": None,
    "brave": None,
    "tavily": None,
    "serper": None,
    "duckduckgo": None,
}


class Source(Part):
    """Where evidence comes from: a folder, an engine, an encyclopaedia.

    `url` is the address of a server of one's own, or of an API other than the usual; `books` are
    those of a kiwix-serve, `engines` those of a SearXNG; `delay` is in seconds between requests.
    """

    kind: str
    path: str | None = None
    url: str | None = None
    books: list[str] = []
    engines: list[str] = []
    delay: float | None = Field(default=None, ge=0)
    license: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind not in SOURCES:
            raise ValueError(f"no source {self.kind!r}: there are {', '.join(SOURCES)}")
        needed = SOURCES[self.kind]
        if needed and not getattr(self, needed):
            raise ValueError(f"a source of kind {self.kind} needs `{needed}`")
        if self.path is not None and self.kind != "documents":
            raise ValueError("`path` belongs to a source of kind documents")
        if self.url is not None and not re.match(r"https?://[^/\s]", self.url):
            raise ValueError("`url` begins with http:// or https:// and a host")
        return self


class Search(Part):
    """How much is asked and kept.

    No `topics`: those of everyday culture that cmgr knows. `writer` says who words the queries
    (none: only what queries.jsonl holds), `order` whether every source is asked, or the next one
    only where those before found fewer than `pages`. `per_query` passages of a source are kept.
    """

    topics: list[str] = []
    queries: list[str] = ["{topic} in {culture}", "{topic} in {culture}: customs and norms"]
    writer: Literal["templates", "generator", "none"] = "templates"
    per_topic: int = Field(default=1, ge=1, le=10)
    languages: Literal["english", "local", "both"] = "both"
    order: Literal["together", "first"] = "together"
    pages: int = Field(default=5, ge=1, le=50)
    per_query: int = Field(default=8, ge=1, le=100)
    per_page: int = Field(default=3, ge=1)
    exclude: list[str] = []
    instructions: Literal["drop", "mark"] = "drop"


class Web(Part):
    """How pages are fetched.

    Seconds between two requests to a host, for a whole page, and before a first retry; `allow`
    names hosts on private networks (`host` or `host:port`) that may be fetched from.
    """

    contact: str = Field(default="", max_length=200, pattern=r"^[\x20-\x7e]*$")
    delay: float = Field(default=1.0, ge=0)
    workers: int = Field(default=32, ge=1, le=256)
    per_host: int = Field(default=2, ge=1)
    timeout: float = Field(default=20, gt=0)
    retries: int = Field(default=2, ge=0, le=10)
    backoff: float = Field(default=2.0, ge=0)
    patience: float = Field(default=120, ge=0)
    max_mb: float = Field(default=8, gt=0)
    allow: list[str] = []


class Price(Part):
    """US dollars per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Generator(Part):
    """Who writes: nobody (cut from the evidence), an OpenAI-compatible endpoint (at once, or as a
    batch at half the price), a local GGUF.

    `key_env` names the environment variable that holds the key; no `base_url` is OpenAI's own.
    Each call shows up to `passages` of one topic and asks for `per_call` examples; `contrast`: also
    for situations that two cultures answer differently. `prompts` replace those that cmgr has, by
    name. `judge` is the least score (1 to 5) that the model itself must give an example; `again`:
    it must come to the same answer from the passage alone.
    """

    kind: Literal["extractive", "openai_compatible", "openai_batch", "llama"] = "extractive"
    model: str = "gpt-4o"
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    temperature: float = Field(default=0.7, ge=0, le=2)
    seed: int = 1
    passages: int = Field(default=3, ge=1, le=3)
    per_call: int = Field(default=4, ge=1, le=20)
    contrast: bool = True
    languages: Literal["english", "local", "both"] = "english"
    prompts: dict[str, str] = {}
    price: Price | None = None
    timeout: float = Field(default=120, gt=0)
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, ge=0)
    most_at_once: int = Field(default=64, ge=1)
    judge: int | None = Field(default=None, ge=1, le=5)
    again: bool = False
    unseen_facts: float = Field(default=0.2, ge=0, lt=1)


class Base(Part):
    """The language model: one reference (see README), and optional weights to train from.

    `thinking`: whether its chat template, where it has a switch for that, lets it think first, in
    training and in use.
    """

    model: str = "smollm2"
    thinking: bool = False
    train_from: str | None = None
    context: int = Field(default=2048, ge=256)
    cache_mb: int = Field(default=1024, ge=64)


class Adapter(Part):
    """The LoRA of each culture; `export` is the type of its GGUF tensors."""

    kind: Literal["activated", "standard"] = "activated"
    rank: int = Field(default=16, ge=1, le=512)
    alpha: float = Field(default=32, gt=0)
    targets: Literal["all-linear", "attention"] | list[str] = "all-linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = False
    export: Literal["f16", "f32", "q8_0"] = "f16"


class Train(Part):
    """Stages over one adapter; epochs, optimiser settings, what to do with little memory.

    `prefer` is a third stage, off unless named: each right answer against up to three wrong ones
    (other labels, other options, other cultures' answers), whose odds count `prefer_weight` times
    beside the right answer's loss (ORPO; arXiv 2403.07691).
    `validation` is the share of evidence held back to choose the best epoch by, or none where none
    is better than what training began with; `patience` says how many epochs without a better one
    end a stage (0: none does). `review: accepted` trains on what a person has accepted or edited,
    and on nothing else. `passages` is the share of task examples whose prompt carries passages of
    the evidence (retrieval/prompt.py), as prompts do in use. `start: shared` trains one adapter on
    all cultures first, from which each culture's goes on; of what this changes, the share `own` is
    kept (weights between both: Wortsman and others, arXiv 2109.01903).
    """

    stages: list[Literal["broad", "task", "prefer"]] = Field(
        default=["broad", "task"], min_length=1
    )
    start: Literal["scratch", "shared"] = "scratch"
    own: float = Field(default=1.0, gt=0, le=1)
    broad_epochs: int = Field(default=1, ge=0)
    task_epochs: int = Field(default=4, ge=1)
    prefer_epochs: int = Field(default=1, ge=1)
    prefer_weight: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, ge=1)
    passages: float = Field(default=0.5, ge=0, le=1)
    seed: int = 1
    validation: float = Field(default=0.1, ge=0, lt=1)
    patience: int = Field(default=2, ge=0)
    review: Literal["any", "accepted"] = "any"
    # where it runs; none of these changes what is learnt
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False
    quantize: Literal["auto", "4bit", "none"] = "auto"
    prompts: Literal["auto", "memory", "disk", "again"] = "auto"
    prompts_mb: int | None = Field(default=None, ge=1)
    checkpoint_seconds: float = Field(default=60, ge=0)


# keys of Train that say how, not what
RUNNING = {
    *("device", "threads", "micro_batch", "gradient_checkpointing", "prompts", "prompts_mb"),
    "checkpoint_seconds",
}


class Router(Part):
    """When to name a culture: the least probability, and the least lead over the second."""

    threshold: float = Field(default=0.35, gt=0, lt=1)
    margin: float = Field(default=0.1, ge=0, lt=1)


class Answering(Part):
    """What a culture's answers rest on: how many of its passages go into the prompt (0: none).

    `encoder` ranks them: auto (all-MiniLM-L6-v2 where its package is installed, else BM25), none
    (BM25), a GGUF embedding model, or a sentence-transformers folder. `several`: a prompt that
    means several cultures is answered once by each (parts), by their adapters together (blend), or
    by the likeliest (best). `score` is how given options
    are scored (cmgr/scoring.py), `contrast_weight` how much the culture's own difference counts.
    """

    passages: int = Field(default=3, ge=0, le=10)
    encoder: str = "auto"
    several: Literal["parts", "blend", "best"] = "parts"
    score: Literal["mean", "sum", "pmi", "contrast"] = "mean"
    contrast_weight: float = Field(default=1.0, ge=0)


class Evaluate(Part):
    """How many items per culture are scored: trained ones, other wordings, unseen facts."""

    trained: int = Field(default=8, ge=0)
    wordings: int = Field(default=20, ge=1)
    facts: int = Field(default=12, ge=0)


class Recipe(Part):
    """The whole wish. Raises pydantic's ValidationError; `load` turns it into a UsageError."""

    name: str
    cultures: list[Culture] = Field(min_length=1)
    tasks: list[Task] = Field(min_length=1)
    base: Base = Base()
    sources: list[Source] = Field(min_length=1)
    search: Search = Search()
    web: Web = Web()
    generator: Generator = Generator()
    adapter: Adapter = Adapter()
    train: Train = Train()
    router: Router = Router()
    answer: Answering = Answering()
    evaluate: Evaluate = Evaluate()
    try_prompts: list[str] = []

    _name = field_validator("name")(checked_id)

    @field_validator("tasks", mode="before")
    @classmethod
    def _cards(cls, value: Any) -> Any:
        """A task may be given by the id of its bundled card."""
        entries = value if isinstance(value, list) else [value]
        return [card(v).task() if isinstance(v, str) else v for v in entries]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for what, ids in (
            ("culture", [c.id for c in self.cultures]),
            ("task", [t.id for t in self.tasks]),
        ):
            twice = {i for i in ids if ids.count(i) > 1}
            if twice:
                raise ValueError(f"two entries of one {what} id: {', '.join(sorted(twice))}")
        if any(c.id == SHARED for c in self.cultures):
            raise ValueError(f"a culture cannot have the id {SHARED}: it is all cultures' adapter")
        return self

    def culture(self, culture_id: str) -> Culture:
        """The culture of that id; UsageError names those there are."""
        for culture in self.cultures:
            if culture.id == culture_id:
                return culture
        known = ", ".join(c.id for c in self.cultures)
        raise UsageError(f"no culture {culture_id!r} in the recipe. It has: {known}")

    def pick(self, ids: list[str] | None) -> list[Culture]:
        """The cultures of these ids, or all."""
        return [self.culture(i) for i in ids] if ids else self.cultures


def _line_of(node: yaml.Node | None, path: tuple[Any, ...]) -> int | None:
    """The line (from 1) of the key or item at `path` in a composed YAML document."""
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                break
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line


def load(path: Path) -> Recipe:
    """Read a recipe. Raises UsageError that names the file, the line and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=LOADER)
        data = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}: not valid YAML: {problem}. Mend that line.") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a recipe is a mapping of keys; see `cmgr init quickstart`.")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors()[:5]:
            line = _line_of(node, item["loc"])
            key = ".".join(str(part) for part in item["loc"]) or "recipe"
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                message = "unknown key: remove it or correct its spelling"
            problems.append(f"{path}{f':{line}' if line else ''}: {key}: {message}")
        raise UsageError("\n".join(problems)) from None


def find(reference: str) -> Path:
    """A recipe file by path, or by the name of a bundled one.

    Raises UsageError that lists the bundled names.
    """
    path = Path(reference)
    if path.suffix in {".yaml", ".yml"} or "/" in reference:
        if not path.is_file():
            raise UsageError(f"{path}: no such recipe file")
        return path
    bundled = bundled_folder() / f"{reference}.yaml"
    if ID.fullmatch(reference) and bundled.is_file():
        return bundled
    names = ", ".join(sorted(p.stem for p in bundled_folder().glob("*.yaml")))
    raise UsageError(f"no recipe {reference!r}: give a .yaml file or a bundled name ({names})")
