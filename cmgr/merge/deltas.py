"""An adapter as what it adds: per module, a delta of low rank, kept as its two factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmgr.base import Base
from cmgr.errors import CmgrError, MissingError
from cmgr.gguf_lora import KEY, effective_alpha, refuse_unfaithful
from cmgr.workspace import read_json

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """A delta `b @ a`: b is (out, r), a is (r, in); the adapter's scale is in b."""

    b: Array
    a: Array

    @property
    def rank(self) -> int:
        """The number of columns of b."""
        return int(self.b.shape[1])

    def scaled(self, weight: float) -> Factors:
        """The delta times a weight."""
        return Factors(self.b * np.float32(weight), self.a)

    def dense(self) -> Array:
        """The delta itself, (out, in)."""
        return self.b @ self.a

    def dot(self, other: Factors) -> float:
        """The inner product of two deltas (of all their entries), from the factors alone."""
        left = self.b.T.astype(np.float64) @ other.b
        right = self.a.astype(np.float64) @ other.a.T
        return float((left * right).sum())

    def norm(self) -> float:
        """The Frobenius norm."""
        return float(np.sqrt(max(0.0, self.dot(self))))


class Adapter:
    """A PEFT folder: its settings, and the delta of each module, read when it is asked for.

    Raises MissingError where the folder holds no adapter, CmgrError for what is not a plain LoRA.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.config = read_json(folder / "adapter_config.json") or {}
        self.manifest = read_json(folder / "manifest.json") or {}
        self._path = folder / "adapter_model.safetensors"
        if not self.config or not self._path.is_file():
            raise MissingError(f"no adapter in {folder}. Make it: cmgr train")
        refuse_unfaithful(self.config)
        self.scale = effective_alpha(self.config) / int(self.config["r"])
        self._framework = self._readable()
        self._keys = self._modules()

    @property
    def kind(self) -> str:
        """Activated or standard, as the weights' own settings say."""
        return "activated" if self.config.get("alora_invocation_tokens") else "standard"

    def check_base(self, base: Base) -> None:
        """Raise CmgrError where the adapter says that it was made for another base."""
        made = self.manifest.get("base_fingerprint")
        if made not in (None, base.fingerprint):
            raise CmgrError(
                f"the adapter {self.name} was made for another base than {base.reference}: it "
                f"says {made}, this base has {base.fingerprint}. Train it again: cmgr train "
                f"--culture {self.name} --force"
            )

    def modules(self) -> list[str]:
        """The modules that it changes, in order."""
        return list(self._keys)

    def delta(self, module: str) -> Factors | None:
        """What it adds to a module, None where it does not. Raises CmgrError for NaN."""
        if module not in self._keys:
            return None
        tensors = {}
        with self._open() as file:
            for side, key in self._keys[module].items():
                value = file.get_tensor(key)
                tensors[side] = np.asarray(
                    value if isinstance(value, np.ndarray) else value.float().numpy(), np.float32
                )
                if not np.isfinite(tensors[side]).all():
                    raise CmgrError(f"{self._path}: {key} holds values that are not finite")
        return Factors(tensors["B"] * np.float32(self.scale), tensors["A"])

    def _modules(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        with self._open() as file:
            for key in sorted(file.keys()):
                match = KEY.fullmatch(key)
                if match is None:
                    raise CmgrError(f"{self._path}: {key} is no LoRA tensor")
                found.setdefault(match[1], {})[match[2]] = key
        alone = [module for module, sides in found.items() if len(sides) < 2]
        if alone or not found:
            raise CmgrError(f"{self._path}: {(alone or ['it'])[0]} has not both A and B")
        return dict(sorted(found.items(), key=lambda entry: natural(entry[0])))

    def _open(self) -> Any:
        from safetensors import safe_open

        return safe_open(self._path, self._framework)

    def _readable(self) -> str:
        """What the file can be read with: numpy, or torch, for numpy has no bfloat16."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, "np") as file:
                for key in list(file.keys())[:1]:
                    file.get_tensor(key)
        except (TypeError, ImportError):
            return "pt"
        except SafetensorError as error:
            raise CmgrError(f"{self._path}: damaged: {error}") from None
        return "np"


def natural(name: str) -> list[Any]:
    """A key that sorts layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def layer_of(module: str) -> int:
    """The number of the block that a module is in; -1 for none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def modules_of(adapters: Iterable[Adapter]) -> list[str]:
    """Every module that one of them changes, in order."""
    return sorted({m for adapter in adapters for m in adapter.modules()}, key=natural)


def stacked(parts: Sequence[Factors]) -> Factors:
    """The exact sum of deltas: their factors side by side, of a rank that adds up."""
    return Factors(
        np.concatenate([part.b for part in parts], axis=1),
        np.concatenate([part.a for part in parts]),
    )


def check_fit(adapters: Sequence[Adapter]) -> None:
    """Raise CmgrError where adapters are not of one base, chat template and kind."""
    first = adapters[0]
    for other in adapters[1:]:
        if other.kind != first.kind:
            raise CmgrError(
                f"{first.name} is {first.kind}, {other.name} is {other.kind}: kinds do not mix. "
                f"Train one of them again: cmgr train --kind {first.kind} --culture {other.name}"
            )
        for key, what in (("base_fingerprint", "base"), ("template_hash", "chat template")):
            if other.manifest.get(key) != first.manifest.get(key):
                raise CmgrError(
                    f"{first.name} and {other.name} are made for another {what}: "
                    f"{first.manifest.get(key)}, {other.manifest.get(key)}"
                )


def pairs(adapters: Sequence[Adapter], module: str) -> Iterator[tuple[Adapter, Factors]]:
    """The deltas of a module, of the adapters that change it."""
    for adapter in adapters:
        if (delta := adapter.delta(module)) is not None:
            yield adapter, delta


def weights_of(adapters: Sequence[Adapter], given: Sequence[float] | None) -> Mapping[str, float]:
    """A weight per adapter: those given, or 1 for each."""
    return dict(zip((a.name for a in adapters), given or [1.0] * len(adapters), strict=True))
