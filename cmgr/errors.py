"""What can go wrong, in a user's words: each error says what, where and what to do.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 something is missing, 4 a batch finished
with some items failed, 130 interrupted.
"""

from __future__ import annotations


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


def missing_extra(extra: str, what: str) -> MissingError:
    """The error for a command whose optional dependencies are not installed."""
    return MissingError(f"{what} needs an extra. Install it: pip install 'cmgr[{extra}]'")
