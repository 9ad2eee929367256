"""llama.cpp's library, and a base's file that it loads while the rest of cmgr is imported."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

from cmgr.base import resolve
from cmgr.threads import sleep_soon

_ahead: dict[Path, Future[Any]] = {}


def library() -> Any:
    """`llama_cpp`, quiet and ready."""
    sleep_soon()
    import llama_cpp

    if not hasattr(llama_cpp, "_cmgr_log"):
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp._cmgr_log = quiet  # kept: llama.cpp holds only the pointer
        llama_cpp.llama_backend_init()
        never_into_amx(llama_cpp)
    return llama_cpp


def open_file(path: Path) -> Any:
    """llama.cpp's model of a GGUF file, memory-mapped; None where it cannot load it."""
    begun = _ahead.pop(path, None)
    return begun.result() if begun else _open(path)


def _open(path: Path) -> Any:
    lib = library()
    return lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())


def never_into_amx(lib: Any) -> None:
    """Let no model be loaded into AMX tiles, by us or by `Llama`.

    Where a compiler leaves their configuration out, the first prompt of a processor that has them
    ends the process (ggml-org/llama.cpp#20824, #26954).
    """
    if b"AMX_INT8 = 1" not in lib.llama_print_system_info():
        return
    plain = lib.llama_model_default_params

    def params() -> Any:
        found = plain()
        found.use_extra_bufts = False
        return found

    for module in (lib, lib.llama_cpp):  # the package, and the module that `Llama` looks it up in
        module.llama_model_default_params = params


def recipe_above(folder: Path) -> Path | None:
    """The recipe.yaml of a folder, or of the nearest one above it that has one."""
    found = (f / "recipe.yaml" for f in (folder, *folder.parents))
    return next((path for path in found if path.is_file()), None)


def ahead(words: Sequence[str]) -> None:
    """Begin to load the base of the workspace that a command line names, or of the current one.

    llama.cpp does not need the interpreter for this, so what else a command imports and reads
    costs no time of its own. It is a guess: what is wrong is left for the command to say.
    """
    import yaml

    try:
        flags = [i for i, word in enumerate(words) if word in {"-w", "--workspace"}]
        recipe = (
            Path(words[flags[-1] + 1], "recipe.yaml")
            if flags
            else recipe_above(Path.cwd()) or Path()
        )
        data = yaml.load(recipe.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        reference = (data.get("base") or {}).get("model", "smollm2")
        if reference.startswith("hf:"):
            return
        path = resolve(reference, recipe.parent).gguf
        library()
    except Exception:
        return
    future = _ahead[path] = Future[Any]()

    def begin() -> None:
        try:
            future.set_result(_open(path))
        except BaseException as error:  # for `open_file` to raise: it would wait for ever
            future.set_exception(error)

    Thread(target=begin, daemon=True).start()
