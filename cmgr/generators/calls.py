"""Paid for once: each answer of a model on disk, under its request's key; money counted before."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cmgr.errors import UsageError
from cmgr.generators.writing import Request
from cmgr.llm import Completion
from cmgr.overlap import UNSPACED
from cmgr.recipe import Generator, Price
from cmgr.records import now
from cmgr.tasks import LOADER

LETTERS_A_TOKEN = 4.0  # of English; an estimate, for OpenAI's and Llama's tokenisers alike


class Calls:
    """Answers by key, one file each, written whole as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, request: Request) -> str | None:
        """The text that was answered, or None."""
        try:
            text = json.loads(self._path(request).read_bytes())["text"]
        except (OSError, ValueError, KeyError):
            return None
        return text if isinstance(text, str) else None

    def put(self, request: Request, answer: Completion, cost: float | None) -> None:
        """Keep an answer; it is whole on the disk on return."""
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        value: dict[str, Any] = {"key": request.key, "at": now(), "cost": cost, **vars(answer)}
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        part.replace(path)

    def _path(self, request: Request) -> Path:
        return self._folder / request.key[:2] / f"{request.key}.json"


@cache
def _prices() -> dict[str, Any]:
    text = files("cmgr.generators").joinpath("prices.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, Loader=LOADER)
    return found


def price_of(generator: Generator) -> Price | None:
    """Dollars per million tokens: the recipe's, or OpenAI's list; nothing on a server of one's own.

    A batch costs half. None where it is not known.
    """
    full = _full_price(generator)
    if full and generator.kind == "openai_batch":
        return Price(input=full.input / 2, output=full.output / 2)
    return full


def _full_price(generator: Generator) -> Price | None:
    if generator.price:
        return generator.price
    if generator.kind == "llama" or generator.base_url:
        return Price(input=0, output=0)
    known = _prices()["models"]
    names = [n for n in known if generator.model == n or generator.model.startswith(f"{n}-20")]
    return Price.model_validate(known[max(names, key=len)]) if names else None


def prices_of_day() -> str:
    """The day that the list of prices is of."""
    return str(_prices()["date"])


def tokens_of(text: str) -> int:
    """An estimate of a text's tokens: four letters each, a sign of a script without spaces one."""
    signs = len(_SIGNS.findall(text))
    return int((len(text) - signs) / LETTERS_A_TOKEN + signs) + 1


_SIGNS = re.compile(f"[{UNSPACED}\uac00-\ud7a3]")


@dataclass
class Budget:
    """What may be spent, what has been; a call is refused before it could exceed either bound.

    Raises UsageError where a bound on money is set and no price is known.
    """

    price: Price | None
    max_cost: float | None = None
    max_calls: int | None = None
    calls: int = 0
    cost: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    _reserved: float = 0.0
    stopped: str = ""

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price is None:
            raise UsageError(
                "--max-cost needs a price: set generator.price (input, output: US dollars per "
                "million tokens) in recipe.yaml"
            )

    def most(self, request: Request) -> float:
        """What a call can cost at most, its answer as long as it may be."""
        asked = sum(tokens_of(m.content) for m in request.messages) * 1.5 + 200
        return self._cost(asked, request.tokens)

    def begin(self, request: Request) -> bool:
        """Whether a call may be made; what it may cost is then set aside until `end`."""
        most = self.most(request)
        if self.max_calls is not None and self.calls >= self.max_calls:
            self.stopped = f"--max-calls {self.max_calls}"
        elif self.max_cost is not None and self.cost + self._reserved + most > self.max_cost:
            self.stopped = f"--max-cost {self.max_cost:g}"
        else:
            self.calls += 1
            self._reserved += most
            return True
        return False

    def end(self, request: Request, answer: Completion | None) -> float | None:
        """What a call has cost, None where no price is known; one that failed is not charged."""
        self._reserved -= self.most(request)
        if answer is None:
            return None
        asked = answer.prompt_tokens or sum(tokens_of(m.content) for m in request.messages)
        written = answer.answer_tokens or tokens_of(answer.text)
        self.tokens.update(input=asked, output=written)
        cost = self._cost(asked, written)
        self.cost += cost
        return cost if self.price else None

    def _cost(self, asked: float, written: float) -> float:
        if self.price is None:
            return 0.0
        return (asked * self.price.input + written * self.price.output) / 1e6
