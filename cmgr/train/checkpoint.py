"""Training as it stands, in one file that is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cmgr.errors import CmgrError
from cmgr.workspace import write_atomic

Tensors = dict[str, Any]
KEEP = 2


def save(folder: Path, number: int, state: dict[str, Any], tensors: Tensors) -> None:
    """Write `checkpoint-NUMBER.safetensors` with its state and a hash; the last two are kept.

    Raises CmgrError when the disk is full; the checkpoint before it stands.
    """
    from safetensors.torch import save as encode

    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    digest = _digest(state, tensors)
    data = encode(tensors, {"state": json.dumps(state), "sha256": digest})
    path = folder / f"checkpoint-{number:08}.safetensors"
    try:
        write_atomic(path, data)
    except OSError as error:
        raise CmgrError(
            f"{path}: {error.strerror}: a checkpoint takes {len(data) / 2**20:.0f} MB. The last "
            "one is kept: make room and run cmgr train again to go on from it"
        ) from None
    for old in _all(folder)[:-KEEP]:
        old.unlink()


def load(folder: Path) -> tuple[dict[str, Any], Tensors] | None:
    """The newest checkpoint that is whole; None where there is none."""
    from safetensors import SafetensorError, safe_open

    for path in reversed(_all(folder)):
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                # a safe_open has keys and is no mapping
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads(about["state"])
        except (SafetensorError, KeyError, ValueError, OSError):
            continue
        if isinstance(state, dict) and _digest(state, tensors) == about.get("sha256"):
            return state, tensors
    return None


def drop(folder: Path) -> None:
    """Remove all checkpoints: the adapter is finished."""
    for path in _all(folder):
        path.unlink()


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _digest(state: dict[str, Any], tensors: Tensors) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
