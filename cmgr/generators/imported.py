"""Examples that people bring: a table mapped to a task's fields, or a benchmark's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmgr import benchmarks
from cmgr.benchmarks.formats import rows_of
from cmgr.errors import UsageError
from cmgr.generators.task_format import MalformedError, in_format, task_of
from cmgr.recipe import Culture, Recipe
from cmgr.records import Evidence, Example, Message, Split, make_id, now
from cmgr.tasks import Task

OWN = ("answer", "culture", "quote", "evidence_id", "split", "language", "options")
SPLITS: dict[str, Split] = {"fit": "fit", "wording": "wording", "fact": "fact"}


@dataclass
class _Given:
    """What a row holds."""

    culture: Culture
    fields: dict[str, Any]
    answer: str
    wrong: list[str] | None = None
    order: Sequence[str] = ()  # published options, the answer among them
    group: str = ""
    language: str = "en"
    split: str = "fit"
    quote: str = ""
    cited: str = ""


def read(
    recipe: Recipe,
    path: Path,
    task_id: str,
    columns: Mapping[str, str],
    culture: Culture | None,
    evidence: Sequence[Evidence] = (),
    loader: str | None = None,
    part: str | None = None,
) -> Iterator[tuple[int, Example | str]]:
    """(line, example, or why there is none) for each row of a file.

    `columns` maps a field of the task, or one of `answer`, `culture`, `quote`, `evidence_id`,
    `split`, `language`, `options`, to the file's column; a column of the same name needs no entry.
    With a `loader` (benchmarks.py) the file is a benchmark's own, of which `part` "1/2" is taken.
    Raises MissingError where the file or pandas is not there, UsageError for a wrong map or line.
    """
    found = next((t for t in recipe.tasks if t.id == task_id), None)
    if found is None:
        known = ", ".join(t.id for t in recipe.tasks)
        raise UsageError(f"no task {task_id!r} in the recipe. It has: {known}")
    task = task_of(found)
    passages = {e.id: e for e in evidence}
    if loader:
        rows = _published(recipe, path, task, loader, columns, culture, part)
    else:
        rows = _mapped(recipe, path, task, columns, culture)
    for number, given in rows:
        if isinstance(given, str):
            yield number, given
            continue
        try:
            for name, value in {**given.fields, "answer": given.answer}.items():
                if not isinstance(value, str) or not value:
                    raise MalformedError(f"schema: no {name}")
            split = SPLITS.get(given.split)
            if split is None:
                raise MalformedError(f"split {given.split!r}: fit, wording or fact")
            whose, cited = given.culture, given.cited
            content, answer, inputs = in_format(
                task, whose, given.fields, given.answer, given.wrong, order=given.order
            )
        except MalformedError as error:
            yield number, str(error)
            continue
        yield (
            number,
            Example(
                id=make_id("import", whose.id, task.id, split, content, answer),
                culture=whose.id,
                task=task.id,
                stage="task",
                split=split,
                inputs={
                    **inputs,
                    "topic": passages[cited].topic if cited in passages else "",
                    "fact": cited or given.group or make_id(given.fields),
                    "language": given.language,
                },
                answer=answer,
                messages=[Message(role="user", content=content)],
                evidence_ids=[cited] if cited else [],
                quote=given.quote,
                generator=f"import:{path.name}",
                created_at=now(),
            ),
        )


def _mapped(
    recipe: Recipe, path: Path, task: Task, columns: Mapping[str, str], culture: Culture | None
) -> Iterator[tuple[int, _Given | str]]:
    """The rows of a person's table."""
    unknown = columns.keys() - task.fields.keys() - set(OWN)
    if unknown:
        raise UsageError(
            f"--map: task {task.id} has no field {', '.join(sorted(unknown))}. "
            f"It has: {', '.join([*task.fields, *OWN])}"
        )
    for number, row in rows_of(path):
        missing = [c for c in columns.values() if c not in row] if number == 1 else []
        if missing:
            raise UsageError(
                f"{path}: no column {', '.join(missing)}. It has: {', '.join(map(str, row))}"
            )

        def cell(name: str, row: Mapping[Any, Any] = row) -> Any:
            value = row.get(columns.get(name, name))
            return value.strip() if isinstance(value, str) else value

        try:
            whose = recipe.culture(str(cell("culture"))) if cell("culture") else culture
        except UsageError as error:
            yield number, str(error)
            continue
        if whose is None:
            yield number, "no culture: map a column to it, or give --culture"
            continue
        options = cell("options")
        if isinstance(options, str):
            options = [o.strip() for o in options.split("|") if o.strip()]
        yield (
            number,
            _Given(
                whose,
                {name: cell(name) for name in task.fields},
                str(cell("answer") or ""),
                options,
                language=str(cell("language") or "en"),
                split=str(cell("split") or "fit"),
                quote=str(cell("quote") or ""),
                cited=str(cell("evidence_id") or ""),
            ),
        )


def _published(
    recipe: Recipe,
    path: Path,
    task: Task,
    loader: str,
    columns: Mapping[str, str],
    culture: Culture | None,
    part: str | None,
) -> Iterator[tuple[int, _Given | str]]:
    """The items of a benchmark's files."""
    rows = benchmarks.of_cultures(recipe.cultures, loader, path, columns, part)
    for number, whose, row in rows:
        if isinstance(row, str):
            yield number, row
            continue
        if whose is None and not row.culture:
            whose = culture
        if whose is None:
            yield number, benchmarks.stranger(row)
        elif culture in (None, whose):
            yield (
                number,
                _Given(
                    whose,
                    {name: row.fields.get(name) for name in task.fields},
                    row.answer,
                    order=row.options,
                    group=row.group,
                    language=row.language,
                ),
            )
