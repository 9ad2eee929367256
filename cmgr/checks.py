"""What an example must stand before it is kept: each check by its name, the reason in a few words.

What needs judgement (does the quote truly support the answer, is the norm a fair one) is for a
judge model and for people; here stands what can be seen from the texts alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from cmgr.overlap import Excluded, NearDuplicates, words
from cmgr.recipe import Recipe, Task
from cmgr.records import Evidence, Example
from cmgr.sources import hygiene
from cmgr.sources.passages import mentions, names_of, word_count
from cmgr.sources.ranking import terms

MAX_WORDS = 60  # of an answer where the task does not say
SAME = 0.9  # share of a quote's words that stand in its passage, in order, and nothing else
SUPPORT = 0.34  # share of an answer's terms that its quote, or else its sentence, must have
MOST = 0.75  # share that one label may have of a task's examples
FEW = 12  # examples from which on labels are balanced
# words whose presence or absence turns a sentence round
_TURNING = frozenset(
    (
        *("not", "no", "never", "nobody", "none", "neither", "nor", "without", "hardly", "rarely"),
        *("seldom", "cannot", "t", "dont", "doesnt", "isnt", "arent", "unless"),  # t: of don't
    )
)
_META = re.compile(
    r"\b(?:the|this|that|these|given|above|following)\s+(?:passages?|excerpts?|texts?|evidence|"
    r"context|source|sources|quotes?|articles?)\b.{0,20}\b(?:says?|states?|mentions?|shows?|tells?"
    r"|describes?|above|below|provided|given|according)?"
    r"|\baccording to (?:the|this) (?:passage|text|excerpt|article|evidence)\b"
    r"|\bpassage \d|\bas an ai\b|\btraining examples?\b|\bjson\b",
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
        self._near: dict[tuple[str, str | None], NearDuplicates] = defaultdict(NearDuplicates)
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
                self._near[key].add(example.id, f"{prompt}\n{example.answer}")
            self._labels[example.culture, example.task][example.answer] += 1
        return found

    def of_itself(self, example: Example) -> str | None:
        """Why an example is not kept, whatever the others are."""
        return self._form(example) or self._grounding(example) or self._wording(example)

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
        if len(texts) < 2 or len({_folded(o) for o in texts}) < len(texts):
            return "the options are not distinct"
        return None

    def _length(self, example: Example, most: int) -> str | None:
        count = word_count(answer_text(example))
        return f"the answer has more than {most} words" if count > most else None

    def _grounding(self, example: Example) -> str | None:
        if not example.quote.strip() and example.generator.startswith("import:"):
            return None  # a person's own: where it comes from is for them to know
        if not example.quote.strip() or not example.evidence_ids:
            return "no evidence is quoted"
        cited = [self._evidence.get(i) for i in example.evidence_ids]
        if any(item is None for item in cited):
            return "the cited evidence is not there"
        if any(item and item.culture != example.culture for item in cited):
            return "the cited evidence is another culture's"
        if not any(item and stands_in(example.quote, item.text) for item in cited):
            return "the quote does not stand in the cited evidence"
        labelled = bool(self._tasks[example.task].labels) if example.task in self._tasks else False
        if not labelled and not _is_cut(example):
            answer = answer_text(example)
            passages = " ".join(item.text for item in cited if item)
            if not supports(example.quote, answer, example.inputs.get("language", "en")):
                return "the quote does not support the answer"
            if turned(answer, _sentence_of(example.quote, passages)):
                return "the answer turns its quote round"
        return None

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
            if given and free and len(answer) > 3 and _folded(answer) in _folded(fields):
                return "the prompt gives the answer away"
        written = f"{fields if task else prompt}\n{answer}"
        if hygiene.addresses_a_model(written):
            return "instructions to a model"
        if _META.search(written) or self._prompts.holds(written):
            return "the generator's prompt leaks"
        if not _is_cut(example):
            wanted = example.inputs.get("language", "en")
            free_text = fields if task and task.labels else f"{fields} {answer}"
            found = hygiene.language_of(free_text if task else written)
            if found and found != wanted and len(free_text) >= 40:
                return "another language"
        return None

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
            # asked without a name and answered alike: it tells the two cultures nothing apart
            return "the same for another culture"
        if _is_cut(example):
            return None
        key = (example.culture, example.task)
        if self._near[key].of(f"{prompt}\n{example.answer}"):
            return "near-duplicate"
        task = self._tasks.get(example.task or "")
        if task and task.labels:
            count = self._labels[key]
            total = count.total() + 1
            if total >= FEW and count[example.answer] + 1 > MOST * total:
                return "too many of one label"
        return None


def _is_cut(example: Example) -> bool:
    """Whether it was cut from its evidence, word for word, by paraphrases that people wrote."""
    return example.generator == "extractive"


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


_QUOTES = str.maketrans({c: "'" for c in "‘’‚`´“”„«»\"'"} | {c: "-" for c in "‐‑‒–—―"})


def normal(text: str) -> str:
    """A text without what copying changes: case, spaces, forms of quotes and dashes, markup."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).replace("'", "")
    text = re.sub(r"[*_#>`]+|\[\d+\]", " ", text)
    return " ".join(text.casefold().split()).strip(" .,;:!?…-")


def stands_in(quote: str, passage: str) -> bool:
    """Whether a quote stands in a passage: as it is, normalised, or all but a few words of it.

    Fuzzy means: its words stand there in their order with at most a tenth of the passage's words
    between them left out (an ellipsis, a bracket), none added, and none of those left out or kept
    turns the sentence round ("not", a number).
    """
    if not words(quote):
        return False
    if normal(quote) in normal(passage):
        return True
    mine, theirs = words(quote), words(passage)
    if len(mine) < 6:
        return False
    starts = [i for i, word in enumerate(theirs) if word == mine[0]]
    for start in starts:
        at, skipped = start, []
        for word in mine[1:]:
            at += 1
            while at < len(theirs) and theirs[at] != word:
                skipped.append(theirs[at])
                at += 1
            if at >= len(theirs) or len(skipped) > (1 - SAME) * (len(mine) + len(skipped)):
                break
        else:
            if not any(word in _TURNING or word.isdigit() for word in skipped):
                return True
    return False


def supports(quote: str, answer: str, language: str = "en") -> bool:
    """Whether an answer speaks of what its quote says: a third of its terms stand in it."""
    return support(quote, answer, language) >= SUPPORT


def support(quote: str, answer: str, language: str = "en") -> float:
    """The share of an answer's terms that its quote has (1 for an answer without any)."""
    mine = set(terms(answer, language))
    theirs = set(terms(quote, language))
    return len(mine & theirs) / len(mine) if mine else 1.0


def turned(answer: str, sentence: str) -> bool:
    """Whether one of two says no, or another number, where the other says the same words.

    Only told where the answer repeats most of the sentence: else a "not" may be about anything.
    """
    mine, theirs = words(answer), words(sentence)
    a, b = set(mine) - _TURNING, set(theirs) - _TURNING
    plain_a = {w for w in a if not w.isdigit()}
    if not plain_a or len(plain_a & b) < 0.6 * len(plain_a):
        return False
    if bool(_TURNING.intersection(mine)) != bool(_TURNING.intersection(theirs)):
        return True
    numbers = {w for w in a if w.isdigit()}
    return bool(numbers) and not numbers <= {w for w in b if w.isdigit()}


def _sentence_of(quote: str, passage: str) -> str:
    """The sentences of a passage that a quote stands in."""
    from cmgr.sources.passages import sentence_ends

    start = 0
    wanted = normal(quote)
    for end in sentence_ends(passage):
        if wanted and wanted in normal(passage[start:end]):
            return passage[start:end]
        start = end
    return quote


def reasons(found: Mapping[str, int]) -> str:
    """Counted reasons in a line, most frequent first."""
    return ", ".join(f"{reason} {n}" for reason, n in Counter(found).most_common())
