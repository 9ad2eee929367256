"""What an example must stand before it is kept: each check by its name, the reason in a few words.

What needs judgement (does the quote truly support the answer, is the norm a fair one) is for a
judge model and for people; here stands what can be seen from the texts alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from cmgr.checks.texts import gives_away, stands_in, supports, turned
from cmgr.generators.writing import BARE
from cmgr.overlap import Excluded, NearDuplicates, words
from cmgr.recipe import Recipe
from cmgr.records import Evidence, Example
from cmgr.sources import hygiene
from cmgr.sources.passages import mentions, names_of, word_count
from cmgr.tasks import Task

MAX_WORDS = 60  # of an answer where the task does not say
MOST = 0.75  # share that one label may have of what a model writes for a task
FEW = 12  # examples from which on labels are balanced
NEAR = 0.65  # Jaccard similarity of pairs of words from which an example is a copy of another

_META = re.compile(
    r"\b(?:the|this|that|these|given|above|following)\s+(?:passages?|excerpts?|texts?|evidence|"
    r"contexts?|sources?|quotes?|articles?)\s+(?:\w+\s+)?(?:above|below|says?|states?|mentions?|describes?|"
    r"explains?|provided|tells? us|notes?|shows? that)\b"
    r"|\b(?:according to|based on|as (?:stated|described|mentioned) in)\s+(?:the|this)\s+"
    r"(?:\w+\s+)?(?:passage|text|excerpt|article|evidence|source|context|quote)s?\b"
    r"|\bas the (?:passage|text|excerpt|article|evidence)\b"
    r"|\bpassage (?:\d|one|two|three)\b|\bas an ai\b|\b(?:training|synthetic) (?:example|data)\w*"
    r"|\bjson\b",
    re.IGNORECASE,
)


class Checks:
    """The checks of one synthesis, over all its examples: some compare them with each other."""

    def __init__(
        self,
        recipe: Recipe,
        evidence: Iterable[Evidence],
        excluded: Excluded | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        """`prompts` are what the generator was told: their wording must not come back."""
        self._recipe = recipe
        self._tasks = {task.id: task for task in recipe.tasks}
        self._evidence = {item.id: item for item in evidence}
        self._names = [n for culture in recipe.cultures for n in names_of(culture)]
        self._excluded = excluded or Excluded([])
        self._prompts = Excluded(line for text in prompts for line in text.split("\n"))
        self._near: dict[tuple[str, str | None], NearDuplicates[str]] = defaultdict(
            lambda: NearDuplicates(NEAR, 2)
        )
        # prompts that name no culture: answered alike, they tell two cultures nothing apart
        self._alike: dict[str | None, NearDuplicates[tuple[str, str]]] = defaultdict(
            lambda: NearDuplicates(NEAR, 2)
        )
        self._seen: dict[tuple[str | None, str], Example] = {}
        self._labels: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)

    def reason(self, example: Example) -> str | None:
        """Why an example is not kept, or None; one that is kept is compared with those to come."""
        found = self.of_itself(example) or self._others(example)
        if found is None:
            prompt = _prompt(example)
            self._seen.setdefault((example.task, _folded(prompt)), example)
            if not _is_cut(example):
                key = (example.culture, example.task)
                self._near[key].add(example.id, self._written(example))
                if self._names_none(prompt):
                    known = (example.culture, _folded(example.answer))
                    self._alike[example.task].add(known, self._written(example))
            if not _is_brought(example):
                self._labels[example.culture, example.task][example.answer] += 1
        return found

    def of_itself(self, example: Example) -> str | None:
        """Why an example is not kept, whatever the others are."""
        return (
            self._form(example)
            or self._language(example)
            or self._grounding(example)
            or self._wording(example)
        )

    # -- one example ---------------------------------------------------------------------------

    def _form(self, example: Example) -> str | None:
        if not example.answer.strip():
            return "the answer is empty"
        if not _prompt(example).strip():
            return "the prompt is empty"
        if example.culture not in {c.id for c in self._recipe.cultures}:
            return f"the recipe has no culture {example.culture}"
        if example.stage == "broad":
            return self._length(example, MAX_WORDS)
        task = self._tasks.get(example.task or "")
        if task is None:
            return "fields are missing: task"
        missing = [name for name in (*self._fields(task), "fact") if not example.inputs.get(name)]
        if missing:
            return f"fields are missing: {', '.join(missing)}"
        if task.labels and not example.inputs.get("options"):
            return "fields are missing: options"
        if task.labels and example.answer not in task.labels:
            return "the answer is not among the labels"
        return self._options(example) or self._length(example, task.max_words)

    def _fields(self, task: Task) -> list[str]:
        return list(task.fields) if task.prompt else ["question", "options"]

    def _options(self, example: Example) -> str | None:
        options = example.inputs.get("options")
        if options is None:
            return None
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            return "the options are not a list of texts"
        if example.answer not in options:
            return "the answer is not among the options"
        texts = example.inputs.get("texts", options)
        task = self._tasks.get(example.task or "")
        if task and "{options}" in task.prompt and "texts" not in example.inputs:
            return "fields are missing: texts"
        if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
            return "the options are not a list of texts"
        if len(texts) < 2 or len({_folded(o) for o in texts}) < len(texts):
            return "the options are not distinct"
        return None

    def _length(self, example: Example, most: int) -> str | None:
        count = word_count(answer_text(example))
        return f"the answer has more than {most} words" if count > most else None

    def _grounding(self, example: Example) -> str | None:
        rests_on_none = _is_brought(example) or example.generator.startswith(f"{BARE}:")
        if not example.quote.strip() and rests_on_none:
            return None  # a person's own, or meant to rest on nothing
        if not example.quote.strip() or not example.evidence_ids:
            return "no evidence is quoted"
        cited = [self._evidence.get(i) for i in example.evidence_ids]
        if any(item is None for item in cited):
            return "the cited evidence is not there"
        if any(item and item.culture != example.culture for item in cited):
            return "the cited evidence is another culture's"
        if not any(item and stands_in(example.quote, item.text) for item in cited):
            return "the quote is not in the cited evidence"
        labelled = bool(self._tasks[example.task].labels) if example.task in self._tasks else False
        language = example.inputs.get("language", "en")
        # across languages no word can be compared: that is for a judge
        same = hygiene.language_of(example.quote) in {language, ""}
        if not labelled and not _is_cut(example) and same:
            answer = answer_text(example)
            if not supports(example.quote, answer, language):
                return "the quote does not support the answer"
            if turned(answer, example.quote, language):
                return "the answer turns its quote round"
        return None

    def _language(self, example: Example) -> str | None:
        if _is_cut(example) or _is_brought(example):
            return None
        wanted = example.inputs.get("language", "en")
        task = self._tasks.get(example.task or "")
        text = self._written(example, with_answer=not (task and task.labels))
        found = hygiene.language_of(text)
        long = len(text) >= 40 or (len(text) >= 12 and not text.isascii())
        return "another language" if long and found and found != wanted else None

    def _written(self, example: Example, with_answer: bool = True) -> str:
        """What was written of an example, without the frame that all of its task have."""
        task = self._tasks.get(example.task or "")
        parts = [_prompt(example)]
        if task and task.prompt:
            parts = [str(example.inputs.get(name, "")) for name in task.fields]
            parts += map(str, example.inputs.get("texts", ()))
        return "\n".join([*parts, *([answer_text(example)] if with_answer else [])])

    def _wording(self, example: Example) -> str | None:
        prompt, answer = _prompt(example), answer_text(example)
        task = self._tasks.get(example.task or "")
        fields = " ".join(
            str(example.inputs.get(name, ""))
            for name in (self._fields(task) if task else ())
            if name != "options"
        )
        if example.stage == "task":
            if name := mentions(answer, self._names):
                return f"the answer names a culture ({name})"
            if task and (example.inputs.get("contrast") or "culture" not in task.shows):
                name = mentions(fields if example.inputs.get("contrast") else prompt, self._names)
                if name:
                    return f"the prompt names a culture ({name})"
            given = not task or "answer" not in task.shows
            free = not (task and task.labels)
            if given and free and gives_away(fields, answer):
                return "the prompt gives the answer away"
        written = f"{fields if task else prompt}\n{answer}"
        if hygiene.addresses_a_model(written):
            return "instructions to a model"
        if _META.search(written) or self._prompts.holds(written):
            return "the generator's prompt leaks"
        return None

    def _names_none(self, prompt: str) -> bool:
        return mentions(prompt, self._names) is None

    # -- compared with others ------------------------------------------------------------------

    def _others(self, example: Example) -> str | None:
        if self._excluded and self._excluded.holds(f"{_prompt(example)}\n{example.answer}"):
            return "evaluation item"
        prompt = _prompt(example)
        same = self._seen.get((example.task, _folded(prompt)))
        if same is not None and same.culture == example.culture:
            if _folded(same.answer) == _folded(example.answer):
                return "duplicate"
            return "the same prompt has another answer"
        if same is not None and _folded(same.answer) == _folded(example.answer):
            return "the same for another culture"
        if _is_cut(example):
            return None
        key = (example.culture, example.task)
        # what people bring in several wordings they mean
        if not _is_brought(example) and self._near[key].of(self._written(example)):
            return "near-duplicate"
        if self._names_none(prompt) and any(
            answer == _folded(example.answer) and culture != example.culture
            for culture, answer in self._alike[example.task].of(self._written(example))
        ):
            return "the same for another culture"
        task = self._tasks.get(example.task or "")
        # how often a label is right in what people bring is theirs to say
        if task and task.labels and not _is_brought(example):
            count = self._labels[key]
            total = count.total() + 1
            if total >= FEW and count[example.answer] + 1 > MOST * total:
                return "too many of one label"
        return None


def _is_cut(example: Example) -> bool:
    """Whether it was cut from its evidence, word for word, by paraphrases that people wrote."""
    return example.generator == "extractive"


def _is_brought(example: Example) -> bool:
    return example.generator.startswith("import:")


def _prompt(example: Example) -> str:
    return "\n".join(m.content for m in example.messages if m.role == "user")


def answer_text(example: Example) -> str:
    """The answer in words, also where it is a letter."""
    texts, options = example.inputs.get("texts"), example.inputs.get("options")
    if isinstance(texts, list) and isinstance(options, list) and example.answer in options:
        return str(texts[options.index(example.answer)])
    return example.answer


def _folded(text: str) -> str:
    return " ".join(words(text))
