"""The texts that are compared: those of a passage, and those of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cmgr.recipe import Culture, Recipe
from cmgr.records import Evidence
from cmgr.sources.passages import names_of, sentences

SENTENCES = 12  # of a prompt that are compared one by one


def held_wordings(recipe: Recipe) -> frozenset[int]:
    """The wordings of a passage's question (1 and up) that are kept for the evaluation.

    Where examples are cut from documents, a wording that no example is trained on is what the
    evaluation asks; an index that knew it would find its passage by the question itself.
    """
    if recipe.generator.kind != "extractive":
        return frozenset()
    wordings = [w for task in recipe.tasks for w in task.wordings]
    trained = {w.question for w in wordings if w.split == "fit"}
    return frozenset(w.question for w in wordings if w.question) - trained


def fields_of(passage: Evidence, held: Iterable[int]) -> dict[str, str]:
    """A passage's texts by name: its questions, its text, and all of it with its topic."""
    left_out = set(held)
    asked = {"heading": passage.heading} if passage.heading else {}
    for number, wording in enumerate(passage.also_asked, 1):
        if number not in left_out:
            asked[f"wording {number}"] = wording
    fields = {**asked, "text": passage.text}
    return {**fields, "all": joined(passage, fields)}


def joined(passage: Evidence, fields: Mapping[str, str]) -> str:
    """All of a passage in one text, behind its topic (and its title, where no question says it)."""
    over = [re.sub(r"[-_]+", " ", passage.topic)]
    if "heading" not in fields and passage.title:
        over.append(passage.title)
    return " ".join([*(f"{text}." for text in over if text), *fields.values()])


def names_in_prompts(culture: Culture) -> re.Pattern[str]:
    """A culture's names as a prompt holds them, with the word before that says where."""
    names = sorted(names_of(culture), key=len, reverse=True)
    return re.compile(
        rf"(?<!\w)(?:(?:in|to|from|at) (?:the )?)?(?:{'|'.join(map(re.escape, names))})(?!\w)",
        re.IGNORECASE,
    )


def pieces(text: str) -> list[str]:
    """A text, its sentences, and what stands before and behind a colon."""
    found = [text]
    for sentence in sentences(text):
        found += [sentence, *(part.strip() for part in sentence.split(":"))]
    return [piece for piece in dict.fromkeys(found) if piece][: SENTENCES + 1]
