"""What a page's text may not bring in: hidden characters, furniture, spam, words to a model."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from cmgr.sources.passages import word_count

MIN_WORDS = 20  # of a passage of a page

# What is meant for a language model that reads the page, and not for a person. A page on customs
# has no reason to say any of it.
_TO_A_MODEL = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|do not follow)\b.{0,30}"
    r"\b(?:(?:previous|prior|above|earlier|preceding|all|any|other|your|system)\b.{0,30}"
    r"\b(?:instructions?|prompts?)"
    r"|(?:previous|prior|above|preceding|system)\s+(?:rules|guidelines|directions|context))\b"
    r"|\b(?:system|hidden|developer)\s+prompt\b"
    r"|\b(?:you are now|act as|pretend to be|from now on,? you)\b.{0,40}"
    r"\b(?:ai|a\.i\.|language model|chatbot|gpt|dan)\b"
    r"|\b(?:as an?|dear|attention,?|note to|instructions? for|if you are an?)\s+"
    r"(?:ai|a\.i\.|llms?|large language models?|language models?|gpt|chatgpt|chatbot)\b"
    r"|\bnew instructions?\s*:|\bend of (?:the )?(?:prompt|instructions|context)\b"
    r"|<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|(?:^|\n)\s*#*\s*(?:system|assistant|instruction|human|user)\s*:\s"
    r"|\b(?:reveal|print|repeat|output)\b.{0,30}\byour\b.{0,20}"
    r"\b(?:prompt|instructions|api key)\b"
    # the first of these in other languages
    r"|ignor(?:iere?n?|ez|a|e|i)\b.{0,40}(?:anweisung|instruction|instruc|istruzion)"
    r"|(?:以前|上記|これまで|前)の.{0,8}指示.{0,8}無視|忽略.{0,10}(?:指令|指示|提示)"
    r"|(?:이전|위의).{0,8}지시.{0,8}무시|игнорируй.{0,30}(?:инструкци|указани)",
    re.IGNORECASE,
)
_FURNITURE = re.compile(
    r"\b(?:cookies?|privacy policy|terms of (?:use|service)|all rights reserved|subscribe|"
    r"newsletter|sign (?:in|up)|log ?in|add to cart|javascript|ad ?blocker|share this|"
    r"follow us|read more|click here|related (?:posts|articles)|leave a (?:comment|reply)|"
    r"skip to (?:main )?content|back to top|your email|accept all)\b|©",
    re.IGNORECASE,
)
_SELLING = re.compile(
    r"\b(?:casinos?|viagra|cialis|porn\w*|xxx|escorts?|betting|jackpot|payday loans?|"
    r"buy (?:now|cheap|online)|free shipping|limited offer|best price|discount code|promo code|"
    r"make money|work from home|crypto(?:currency)? (?:signals|giveaway)|backlinks?|seo services|"
    r"essay writing service|replica watches|weight loss pills)\b",
    re.IGNORECASE,
)
_LINK = re.compile(r"https?://|www\.|\S+@\S+\.\w")
# joiners that some scripts need
_KEPT = {"\u200c", "\u200d"}


def clean(text: str) -> str:
    """Text without what a reader cannot see (tags, zero-width and turning signs, controls)."""
    text = unicodedata.normalize("NFC", text)
    return "".join(
        c
        for c in text
        if c in "\n\t" or c in _KEPT or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"}
    )


def without_furniture(text: str) -> tuple[str, int]:
    """Markdown without the paragraphs that every page of a site has, and how many those were."""
    parts = re.split(r"\n\s*\n|\n(?=#)|(?<=\n)(?=[^\n]*\bcookies?\b)", text)
    parts = [part.strip() for part in parts if part.strip()]
    kept = [p for p in parts if len(_FURNITURE.findall(p)) * 10 < max(word_count(p), 4)]
    return "\n\n".join(kept), len(parts) - len(kept)


def addresses_a_model(text: str) -> bool:
    """Whether a text gives instructions to a language model ("ignore previous ...")."""
    return _TO_A_MODEL.search(text) is not None


def fault(text: str) -> str | None:
    """Why a page's passage is no evidence, or None: too short, boilerplate, spam."""
    count = word_count(text)
    if count < MIN_WORDS:
        return "too short"
    furniture = len(_FURNITURE.findall(text))
    lines = [line for line in text.split("\n") if line.strip()]
    snippets = sum(word_count(line) < 5 for line in lines)
    if furniture * 15 >= count or (len(lines) >= 6 and snippets * 10 >= len(lines) * 8):
        return "boilerplate"
    tokens = text.casefold().split()
    most = Counter(tokens).most_common(1)[0][1] if tokens else 0
    letters = sum(c.isalpha() for c in text)
    capitals = sum(c.isupper() for c in text)
    if (
        len(_SELLING.findall(text)) * 40 >= count
        or len(_LINK.findall(text)) * 15 >= count
        or (len(tokens) >= MIN_WORDS and most * 4 >= len(tokens))
        or (len(tokens) >= 60 and len(set(tokens)) * 4 < len(tokens))
        or capitals * 2 > letters
        or letters * 2 < len("".join(tokens))
    ):
        return "spam"
    return None


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language; empty where it is too short to tell."""
    if sum(c.isalpha() for c in text) < 12:
        return ""
    code, _ = _identifier().classify(text[:2000])
    return str(code)


@cache
def _identifier() -> Any:
    import py3langid

    return py3langid
