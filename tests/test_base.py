"""References, fingerprints and prompt segments."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgr.base import Base, generation_prompt, resolve, segments
from cmgr.errors import MissingError, UsageError
from cmgr.records import Message

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_contents_are_data_and_everything_else_is_control(contents: list[str]) -> None:
    messages = [Message(role="user", content=text) for text in contents]
    parts = segments(CHATML, messages, generation=True)
    assert [p.text for p in parts if not p.control] == [text for text in contents if text]
    whole = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in contents)
    assert "".join(p.text for p in parts) == whole + "<|im_start|>assistant\n"


def test_the_generation_prompt_is_the_invocation() -> None:
    assert generation_prompt(CHATML) == "<|im_start|>assistant\n"


def test_a_template_that_refuses_gives_a_message() -> None:
    with pytest.raises(UsageError, match="no system"):
        segments(
            "{{ raise_exception('no system') }}",
            [Message(role="system", content="x")],
            generation=True,
        )


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
