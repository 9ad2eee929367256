"""What a row of each benchmark's own file asks, of whom, and what is right."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from cmgr.benchmarks.formats import Record, rows_of
from cmgr.errors import UsageError
from cmgr.tasks import LETTERS

LONGEST_LITERAL = 100_000  # characters of a cell that is parsed


@dataclass(frozen=True)
class Row:
    """One item of a published file, before it becomes a prompt."""

    number: int  # the row in its file, from 1
    culture: str  # as the file spells it; "" where the file has none
    fields: dict[str, str]  # what the card's prompt takes
    answer: str  # a label of the card, the text of the right option, or a reference answer
    options: tuple[str, ...] = ()  # texts in the published order; none: labels, or free text
    accepted: tuple[str, ...] = ()  # free text: every answer that counts as right
    group: str = ""  # items of one question or post, whatever the culture
    language: str = "en"


class NoItemError(Exception):
    """Why a row has no item, in few enough kinds that they can be counted."""


def _text(row: Record, *names: str, default: str | None = None) -> str:
    """The first of these cells that is not empty. Raises NoItemError without a default."""
    for name in names:
        value = row.get(name)
        if value is not None and value == value and str(value).strip():  # NaN is not itself
            return str(value).strip()
    if default is None:
        raise NoItemError(f"no {names[0]}")
    return default


def _label(labels: Mapping[str, str], value: str) -> str:
    """A published label in the card's words. Raises NoItemError."""
    found = labels.get(value.strip().casefold())
    if found is None:
        raise NoItemError("an unknown label" if value.strip() else "no label")
    return found


def _option(options: Sequence[str], letter: str) -> str:
    """The text of the option that a letter names. Raises NoItemError."""
    at = LETTERS.find(letter.strip().upper()) if len(letter.strip()) == 1 else -1
    if not 0 <= at < len(options):
        raise NoItemError("the answer is none of the options")
    return options[at]


def _most(counts: Mapping[str, float]) -> str:
    """What has the highest count. Raises NoItemError where two have it, or nothing has any."""
    best = max(counts.values(), default=0)
    found = [name for name, count in counts.items() if count == best]
    if best <= 0 or len(found) > 1:
        raise NoItemError("two answers are equally frequent" if best > 0 else "nobody answered")
    return found[0]


def _literal(text: str) -> Any:
    """A Python literal that stands in a cell. Raises NoItemError."""
    try:
        if len(text) > LONGEST_LITERAL:
            raise ValueError
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise NoItemError("a cell that cannot be read") from None


def _each(attempts: Sequence[Callable[[], Row]]) -> Iterator[Row | str]:
    """Each item of a row that holds several, or why there is none."""
    for attempt in attempts:
        try:
            yield attempt()
        except NoItemError as error:
            yield str(error)


# -- one reader per benchmark: the items of a row -------------------------------------------------


def normad(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    story = _text(row, "Story")
    # some stories end in the question that the prompt asks
    bare = re.sub(r"\s*Is what [^.?!]{1,80} socially acceptable\?\s*$", "", story)
    label = _label({x: x for x in ("yes", "no", "neutral")}, _text(row, "Gold Label"))
    group = _text(row, "ID", default=str(number))
    yield Row(number, _text(row, "Country"), {"story": bare or story}, label, group=group)


def culturalbench(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    options = tuple(_text(row, f"prompt_option_{letter}") for letter in "abcd")
    yield Row(
        number,
        _text(row, "country"),
        {"question": _text(row, "prompt_question")},
        _option(options, _text(row, "answer")),
        options,
        group=_text(row, "question_idx"),
    )


def blend(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    if "choices" not in row:
        yield _blend_annotation(path, number, row)
        return
    try:
        choices = json.loads(_text(row, "choices"))
        options = tuple(str(choices[letter]).strip() for letter in sorted(choices))
        answer = str(choices[_text(row, "answer_idx")]).strip()
    except (ValueError, LookupError, TypeError):
        raise NoItemError("choices that cannot be read") from None
    question = _text(row, "prompt").split(" Without any explanation")[0].strip()
    culture, group = _text(row, "country"), _text(row, "ID")
    yield Row(number, culture, {"question": question}, answer, options, group=group)


def _blend_annotation(path: Path, number: int, row: Record) -> Row:
    """The short-answer form, whose country stands in the file's name alone."""
    country = re.fullmatch(r"(.+)_data", path.stem)
    if not country:
        raise UsageError(f"{path}: its name does not say the country: keep South_Korea_data.json")
    try:
        votes = {k: v for k, v in row.get("idks", {}).items() if isinstance(v, int)}
        found = row.get("annotations") or row.get("aggregated_answers") or []
        ordered = sorted(found, key=lambda answer: -int(answer["count"]))
        answers = [str(text).strip() for a in ordered for text in a["en_answers"] or ()]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise NoItemError("annotations that cannot be read") from None
    # the authors leave these questions out of their own scores
    if votes.get("no-answer", 0) + votes.get("not-applicable", 0) >= 3 or votes.get("idk", 0) >= 5:
        raise NoItemError("too many annotators had no answer")
    accepted = tuple(dict.fromkeys(text for text in answers if text))
    if not accepted:
        raise NoItemError("no English answer")
    fields, group = {"question": _text(row, "en_question")}, _text(row, "ID")
    return Row(number, country[1], fields, accepted[0], accepted=accepted, group=group)


def fork(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    if _text(row, "Type").casefold() == "underspecified":
        raise NoItemError("no country is meant")  # all are keyed USA: the default that is probed
    options = (_text(row, "Option A"), _text(row, "Option B"))
    yield Row(
        number,
        _text(row, "Country"),
        {"question": _text(row, "Question")},
        _option(options, _text(row, "Answer Key")),
        options,
        # questions of the same two options ask one thing in several wordings and countries
        group=" | ".join(sorted(option.casefold() for option in options)),
    )


def crehate(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    hate = row.get("hate")
    if not isinstance(hate, Mapping):
        hate = {k.removesuffix("_Hate"): v for k, v in row.items() if k and k.endswith("_Hate")}
    fields = {"text": _text(row, "Text", "text")}
    group = _text(row, "ID", "id", default=str(number))

    def item(country: str) -> Row:
        names = {"0": "no", "0.0": "no", "1": "yes", "1.0": "yes"}
        answer = _label(names, _text(hate, country, default=""))
        return Row(number, country, fields, answer, group=group)

    yield from _each([partial(item, country) for country in hate])


OFFENSIVE = {"off": "yes", "1": "yes", "not": "no", "0": "no"}
# as the published names of files have them; Greek is gr there
SPOKEN = {"ar": "ar", "da": "da", "gr": "el", "el": "el", "greek": "el", "tr": "tr", "en": "en"}


def offenseval(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    parts = re.split(r"[-_.]", path.stem.casefold())
    known = [SPOKEN[part] for part in parts if part in SPOKEN]
    # OLID and the English test files do not say it
    english = path.stem.casefold().startswith(("olid", "testset", "test_"))
    language = known[0] if known else "en" if english else ""
    text = _text(row, "tweet", "text").replace("<LF>", "\n").strip()
    label = _label(OFFENSIVE, _text(row, "subtask_a"))
    group = _text(row, "id", default=str(number))
    yield Row(number, "", {"text": text}, label, group=group, language=language)


def offenseval_rows(path: Path) -> Iterator[tuple[int, Record]]:
    """The tweets of a file; the labels of a test set lie in a file of their own beside it."""
    labels: dict[str, str] | None = None
    for number, row in rows_of(path, quoted=False):
        if "subtask_a" in row or "id" not in row or None in row:
            yield number, row
            continue
        labels = _labels_beside(path) if labels is None else labels
        yield number, {**row, "subtask_a": labels.get(str(row["id"]).strip())}


def _labels_beside(path: Path) -> dict[str, str]:
    """Label by id, of a file that is named alike. Raises UsageError where there is none."""

    def rest(file: Path) -> set[str]:
        # tr-testset-v1 goes with tr-labela-v1, test_a_tweets with test_a_labels
        words = set(re.split(r"[-_.]", file.stem.casefold()))
        return words - {"test", "testset", "tweets", "label", "labels", "labela"}

    for other in sorted(path.parent.glob("*label*.[ct]sv")):
        if rest(other) == rest(path):
            lines = other.read_text(encoding="utf-8-sig").split("\n")
            pairs = (line.partition(",") for line in lines)
            return {name.strip(): label for name, _, label in pairs}
    raise UsageError(
        f"{path}: no column subtask_a, and no file of labels beside it. Put the published one there"
        ", such as offenseval-tr-labela-v1.tsv beside offenseval-tr-testset-v1.tsv"
    )


def cali(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    fields = {name: _text(row, name) for name in ("premise", "hypothesis")}
    names = {"e": "entailment", "n": "neutral", "c": "contradiction"}

    def item(country: str, column: str) -> Row:
        ratings = _literal(_text(row, column))
        if not isinstance(ratings, list):
            raise NoItemError("a cell that cannot be read")
        answer = _most(Counter(_label(names, str(rating)) for rating in ratings))
        return Row(number, country, fields, answer, group=str(number))

    countries = {"United States": "us_ratings", "India": "in_ratings"}
    yield from _each([partial(item, *pair) for pair in countries.items()])


# what a respondent did not say, or was not asked
NO_ANSWER = re.compile(
    r"\W*(dk\b|don.?t know|do not know|refused\b|no (answer|response)\b|missing\b"
    r"|not (asked|applicable|available)\b|unknown\b|total n\b)",
    re.IGNORECASE,
)
SAMPLES = ("", "current national", "old national", "non-national")  # best first


def globalopinionqa(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    question, options = _text(row, "question"), _literal(_text(row, "options"))
    selections = _text(row, "selections")  # "defaultdict(<class 'list'>, {...})"
    shares = _literal(selections[selections.find("{") : selections.rfind("}") + 1])
    if not isinstance(options, list | tuple) or not isinstance(shares, dict):
        raise NoItemError("a cell that cannot be read")
    shares = {str(key): value for key, value in shares.items()}
    texts = [f"{o:g}" if isinstance(o, float) else str(o).strip() for o in options]
    kept = tuple(t for t in texts if t and not NO_ANSWER.match(t))
    if not 2 <= len(kept) <= len(LETTERS) or len(set(kept)) < len(kept):
        raise NoItemError("its options are fewer than two, more than ten, or not distinct")

    def item(key: str) -> Row:
        mine = shares[key]
        if not isinstance(mine, list | tuple) or len(mine) != len(texts):
            raise NoItemError("its figures do not fit its options")
        if not all(isinstance(share, int | float) for share in mine):
            raise NoItemError("its figures do not fit its options")
        counts = {t: s for t, s in zip(texts, mine, strict=True) if t in kept}
        answer = _most(counts)
        return Row(number, key, {"question": question}, answer, kept, group=str(number))

    yield from _each([partial(item, key) for key in _best_samples(shares)])


def _best_samples(keys: Iterable[str]) -> list[str]:
    """A key per country: the plain one, else "X (Current national sample)" before "X (Old ...)"."""
    ranked: dict[str, tuple[int, str]] = {}
    for key in keys:
        name, _, kind = key.partition(" (")
        kind = kind.casefold().removesuffix(")").removesuffix(" sample")
        rank = SAMPLES.index(kind) if kind in SAMPLES else len(SAMPLES)
        ranked[name] = min(ranked.get(name, (rank, key)), (rank, key))
    return [key for _, key in ranked.values()]


TURN = re.compile(r"(.*)\b(Adhered|Violated|Not Relevant)\s*\|", re.IGNORECASE)


def normdial(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    folders = path.resolve().parts[-4:-1]  # American/adherence/greeting
    # labeled_dialogue.csv holds labels from before the authors corrected them
    if len(folders) < 3 or folders[0] not in {"American", "Chinese"} or "labeled" in path.stem:
        raise UsageError(
            f"{path}: its name or folders are not the published ones, such as "
            "American/adherence/greeting/cleaned_dialogue.csv: keep them, they say the culture"
        )
    language = "zh" if folders[0] == "Chinese" else "en"
    group = "/".join([*folders, str(number)])
    # a Chinese row has its norm in English too; one language is easier to read
    norm = _without_heading(_text(row, "cn_Norm", "American_Norm", "Norm"))
    said = [_text(row, "cn_Situation", "American_Situation", "Situation", default="(no situation)")]
    said[0] = _without_heading(said[0])
    for line in re.split(r"\r?\n", _text(row, "Labeled_Dialogue")):
        if not (found := TURN.match(line)):
            continue  # a heading, or an explanation
        turn = re.sub(r"^\((.*)[)）]$", r"\1", found[1].strip().rstrip(":： ")).strip()
        if turn:
            fields = {"norm": norm, "dialogue": "\n".join(said), "turn": turn}
            answer = found[2].lower()
            yield Row(number, folders[0], fields, answer, group=group, language=language)
            said.append(turn)
    if len(said) == 1:
        raise NoItemError("no labelled turn")


def _without_heading(text: str) -> str:
    return re.sub(r"^((American )?(Norm|Situation)|规范|情境)\s*[:：]\s*", "", text)


RESPONSES = {"1": "specific", "2": "comprehensive", "3": "refuse", "4": "answer"}


def safeworld(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    kind = re.search(r"type([1-4])$", path.stem)
    if not kind:
        raise UsageError(f"{path}: its name does not say the response: keep type1.json to 4")
    index = _text(row, "index", default=f"{path.stem}/{number}")  # types 2 and 3 have none
    group = f"{path.resolve().parent.name}/{index}"  # that is culture or policy
    fields = {"query": _text(row, "query")}
    yield Row(number, _text(row, "country"), fields, RESPONSES[kind[1]], group=group)


OURS = ("culture", "country", "answer", "options", "group", "id", "language")


def table(path: Path, number: int, row: Record) -> Iterator[Row | str]:
    given = row.get("options")
    if isinstance(given, str):
        given = given.split("|")
    listed = list(given) if isinstance(given, Iterable) else []  # NaN where Parquet has none
    options = tuple(str(option).strip() for option in listed if str(option).strip())
    if len(options) > len(LETTERS):
        raise NoItemError("more than ten options")
    answer = _text(row, "answer")
    if options and answer not in options:
        answer = _option(options, answer)
    cells = {str(k): v for k, v in row.items() if k not in OURS and isinstance(v, str | Real)}
    yield Row(
        number,
        _text(row, "culture", "country", default=""),
        {name: text for name in cells if (text := _text(cells, name, default=""))},
        answer,
        options,
        group=_text(row, "group", "id", default=str(number)),
        language=_text(row, "language", default="en"),
    )
