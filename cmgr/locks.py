"""One writer at a time, of a workspace or an output file; who it is stands beside the lock."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmgr.errors import READ_ONLY, CmgrError, ReadOnlyError
from cmgr.records import now

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def held(
    lock: Path, command: str, what: str, others: tuple[Path, ...] = (), remove: bool = False
) -> Iterator[None]:
    """Hold a lock file, while nobody holds any of `others`; the system frees it after a kill.

    `what` names what is locked in messages. With `remove` nothing is left of the lock afterwards.
    Raises CmgrError that says who holds it, ReadOnlyError where the file cannot be made.
    """
    from filelock import FileLock, Timeout

    mine, asked = FileLock(lock, timeout=0), lock
    try:
        _acquire(mine, lock)
        for other in others:
            asked = other
            with FileLock(other, timeout=2):  # two that begin at once look at each other's
                pass
    except Timeout:
        mine.release()
        who = _holder(asked)
        raise CmgrError(
            f"{what} is in use by `{who.get('command', 'another cmgr')}` "
            f"(process {who.get('pid', '?')} on {who.get('host', '?')}, since "
            f"{who.get('since', '?')}). Wait for it, or stop it."
        ) from None
    except OSError as error:
        mine.release()
        if error.errno in READ_ONLY:
            raise ReadOnlyError(
                f"{what} cannot be written to ({error.strerror}), and {command} has to. "
                "Take a copy that is yours"
            ) from None
        raise
    about = _beside(lock)
    try:
        facts = {"command": command, "pid": os.getpid(), "host": socket.gethostname()}
        about.write_text(json.dumps({**facts, "since": now()}), encoding="utf-8")
        yield
    finally:
        about.unlink(missing_ok=True)
        if remove:
            with contextlib.suppress(OSError):  # Windows removes no open file
                lock.unlink()
        mine.release()


def output(path: Path, command: str) -> contextlib.AbstractContextManager[None]:
    """The lock of an output file, which one command at a time writes; nothing of it is left.

    Makes the folder. Raises as `held` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.resolve()  # a link's target is what two commands would share
    return held(whole.with_name(f".{whole.name}.lock"), command, str(path), remove=True)


def _acquire(lock: BaseFileLock, path: Path) -> None:
    """Acquire a lock on the file that bears its name, not on one that was removed meanwhile."""
    while True:
        seen = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock.acquire()
            # the number is not given to another file as long as this one is open
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(seen).st_ino == path.stat().st_ino:
                    return
            lock.release()
        finally:
            os.close(seen)


def _beside(lock: Path) -> Path:
    """Where it stands who holds a lock."""
    head, _, tail = lock.name.rpartition(".lock")
    return lock.with_name(f"{head}.holder{tail}.json")


def _holder(lock: Path) -> dict[str, object]:
    try:
        found = json.loads(_beside(lock).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
