"""What is asked for: task-agnostic and task-specific queries, per culture, in its languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from cmgr.errors import MissingError, UsageError
from cmgr.llm import RefusedError, Writer
from cmgr.recipe import Culture, Recipe
from cmgr.records import Query, make_id
from cmgr.tasks import LOADER, Task
from cmgr.workspace import Workspace, read_json

AT_ONCE = 12  # topics that a model is asked to write for in one call
_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i can(?:'|no)t|as an ai|unable to|i apologi[sz]e)\b", re.IGNORECASE
)


@cache
def tree() -> dict[str, Any]:
    """Everyday culture: group -> its topics, and its name in other languages."""
    text = files("cmgr").joinpath("topics.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, Loader=LOADER)
    return found


def topics(recipe: Recipe) -> list[str]:
    """The recipe's topics, or all of the tree."""
    return recipe.search.topics or [t for group in tree().values() for t in group["topics"]]


def languages(recipe: Recipe, culture: Culture) -> list[str]:
    """The languages that a culture is asked about in (ISO 639-1), English first."""
    return languages_of(recipe.search.languages, culture)


def languages_of(wanted: str, culture: Culture) -> list[str]:
    """A culture's languages as `english`, `local` or `both` wants; English where none is known."""
    local = [code for code in culture.languages if code != "en"]
    english = ["en"] if wanted != "local" or not local else []
    return english + (local if wanted != "english" else [])


def from_templates(recipe: Recipe) -> Iterator[Query]:
    """Every query that the recipe's templates make; in other languages one per group of topics."""
    for culture in recipe.cultures:
        spoken = languages(recipe, culture)
        templates: list[tuple[str | None, str]] = [(None, text) for text in recipe.search.queries]
        templates += [(task.id, text) for task in recipe.tasks for text in task.queries]
        for task_id, template in templates if "en" in spoken else []:
            for topic in topics(recipe):
                text = template.replace("{topic}", topic).replace("{culture}", culture.name)
                yield Query(culture=culture.id, task=task_id, topic=topic, text=text)
        for language in spoken:
            if language != "en":
                yield from _in_words_of(recipe, culture, language)


def _in_words_of(recipe: Recipe, culture: Culture, language: str) -> Iterator[Query]:
    name = country_name(culture, language)
    for group, entry in tree().items():
        if language in entry["in"] and not {group, *entry["topics"]}.isdisjoint(topics(recipe)):
            yield Query(
                culture=culture.id,
                topic=group,
                language=language,
                text=f"{name} {entry['in'][language]}",
            )


@cache
def _territories(language: str) -> dict[str, str]:
    from babel import Locale

    return dict(Locale.parse(language).territories)


def country_name(culture: Culture, language: str) -> str:
    """The country's name in a language (CLDR); as the recipe has it where babel is not there."""
    try:
        code = culture.country or next(
            (c for c, n in _territories("en").items() if n == culture.name), ""
        )
        return _territories(language).get(code, culture.name)
    except (ImportError, LookupError, ValueError):  # no babel; no such language
        return culture.name


# -- a model writes them ------------------------------------------------------------------------


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid")
    # bounds for a grammar, which a small model needs to come to an end; nothing is refused by them
    topic: str = Field(json_schema_extra={"maxLength": 60})
    query: str = Field(json_schema_extra={"maxLength": 120})


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    queries: list[_Written]


def _answer_of(most: int) -> type[_Answer]:
    bound = Field(json_schema_extra={"maxItems": most})
    return create_model("Answer", __base__=_Answer, queries=(list[_Written], bound))


SYSTEM = (
    "You write queries for a web search engine. They are to find pages on what people of one "
    "national culture usually do, expect and value: concrete, in few words, as a person would type "
    'them. Answer in JSON: {"queries": [{"topic": ..., "query": ...}]}.'
)


def calls(recipe: Recipe) -> list[tuple[Culture, str, Task | None, list[str]]]:
    """What a model is asked: a culture, a language, a task or none, some topics at once."""
    wanted = topics(recipe)
    parts = [wanted[i : i + AT_ONCE] for i in range(0, len(wanted), AT_ONCE)]
    return [
        (culture, language, task, part)
        for culture in recipe.cultures
        for language in languages(recipe, culture)
        for task in (None, *recipe.tasks)
        for part in parts
    ]


def prompt(
    recipe: Recipe, culture: Culture, language: str, task: Task | None, wanted: list[str]
) -> str:
    """The words in which a model is asked."""
    lines = [
        f"Culture: {culture.name}.",
        f"Language of the queries: {language_name(language)}.",
        f"Write {recipe.search.per_topic} for each of these topics: {'; '.join(wanted)}.",
    ]
    if task:
        lines.append(
            f"They serve a task, {task.name}. Its instruction: {task.instruction or 'none'} "
            f"Its prompts look like this: {' | '.join(_looks(task))}"
        )
    else:
        lines.append("They serve no task in particular: broad norms, values and customs.")
    return "\n".join(lines)


def _looks(task: Task) -> list[str]:
    fields = [f"{name}: {what}" for name, what in task.fields.items()]
    shown = [f"{k}: {v}" for example in task.examples[:3] for k, v in example.items()]
    return [task.prompt or task.wordings[0].text, *fields, *shown]


def language_name(language: str) -> str:
    try:
        from babel import Locale

        return str(Locale.parse(language).get_display_name("en"))
    except (ImportError, LookupError, ValueError):
        return language


def from_writer(recipe: Recipe, writer: Writer, say: Callable[[str], None]) -> Iterator[Query]:
    """Queries that a model writes; where it refuses, what the templates make."""
    plain = list(from_templates(recipe))
    for culture, language, task, wanted in calls(recipe):
        task_id = task.id if task else None
        found: list[Query] = []
        try:
            shape = _answer_of(len(wanted) * recipe.search.per_topic)
            answer = writer.ask(SYSTEM, prompt(recipe, culture, language, task, wanted), shape)
            for item in answer.queries:
                text = " ".join(item.query.split()).strip("\"'“”")
                topic = next((t for t in wanted if t.casefold() == item.topic.casefold()), "")
                if 2 < len(text) <= 200 and not _REFUSAL.search(text):
                    found.append(
                        Query(
                            culture=culture.id,
                            task=task_id,
                            topic=topic,
                            language=language,
                            text=text,
                        )
                    )
        except RefusedError as error:
            say(f"{culture.name}, {language}: {error}")
        if not found:
            say(f"{culture.name}, {language}: no query written; the templates' are taken")
            found = [
                q
                for q in plain
                if (q.culture, q.language, q.task) == (culture.id, language, task_id)
                and (language != "en" or q.topic in wanted)
            ]
        yield from found


# -- the file -----------------------------------------------------------------------------------


def wanted_inputs(recipe: Recipe) -> str:
    """A hash of what the recipe's own queries follow from."""
    search = recipe.search
    kept = {"topics", "queries", "writer", "per_topic", "languages"}
    return make_id(
        search.model_dump(include=kept),
        [t for g in tree().items() for t in g] if not search.topics else None,
        [culture.model_dump(exclude={"places", "demonym"}) for culture in recipe.cultures],
        [task.model_dump() for task in recipe.tasks],
        recipe.generator.model_dump() if search.writer == "generator" else None,
    )


def is_current(ws: Workspace) -> bool:
    """Whether queries.jsonl is there, and made from the recipe as it is."""
    inputs = wanted_inputs(ws.recipe)
    return ws.is_current("queries", inputs) and ws.path("queries.jsonl").is_file()


def planned(ws: Workspace) -> list[Query]:
    """What the templates make, and what people have written so far."""
    made = (read_json(ws.manifest_path("queries")) or {}).get("made", [])
    own = [q for q in ws.read("queries", Query) if q.id not in made]
    made_now = from_templates(ws.recipe) if ws.recipe.search.writer == "templates" else ()
    return _without_repeats([*made_now, *own])


def build(ws: Workspace) -> None:
    """Bring queries.jsonl up to date with the recipe; lines that a person has edited stay.

    A query of ours that a person has deleted is not written again. Raises MissingError where the
    generator's key or model is not there.
    """
    if is_current(ws):
        return
    recipe = ws.recipe
    new: list[Query] = []
    if recipe.search.writer == "templates":
        new = _without_repeats(from_templates(recipe))
        _tell_missing(ws)
    elif recipe.search.writer == "generator":
        new = _without_repeats(from_writer(recipe, Writer(recipe.generator, ws.folder), ws.say))
    manifest = read_json(ws.manifest_path("queries")) or {}
    before = set(manifest.get("made", [])) if ws.path("queries.jsonl").is_file() else set()
    have = {q.id for q in ws.read("queries", Query)} | before
    ws.append("queries", [q for q in new if q.id not in have])
    ids = [q.id for q in new]
    ws.finish("queries", wanted_inputs(recipe), wanted=ids, made=sorted(before.union(ids)))


def current(ws: Workspace) -> list[Query]:
    """The queries that count: the recipe's own of now, and all that people have written."""
    manifest = read_json(ws.manifest_path("queries")) or {}
    wanted, made = set(manifest.get("wanted", [])), set(manifest.get("made", []))
    known = {culture.id for culture in ws.recipe.cultures}
    found = [q for q in ws.read("queries", Query) if q.id in wanted or q.id not in made]
    for query in found:
        if query.culture not in known:
            ws.recipe.culture(query.culture)  # raises, with the names there are
    return found


def add(ws: Workspace, path: Path) -> int:
    """Add a person's queries, JSON lines or a template with {culture} a line; returns how many.

    Raises MissingError, and UsageError that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file of queries") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}. Give UTF-8 text.") from None
    given: list[Query] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if line.lstrip().startswith('{"'):
            try:
                query = Query.model_validate_json(line)
                ws.recipe.culture(query.culture)
            except (ValidationError, UsageError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
                raise UsageError(
                    f'{path}:{number}: {reason}. A query is {{"culture": "japan", "text": "..."}}'
                ) from None
            given.append(query)
        else:
            given += [
                Query(culture=c.id, text=line.strip().replace("{culture}", c.name))
                for c in ws.recipe.cultures
            ]
    have = {q.id for q in ws.read("queries", Query)}
    return ws.append("queries", [q for q in _without_repeats(given) if q.id not in have])


def _without_repeats(found: Iterable[Query]) -> list[Query]:
    kept: dict[tuple[str, str | None, str], Query] = {}
    for query in found:
        kept.setdefault((query.culture, query.task, query.text.casefold()), query)
    return list(kept.values())


def _tell_missing(ws: Workspace) -> None:
    known = next(iter(tree().values()))["in"]
    for culture in ws.recipe.cultures:
        for language in languages(ws.recipe, culture):
            if language != "en" and language not in known:
                ws.say(
                    f"{culture.name}: cmgr has no words in {language_name(language)}: no queries "
                    "in it. Write some into queries.jsonl, or set search.writer to generator."
                )
