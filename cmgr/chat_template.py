"""A base's chat template: rendered as transformers renders it, and split into template and data.

What must hold: the text is the one that `apply_chat_template` gives for the same messages
(transformers/utils/chat_template_utils.py), and every character that came from a message is known,
so that a special token written by a user is never read as one (chat_tokens.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cmgr.errors import UsageError
from cmgr.records import Message
from cmgr.template_rendering import SWITCHES, Rules, looked_for, render


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered prompt: `control` text may hold control tokens, data never does."""

    text: str
    control: bool


class Frame(NamedTuple):
    """What a template writes around an answer.

    A rendered prompt ends in `written`; `invocation` is that and whatever else comes before each
    answer (the channel of gpt-oss), so that an answer follows it at once. `lead` is learnt with the
    answer (the space of Mistral 0.3), `end` comes after the last answer.
    """

    written: str
    invocation: str
    lead: str
    end: str


def segments(
    template: str,
    messages: Sequence[Message],
    *,
    generation: bool,
    bos: str = "",
    eos: str = "",
    thinking: bool = False,
) -> list[Segment]:
    """A conversation by the chat template, split into the template's text and the users' data.

    Joined, the segments are what transformers renders. Where a template refuses the system role or
    leaves it out (Gemma 2, some Mistral), the system text goes in front of the first user turn,
    as Gemma 3's template and llama.cpp do. Raises UsageError when the template refuses the
    conversation, or changes a message so that it cannot be found again.
    """
    rules = Rules(template, bos, eos, thinking)
    if any(m.role == "system" for m in messages) and not _takes_system(rules):
        messages = _folded(messages)
    roles = tuple(m.role for m in messages)
    contents = [m.content for m in messages]
    text = render(rules, list(zip(roles, contents, strict=True)), generation)
    found = _placed(rules, roles, contents, generation, text)
    if found is None:
        found = _inspected(rules, roles, contents, generation, text)
    if found is None:
        raise UsageError(
            "the base's chat template changes the text of a message in a way that cmgr cannot "
            "follow, so it could not keep special tokens in it plain. Choose another base"
        )
    return _joined(found)


def template_hash(template: str, thinking: bool = False) -> str:
    """The chat template's hash: what the template lock compares.

    It covers the thinking switch where the template has one. A date that a template writes is not
    in it: a base that was trained with dates is asked with the date of the day.
    """
    text = template
    if any(re.search(rf"\b{switch}\b", template) for switch in SWITCHES):
        text += f"\nthinking: {thinking}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=32)
def frame(rules: Rules) -> Frame:
    """What a template writes around an answer, from conversations whose contents are marks.

    Where it ignores `add_generation_prompt` (Mistral, Llama 3), or writes something else without
    it (Phi-4-mini's end of text), the invocation is all that comes behind the question. Raises
    UsageError where nothing does.
    """
    asked = _behind(_skeleton(rules, ("user",), (True,), True), 0)
    without = _behind(_skeleton(rules, ("user",), (True,), False), 0)
    if not asked:
        raise UsageError(
            "the base's chat template writes nothing between a question and its answer, so an "
            "adapter has nothing to act from. Choose an instruct model with a chat template"
        )
    written = asked.removeprefix(without or "") or asked
    answered = _skeleton(rules, ("user", "assistant"), (True, True), False)
    between = _behind(answered, 0) or ""
    lead = between.removeprefix(asked) if between.startswith(asked) else ""
    end = _behind(answered, 1)
    if not end:
        goes_on = _skeleton(rules, ("user", "assistant", "user"), (True, True, True), False)
        end = _behind(goes_on, 1) or ""
    if lead.strip() and not rules.thinking:  # a header, not a space: no thought stands before it
        return Frame(written, written + lead, "", end)
    return Frame(written, written, lead, end)


# -- the system role -----------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _takes_system(rules: Rules) -> bool:
    """Whether a system text comes out of the template."""
    return _behind(_skeleton(rules, ("system", "user"), (True, True), True), 0) is not None


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The system text in front of the first turn, which is then the user's."""
    text = "\n\n".join(m.content for m in messages if m.role == "system" and m.content)
    turns = [m for m in messages if m.role != "system"]
    if not text:
        return turns
    if turns and turns[0].role == "user":
        text, turns = f"{text}\n\n{turns[0].content}", turns[1:]
    return [Message(role="user", content=text), *turns]


# -- where the data is ---------------------------------------------------------------------------


class _Skeleton(NamedTuple):
    """A rendering with marks for contents: texts around them, and whose mark stands between."""

    texts: list[str]
    whose: list[int]


def _marks(taken: str) -> Iterator[str]:
    """Private-use characters that a template does not use; none of them reaches a model."""
    return (c for c in map(chr, range(0xF0000, 0x10FFFE)) if c not in taken)


@lru_cache(maxsize=512)
def _skeleton(
    rules: Rules, roles: tuple[str, ...], full: tuple[bool, ...], generation: bool
) -> _Skeleton | None:
    """What a template writes around contents; None where it refuses. Empty ones stay empty."""
    marks = [m for m, _ in zip(_marks("".join(rules[:3])), roles, strict=False)]
    said = [(r, m if f else "") for r, m, f in zip(roles, marks, full, strict=True)]
    try:
        return _split(render(rules, said, generation), marks)
    except UsageError:
        return None


def _split(text: str, marks: Sequence[str]) -> _Skeleton:
    if not marks:
        return _Skeleton([text], [])
    number = {mark: n for n, mark in enumerate(marks)}
    pieces = re.split(f"([{''.join(marks)}])", text)
    return _Skeleton(pieces[::2], [number[mark] for mark in pieces[1::2]])


def _behind(skeleton: _Skeleton | None, mark: int) -> str | None:
    """The text behind the last place of a mark; None where it does not come out."""
    if skeleton is None or mark not in skeleton.whose:
        return None
    last = len(skeleton.whose) - 1 - skeleton.whose[::-1].index(mark)
    return skeleton.texts[last + 1]


def _variants(content: str) -> dict[str, None]:
    """What templates make of a content: as it is, or without the white space around it."""
    return dict.fromkeys(
        (
            *(content, content.strip(), content.lstrip(), content.rstrip()),
            *(content.strip("\n"), content.lstrip("\n"), content.rstrip("\n")),
        )
    )


def _placed(
    rules: Rules, roles: tuple[str, ...], contents: list[str], generation: bool, text: str
) -> list[Segment] | None:
    """The text read as the template's skeleton with the contents, or trimmed ones, at its marks.

    The skeleton says where each comes out, in any order, several times or not at all. None where
    the text is another one: the template has looked into a content.
    """
    skeleton = _skeleton(rules, roles, tuple(map(bool, contents)), generation)
    if skeleton is None or not text.startswith(skeleton.texts[0]):
        return None
    variants = {n: list(_variants(contents[n])) for n in set(skeleton.whose)}
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[int, int, tuple[str, ...]]] = [(0, len(skeleton.texts[0]), ())]
    while waiting:
        place, at, chosen = waiting.pop()
        if place == len(skeleton.whose):
            if at == len(text):
                return _filled(skeleton, chosen)
            continue
        if (place, at) in seen:
            continue
        seen.add((place, at))
        after = skeleton.texts[place + 1]
        for variant in reversed(variants[skeleton.whose[place]]):  # as it is goes first
            end = at + len(variant)
            if text.startswith(variant, at) and text.startswith(after, end):
                waiting.append((place + 1, end + len(after), (*chosen, variant)))
    return None


def _filled(skeleton: _Skeleton, data: Sequence[str]) -> list[Segment]:
    parts = [Segment(skeleton.texts[0], True)]
    for value, after in zip(data, skeleton.texts[1:], strict=True):
        parts += [Segment(value, False), Segment(after, True)]
    return parts


def _inspected(
    rules: Rules, roles: tuple[str, ...], contents: list[str], generation: bool, text: str
) -> list[Segment] | None:
    """The text of a template that looks into contents: splits off thinking, takes switches out.

    Only what stands between the words that it looks for becomes marks; the words and the white
    space beside them are left for it to find. None where the result is not the text.
    """
    words = looked_for(rules.template)
    pattern = re.compile("(" + "|".join(map(re.escape, words)) + ")") if words else None
    pieces: list[str] = []  # what each mark stands for
    around: list[tuple[str, str]] = []  # what stood before it and, at the end, behind it
    follows: list[int | None] = []  # the mark before it in the same content
    marks = _marks("".join((*rules[:3], *contents)))
    used: list[str] = []
    said: list[tuple[str, str]] = []
    for role, content in zip(roles, contents, strict=True):
        made = glue = ""
        previous: int | None = None
        for number, piece in enumerate(pattern.split(content) if pattern else [content]):
            core = "" if number % 2 else piece.strip()
            if not core:
                glue, made = glue + piece, made + piece
                continue
            space = piece[: piece.index(core)]
            used.append(next(marks))
            pieces.append(core)
            around.append((glue + space, ""))
            follows.append(previous)
            previous = len(used) - 1
            glue = piece[len(space) + len(core) :]
            made += space + used[-1] + glue
        if previous is not None:
            around[previous] = (around[previous][0], glue)
        said.append((role, made))
    try:
        skeleton = _split(render(rules, said, generation), used)
    except UsageError:
        return None
    parts = _filled(skeleton, [pieces[n] for n in skeleton.whose])
    if "".join(part.text for part in parts) != text:
        return None
    # words that came out with what they stood beside are data as well
    for place, number in enumerate(skeleton.whose):
        before, behind = around[number]
        at = 2 * place
        last = skeleton.whose[place - 1] if place else None
        written = parts[at].text
        if before.strip() and (
            written.endswith(before)
            if follows[number] is None
            else written == before and last == follows[number]
        ):
            parts[at] = Segment(written.removesuffix(before), True)
            parts[at + 1] = Segment(before + parts[at + 1].text, False)
        if behind.strip() and parts[at + 2].text.startswith(behind):
            parts[at + 1] = Segment(parts[at + 1].text + behind, False)
            parts[at + 2] = Segment(parts[at + 2].text[len(behind) :], True)
    return parts


def _joined(parts: Sequence[Segment]) -> list[Segment]:
    """Segments without empty ones, neighbours of a kind as one."""
    found: list[Segment] = []
    for part in parts:
        if found and found[-1].control == part.control:
            found[-1] = Segment(found[-1].text + part.text, part.control)
        elif part.text:
            found.append(part)
    return found
