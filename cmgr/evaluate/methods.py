"""How an item is put, by method: which messages, under which adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, groupby
from typing import NamedTuple

from cmgr.base import Base
from cmgr.errors import MissingError
from cmgr.evaluate.baselines import BASELINES, Baselines
from cmgr.evaluate.items import Item
from cmgr.recipe import SHARED
from cmgr.records import Example, hash_file, make_id
from cmgr.retrieval import Found, Index
from cmgr.retrieval.prompt import note_of, with_notes
from cmgr.scoring import Turn, persona, turns_of
from cmgr.train.variants import VARIANTS, name_of
from cmgr.workspace import Workspace, read_json

MERGED = "merged"  # the name of the merge that is evaluated
SHOTS = 3  # examples in the prompt of few-shot
METHODS = {
    "base": "the bare base",
    "prompt": "the base, the culture named in a system prompt",
    "few-shot": f"the same, and {SHOTS} of the culture's training examples in the prompt",
    "shared": "one adapter trained for all cultures",
    "merged": "the cultures' adapters merged into one",
    "routed": "the adapter of the culture that the router names, or the base",
    "oracle": "the adapter of the culture that is right",
    "broad": "routed, without the task stage",
    "no-broad": "routed, without the broad stage",
    "no-contrast": "routed, without contrast pairs",
    "no-evidence": "routed, trained on what the model wrote from memory",
}
EVIDENCE = "evidence"
METHODS |= {
    EVIDENCE: "the base, passages of the routed culture before the question",
    "shared+evidence": "the shared adapter with the same passages",
    "routed+evidence": "the routed culture's adapter with its passages: what chat does",
    "oracle+evidence": "the right culture's adapter with its passages",
    "open+evidence": "the base with passages of all cultures together, without a router",
}
METHODS |= BASELINES
READING = tuple(name for name in METHODS if name.endswith(EVIDENCE))
ROUTED = (
    *("routed", "routed+evidence", EVIDENCE, "shared+evidence"),
    *(name for name in VARIANTS if name != SHARED),
)
ALWAYS = ("base", "prompt", "routed", "oracle")


class Ask(NamedTuple):
    """A prompt under adapters at scales; `passages` are the ids of those that stand in it."""

    turns: tuple[Turn, ...]
    scales: tuple[tuple[str, float], ...]
    passages: tuple[str, ...] = ()


class Methods:
    """The methods that can be evaluated here, and why others cannot (`lacking`).

    `adapters` are those that they need, by name: the SHA-256 of each GGUF. `count` passages of the
    evidence stand before a question where a method reads them.
    """

    def __init__(
        self,
        ws: Workspace,
        base: Base,
        wanted: Sequence[str],
        items: Sequence[Item],
        examples: Sequence[Example],
    ) -> None:
        self._ws, self.base = ws, base
        self.count = ws.recipe.answer.passages
        self.index = Index(ws) if self.count else None
        if self.index and not any(self.index.passages(c.id) for c in ws.recipe.cultures):
            self.index = None
        self._shown: dict[tuple[str, str], list[Found]] = {}
        self.lacking: dict[str, str] = {}
        self.adapters: dict[str, str] = {}
        self.shots = self._shots(examples)
        self.baselines = Baselines(examples)
        self.wanted: list[str] = []
        of_items = sorted({item.culture for item in items})
        every = [culture.id for culture in ws.recipe.cultures]
        for method in wanted:
            needed = of_items if method == "oracle" else every
            try:
                if method in READING and self.index is None:
                    raise MissingError("no evidence to read. Find some: cmgr search")
                for name in self._names(method, needed):
                    self._need(name, method)
                for item in items if method == "few-shot" or method in BASELINES else ():
                    if not self.shots.get((item.culture, item.task)):
                        raise MissingError(
                            f"no training examples of {item.culture} for {item.task}"
                        )
            except MissingError as error:
                self.lacking[method] = str(error)
            else:
                self.wanted.append(method)

    def _names(self, method: str, cultures: Sequence[str]) -> list[str]:
        """The adapters of a method."""
        if method in ("base", "prompt", "few-shot", EVIDENCE, "open+evidence", *BASELINES):
            return []
        if method in (SHARED, MERGED, "shared+evidence"):
            return [method.partition("+")[0]]
        variant = method if method in VARIANTS else None
        return [name_of(culture, variant) for culture in cultures]

    def _need(self, name: str, method: str) -> None:
        if name in self.adapters:
            return
        path = self._ws.path("adapters", name, "adapter.gguf")
        made_for = (read_json(path.with_name("manifest.json")) or {}).get("base_fingerprint")
        if not path.is_file() or made_for != self.base.fingerprint:
            how = f"cmgr train --variant {method}" if method in VARIANTS else "cmgr train"
            if method == MERGED:
                names = " ".join(culture.id for culture in self._ws.recipe.cultures)
                how = f"cmgr merge {names} --method linear --name {MERGED}"
            raise MissingError(f"no adapter {name} for this base. Make it: {how}")
        self.adapters[name] = hash_file(path)

    def close(self) -> None:
        """Free the index's encoder."""
        if self.index:
            self.index.close()

    @property
    def cultures(self) -> list[str]:
        """The cultures whose own adapter is there."""
        return [culture.id for culture in self._ws.recipe.cultures if culture.id in self.adapters]

    def need_all(self, what: str) -> None:
        """Take in every culture's own adapter, or say in `lacking` why `what` cannot be."""
        try:
            for culture in self._ws.recipe.cultures:
                self._need(culture.id, what)
        except MissingError as error:
            self.lacking[what] = str(error)

    def drop_routed(self, why: str) -> None:
        """Without a router: leave out the methods that need one."""
        for method in [m for m in self.wanted if m in ROUTED]:
            self.lacking[method] = why
            self.wanted.remove(method)

    def plain(self, item: Item) -> tuple[Turn, ...]:
        """An item's prompt as it is."""
        return turns_of(item.messages)

    def asks(self, item: Item, routed_to: str | None) -> dict[str, Ask]:
        """How each method puts an item; `routed_to` is the culture that the router names.

        Baselines ask nothing.
        """
        asking = [method for method in self.wanted if method not in BASELINES]
        return {method: self._ask(method, item, routed_to) for method in asking}

    def named(self, method: str, item: Item, routed_to: str | None) -> str | None:
        """The culture that a method is given: the right one, or whom the router names."""
        told = method in ("prompt", "few-shot") or method.startswith("oracle")
        return item.culture if told else routed_to

    def unasked(self, item: Item) -> dict[str, str]:
        """What each of the wanted baselines says to an item."""
        return {m: self.baselines.choose(m, item) for m in self.wanted if m in BASELINES}

    def _ask(self, method: str, item: Item, routed_to: str | None) -> Ask:
        plain = self.plain(item)
        if method in READING:
            return self._reading(method, item, routed_to)
        if method == "base":
            return Ask(plain, ())
        if method in ("prompt", "few-shot"):
            shots = self.shots[item.culture, item.task] if method == "few-shot" else []
            others = [turns for shot, turns in shots if shot != item.id][:SHOTS]
            culture = self._ws.recipe.culture(item.culture)
            return Ask((persona(culture), *chain(*others), *plain), ())
        if method in (SHARED, MERGED):
            return Ask(plain, ((method, 1.0),))
        named = self.named(method, item, routed_to)
        variant = method if method in VARIANTS else None
        return Ask(plain, ((name_of(named, variant), 1.0),) if named else ())

    def _reading(self, method: str, item: Item, routed_to: str | None) -> Ask:
        """A prompt with passages before it; as it is where the index has nothing to say."""
        named = self.named(method, item, routed_to)
        if method == "open+evidence":
            cultures = [culture.id for culture in self._ws.recipe.cultures]
        else:
            cultures = [named] if named else []
        found = [(c, one) for c in cultures for one in self.shown(c, item)]
        if len(cultures) > 1:  # of all cultures, the best
            found = sorted(found, key=lambda pair: -pair[1].score)[: self.count]
        who = {"shared+evidence": SHARED, EVIDENCE: None, "open+evidence": None}.get(method, named)
        scales = ((who, 1.0),) if who else ()
        if not found:
            return Ask(self.plain(item), scales)
        notes = [
            (
                name := self._ws.recipe.culture(culture).name,
                [note_of(o.passage, name) for _, o in mine],
            )
            for culture, mine in groupby(found, key=lambda pair: pair[0])
        ]
        turns = turns_of(with_notes(item.messages, notes))
        return Ask(turns, scales, tuple(one.passage.id for _, one in found))

    def shown(self, culture: str, item: Item) -> list[Found]:
        """The passages that the index has for an item, if any."""
        prompt = item.messages[-1].content
        if (culture, prompt) not in self._shown:
            assert self.index is not None
            self._shown[culture, prompt] = self.index.find(culture, prompt, self.count)
        return self._shown[culture, prompt]

    def _shots(
        self, examples: Sequence[Example]
    ) -> dict[tuple[str, str], list[tuple[str, tuple[Turn, ...]]]]:
        """Per culture and task: (id, its two turns) of examples, each label in turn.

        One more than is shown: an item is never among its own.
        """
        by_answer: dict[tuple[str, str], dict[str, list[Example]]] = defaultdict(dict)
        for example in sorted(examples, key=lambda e: make_id("shot", e.id)):
            if example.stage == "task" and example.split == "fit":
                kinds = by_answer[example.culture, str(example.task)]
                label = example.answer if self._labelled(example.task) else ""
                kinds.setdefault(label, []).append(example)
        found = {}
        for key, kinds in by_answer.items():
            longest = max(map(len, kinds.values()))
            turns = [mine[n] for n in range(longest) for mine in kinds.values() if n < len(mine)]
            found[key] = [
                (e.id, (*turns_of(e.messages), ("assistant", e.answer))) for e in turns[: SHOTS + 1]
            ]
        return found

    def _labelled(self, task_id: str | None) -> bool:
        return any(task.id == task_id and task.labels for task in self._ws.recipe.tasks)
