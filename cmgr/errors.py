"""What can go wrong, in a user's words: each error says what, where and what to do.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 something is missing, 4 a batch finished
with some items failed, 130 interrupted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# what an operating system says where nothing may be written
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class CmgrError(Exception):
    """A failure with a message for a person; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(CmgrError):
    """The command line or the recipe is wrong."""

    exit_code = 2


class MissingError(CmgrError):
    """A model, key, adapter, extra or file is missing; the message names what makes it."""

    exit_code = 3


class PartialError(CmgrError):
    """A batch finished, some of its items failed."""

    exit_code = 4


class ReadOnlyError(CmgrError):
    """A place that a command has to write to cannot be written to."""


@contextmanager
def unless_read_only() -> Iterator[None]:
    """For what need not be written: goes on where the system lets nothing be."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def missing_extra(extra: str, what: str) -> MissingError:
    """The error for a command whose optional dependencies are not installed."""
    return MissingError(f"{what} needs an extra. Install it: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that adds an extra to the cmgr that runs here, as a person would type it.

    It follows what the installer noted of this cmgr: a checkout (editable or not), a URL, or a
    name on an index (direct_url.json, packaging.python.org, "Recording the Direct URL Origin").
    """
    import json
    import shlex
    from importlib.metadata import entry_points
    from pathlib import Path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    here = Path(__file__).resolve().parents[1]
    checkout: Path | None = here if (here / "pyproject.toml").is_file() else None
    # by the command, since an editable install lists no packages; another project of the index
    # is called cmgr too
    scripts = entry_points(group="console_scripts")
    found = [p.dist for p in scripts if p.value == "cmgr.cli.app:main" and p.dist]
    beside = [d for d in found if Path(str(d.locate_file(""))).resolve() == here]
    installed = next(iter([*beside, *found]), None)
    origin = json.loads((installed and installed.read_text("direct_url.json")) or "{}")
    url = str(origin.get("url", ""))
    editable = bool(origin.get("dir_info", {}).get("editable"))
    if checkout is None and "dir_info" in origin:
        path = Path(url2pathname(urlsplit(url).path))
        checkout = path if (path / "pyproject.toml").is_file() else None
    if checkout is not None:
        where = "." if checkout == Path.cwd() else str(checkout)
        return f"pip install {'-e ' if editable else ''}" + shlex.quote(f"{where}[{extra}]")
    if installed is None or "dir_info" in origin:  # its checkout is gone
        return f"pip install '.[{extra}]' (in a checkout of cmgr)"
    name = f"{installed.metadata['Name']}[{extra}]"
    vcs = origin.get("vcs_info", {})
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return "pip install " + shlex.quote(f"{name} @ {url}" if url else name)
