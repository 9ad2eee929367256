"""What a model is asked to write, and what becomes of what it wrote: requests and examples."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Any, Literal

import yaml

from cmgr.generators.task_format import MalformedError, in_format, same, task_of
from cmgr.llm import repair
from cmgr.recipe import Culture, Generator, Recipe
from cmgr.records import Evidence, Example, Message, Split, make_id, now
from cmgr.search.queries import language_name, languages_of
from cmgr.tasks import LOADER, Task

BARE = "bare"  # what the generator's name begins with where an example rests on no evidence
TOKENS_EACH = 300  # of an answer, for each example that is asked for
_WHY: dict[str, Any] = {"type": "string", "maxLength": 200}


@dataclass(frozen=True)
class Request:
    """One call: what is asked, of which passages, for whom. `key` is what its answer is kept under:

    a hash of model, prompt, schema and parameters.
    """

    key: str
    kind: Literal["task", "broad", "contrast", "judge", "again", "verdict"]
    culture: str
    other: str
    task: str
    language: str
    passages: tuple[Evidence, ...]
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    tokens: int


@cache
def _prompts() -> dict[str, str]:
    text = files("cmgr.generators").joinpath("prompts.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.load(text, Loader=LOADER)
    return found


def prompt(generator: Generator, name: str, values: Mapping[str, str]) -> str:
    """A prompt by name, the recipe's or our own, with its words in braces filled in."""
    text = generator.prompts.get(name) or _prompts()[name]
    filled = re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), text)
    return re.sub(r"\n{3,}", "\n\n", filled).strip()


def requests(recipe: Recipe, evidence: Sequence[Evidence]) -> Iterator[Request]:
    """Every call of a recipe, in a fixed order: by culture, language, passages and task."""
    groups = {
        culture.id: _groups([e for e in evidence if e.culture == culture.id], recipe)
        for culture in recipe.cultures
    }
    for culture in recipe.cultures:
        for language in languages_of(recipe.generator.languages, culture):
            for passages in groups[culture.id]:
                if not is_unseen(passages[0], recipe.generator.unseen_facts):
                    yield _request(recipe, "broad", culture, language, None, passages)
                for task in recipe.tasks:
                    yield _request(recipe, "task", culture, language, task_of(task), passages)
    if recipe.generator.contrast:
        for one, two in combinations(recipe.cultures, 2):
            topics = {p[0].topic for p in groups[one.id]} & {p[0].topic for p in groups[two.id]}
            for topic in sorted(topics):
                first = next(p for p in groups[one.id] if p[0].topic == topic)[:2]
                second = next(p for p in groups[two.id] if p[0].topic == topic)[:2]
                for task in recipe.tasks:
                    yield _request(recipe, "contrast", one, "en", task_of(task), first, two, second)


def bare_requests(recipe: Recipe, evidence: Sequence[Evidence]) -> Iterator[Request]:
    """As many calls as a culture's training items get, on the same topics, without a passage.

    What a model writes from memory is what evidence is compared with (the paper's ablation).
    """
    for culture in recipe.cultures:
        mine = _groups([e for e in evidence if e.culture == culture.id], recipe)
        times: Counter[str] = Counter()
        for passages in mine:
            if is_unseen(passages[0], recipe.generator.unseen_facts):
                continue
            topic = passages[0].topic
            times[topic] += 1
            about = f"{topic} (set {times[topic]})" if times[topic] > 1 else topic
            yield _request(recipe, "broad", culture, "en", None, (), topic=about)
            for task in recipe.tasks:
                yield _request(recipe, "task", culture, "en", task_of(task), (), topic=about)


def _groups(mine: Sequence[Evidence], recipe: Recipe) -> list[tuple[Evidence, ...]]:
    """Passages of one topic together, some at a time; those held out apart from the others."""
    by_topic: dict[tuple[str, bool], list[Evidence]] = defaultdict(list)
    for item in sorted(mine, key=lambda e: (e.topic, e.url, e.id)):
        by_topic[item.topic, is_unseen(item, recipe.generator.unseen_facts)].append(item)
    size = recipe.generator.passages
    return [
        tuple(items[i : i + size])
        for items in by_topic.values()
        for i in range(0, len(items), size)
    ]


def is_unseen(item: Evidence, share: float) -> bool:
    """Whether a passage is held out of training, for the evaluation to ask for: chosen by hash."""
    return int(make_id("unseen", item.sha256), 16) % 1000 < share * 1000


def _request(
    recipe: Recipe,
    kind: Literal["task", "broad", "contrast"],
    culture: Culture,
    language: str,
    task: Task | None,
    passages: Sequence[Evidence],
    other: Culture | None = None,
    others: Sequence[Evidence] = (),
    topic: str = "",
) -> Request:
    generator = recipe.generator
    count = generator.per_call
    shown = [*passages, *others]
    values = {
        "culture": culture.name,
        "other": other.name if other else "",
        "language": language_name(language),
        "count": str(count),
        "topic": topic,
        "passages": "\n\n".join(
            f"Passage {n} ({culture.name if n <= len(passages) else other and other.name}):\n"
            f"{item.heading + chr(10) if item.heading else ''}{item.text}"
            for n, item in enumerate(shown, 1)
        ),
    }
    if task:
        values |= _task_values(task)
    bare = "" if shown else "bare-"
    messages = (
        Message(role="system", content=prompt(generator, f"{bare}system", values)),
        Message(role="user", content=prompt(generator, f"{bare}{kind}", values)),
    )
    schema = _schema(task, kind, len(shown), count)
    return Request(
        _key(generator, messages, schema),
        kind,
        culture.id,
        other.id if other else "",
        task.id if task else "",
        language,
        tuple(shown),
        messages,
        schema,
        TOKENS_EACH * count,
    )


def _key(generator: Generator, messages: Sequence[Message], schema: dict[str, Any]) -> str:
    return make_id(
        [generator.model, generator.base_url, generator.temperature, generator.seed],
        [m.model_dump() for m in messages],
        schema,
    )


def second_look(
    recipe: Recipe, kind: Literal["judge", "again"], example: Example, passage: Evidence
) -> Request:
    """A call that looks at a finished example: a judge's score, or the answer once more."""
    generator = recipe.generator
    options = example.inputs.get("options")
    values = {
        "culture": recipe.culture(example.culture).name,
        "passage": passage.text,
        "prompt": example.messages[-1].content,
        "answer": example.answer,
        "answers": f"The answer is one of: {'; '.join(options)}" if options else "",
    }
    answer: dict[str, Any] = {"type": "string", **({"enum": options} if options else {})}
    parts: dict[str, dict[str, Any]] = {"answer": answer}
    if kind == "judge":
        score = {"type": "integer", "minimum": 1, "maximum": 5}
        parts = {"score": score, "why": _WHY}
    language = str(example.inputs.get("language", "en"))
    whose = (example.culture, example.task or "", language)
    return _look(generator, kind, values, parts, whose, (passage,))


def verdict(
    recipe: Recipe, culture: str, task: str, question: str, accepted: Sequence[str], answer: str
) -> Request:
    """A call that says whether a free answer means the same as one of those that count as right."""
    values = {
        "culture": recipe.culture(culture).name,
        "prompt": question,
        "reference": "\n".join(f"- {text}" for text in accepted),
        "answer": answer,
    }
    parts: dict[str, dict[str, Any]] = {"right": {"type": "boolean"}, "why": _WHY}
    return _look(recipe.generator, "verdict", values, parts, (culture, task, "en"), ())


def _look(
    generator: Generator,
    kind: Literal["judge", "again", "verdict"],
    values: Mapping[str, str],
    parts: dict[str, dict[str, Any]],
    whose: tuple[str, str, str],
    passages: tuple[Evidence, ...],
) -> Request:
    """A call with one prompt, whose answer has these parts; for a culture, task and language."""
    culture, task, language = whose
    messages = (Message(role="user", content=prompt(generator, kind, values)),)
    schema = {
        "type": "object",
        "properties": parts,
        "required": list(parts),
        "additionalProperties": False,
    }
    key = _key(generator, messages, schema)
    return Request(key, kind, culture, "", task, language, passages, messages, schema, TOKENS_EACH)


def _task_values(task: Task) -> dict[str, str]:
    fields = [f"- {name}: {what}" for name, what in task.fields.items()]
    if task.labels:
        fields.append(f"- answer: one of {', '.join(task.labels)}")
    elif task.options:
        fields.append(f"- answer: the right answer, at most {task.max_words} words")
        fields.append(
            f"- options: {task.options - 1} wrong answers of the same form and length, which "
            "people elsewhere might give"
        )
    else:
        fields.append(f"- answer: the answer, at most {task.max_words} words")
    rules = []
    if "culture" not in task.shows:
        rules.append("No field names the culture, its country, its people or its places.")
    if "answer" not in task.shows:
        rules.append("No field gives the answer away.")
    shown = [
        ", ".join(f"{name}: {value}" for name, value in example.items())
        for example in task.examples[:5]
    ]
    return {
        "task": task.name,
        "instruction": f"Its instruction: {task.instruction}\n" if task.instruction else "",
        "fields": "\n".join(fields),
        "prompt_rules": " ".join(rules),
        "examples": "Such as:\n" + "\n".join(shown) + "\n" if shown else "",
    }


def _schema(task: Task | None, kind: str, passages: int, count: int) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "maxLength": 600}
    number = {"type": "integer", "minimum": 1, "maximum": passages}
    parts: dict[str, Any] = {name: text for name in (task.fields if task else ("question",))}
    answer = {"type": "string", "enum": task.labels} if task and task.labels else text
    parts["answer"] = answer
    if task and task.options:
        size = task.options - 1
        parts["options"] = {"type": "array", "items": text, "minItems": size, "maxItems": size}
    parts |= {"passage": number, "quote": text} if passages else {}
    if kind == "contrast":
        parts |= {"other_answer": answer, "other_passage": number, "other_quote": text}
    item = {
        "type": "object",
        "properties": parts,
        "required": list(parts),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"examples": {"type": "array", "items": item, "maxItems": count}},
        "required": ["examples"],
        "additionalProperties": False,
    }


# -- answers ------------------------------------------------------------------------------------


def items(text: str) -> list[Any]:
    """The items of an answer, whatever their form; none where it is no JSON."""
    value = repair(text)
    found = value.get("examples") if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def examples(recipe: Recipe, request: Request, item: Any) -> list[Example]:
    """The example of an item, or the two of a contrast. Raises MalformedError."""
    if not isinstance(item, dict):
        raise MalformedError("not an object")
    made = [_example(recipe, request, item, request.culture, "")]
    if request.kind == "contrast":
        made.append(_example(recipe, request, item, request.other, "other_"))
        if made[0].answer == made[1].answer:
            raise MalformedError("both cultures answer the same")
    return made


def _text(item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value.strip():
        raise MalformedError(f"no {name}")
    return " ".join(value.split()) if name != "quote" else value.strip()


def _example(
    recipe: Recipe, request: Request, item: dict[str, Any], culture_id: str, other: str
) -> Example:
    passage = _cited(request, item, other) if request.passages else None
    answer = _text(item, f"{other}answer")
    culture = recipe.culture(culture_id)
    unseen = passage is not None and is_unseen(passage, recipe.generator.unseen_facts)
    split: Split = "fact" if unseen else "fit"
    if request.kind == "broad":
        content = _text(item, "question")
        inputs: dict[str, Any] = {"question": content}
    else:
        task = task_of(next(t for t in recipe.tasks if t.id == request.task))
        inputs = {name: _text(item, name) for name in task.fields}
        wrong = _options(task, item, answer, request, other)
        named = request.kind != "contrast"
        content, answer, inputs = in_format(task, culture, inputs, answer, wrong, named)
        if request.kind == "contrast":
            inputs["contrast"] = make_id(request.key, [inputs[name] for name in task.fields])
    fact = passage.id if passage else make_id(content)
    inputs |= {"topic": passage.topic if passage else "", "fact": fact}
    inputs |= {"language": request.language}
    name = f"{recipe.generator.kind}:{recipe.generator.model}"
    if passage is None:
        name = f"{BARE}:{name}"
    return Example(
        id=make_id(name, culture_id, request.task, split, content, answer, fact),
        culture=culture_id,
        task=request.task or None,
        stage="broad" if request.kind == "broad" else "task",
        split=split,
        inputs=inputs,
        answer=answer,
        messages=[Message(role="user", content=content)],
        evidence_ids=[passage.id] if passage else [],
        quote=_text(item, f"{other}quote") if passage else "",
        generator=name,
        created_at=now(),
    )


def _cited(request: Request, item: dict[str, Any], other: str) -> Evidence:
    """The passage that an item names."""
    number = item.get(f"{other}passage")
    if not isinstance(number, int) or not 1 <= number <= len(request.passages):
        raise MalformedError("no such passage")
    return request.passages[number - 1]


def _options(
    task: Task, item: dict[str, Any], answer: str, request: Request, other: str
) -> list[str] | None:
    """The wrong options of an item; of a contrast, the other culture's answer among them."""
    if not task.options:
        return None
    given = item.get("options")
    if not isinstance(given, list) or not all(isinstance(o, str) and o.strip() for o in given):
        raise MalformedError("no options")
    wrong = [" ".join(o.split()) for o in given if same(o) != same(answer)]
    if request.kind == "contrast":
        theirs = " ".join(str(item.get("answer" if other else "other_answer", "")).split())
        wrong = [theirs, *(o for o in wrong if same(o) != same(theirs))]
    return wrong
