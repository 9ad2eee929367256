"""Where records and artifacts lie: atomic append, manifests, what is out of date, the lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cmgr import recipe as recipes
from cmgr.errors import CmgrError, MissingError, UsageError
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
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where it is absent or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class Workspace:
    """One folder that holds a recipe and what has been made from it."""

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.recipe = recipes.load(folder / "recipe.yaml")
        self.say = say or (lambda _: None)

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
        """All records of `name`.jsonl, the last of each id; damaged lines go to quarantine."""
        path = self.path(f"{name}.jsonl")
        if not path.exists():
            return []
        found: dict[str, R] = {}
        damaged: list[tuple[int, bytes, str]] = []
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = kind.model_validate_json(line)
            except ValidationError as error:
                damaged.append((number, line, error.errors()[0]["msg"]))
                continue
            found[getattr(record, "id", str(number))] = record
        if damaged:
            self._quarantine(path, lines, damaged)
        return list(found.values())

    def _quarantine(
        self, path: Path, lines: list[bytes], damaged: list[tuple[int, bytes, str]]
    ) -> None:
        entries = [
            Record.model_validate(
                {
                    "id": make_id(path.name, line.decode(errors="replace")),
                    "file": path.name,
                    "line": number,
                    "reason": reason,
                    "text": line.decode(errors="replace"),
                    "at": now(),
                }
            )
            for number, line, reason in damaged
        ]
        self.append("quarantine", entries)
        bad = {number for number, _, _ in damaged}
        kept = [line for number, line in enumerate(lines, 1) if number not in bad]
        write_atomic(path, b"\n".join(kept))
        numbers = ", ".join(str(n) for n in sorted(bad)[:10])
        self.say(
            f"{path}: {len(bad)} damaged line(s) ({numbers}) moved to quarantine.jsonl; "
            "the rest goes on"
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
        manifest = read_json(self.manifest_path(stage))
        return manifest is not None and manifest.get("inputs") == inputs

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
    def lock(self, command: str, shard: str | None = None) -> Iterator[None]:
        """Hold the workspace for a command that writes; or one shard of it ("2/8").

        Raises CmgrError that says who holds it. The operating system frees it after a kill.
        """
        from filelock import FileLock, Timeout

        name = f".lock-{shard.replace('/', '-of-')}" if shard else ".lock"
        # shards of one training go side by side, and not beside any other command
        others = [".lock"] if shard else [p.name for p in self.folder.glob(".lock-*-of-*")]
        lock = FileLock(self.path(name), timeout=0)

        def about(name: str) -> Path:
            return self.path(name.replace(".lock", ".holder") + ".json")

        holder = about(name)
        try:
            lock.acquire()
            for other in others:
                name = other
                with FileLock(self.path(other), timeout=2):
                    pass
        except Timeout:
            lock.release()
            who = read_json(about(name)) or {}
            raise CmgrError(
                f"{self.folder} is in use by `{who.get('command', 'another cmgr')}` "
                f"(process {who.get('pid', '?')} on {who.get('host', '?')}, since "
                f"{who.get('since', '?')}). Wait for it, or stop it."
            ) from None
        try:
            write_json(
                holder,
                {
                    "command": command,
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": now(),
                },
            )
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


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
