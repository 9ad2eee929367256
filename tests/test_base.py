"""References and fingerprints."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmgr.base import Base, resolve
from cmgr.errors import MissingError, UsageError


def test_missing_and_unknown_references() -> None:
    with pytest.raises(MissingError, match=r"nowhere\.gguf"):
        resolve("nowhere.gguf")
    with pytest.raises(UsageError, match="smollm2"):
        resolve("gpt-9")


def test_the_fingerprint_sees_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(3_000_000))
    before = Base("a", path).fingerprint
    data = bytearray(3_000_000)
    data[-1] = 1
    path.write_bytes(data)
    assert Base("a", path).fingerprint != before


def test_the_fingerprint_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(3_000_000))
    base = Base("a", path)
    first = base.fingerprint
    path.unlink()
    assert base.fingerprint == first
    assert base == Base("a", path)
