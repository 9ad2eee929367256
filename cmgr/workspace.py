"""Where records and artifacts lie: atomic append, manifests, what is out of date, the lock."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from cmgr import locks
from cmgr import recipe as recipes
from cmgr.errors import MissingError, ReadOnlyError, UsageError
from cmgr.loading import recipe_above
from cmgr.records import Record, json_lines, make_id, now

R = TypeVar("R", bound=Record)
# progress(label, done, total): what long work calls to show how far it is
Progress = Callable[[str, int, int], None]


STALE = 3600.0  # seconds after which a part is one that a kill left
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all, also across a power cut; from any thread or process.

    Where this fails nothing is left; what a kill left is removed by a later write to the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@cache
def _sweep(folder: Path) -> None:
    """Remove parts that are older than any write takes; once for each folder in a process."""
    for entry in os.scandir(folder):
        if _PART.fullmatch(entry.name):
            with suppress(OSError):  # another process was faster
                if time.time() - entry.stat().st_mtime > STALE:
                    Path(entry.path).unlink()


def append_lines(path: Path, lines: str, sync: bool = True) -> None:
    """Append whole lines in one write; a line that a kill cut off before stays apart.

    With `sync` they are on the disk on return; without, they outlive this process only.
    """
    data = lines.encode()
    new = sync and not path.exists()
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk: without it a power cut may lose a new file."""
    if os.name == "nt":  # Windows opens no folder, and does this by itself
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def blank(path: Path, lines: Iterable[tuple[int, bytes]]) -> None:
    """Overwrite lines (where each begins, its bytes) with spaces, in place.

    The file is not replaced, so nothing is lost that others append meanwhile. A line that is no
    longer there is let alone.
    """
    with path.open("r+b") as file:
        for at, line in lines:
            file.seek(at)
            if file.read(len(line)) == line:
                file.seek(at)
                file.write(b" " * len(line))
        file.flush()
        os.fsync(file.fileno())


def put_in_place(part: Path, target: Path) -> None:
    """Put a finished folder in the place of another one, which is gone afterwards.

    Its files are on the disk before. A kill in between leaves `.NAME.cmgr-old`: see `put_back`.
    """
    for path in part.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    old = _old(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
    part.replace(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.cmgr-old")


def put_back(target: Path) -> None:
    """Finish what a kill left of `put_in_place`: the folder from before, where there is none."""
    old = _old(target)
    if old.exists() and not target.exists():
        old.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where it is absent or damaged."""
    try:
        return parsed(path.read_bytes())
    except OSError:
        return None


def parsed(data: bytes) -> dict[str, Any] | None:
    """The JSON object in a file's or a line's bytes, or None."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Damaged(NamedTuple):
    """A line that is no record: its number, where it begins, its bytes, and what is wrong."""

    number: int
    at: int
    line: bytes
    reason: str


def _numbers(damaged: list[Damaged]) -> str:
    return ", ".join(str(d.number) for d in damaged[:10])


class Workspace:
    """One folder that holds a recipe and what has been made from it."""

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.recipe = recipes.load(folder / "recipe.yaml")
        self.say = say or (lambda _: None)
        self.held = False  # whether this process holds the whole of it
        self.read_only = False  # set by a command that goes on where nothing can be written
        self._told: set[Path] = set()

    # -- finding and making ------------------------------------------------------------------

    @classmethod
    def find(cls, folder: Path | None, say: Callable[[str], None] | None = None) -> Workspace:
        """The workspace at `folder`, or the one that holds the current folder.

        Raises MissingError where there is none.
        """
        if folder is not None:
            if not (folder / "recipe.yaml").is_file():
                raise MissingError(
                    f"{folder} is no workspace: it has no recipe.yaml. "
                    "Make one: cmgr init quickstart"
                )
            return cls(folder, say)
        found = recipe_above(Path.cwd())
        if found:
            return cls(found.parent, say)
        raise MissingError(
            f"no recipe.yaml in {Path.cwd()} or above it. Give -w DIR, or make a workspace: "
            "cmgr init quickstart"
        )

    @classmethod
    def init(cls, reference: str, folder: Path | None) -> tuple[Workspace, bool]:
        """Make a workspace from a recipe; returns it and whether it is new.

        Documents named by a relative path are copied in, so that the workspace stands alone.
        A folder that already holds the same recipe's workspace is returned as it is. Nothing is
        left behind when the recipe is wrong. Raises UsageError.
        """
        source = recipes.find(reference)
        wanted = recipes.load(source)
        folder = folder or Path(wanted.name)
        if (folder / "recipe.yaml").is_file():
            found = recipes.load(folder / "recipe.yaml")
            if found.name != wanted.name:
                raise UsageError(
                    f"{folder} holds the workspace of another recipe ({found.name}). "
                    "Choose another folder."
                )
            return cls(folder), False
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists and is not a workspace. Choose another folder.")
        folders = [entry.path for entry in wanted.sources if entry.path is not None]
        for path in folders:
            if not (source.parent / path).is_dir():
                raise MissingError(
                    f"{source}: sources: the document folder {path} does not exist "
                    f"(looked in {source.parent})"
                )
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for path in folders:
            inside = Path(path)
            if not inside.is_absolute() and ".." not in inside.parts:
                shutil.copytree(source.parent / inside, part / inside)
        shutil.copyfile(source, part / "recipe.yaml")
        if folder.is_dir():
            folder.rmdir()
        part.replace(folder)
        return cls(folder), True

    # -- records -----------------------------------------------------------------------------

    def path(self, *parts: str) -> Path:
        """A path inside the workspace."""
        return self.folder.joinpath(*parts)

    def append(self, name: str, records: Iterable[Record]) -> int:
        """Append records to `name`.jsonl, one write a call; returns how many."""
        written = list(records)
        if written:
            append_lines(self.path(f"{name}.jsonl"), json_lines(written))
        return len(written)

    def read(self, name: str, kind: type[R]) -> list[R]:
        """All records of `name`.jsonl, the last of each id, without damaged lines.

        Who holds the workspace moves these to quarantine.jsonl; others change nothing, and say
        once that they are there.
        """
        path = self.path(f"{name}.jsonl")
        if not path.exists():
            return []
        found: dict[str, R] = {}
        damaged: list[Damaged] = []
        at = 0
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    record = kind.model_validate_json(line)
                    found[getattr(record, "id", str(number))] = record
            except ValidationError as error:
                damaged.append(Damaged(number, at, line, error.errors()[0]["msg"]))
            at += len(line) + 1
        if damaged:
            # a last line without its end may be one that is being written
            whole = [d for d in damaged if d.number < len(lines)] if self.held else []
            if whole:
                self._quarantine(path, whole)
            self._tell(path, [d for d in damaged if d not in whole])
        return list(found.values())

    def _tell(self, path: Path, damaged: list[Damaged]) -> None:
        if damaged and path not in self._told:
            self._told.add(path)
            self.say(f"{path}: {len(damaged)} damaged line(s) ({_numbers(damaged)}) left out")

    def _quarantine(self, path: Path, damaged: list[Damaged]) -> None:
        entries = []
        for number, _, line, reason in damaged:
            text = line.decode(errors="replace")
            entry = {"id": make_id(path.name, text), "file": path.name, "line": number}
            entry |= {"reason": reason, "text": text, "at": now()}
            if text.encode() != line:
                entry["base64"] = base64.b64encode(line).decode()
            entries.append(Record.model_validate(entry))
        self.append("quarantine", entries)  # on the disk before anything goes
        blank(path, [(d.at, d.line) for d in damaged])
        self.say(
            f"{path}: {len(damaged)} damaged line(s) ({_numbers(damaged)}) moved to "
            "quarantine.jsonl; the rest goes on"
        )

    # -- manifests ---------------------------------------------------------------------------

    def manifest_path(self, stage: str) -> Path:
        """Where a stage's manifest lies; `stage` is a stage, or `train/CULTURE`."""
        if stage.startswith("train/"):
            return self.path("adapters", stage.removeprefix("train/"), "manifest.json")
        if stage == "route":
            return self.path("router", "manifest.json")
        return self.path("logs", f"{stage}.json")

    def is_current(self, stage: str, inputs: str) -> bool:
        """Whether a stage was finished with exactly these inputs (a hash)."""
        path = self.manifest_path(stage)
        made = {"train": "adapter.gguf", "route": "router.npz"}.get(stage.partition("/")[0])
        if made and not path.with_name(made).is_file():
            return False
        return (read_json(path) or {}).get("inputs") == inputs

    def finish(self, stage: str, inputs: str, **facts: Any) -> None:
        """Write a stage's manifest: the hash of its inputs, and facts about what was made."""
        write_json(self.manifest_path(stage), {"inputs": inputs, "finished_at": now(), **facts})

    def check_adapter(self, name: str) -> None:
        """Raise UsageError for a name that is neither a culture of the recipe nor a merge."""
        if any(culture.id == name for culture in self.recipe.cultures):
            return
        others = self.merges() + self.variants()
        if name in others:
            return
        known = ", ".join([*(c.id for c in self.recipe.cultures), *others])
        raise UsageError(f"no culture {name!r} in the recipe, and no merge. There are: {known}")

    def merges(self) -> list[str]:
        """The names of adapters that `cmgr merge` has made."""
        return self._adapters_with("parents")

    def variants(self) -> list[str]:
        """The names of adapters that `cmgr train --variant` has made."""
        return self._adapters_with("variant")

    def _adapters_with(self, key: str) -> list[str]:
        return sorted(
            path.parent.name
            for path in self.path("adapters").glob("*/manifest.json")
            if not path.parent.name.startswith(".") and key in (read_json(path) or {})
        )

    def parts(self, stage: str) -> dict[str, dict[str, Any]]:
        """What a stage's manifest holds per culture."""
        found: dict[str, dict[str, Any]] = (read_json(self.manifest_path(stage)) or {}).get(
            "cultures", {}
        )
        return found

    # -- the lock ----------------------------------------------------------------------------

    @contextmanager
    def lock(self, command: str, shard: str | None = None, needed: bool = True) -> Iterator[None]:
        """Hold the workspace for a command that writes; or one shard of it ("2/8").

        Where nothing can be written, a command for which that is not `needed` goes on with
        `read_only` set. Raises CmgrError that says who holds it, ReadOnlyError.
        """
        name = f".lock-{shard.replace('/', '-of-')}" if shard else ".lock"
        # shards of one training go side by side, and not beside any other command
        others = [".lock"] if shard else [p.name for p in self.folder.glob(".lock-*-of-*")]
        with ExitStack() as stack:
            try:
                paths = tuple(map(self.path, others))
                stack.enter_context(locks.held(self.path(name), command, str(self.folder), paths))
            except ReadOnlyError:
                if needed:
                    raise
                self.read_only = True
                self.say(f"{self.folder} cannot be written to: nothing new is kept")
            else:
                self.held = shard is None
            try:
                yield
            finally:
                self.held = False


def hash_records(records: Iterable[Record], *settings: Any) -> str:
    """One hash over records (by id) and settings: what a stage's manifest compares."""
    return make_id(sorted(str(getattr(r, "id", "")) for r in records), *settings)


def hash_parts(stage: str, parts: dict[str, dict[str, Any]], lacking: str) -> str:
    """The hash of a stage made culture by culture; another one where a part has what is `lacking`.

    So a stage with something still to be done is never up to date.
    """
    short = [culture for culture, part in parts.items() if part.get(lacking)]
    inputs = {culture: part["inputs"] for culture, part in parts.items()}
    return make_id(lacking, short, inputs) if short else make_id(stage, inputs)
