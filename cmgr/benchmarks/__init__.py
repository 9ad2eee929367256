"""Public benchmarks, read from the files that their authors publish; whom a file's country means.

Nothing is downloaded, and no row of any benchmark is part of cmgr: a user brings the files.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from cmgr.benchmarks.formats import Record
from cmgr.benchmarks.loaders import LOADERS, Loader
from cmgr.benchmarks.readers import NoItemError, Row
from cmgr.errors import MissingError, UsageError
from cmgr.recipe import Culture
from cmgr.records import make_id

__all__ = [
    "LOADERS",
    "Row",
    "culture_of",
    "in_part",
    "of_cultures",
    "read",
    "spellings",
    "stranger",
]


def read(
    loader: str, path: Path, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[int, Row | str]]:
    """(number, item) or (number, why that row has none), over a file or a folder's files.

    Several items may share a number, which counts from 1 in each file. `columns` maps our names to
    the file's columns and is for `table` alone. Raises UsageError for an unknown loader or another
    format, MissingError where there is no file.
    """
    how = LOADERS.get(loader)
    if how is None:
        raise UsageError(f"no loader {loader!r}: there are {', '.join(LOADERS)}")
    if columns and loader != "table":
        raise UsageError(f"the files of {loader} have their own columns: they cannot be mapped")
    return _read(how, _paths(how, path), columns or {})


def _paths(how: Loader, path: Path) -> list[Path]:
    if not path.exists():
        raise MissingError(f"{path}: no such file. Give {how.give}")
    if not path.is_dir():
        return [path]
    for pattern in how.files:
        found = [p.relative_to(path) for p in path.rglob(pattern)]
        # editors leave copies in hidden folders
        if kept := [p for p in found if not any(part.startswith(".") for part in p.parts)]:
            return [path / p for p in sorted(kept)]
    wanted = " or ".join(how.files)
    raise UsageError(f"{path}: a folder{' without ' if wanted else ''}{wanted}. Give {how.give}")


def _read(
    how: Loader, paths: Sequence[Path], columns: Mapping[str, str]
) -> Iterator[tuple[int, Row | str]]:
    seen: set[tuple[str, str]] = set()
    for path in paths:
        for number, row in how.rows(path):
            if number == 1:
                _check(how, path, row, columns)
            try:
                if None in row:
                    raise NoItemError("more cells than columns")
                for item in how.items(path, number, _renamed(row, columns)):
                    if how.once and isinstance(item, Row):
                        if (item.culture, item.group) in seen:
                            continue
                        seen.add((item.culture, item.group))
                    yield number, item
            except NoItemError as error:
                yield number, str(error)


def _renamed(row: Record, columns: Mapping[str, str]) -> Record:
    if not columns:
        return row
    taken = set(columns.values())
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest | {ours: row.get(theirs) for ours, theirs in columns.items()}


def _check(how: Loader, path: Path, row: Record, columns: Mapping[str, str]) -> None:
    """Raises UsageError where a file's first row lacks a column that is wanted."""
    has = [str(name) for name in row if name is not None]
    unmapped = [theirs for theirs in columns.values() if theirs not in row]
    missing = [n for n in how.needs if not {*has, *columns} & set(n.split(" or "))]
    if unmapped or missing:
        raise UsageError(
            f"{path}: another format: no column {', '.join(unmapped or missing)}. It needs "
            f"{', '.join(how.needs)}; it has {', '.join(has) or 'none'}. Give {how.give}"
        )


def in_part(row: Row, part: str | None) -> bool:
    """Whether an item is of a part, "1/2" or "2/2": by a hash of its group, which stays together.

    So that what is trained on one part can be asked the other. Raises UsageError.
    """
    if part is None:
        return True
    first, _, count = part.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise UsageError(f"part {part!r}: write I/N with I from 1 to N, such as 1/2")
    return int(make_id("part", row.group or row.fields), 16) % int(count) == int(first) - 1


def of_cultures(
    cultures: Sequence[Culture],
    loader: str,
    path: Path,
    columns: Mapping[str, str] | None = None,
    part: str | None = None,
) -> Iterator[tuple[int, Culture | None, Row | str]]:
    """(number, whose it is, item) of a part, or (number, None, why that row has none).

    An item of none of these cultures is `None`'s, too: see `stranger`. Raises as `read` does.
    """
    for number, row in read(loader, path, columns):
        if isinstance(row, str):
            yield number, None, row
        elif in_part(row, part):
            yield number, culture_of(cultures, row.culture, row.language), row


def stranger(row: Row) -> str:
    """Why an item is left out that is of no culture of the recipe."""
    return f"a culture that the recipe does not have: {row.culture or 'none'}"


# -- whom a file means --------------------------------------------------------------------------


def culture_of(cultures: Sequence[Culture], name: str, language: str = "") -> Culture | None:
    """The culture of a recipe that a file means, None where there is none or more than one.

    By id, name or demonym, else by the country that `name` spells or whose ISO 3166-1 code it is.
    A file that names no culture means the only one that speaks its `language` (ISO 639-1).
    """
    if not name.strip():
        return _only([c for c in cultures if language and language in c.languages])
    keys = _keys(name)
    for key in keys:
        if found := [c for c in cultures if key in _folded(c.id, c.name, c.demonym)]:
            return _only(found)
    country = _country(keys)
    return _only([c for c in cultures if country and country == _country_of(c)])


def _only(found: Sequence[Culture]) -> Culture | None:
    return found[0] if len(found) == 1 else None


def _country_of(culture: Culture) -> str | None:
    """Its code: a region that we know by name is not its country, whatever `country` says."""
    code = culture.country.casefold() if culture.country else None
    return _country([*_keys(culture.name), *_keys(culture.id)]) or code


def spellings(culture: Culture) -> list[str]:
    """How people spell a culture's country, folded: "united kingdom", "uk", "u k", "britain".

    Of the codes, US alone is one.
    """
    code = _country_of(culture)
    return [n for n, of in _spellings().items() if of == code and (n != code or n == "us")]


def _country(keys: Sequence[str]) -> str | None:
    return next((_spellings()[key] for key in keys if key in _spellings()), None)


@cache
def _spellings() -> dict[str, str]:
    """Spelling, or code itself, to code."""
    found: dict[str, str] = {}
    text = files("cmgr.benchmarks").joinpath("countries.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            code, _, names = line.partition(": ")
            found |= dict.fromkeys([code, *names.split(", ")], code)
    return found


def _keys(name: str) -> list[str]:
    """A name folded, and without what stands in brackets: "India (Current national sample)"."""
    return list(dict.fromkeys(_folded(name, re.sub(r"\(.*?\)", " ", name))))


def _folded(*names: str) -> list[str]:
    decomposed = (unicodedata.normalize("NFKD", name).casefold() for name in names)
    plain = ("".join(c for c in name if not unicodedata.combining(c)) for name in decomposed)
    words = (re.findall(r"[^\W_]+", name) for name in plain)
    joined = (" ".join(w for w in found if w not in {"and", "of", "the"}) for found in words)
    return [name for name in joined if name]
