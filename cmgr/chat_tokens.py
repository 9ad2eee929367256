"""A conversation as tokens: the same in serving (llama.cpp) and in training (transformers).

The whole text is tokenised at once, as transformers does, so that words are merged across the
places where template and data meet. It is cut in two cases: at the invocation, whose tokens are
always the same; and around a special token's text in the data, which is tokenised apart, as plain
text (transformers does so with `sanitize_control_tokens`).

llama.cpp, with a SentencePiece vocabulary that asks for it, puts a space in front of whatever
follows a special token, and of each text that it is given; transformers does so at the very
beginning alone, or as llama.cpp does (`legacy`). What we cut is tokenised behind a newline, which
is then taken off, so that no cut adds a space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Literal, Protocol

from cmgr.chat_template import Segment, frame, segments
from cmgr.errors import UsageError
from cmgr.records import Message
from cmgr.template_rendering import Rules

Kind = Literal["control", "defined", "plain"]


class Tokenizer(Protocol):
    """What is needed of a tokenizer, llama.cpp's or transformers'."""

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids; only with `control` are special tokens read as such."""

    def token_kind(self, token: int) -> Kind:
        """Special ("control"), added by name but read in any text ("defined"), or neither."""

    def token_text(self, token: int) -> str:
        """How a token is written."""

    def control_words(self) -> list[str]:
        """How all control tokens are written."""


class ChatTokens:
    """Conversations by one template and one tokenizer.

    `invocation` ends every prompt, `end` every answer. `fallback` ends an answer behind which a
    template writes no special token. Raises UsageError where no invocation can be found.
    """

    def __init__(self, rules: Rules, tokenizer: Tokenizer, fallback: int) -> None:
        self.rules = rules
        self.frame = frame(rules)
        self._tokenizer = tokenizer
        newline = tokenizer.tokenize("\n", control=False)
        behind = tokenizer.tokenize("\na", control=False)
        # a SentencePiece tokenizer that begins each text with a space
        self._spaced = behind != newline + tokenizer.tokenize("a", control=False)
        self._newline = newline
        self._special: dict[int, bool] = {}  # tokens that were met
        self._special_of = lru_cache(maxsize=256)(
            lambda text: self._special_in(tokenizer.tokenize(text, control=True))
        )
        self.invocation = self._behind(self.frame.invocation, control=True)
        if not self.invocation:
            raise UsageError(
                "the base's tokenizer knows nothing of what its chat template writes between a "
                "question and its answer. Choose another base"
            )
        self.end = [fallback]
        written = self._behind(self.frame.end, control=True)
        for number, token in enumerate(written):
            if tokenizer.token_kind(token) != "plain":
                self.end = written[: number + 1]
                break

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a prompt up to, and without, the invocation.

        Raises UsageError where the template refuses it, or it does not end in a question.
        """
        parts = segments(
            self.rules.template,
            messages,
            generation=True,
            bos=self.rules.bos,
            eos=self.rules.eos,
            thinking=self.rules.thinking,
        )
        written = self.frame.written
        if not parts or not parts[-1].control or not parts[-1].text.endswith(written):
            raise UsageError(
                "the chat template does not end in its own generation prompt: the last message "
                "must be the user's"
            )
        return self.tokens([*parts[:-1], Segment(parts[-1].text.removesuffix(written), True)])

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer that follows the invocation, without what ends it."""
        if not text:
            return []
        lead = self.frame.lead
        if lead.strip():  # a header of thoughts, where an answer does not bring its own
            header = [] if "</think>" in text else self._behind(lead, control=True)
            return header + self._behind(text, control=False)
        return self._behind(lead + text, control=False)

    def tokens(self, parts: Sequence[Segment]) -> list[int]:
        """The tokens of rendered segments as one text, special tokens in the data kept plain."""
        text = "".join(part.text for part in parts)
        whole = self._tokenizer.tokenize(text, control=True) if text else []
        written = [t for part in parts if part.control for t in self._special_of(part.text)]
        if self._special_in(whole) == written:
            return whole
        found: list[int] = []
        at = 0
        for start, end in self._forged(parts, text):
            found += self._piece(text[at:start], first=not at)
            found += self._plain(text[start:end])
            at = end
        return found + self._piece(text[at:], first=not at)

    # -- pieces ------------------------------------------------------------------------------

    def _piece(self, text: str, first: bool) -> list[int]:
        if first:
            return self._tokenizer.tokenize(text, control=True) if text else []
        return self._behind(text, control=True)

    def _plain(self, word: str) -> list[int]:
        """A special token's text as plain text; one that is read anyhow is cut in two."""
        found = self._behind(word, control=False)
        if any(self._tokenizer.token_kind(token) != "plain" for token in found):
            found = self._behind(word[:1], control=False) + self._behind(word[1:], control=False)
        return found

    def _behind(self, text: str, *, control: bool) -> list[int]:
        """The tokens of a text that others stand before."""
        tokenize = self._tokenizer.tokenize
        if self._spaced and text:
            found = tokenize("\n" + text, control=control)
            size = len(self._newline)
            if found[:size] == self._newline:
                return found[size:]
        return tokenize(text, control=control) if text else []

    # -- special tokens in the data ----------------------------------------------------------

    @cached_property
    def _of_turns(self) -> list[str]:
        """Tokens that are no control tokens, by which the template yet marks turns (Gemma)."""
        said = [("user", "x"), ("assistant", "x"), ("user", "x")]
        messages = [Message(role=role, content=text) for role, text in said]  # type: ignore[arg-type] # they are Message's
        parts = segments(
            self.rules.template, messages, generation=False, bos=self.rules.bos, eos=self.rules.eos
        )
        text = "".join(part.text for part in parts)
        tokenizer = self._tokenizer
        ids = tokenizer.tokenize(text, control=True)
        words = {tokenizer.token_text(t) for t in ids if tokenizer.token_kind(t) == "defined"}
        return [word for word in words if word.strip()]

    @cached_property
    def _words(self) -> re.Pattern[str]:
        words = {*self._tokenizer.control_words(), *self._of_turns} - {""}
        return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")

    def _special_in(self, tokens: Sequence[int]) -> list[int]:
        """Those of the tokens that no plain text makes."""
        special = self._special
        for token in set(tokens) - special.keys():
            kind, text = self._tokenizer.token_kind(token), self._tokenizer.token_text(token)
            special[token] = kind == "control" or (kind == "defined" and bool(text.strip()))
        return [token for token in tokens if special[token]]

    def _forged(self, parts: Sequence[Segment], text: str) -> list[tuple[int, int]]:
        """Where special tokens are written that the template has not written."""
        ends = list(accumulate(len(part.text) for part in parts))
        data = [
            (end - len(part.text), end)
            for part, end in zip(parts, ends, strict=True)
            if not part.control
        ]
        found: list[tuple[int, int]] = []
        at = 0
        while match := self._words.search(text, at):
            start, end = match.span()
            if any(start < to and end > since for since, to in data):
                found.append((start, end))
            at = end
        return found
