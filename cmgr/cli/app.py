"""The Typer app that joins the subcommands; a subcommand's file is imported only when called."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
import threading
import traceback
import warnings
from _thread import interrupt_main
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmgr import __version__
from cmgr.cli.console import say
from cmgr.errors import CmgrError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# name -> what it is for; the file is cli/<name>.py, but `eval` is a built-in: cli/evaluate.py
COMMANDS = {
    "run": "Do every stage of a recipe; run it again to resume.",
    "init": "Make a workspace from a recipe.",
    "status": "Show what has been made, what is missing or out of date.",
    "search": "Stage 1: queries find evidence in the recipe's sources.",
    "synthesize": "Stage 2: evidence becomes checked examples in the tasks' format.",
    "review": "Accept, edit or reject examples; see what they say of the rest.",
    "train": "Stage 3: one LoRA adapter per culture, exported to GGUF.",
    "merge": "Combine adapters into one, or bake one into the base.",
    "route": "Decide which culture's adapter a prompt needs, or none.",
    "chat": "Get answers from the base and the adapter of the routed culture.",
    "bench": "Measure base and adapters on this machine.",
    "eval": "Did it help? Methods side by side, on your items or a benchmark's.",
    "report": "A workspace on one page, with pictures.",
}


def _guard(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose failures become one message and the right exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except CmgrError as error:
            if os.environ.get("CMGR_DEBUG") == "1":
                traceback.print_exc()
            say(f"cmgr: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("cmgr: interrupted; what is finished is kept, run it again to go on")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if os.environ.get("CMGR_DEBUG") == "1":
                raise
            say(f"cmgr: {error.filename or 'the system'}: {error.strerror or error}")
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("CMGR_DEBUG") == "1":
                raise
            say(
                f"cmgr: unexpected {type(error).__name__}: {error}. "
                "CMGR_DEBUG=1 shows where; please report it"
            )
            raise typer.Exit(1) from None

    return guarded


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cmgr {__version__}")
        raise typer.Exit


def _front(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Task-aware culture management for language models.

    Start here: cmgr run quickstart
    """


def build(called: set[str]) -> typer.Typer:
    """The app; only the commands in `called` are imported, the others are names with help."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
    app.callback()(_front)
    for name, purpose in COMMANDS.items():
        command: Callable[..., Any] = lambda: None  # noqa: E731 - a name in --help, never called
        if name in called:
            file = "evaluate" if name == "eval" else name
            command = _guard(importlib.import_module(f"cmgr.cli.{file}").command)
        app.command(name, help=purpose)(command)
    return app


def _keep_interrupts(dropped: UnraisableHookArgs) -> None:
    """Ctrl-C that arrives in a finalizer or a C callback: Python would print and drop it.

    It comes again a moment later; at once, it would arrive in this hook.
    """
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, interrupt_main).start()
    else:
        sys.__unraisablehook__(dropped)


def main() -> None:
    """The console script. Exit codes: see cmgr.errors."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars: ours is the one display
    if os.environ.get("CMGR_DEBUG") != "1":  # what libraries tell programmers
        warnings.simplefilter("ignore", FutureWarning)
    sys.unraisablehook = _keep_interrupts
    completing = "_CMGR_COMPLETE" in os.environ
    if sys.argv[1:2] == ["chat"] and "--help" not in sys.argv:
        from cmgr.loading import ahead

        gc.set_threshold(50_000)  # what a start makes stays: looking through it is in vain
        ahead(sys.argv[2:])
    build(set(COMMANDS) if completing else set(sys.argv[1:]) & set(COMMANDS))()
