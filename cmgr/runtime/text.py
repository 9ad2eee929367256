"""From logits to text: sampling, bytes joined to characters, stop texts held back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np

from cmgr.errors import CmgrError
from cmgr.runtime.llama import NOT_FINITE, Logits, Model, log_softmax


class Writer:
    """One answer in the making. Temperature 0 takes the likeliest token each time."""

    def __init__(
        self,
        model: Model,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.stop = [text for text in stop if text]
        self.made = 0
        self._random = np.random.default_rng(seed)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def next(self, logits: Logits) -> tuple[int | None, str]:
        """Choose a token: the one to compute next (None at the end), and text that is certain.

        Raises CmgrError where the logits are not finite.
        """
        if not np.isfinite(logits.max()):  # the maximum of what holds a NaN is NaN
            raise CmgrError(NOT_FINITE)
        token = self._sample(logits)
        if self.model.ends(token):
            return None, ""
        self.made += 1
        self._held += self._decoder.decode(self.model.piece(token))
        cut = min((at for s in self.stop if (at := self._held.find(s)) >= 0), default=-1)
        if cut >= 0:
            text, self._held = self._held[:cut], ""
            self._decoder.reset()
            return None, text
        hold = max((_overlap(self._held, s) for s in self.stop), default=0)
        at = len(self._held) - hold
        text, self._held = self._held[:at], self._held[at:]
        return (token if self.made < self.max_tokens else None), text

    def rest(self) -> str:
        """What was held back, once no stop text can follow."""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return text

    def _sample(self, logits: Logits) -> int:
        if self.temperature <= 0:
            return int(np.argmax(logits))
        probabilities = np.exp(log_softmax(logits / np.float32(self.temperature)))
        drawn = self._random.choice(len(probabilities), p=probabilities / probabilities.sum())
        return int(drawn)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
