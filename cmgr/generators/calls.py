"""Paid for once: each answer of a model on disk, under its request's key; money counted before."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
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
from cmgr.workspace import write_atomic

_PARTS = 10**11  # of a dollar
LETTERS_A_TOKEN = 4.0  # of English; an estimate, for OpenAI's and Llama's tokenisers alike


class Calls:
    """Answers by key, one file each, written whole as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, request: Request) -> str | None:
        """The text that was answered, or None."""
        return self._text(request.key)

    def has(self, key: str) -> bool:
        """Whether an answer is kept under a key, its request in hand or not."""
        return self._text(key) is not None

    def put(self, key: str, answer: Completion, cost: float | None) -> None:
        """Keep an answer under its request's key; it is whole on the disk on return."""
        value: dict[str, Any] = {"key": key, "at": now(), "cost": cost, **vars(answer)}
        write_atomic(self._path(key), json.dumps(value, ensure_ascii=False).encode())

    def _text(self, key: str) -> str | None:
        try:
            text = json.loads(self._path(key).read_bytes())["text"]
        except (OSError, ValueError, KeyError):
            return None
        return text if isinstance(text, str) else None

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


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

    `calls` are those begun here, `collected` the answers of calls that an earlier run began: they
    cost what they cost, and count, and nothing that is set aside here is set free by them.
    Raises UsageError where a bound on money is set and no price is known.
    """

    price: Price | None
    max_cost: float | None = None
    max_calls: int | None = None
    calls: int = 0
    collected: int = 0
    cost: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    stopped: str = ""
    # what calls on their way may cost, by key; in billionths of a cent, so that sums are exact
    _held: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _reserved: int = 0

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price is None:
            raise UsageError(
                "--max-cost needs a price: set generator.price (input, output: US dollars per "
                "million tokens) in recipe.yaml"
            )

    def most(self, request: Request) -> float:
        """What a call can cost at most, its answer as long as it may be."""
        asked = sum(tokens_of(m.content) for m in request.messages) * 1.5 + 200
        return _cost(self.price, asked, request.tokens)

    def begin(self, request: Request) -> bool:
        """Whether a call may be made; what it may cost is then set aside until `end`."""
        most = math.ceil(self.most(request) * _PARTS)
        if self.max_calls is not None and self.calls >= self.max_calls:
            self.stopped = f"--max-calls {self.max_calls}"
        elif self.max_cost is not None and (
            self.cost + (self._reserved + most) / _PARTS > self.max_cost
        ):
            self.stopped = f"--max-cost {self.max_cost:g}"
        else:
            self.calls += 1
            self._held[request.key].append(most)
            self._reserved += most
            return True
        return False

    @property
    def reserved(self) -> float:
        """US dollars set aside for the calls that are on their way."""
        return self._reserved / _PARTS

    def end(self, request: Request, answer: Completion | None, taken: bool = True) -> float | None:
        """What a call has cost, None where no price is known; one that failed is not charged.

        One that the server has not `taken` (429) is no call.
        """
        self.calls -= self._release(request.key) and not taken
        return None if answer is None else self._charge(self.price, *_counted(answer, request))

    def collect(self, key: str, answer: Completion | None, price: Price | None) -> float | None:
        """The same of a call that was left to itself, at the price of the day it was begun."""
        began_here = self._release(key)
        if answer is None:
            return None
        self.collected += not began_here
        return self._charge(price, *_counted(answer))

    def cost_of(self, request: Request, answer: Completion) -> float | None:
        """What an answer costs, None where no price is known."""
        return _cost(self.price, *_counted(answer, request)) if self.price else None

    def _release(self, key: str) -> bool:
        """Set free what was set aside for a call; returns whether it was begun here."""
        held = self._held.get(key)
        if not held:
            return False
        self._reserved -= held.pop()
        return True

    def _charge(self, price: Price | None, asked: int, written: int) -> float | None:
        self.tokens.update(input=asked, output=written)
        cost = _cost(price, asked, written)
        self.cost += cost
        return cost if price else None


def _counted(answer: Completion, request: Request | None = None) -> tuple[int, int]:
    """Tokens in and out, as the server counted them or by estimate."""
    told = sum(tokens_of(m.content) for m in request.messages) if request else 0
    return answer.prompt_tokens or told, answer.answer_tokens or tokens_of(answer.text)


def _cost(price: Price | None, asked: float, written: float) -> float:
    return (asked * price.input + written * price.output) / 1e6 if price else 0.0
