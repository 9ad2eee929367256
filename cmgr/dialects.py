"""How OpenAI-compatible servers word what they do not take, and what one was found to take.

The wordings are those of OpenAI, vLLM, SGLang, llama-server, llama-cpp-python's server, Ollama,
LM Studio and TGI, from their sources and from what their users report.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

FORMATS = ("json_schema", "json_object", "text")  # of an answer, strongest first
PARAMETERS = ("max_tokens", "temperature", "seed")  # which some models do not take
SURE = 3  # schemas refused in a format, and none ever taken, after which it is asked for no more

_CONTEXT = re.compile(
    r"context[ _](?:length|size|window)|maximum context|context (?:the )?overflow|exceed_context"
    r"|\bn_ctx\b|reduce the length|(?:prompt|input)s? (?:is|are) too (?:long|large)"
    r"|must have (?:less|fewer) than \d+ tokens|max_new_tokens`? must be|too many tokens",
    re.IGNORECASE,
)
# not "context=(...)", in which OpenAI says where in a schema a fault is
_FORMAT = re.compile(
    r"response[_ ]format|json[_ -]?(?:schema|mode)|json_object|\bschema\b|guided[_ -]?\w+"
    r"|structured[_ -]?outputs?|constrained decoding|\bgrammars?\b|\bgbnf\b|xgrammar|llguidance"
    r"|(?:no such|invalid|unknown|unsupported) format\b|initialize samplers|sampling context",
    re.IGNORECASE,
)
_NAME = rf"['\"`]?(?:\w+\.)*({'|'.join(PARAMETERS)})\b['\"`]?"
_UNKNOWN = r"(?:unsupported|unknown|unrecognized|unexpected|unpermitted)"
_NOT_TAKEN = re.compile(
    rf"{_UNKNOWN} (?:request |keyword )?(?:arguments?|parameters?|params?|values?|fields?|names?|"
    rf"propert(?:y|ies)|keys?|inputs?)(?: supplied)?:? {_NAME}"
    rf"|{_NAME}(?: parameter| field| argument)? (?:is|was) (?:not|no longer) "
    rf"(?:supported|allowed|permitted|accepted|recognized|available)"
    rf"|{_NAME}(?: parameter| field| argument)? (?:is|was) (?:unsupported|deprecated)"
    rf"|does not (?:support|accept|recognize)(?: the)?(?: parameter| field| argument)? {_NAME}"
    rf"|{_NAME} does not support",
    re.IGNORECASE,
)
# a fault in a request as pydantic prints it, behind which it prints what was asked
_LISTED = re.compile(
    r"'type': '(?P<type>\w+)', 'loc': \((?P<loc>[^)]*)\), 'msg': (?P<quote>['\"])(?P<msg>.*?)"
    r"(?P=quote), 'input':",
    re.DOTALL,
)


@dataclass(frozen=True)
class Refusal:
    """Why a server refused a request, in a kind and in its own words.

    `format`: it does not take the form of answer that was asked for; `parameters`: it does not take
    these; `context`: the text is too long; `other`: what concerns this request alone.
    """

    kind: Literal["format", "parameters", "context", "other"]
    words: str
    parameters: frozenset[str] = frozenset()


def read(body: object, message: str) -> Refusal:
    """What the body of a refusal says (`message`: the whole in words, where it has no shape)."""
    faults = list(_faults(body)) or [_Fault(message)]
    words = "; ".join(dict.fromkeys(fault.text for fault in faults if fault.text)) or message
    if any(
        fault.code in {"context_length_exceeded", "exceed_context_size_error"} for fault in faults
    ):
        return Refusal("context", words)
    named = frozenset(name for fault in faults for name in _not_taken(fault))
    if named:
        return Refusal("parameters", words, named)
    if any(_CONTEXT.search(fault.text) for fault in faults):
        return Refusal("context", words)
    if any(_FORMAT.search(f"{fault.where} {fault.text}") for fault in faults):
        return Refusal("format", words)
    return Refusal("other", words)


@dataclass(frozen=True)
class _Fault:
    """One thing that is wrong: in words, at a place in the request, by a code."""

    text: str
    where: str = ""
    code: str = ""


def _faults(body: object) -> Iterator[_Fault]:
    """The faults that a body tells of; without the request, which some servers repeat in it."""
    if isinstance(body, str):
        listed = list(_LISTED.finditer(body))
        for found in listed:
            yield _Fault(found["msg"], re.sub(r"[^\w,]", "", found["loc"]), found["type"])
        if not listed:
            yield _Fault(body)
    elif isinstance(body, list):
        for entry in body:  # FastAPI's
            if isinstance(entry, dict) and "msg" in entry:
                place = ",".join(map(str, entry.get("loc") or ()))
                yield _Fault(str(entry["msg"]), place, str(entry.get("type")))
    elif isinstance(body, dict):
        where, code = str(body.get("param") or ""), str(body.get("code") or "")
        if body.get("type") == "exceed_context_size_error":
            code = "exceed_context_size_error"
        for key in ("message", "error", "detail"):
            for fault in _faults(body.get(key)):
                yield _Fault(fault.text, fault.where or where, fault.code or code)
        metadata = body.get("metadata")  # OpenRouter's: what the server behind it said
        if isinstance(metadata, dict):
            yield from _faults(metadata.get("raw"))


def _not_taken(fault: _Fault) -> set[str]:
    """The parameters of ours that a fault says the server does not know or support."""
    found = {name for match in _NOT_TAKEN.finditer(fault.text) for name in match.groups() if name}
    place = fault.where.split(",")[-1]
    if place in PARAMETERS and re.match(r"(?:un(?:supported|known)_|extra_forbidden)", fault.code):
        found.add(place)
    return {name.lower() for name in found}


class Taken:
    """What a server was found to take: formats, by schema, and parameters.

    A format that one schema was refused in is still asked for with others, until so many were
    refused in it that it is the format and not the schema. Nothing is learnt from a call that gets
    no answer in any format.
    """

    def __init__(self) -> None:
        self.left_out: frozenset[str] = frozenset()
        self._of: dict[str, int] = {}
        self._worked: set[int] = set()
        self._refused: dict[int, set[str]] = defaultdict(set)

    def form(self, schema: str) -> int:
        """The place in FORMATS of the format to ask for with a schema (its hash)."""
        if schema in self._of:
            return self._of[schema]
        forms = range(len(FORMATS))
        open_ = (f for f in forms if f in self._worked or len(self._refused[f]) < SURE)
        return next(open_, forms[-1])

    def learn(
        self, schema: str, form: int, refused: Collection[int], left_out: Collection[str]
    ) -> None:
        """An answer came in this format, after refusals of others and without some parameters."""
        self._worked.add(form)
        for other in refused:
            self._refused[other].add(schema)
        if refused:
            self._of[schema] = form
        self.left_out |= frozenset(left_out)


def format_of(form: int, schema: dict[str, Any]) -> dict[str, Any]:
    """What to send for a format, as OpenAI, or llama-cpp-python's server, wants it; {} for text.

    Plain text is asked for by saying nothing: TGI does not know `{"type": "text"}`.
    """
    if FORMATS[form] == "json_schema":
        inner = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": inner}}
    if FORMATS[form] == "json_object":
        return {"response_format": {"type": "json_object", "schema": schema}}
    return {}
