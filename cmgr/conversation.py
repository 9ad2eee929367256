"""A thread of turns: route each one, keep the thread, stream the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cmgr.base import resolve
from cmgr.errors import MissingError
from cmgr.records import Answer, Decision, Message, make_id
from cmgr.runtime import Runtime
from cmgr.workspace import Workspace

if TYPE_CHECKING:
    from cmgr.router import Router


class Conversation:
    """One thread over a workspace's base and adapters.

    `mode` is "auto" (the router decides each turn), "base", or a culture's id. Raises MissingError
    (the command that makes what is missing) for an adapter, a router or a base that is not there.
    """

    def __init__(self, ws: Workspace, mode: str = "auto") -> None:
        self.ws = ws
        self.messages: list[Message] = []
        self.last: Answer | None = None
        self._router: Router | None = None
        self.set_mode(mode)
        self.runtime = Runtime(resolve(ws.recipe.base.model, ws.folder), ws.recipe.base.context)
        if mode not in {"auto", "base"}:
            self._adapter(mode)

    def set_mode(self, mode: str) -> None:
        """Change who answers from the next turn on."""
        if mode == "auto" and self._router is None:
            from cmgr.router import Router

            self._router = Router.load(self.ws.path("router"))
        if mode not in {"auto", "base"}:
            self.ws.recipe.culture(mode)
        self.mode = mode

    def route(self, text: str) -> Decision | None:
        """The router's decision on a turn; None when the user has decided."""
        return self._router.decide(text) if self.mode == "auto" and self._router else None

    def _adapter(self, culture: str) -> dict[str, float]:
        self.runtime.load_adapter(culture, self.ws.path("adapters", culture))
        return {culture: 1.0}

    def ask(
        self, text: str, *, max_tokens: int = 200, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Stream the answer to the next turn; afterwards `last` holds the Answer record.

        A turn whose answer is stopped early stays in the thread with what was said.
        """
        decision = self.route(text)
        if decision is None:
            culture = None if self.mode == "base" else self.mode
        else:
            culture = decision.culture
        scales: dict[str, float] = {}
        if culture is not None:
            try:
                scales = self._adapter(culture)
            except MissingError:
                if self.mode != "auto":
                    raise
                self.ws.say(f"no adapter for {culture} yet (cmgr train); the base answers")
        answer = Answer(
            id=make_id(text, len(self.messages), self.mode),
            prompt=text,
            culture=culture,
            adapter=culture if scales else None,
            probability=decision.probability if decision else None,
            probabilities=decision.probabilities if decision else None,
        )

        def usage(tokens: dict[str, int], timings: dict[str, float]) -> None:
            answer.usage, answer.timings = tokens, timings

        turns = [*self.messages, Message(role="user", content=text)]
        said: list[str] = []
        stream = self.runtime.generate(
            turns,
            scales,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            usage=usage,
        )
        try:
            for piece in stream:
                said.append(piece)
                yield piece
        finally:
            stream.close()
            answer.response = "".join(said).strip()
            self.last = answer
            if said:
                self.messages = [*turns, Message(role="assistant", content=answer.response)]
