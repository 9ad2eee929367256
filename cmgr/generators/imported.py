"""Examples that people bring: CSV, JSON lines or Parquet, mapped to a task's fields."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmgr.errors import MissingError, UsageError
from cmgr.generators.writing import MalformedError, in_format, task_of
from cmgr.recipe import Culture, Recipe
from cmgr.records import Evidence, Example, Message, Split, make_id, now

OWN = ("answer", "culture", "quote", "evidence_id", "split", "language", "options")


def read(
    recipe: Recipe,
    path: Path,
    task_id: str,
    columns: Mapping[str, str],
    culture: Culture | None,
    evidence: Sequence[Evidence] = (),
) -> Iterator[tuple[int, Example | str]]:
    """(line, example, or why there is none) for each row of a file.

    `columns` maps a field of the task, or one of `answer`, `culture`, `quote`, `evidence_id`,
    `split`, `language`, `options`, to the file's column; a column of the same name needs no entry.
    Raises MissingError where the file or pandas is not there, UsageError for a wrong map or line.
    """
    found = next((t for t in recipe.tasks if t.id == task_id), None)
    if found is None:
        known = ", ".join(t.id for t in recipe.tasks)
        raise UsageError(f"no task {task_id!r} in the recipe. It has: {known}")
    task = task_of(found)
    unknown = columns.keys() - task.fields.keys() - set(OWN)
    if unknown:
        raise UsageError(
            f"--map: task {task_id} has no field {', '.join(sorted(unknown))}. "
            f"It has: {', '.join([*task.fields, *OWN])}"
        )
    passages = {e.id: e for e in evidence}
    for number, row in _rows(path):
        if number == 1 or not row:
            missing = [c for c in columns.values() if c not in row]
            if missing:
                raise UsageError(
                    f"{path}: no column {', '.join(missing)}. It has: {', '.join(map(str, row))}"
                )

        def cell(name: str, row: Mapping[str, Any] = row) -> Any:
            value = row.get(columns.get(name, name))
            return value.strip() if isinstance(value, str) else value

        try:
            whose = recipe.culture(str(cell("culture"))) if cell("culture") else culture
            if whose is None:
                raise MalformedError("no culture: map a column to it, or give --culture")
            fields = {name: cell(name) for name in task.fields}
            for name, value in {**fields, "answer": cell("answer")}.items():
                if not isinstance(value, str) or not value:
                    raise MalformedError(f"schema: no {name}")
            options = cell("options")
            if isinstance(options, str):
                options = [o.strip() for o in options.split("|") if o.strip()]
            content, answer, inputs = in_format(task, whose, fields, str(cell("answer")), options)
            cited = str(cell("evidence_id") or "")
            splits: dict[str, Split] = {"fit": "fit", "wording": "wording", "fact": "fact"}
            split = splits.get(str(cell("split") or "fit"))
            if split is None:
                raise MalformedError(f"split {cell('split')!r}: fit, wording or fact")
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
                        "fact": cited or make_id(fields),
                        "language": str(cell("language") or "en"),
                    },
                    answer=answer,
                    messages=[Message(role="user", content=content)],
                    evidence_ids=[cited] if cited else [],
                    quote=str(cell("quote") or ""),
                    generator=f"import:{path.name}",
                    created_at=now(),
                ),
            )
        except (MalformedError, UsageError) as error:
            yield number, str(error)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, from 1."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            try:
                import pandas
            except ImportError:
                raise MissingError("Parquet needs pandas: pip install pandas pyarrow") from None
            for number, row in enumerate(pandas.read_parquet(path).to_dict("records"), 1):
                yield number, {str(k): v for k, v in row.items()}
        elif kind == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                for number, row in enumerate(csv.DictReader(file), 1):
                    yield number, {k: v for k, v in row.items() if k}
        elif kind in {".jsonl", ".ndjson"}:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            for number, line in enumerate((x for x in lines if x.strip()), 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UsageError(f"{path}: row {number} is no JSON object")
                yield number, row
        else:
            raise UsageError(f"{path}: give a .csv, .jsonl or .parquet file")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file of examples") from None
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
