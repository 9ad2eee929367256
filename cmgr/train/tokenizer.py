"""A transformers tokenizer as `chat_tokens` needs one."""

from __future__ import annotations

from typing import Any

from cmgr.chat_tokens import Kind


class TransformersTokenizer:
    """Tokens of a text, and which of them are special."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, Any] = tokenizer.added_tokens_decoder

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids; only with `control` are special tokens read as such (as in the runtime)."""
        tokens = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not control
        ).input_ids
        return [int(t) for t in tokens]

    def token_kind(self, token: int) -> Kind:
        """Whether a token is special, added but read in any text, or neither."""
        added = self._added.get(token)
        if added is None:
            return "plain"
        return "control" if added.special else "defined"

    def token_text(self, token: int) -> str:
        """How an added token is written."""
        return str(self._added[token].content) if token in self._added else ""

    def control_words(self) -> list[str]:
        """How all special tokens are written."""
        return [str(token.content) for token in self._added.values() if token.special]
