"""Rows of a file, whatever its form: CSV, TSV, JSON lines, JSON, Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmgr.errors import MissingError, UsageError

Record = Mapping[Any, Any]  # column to value; csv keeps surplus cells under None
LONGEST_CELL = 16 * 2**20  # characters
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def rows_of(path: Path, quoted: bool = True) -> Iterator[tuple[int, Record]]:
    """(number from 1, row) of each row of a file; its suffix says what it is.

    Not `quoted`: the cells of a .tsv hold bare quotation marks. A JSON file is a list of objects,
    or an object of them by id, which then stands as `ID`. Raises MissingError where the file or
    pandas is not there, UsageError for another form or a file without rows.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UsageError(f"{path}: give a {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
    number = 0
    try:
        rows = _csv(path, quoted) if kind in {".csv", ".tsv"} else _others(path, kind)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise UsageError(f"{path}: row {number} is no object of columns and values")
            yield number, row
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read after row {number}: {error}") from None
    if not number:
        raise UsageError(f"{path}: it has no rows")


def _csv(path: Path, quoted: bool) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_CELL)
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(
            file,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_MINIMAL if quoted or not tabs else csv.QUOTE_NONE,
        )


def _others(path: Path, kind: str) -> Iterator[Any]:
    if kind == ".parquet":
        try:
            import pandas

            rows = pandas.read_parquet(path).to_dict("records")
        except ImportError:  # of pandas, or of what it reads the file with
            raise MissingError("Parquet needs pandas: pip install pandas pyarrow") from None
        yield from rows
    elif kind == ".json":
        text = path.read_text(encoding="utf-8-sig")
        yield from _objects(_json(text)) if text.strip() else ()
    else:
        with path.open(encoding="utf-8-sig") as file:  # splitlines() would cut at U+2028
            yield from (json.loads(line) for line in file if line.strip())


def _objects(data: Any) -> Iterator[Any]:
    if not isinstance(data, dict):
        yield from data if isinstance(data, list) else [data]
        return
    for name, row in data.items():
        yield {"ID": name, **row} if isinstance(row, dict) else row


def _json(text: str) -> Any:
    """JSON, also with a comma before a closing bracket (SafeWorld is published so)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return json.loads(_without_trailing_commas(text))


def _without_trailing_commas(text: str) -> str:
    return re.sub(r'("(?:[^"\\]|\\.)*+")|,(?=\s*[}\]])', lambda m: m[1] or "", text)
