"""Did it help? Methods side by side on the same items, with intervals and paired tests.

Options are scored by the log-probability of their text as the answer (cmgr/scoring.py); nothing is
sampled.
Of the workspace's own items, trained ones (`fit`), other wordings of trained facts (`wording`) and
facts never trained (`fact`) are reported apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmgr.base import Base, base_of
from cmgr.errors import CmgrError, MissingError
from cmgr.evaluate import free, tables
from cmgr.evaluate.baselines import BASELINES
from cmgr.evaluate.items import Item, of_examples, pick, problems
from cmgr.evaluate.methods import ALWAYS, EVIDENCE, METHODS, READING, Ask, Methods
from cmgr.evaluate.scores import Question, Scores
from cmgr.evaluate.tables import Result
from cmgr.recipe import SHARED
from cmgr.records import Answer, Decision, Message, json_lines, make_id, now
from cmgr.retrieval import answering
from cmgr.router import Router
from cmgr.runtime import Runtime
from cmgr.scoring import TEMPERATURES, Reading, Scorer, Turn
from cmgr.sources.passages import word_count
from cmgr.synthesize import current_examples
from cmgr.tasks import Task
from cmgr.workspace import Progress, Workspace, write_atomic, write_json

__all__ = [
    "BASELINES",
    "METHODS",
    "OWN",
    "Evaluation",
    "baselines_of",
    "build",
    "default_methods",
    "own_items",
    "run",
]

VERSION = 6
OWN = "workspace"  # the name of the evaluation of a workspace's own items


@dataclass
class Evaluation:
    """What was found: rows of figures (tables.py), and what could not be evaluated."""

    name: str
    methods: list[str]
    rows: list[dict[str, Any]]
    results: list[Result]
    lacking: dict[str, str] = field(default_factory=dict)  # method: why it could not be
    notes: list[str] = field(default_factory=list)  # other things that a reader must know


def default_methods(ws: Workspace, items: Sequence[Item]) -> list[str]:
    """Those that need no more than `cmgr run` makes, and others whose adapters are there."""
    there = {name.rpartition(".")[2] for name in [*ws.variants(), *ws.merges()]}
    reading = {EVIDENCE, "routed+evidence"} if ws.recipe.answer.passages else set()
    if reading and SHARED in there:
        reading.add("shared+evidence")
    if not any(part.get("ids") for part in ws.parts("search").values()):
        reading = set()
    always = {*ALWAYS, *baselines_of(items)}
    return [m for m in METHODS if m in always or m in there or m in reading]


def baselines_of(items: Sequence[Item]) -> list[str]:
    """The baselines that fit these items: `majority` for labels, the others for texts."""
    kinds = {bool(item.labels) for item in items}
    return [m for m in BASELINES if (m == "majority") in kinds]


def run(
    ws: Workspace,
    name: str,
    items: Sequence[Item],
    methods: Sequence[str] | Methods,
    *,
    seed: int = 1,
    interference: bool = False,
    judge: bool = False,
    force: bool = False,
    score: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Put every item by every method; keep the figures in eval/NAME.json, the items beside it.

    `methods` are their names, or what has been made of them for these items. `score` says how
    options are scored, in place of the recipe's. Log-probabilities are kept by model, adapters and
    prompt, as they come: what was computed before, for any method or score, is not computed again.
    A method whose adapter is missing, or that can put no item at all, is left out (`lacking`), and
    an item that some method cannot put (it does not fit the context) is left out for all. Raises
    MissingError where there are no items, or no method can be evaluated.
    """
    if not items:
        raise MissingError("no items to evaluate. Make some: cmgr synthesize; or give --data")
    if isinstance(methods, Methods):
        able = methods
    else:
        base = base_of(ws)
        able = Methods(ws, base, methods, items, current_examples(ws))
    if interference:
        able.need_all("interference")
    decisions: dict[str, Decision] = {}
    try:
        decide = Router.of(ws).decide
        decisions = {text: decide(text) for text in {i.messages[-1].content for i in items}}
    except CmgrError as error:  # none there, or one of another version
        able.drop_routed(str(error))
    if not able.wanted:
        raise MissingError("; ".join(f"{m}: {why}" for m, why in able.lacking.items()))
    matrix = able.cultures if interference and "interference" not in able.lacking else []
    scorer = Scorer(ws.recipe, score)
    asked = _asked(items, able, decisions, matrix, ws.recipe.tasks, scorer)
    able.close()
    scores = Scores(ws, able.base, able.adapters)
    scores.compute(
        [question for one in asked for question in one.questions()],
        (lambda done, total: progress("eval", done, total)) if progress else None,
        force,
    )
    _drop_failing(asked, able, scores)
    results = [result for one in asked if (result := _result(one, able, scorer, scores))]
    found = Evaluation(name, able.wanted, [], results, able.lacking, problems(items))
    why = Counter(reason for one in asked if (reason := _failure(one, scores)))
    found.notes += [f"{count} items left out: {reason}" for reason, count in why.most_common()]
    if not results:
        raise MissingError(f"nothing could be evaluated: {'; '.join(found.notes)}")
    if judge:
        found.rows += free.judged(ws, items, results, progress)
    found.rows += [
        *tables.scores(results, able.wanted, seed),
        *tables.paired(results, able.wanted, seed),
        *(tables.router(results, able.wanted, seed) if decisions else ()),
        *tables.coverage(results, able.wanted),
        *tables.interference(results),
        *(calibrated := list(tables.calibration(results, able.wanted, scorer.rule))),
    ]
    _keep(ws, found, able.base, seed, calibrated)
    return found


@dataclass
class _Put:
    """How an item is put: the prompt, and all that is read to score its options (or to answer)."""

    ask: Ask
    readings: list[Reading]
    questions: list[Question]


@dataclass
class _Asked:
    """An item, whom the router names for it, and what is asked: by method, under each adapter."""

    item: Item
    decision: Decision | None
    by_method: dict[str, _Put]
    freely: dict[str, Question]
    under: dict[str, _Put]

    def questions(self) -> Iterator[Question]:
        """All that is asked for the item."""
        for put in (*self.by_method.values(), *self.under.values()):
            yield from put.questions
        yield from self.freely.values()


def _asked(
    items: Sequence[Item],
    able: Methods,
    decisions: Mapping[str, Decision],
    matrix: Sequence[str],
    tasks: Sequence[Task],
    scorer: Scorer,
) -> list[_Asked]:
    tokens = {task.id: _tokens(task) for task in tasks}
    found = []
    for item in items:
        decision = decisions.get(item.messages[-1].content)
        routed_to = decision.culture if decision else None
        asks = able.asks(item, routed_to)
        options = tuple(item.options)
        length = tokens.get(item.task, _TOKENS)
        room = 0 if options else length
        plain = able.plain(item)
        by_method = {
            m: _put(scorer, item, ask, able.named(m, item, routed_to), plain, room)
            for m, ask in asks.items()
        }
        if options:  # nothing longer than twice the longest option can be right
            length = min(length, 2 * max(map(word_count, options)) + 8)
        freely = {m: Question(a, (), length) for m, a in asks.items() if options and item.free}
        under = {
            c: _put(scorer, item, Ask(plain, ((c, 1.0),)), routed_to, plain, 0)
            for c in matrix
            if options
        }
        found.append(_Asked(item, decision, by_method, freely, under))
    return found


def _put(
    scorer: Scorer, item: Item, ask: Ask, culture: str | None, plain: tuple[Turn, ...], room: int
) -> _Put:
    """An item under a method; `room` is how many tokens an answer has that is written."""
    options = tuple(item.options)
    if not options:
        return _Put(ask, [], [Question(ask, (), room)])
    readings = scorer.readings(ask.turns, ask.scales, culture, item.task, plain)
    return _Put(ask, readings, [Question(Ask(r.turns, r.scales), options) for r in readings])


def _reason(error: str) -> str:
    """Why an item is left out, in the same words for every item."""
    return "too long for the context of the base" if "base.context" in error else error


def _failure(one: _Asked, scores: Scores) -> str:
    """Why an item could not be put by every method; empty where it could."""
    errors = (scores[question].error for question in one.questions())
    return next((_reason(error) for error in errors if error), "")


def _drop_failing(asked: Sequence[_Asked], able: Methods, scores: Scores) -> None:
    """Leave out a method that fails on every item, where others do not.

    So a template that refuses a system message, or examples that are too long, cost one method.
    """
    failing = {}
    for method in asked[0].by_method:
        errors = [
            next((e for q in one.by_method[method].questions if (e := scores[q].error)), "")
            for one in asked
        ]
        if all(errors):
            failing[method] = f"every item failed: {_reason(errors[0])}"
    if len(failing) == len(asked[0].by_method):
        return
    able.lacking.update(failing)
    able.wanted = [method for method in able.wanted if method not in failing]
    for one in asked:
        one.by_method = {m: put for m, put in one.by_method.items() if m not in failing}
        one.freely = {m: q for m, q in one.freely.items() if m not in failing}


def _result(one: _Asked, able: Methods, scorer: Scorer, scores: Scores) -> Result | None:
    """What was said to an item, and whether it is right; None where it could not be put."""
    item, decision = one.item, one.decision
    if _failure(one, scores):
        return None
    found = {m: _scored(put, scorer, scores) for m, put in one.by_method.items()}
    under = {c: _scored(put, scorer, scores) for c, put in one.under.items()}
    said = {m: _said(item, value) for m, value in found.items()} | able.unasked(item)
    answers = {m: scores[q].text for m, q in one.freely.items()}
    texts = {**{m: t for m, t in said.items() if not item.options}, **answers}
    others = [option for option in item.options if option not in item.accepted]
    read = {m: put.ask for m, put in one.by_method.items() if m in READING}
    return Result(
        **item.model_dump(include=_CARRIED),
        routed_to=decision.culture if decision else None,
        probability=round(decision.probability, 6) if decision else None,
        said=said,
        right={m: _is_right(item, text) for m, text in said.items()},
        under={c: _is_right(item, _said(item, value)) for c, value in under.items()},
        options=item.options,
        scores={m: value for m, value in found.items() if not isinstance(value, str)},
        answers=answers,
        answered={m: free.is_right(text, item.accepted, others) for m, text in texts.items()},
        flaws={m: flaw for m, text in texts.items() if (flaw := free.flaw(text, item.answer))},
        passages={
            m: bool(set(ask.passages) & set(item.evidence_ids))
            for m, ask in read.items()
            if ask.passages
        },
        words={m: free.stands(item.accepted, ask.turns[-1][1]) for m, ask in read.items()},
    )


_CARRIED = {"id", "culture", "task", "split", "group", "contested", "answer", "labels"}
_TOKENS = 120  # of a free answer of a task that says nothing


def _tokens(task: Task) -> int:
    return 2 * task.max_words  # a word is one or two tokens


def _scored(put: _Put, scorer: Scorer, scores: Scores) -> list[float] | str:
    """The score of each option; without options what was written."""
    if not put.readings:
        return scores[put.questions[0]].text
    found = [scores[question] for question in put.questions]
    sums = scorer.combine(put.readings, [score.options for score in found], found[0].tokens)
    return [round(value, 6) for value in sums]


def _said(item: Item, value: list[float] | str) -> str:
    if isinstance(value, str):
        return value
    return item.options[max(range(len(item.options)), key=value.__getitem__)]


def _is_right(item: Item, text: str) -> bool:
    return text == item.answer if item.options else free.is_right(text, item.accepted)


def _keep(
    ws: Workspace,
    found: Evaluation,
    base: Base,
    seed: int,
    calibrated: Sequence[dict[str, Any]],
) -> None:
    if ws.read_only:
        return
    if calibrated:  # what `cmgr chat` makes probabilities of options with, until the next one
        temperatures = {row["method"]: row["temperature"] for row in calibrated}
        rule = calibrated[0]["rule"]
        write_json(
            ws.path("eval", TEMPERATURES),
            {"rule": rule, "base": base.fingerprint, "temperatures": temperatures},
        )
    write_atomic(ws.path("eval", f"{found.name}.items.jsonl"), json_lines(found.results).encode())
    write_json(
        ws.path("eval", f"{found.name}.json"),
        {
            **{"name": found.name, "finished_at": now(), "base": base.reference, "seed": seed},
            **{"methods": found.methods, "lacking": found.lacking, "notes": found.notes},
            "rows": found.rows,
        },
    )


# -- the stage ----------------------------------------------------------------------------------


def own_items(ws: Workspace) -> list[Item]:
    """The workspace's own held-out items (and some trained ones), as the recipe says."""
    return of_examples(ws.recipe, pick(ws, current_examples(ws)))


def _inputs(ws: Workspace, items: Sequence[Item], methods: Methods) -> str:
    route = ws.manifest_path("route")
    return make_id(
        VERSION,
        methods.wanted,
        methods.adapters,
        route.read_text(encoding="utf-8") if route.is_file() else "",
        ws.recipe.router.model_dump(),
        [item.model_dump() for item in items],
        ws.recipe.try_prompts,
        ws.recipe.base.context,
        ws.recipe.answer.model_dump(),
        methods.index.fingerprint() if methods.index else "",
    )


def _planned(ws: Workspace) -> tuple[list[Item], Methods, str]:
    """The stage's items and methods, and its inputs' hash. Raises MissingError without either."""
    examples = current_examples(ws)
    items = of_examples(ws.recipe, pick(ws, examples))
    if not items:
        raise MissingError(
            "no held-out items. Make them: cmgr synthesize; or ask those of a file: "
            "cmgr eval --task TASK --data FILE"
        )
    base = base_of(ws)
    able = Methods(ws, base, default_methods(ws, items), items, examples)
    if "routed" in able.lacking:
        raise MissingError(able.lacking["routed"])
    return items, able, _inputs(ws, items, able)


def is_current(ws: Workspace) -> bool:
    """Whether the stage is up to date. Raises MissingError without what it needs."""
    return ws.is_current("eval", _planned(ws)[2])


def wanted_inputs(ws: Workspace) -> str:
    """The hash that the stage's manifest has when it is up to date. Raises MissingError."""
    return _planned(ws)[2]


def build(ws: Workspace, force: bool = False, progress: Progress | None = None) -> bool:
    """Evaluate the workspace's own items, and the recipe's prompts; returns whether it was done.

    Raises MissingError without items, adapters or router.
    """
    items, able, inputs = _planned(ws)
    if not force and ws.is_current("eval", inputs):
        return False
    router = Router.of(ws)
    found = run(ws, OWN, items, able, force=force, progress=progress)
    tried = [*_tried(ws, router), *_held_out(items, found.results)]
    ws.finish(
        "eval",
        inputs,
        **{"table": found.rows, "methods": found.methods, "items": len(items), "tried": tried},
        **{"lacking": found.lacking, "notes": found.notes},
    )
    return True


def _tried(ws: Workspace, router: Router) -> list[dict[str, Any]]:
    """The recipe's prompts, answered by the base and, as in chat, by whom the router names."""
    names = {culture.id: culture.name for culture in ws.recipe.cultures}
    runtime = Runtime(base_of(ws), ws.recipe.base.context)
    sources = answering.Sources(ws)
    found = []
    try:
        for prompt in ws.recipe.try_prompts:
            culture = router.decide(prompt).culture
            scales = {culture: 1.0} if culture else {}
            if culture:
                runtime.load_adapter(culture, ws.path("adapters", culture))
            plain = [Message(role="user", content=prompt)]
            said = Answer(id=make_id(prompt), prompt=prompt, culture=culture, adapter=culture)
            said.sources = sources.of(scales, prompt)
            asked = answering.before(plain, said.sources, names)
            said.response = "".join(runtime.generate(asked, scales, max_tokens=80)).strip()
            answering.check(said)
            base = "".join(runtime.generate(plain, {}, max_tokens=80)).strip()
            found.append(
                {
                    **{"prompt": prompt, "culture": culture, "base": base, "routed": said.response},
                    "sources": [source.model_dump() for source in said.sources],
                    "claims": [claim.model_dump() for claim in said.claims],
                }
            )
    finally:
        sources.close()
        runtime.close()
    return found


def _held_out(items: Sequence[Item], results: Sequence[Result]) -> list[dict[str, Any]]:
    """An item a culture that no example was trained on, with its right answer and what was said."""
    by_id = {item.id: item for item in items}
    chosen: dict[str, Result] = {}
    for split in ("fact", "wording"):
        for result in sorted(results, key=lambda r: make_id("tried", r.id)):
            if result.split == split and result.answers:
                chosen.setdefault(result.culture, result)
    found = []
    for result in chosen.values():
        method = "routed+evidence" if "routed+evidence" in result.answers else "routed"
        if not {"base", method} <= result.answers.keys():
            continue
        found.append(
            {
                "prompt": by_id[result.id].messages[-1].content,
                "culture": result.routed_to,
                **{"base": result.answers["base"], "base_right": result.answered["base"]},
                **{"routed": result.answers[method], "right": result.answered[method]},
                "gold": result.answer,
            }
        )
    return found
