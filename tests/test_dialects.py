"""cmgr/dialects.py: what servers say they do not take, in their own words, and what follows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from model_server import ModelServer
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from cmgr import dialects
from cmgr.llm import Endpoint, RefusedError, TroubleError
from cmgr.recipe import Generator
from cmgr.records import Message


def openai_error(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def vllm_error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


def listed(kind: str, loc: tuple[str, ...], msg: str, asked: object) -> str:
    """A fault as pydantic's errors print, with what was asked behind it."""
    return str([{"type": kind, "loc": loc, "msg": msg, "input": asked}])


ASKED = {"temperature": 1, "seed": 1, "response_format": {"type": "json_schema"}, "messages": ["x"]}
FORMAT = {
    "openai: model": openai_error(
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this "
        "model. Learn more about supported models at the Structured Outputs guide."
    ),
    "openai: schema": openai_error(
        "Invalid schema for response_format 'answer': In context=('properties', 'a'), "
        "'additionalProperties' is required to be supplied and to be false.",
        "response_format",
    ),
    "openai: the place alone": openai_error(
        "Invalid value: 'object'.", "response_format.type", "invalid_value"
    ),
    "openai: json": openai_error(
        "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
        "'json_object'.",
        "messages",
    ),
    "deepseek": openai_error("This response_format type is unavailable now"),
    "vllm: xgrammar": {
        "object": "error",
        "message": "The provided JSON schema contains features not supported by xgrammar.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "vllm: grammar": vllm_error("Grammar error: Unknown format: uri"),
    "vllm: guided": vllm_error("guided_json is not supported with this guided decoding backend"),
    "vllm: outputs": vllm_error("Structured outputs are disabled on this server"),
    "vllm: pydantic": vllm_error(
        listed(
            "literal_error",
            ("body", "response_format", "type"),
            "Input should be 'text' or 'json_object'",
            "json_schema",
        )
    ),
    "sglang": {
        "object": "error",
        "message": "Invalid grammar request with cache hit: key=('json', '{}')",
        "type": "BadRequestError",
        "code": 400,
    },
    "llama-server: type": {
        "error": {
            "code": 400,
            "message": 'response_format type must be one of "text" or "json_object", but got: x',
            "type": "invalid_request_error",
        }
    },
    "llama-server: grammar": {
        "error": {
            "code": 400,
            "message": "Failed to initialize samplers: failed to parse grammar",
            "type": "invalid_request_error",
        }
    },
    "llama-server: conversion": {
        "error": {"code": 400, "message": "JSON schema conversion failed"}
    },
    "ollama": {"error": {"message": 'invalid format: "x"; expected "json" or a JSON schema'}},
    "ollama: schema": {"error": "invalid JSON schema in format"},
    "ollama: sampling": {
        "error": "Failed to create new sequence: unable to create sampling context"
    },
    "lm studio": {"error": "'response_format.type' must be 'json_schema' or 'text'"},
    "lm studio: schema": {"error": "'response_format.json_schema.schema' must be an object"},
    "tgi: variant": "Failed to deserialize the JSON body into the target type: response_format: "
    "unknown variant `json_schema`, expected one of `json`, `regex` at line 1 column 168",
    "tgi: grammar": {
        "error": "Input validation error: grammar is not valid: Grammar must have a 'properties' "
        "field",
        "error_type": "validation",
    },
    "fastapi": {
        "detail": [
            {
                "type": "literal_error",
                "loc": ["body", "response_format", "type"],
                "msg": "Input should be 'text' or 'json_object'",
                "input": "json_schema",
            }
        ]
    },
}
CONTEXT = {
    "openai": openai_error(
        "This model's maximum context length is 8192 tokens. However, your messages resulted in "
        "9000 tokens. Please reduce the length of the messages.",
        "messages",
        "context_length_exceeded",
    ),
    "vllm": vllm_error(
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context "
        "length is 2048 tokens and your request has 100 input tokens (4096 > 2048 - 100)."
    ),
    "vllm: newer": vllm_error(
        "This model's maximum context length is 128000 tokens. However, you requested 65535 output "
        "tokens and your prompt contains at least 62466 input tokens."
    ),
    "sglang": {
        "object": "error",
        "message": "The input (61709 tokens) is longer than the model's context length (40960 "
        "tokens).",
        "code": 400,
    },
    "sglang: newer": "Requested token count exceeds the model's maximum context length of 202752 "
    "tokens. Please reduce the number of tokens in the input messages or the completion.",
    "llama-server": {
        "error": {
            "code": 400,
            "message": "request (1407 tokens) exceeds the available context size (256 tokens), try "
            "increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 1407,
            "n_ctx": 256,
        }
    },
    "lm studio": {
        "error": "Trying to keep the first 6547 tokens when context the overflows. However, the "
        "model is loaded with context length of only 4096 tokens, which is not enough."
    },
    "lm studio: newer": {
        "error": "The number of tokens to keep from the initial prompt is greater than the context "
        "length (n_keep: 13055>= n_ctx: 4096)."
    },
    "tgi": {
        "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. "
        "Given: 4000 `inputs` tokens and 1200 `max_new_tokens`",
        "error_type": "validation",
    },
    "tgi: inputs": {"error": "Input validation error: `inputs` must have less than 4096 tokens."},
}
PARAMETERS = {
    "openai": (
        openai_error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        ),
        {"max_tokens"},
    ),
    "openai: value": (
        openai_error(
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only the "
            "default (1) value is supported.",
            "temperature",
            "unsupported_value",
        ),
        {"temperature"},
    ),
    "openai: old": (openai_error("Unrecognized request argument supplied: seed"), {"seed"}),
    "mistral": (
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "seed"],
                    "msg": "Extra inputs are not permitted",
                    "input": 42,
                }
            ]
        },
        {"seed"},
    ),
    "vllm": (
        vllm_error(
            listed("extra_forbidden", ("body", "seed"), "Extra inputs are not permitted", ASKED)
        ),
        {"seed"},
    ),
    "groq": (openai_error("property 'seed' is unsupported, did you mean 'speed'?"), {"seed"}),
    "gemini": (
        openai_error('Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
        {"seed"},
    ),
    "anthropic": (openai_error("`temperature` is deprecated for this model."), {"temperature"}),
}
OTHER = {
    "value": openai_error(
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 "
        "instead.",
        "temperature",
        "decimal_above_max_value",
    ),
    "in passing": openai_error("The temperature in Kyoto is not supported by max_tokens of seed."),
    "template": vllm_error("Conversation roles must alternate user/assistant/user/assistant/..."),
    "moderation": openai_error("Your prompt was flagged as violating our usage policy.", "prompt"),
    "groq: this answer": openai_error(
        "Failed to generate JSON. Please adjust your prompt.", None, "json_validate_failed"
    ),
    "fastapi: the request in it": {
        "detail": [
            {
                "type": "string_type",
                "loc": ["body", "messages", 0, "content"],
                "msg": "Input should be a valid string",
                "input": {**ASKED, "text": "temperature is not supported; response_format"},
            }
        ]
    },
    "vllm: the request in it": vllm_error(
        listed("string_type", ("body", "messages"), "Input should be a valid string", ASKED)
    ),
    "nothing": {},
}


def read(body: object) -> dialects.Refusal:
    """As the openai package hands it over: the body's error."""
    data = body.get("error", body) if isinstance(body, dict) else body
    return dialects.read(data, "Error code: 400")


@pytest.mark.parametrize("who", FORMAT)
def test_what_is_said_of_the_format(who: str) -> None:
    assert read(FORMAT[who]).kind == "format"


@pytest.mark.parametrize("who", CONTEXT)
def test_what_is_said_of_a_text_that_is_too_long(who: str) -> None:
    found = read(CONTEXT[who])
    assert (found.kind, found.parameters) == ("context", frozenset())
    assert "Error code" not in found.words


@pytest.mark.parametrize("who", PARAMETERS)
def test_what_is_said_of_a_parameter(who: str) -> None:
    body, named = PARAMETERS[who]
    assert read(body) == dialects.Refusal("parameters", read(body).words, frozenset(named))


@pytest.mark.parametrize("who", OTHER)
def test_what_concerns_a_request_alone(who: str) -> None:
    found = read(OTHER[who])
    assert (found.kind, found.parameters) == ("other", frozenset())


# -- an endpoint ----------------------------------------------------------------------------------


class Server:
    """Answers each request by `refuse`: a status and a body, or None for an answer."""

    def __init__(self, server: HTTPServer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refuse: Callable[[dict[str, Any]], tuple[int, object] | None] = lambda _: None
        server.expect_request("/v1/chat/completions").respond_with_handler(self.answer)
        url = server.url_for("/v1")
        self.settings = Generator(kind="openai_compatible", model="m", base_url=url)
        self.taken = dialects.Taken()

    def answer(self, request: Request) -> Response:
        body = request.get_json()
        self.asked.append(body)
        if refused := self.refuse(body):
            status, told = refused
            text = told if isinstance(told, str) else json.dumps(told)
            return Response(text, status, content_type="application/json")
        value = ModelServer.completion(None, "{}")  # type: ignore[arg-type]  # of no instance
        return Response(json.dumps(value), content_type="application/json")

    def ask(self, *calls: tuple[str, dict[str, Any]]) -> list[str]:
        """What became of these calls (text, schema), one after the other."""

        async def all_of_them() -> list[str]:
            told = []
            endpoint = Endpoint(self.settings, self.taken)
            for text, schema in calls:
                try:
                    message = Message(role="user", content=text)
                    await endpoint.complete([message], schema, 10)
                    told.append("answered")
                except (RefusedError, TroubleError) as error:
                    told.append(str(error))
            await endpoint.close()
            return told

        return asyncio.run(all_of_them())

    def formats(self) -> list[str]:
        return [body.get("response_format", {"type": "text"})["type"] for body in self.asked]


@pytest.fixture
def server(httpserver: HTTPServer) -> Server:
    return Server(httpserver)


def schema(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"a{number}": {"type": "string"}}}


def is_schema(body: dict[str, Any]) -> bool:
    return body.get("response_format", {}).get("type") == "json_schema"


@pytest.mark.parametrize("who", [*CONTEXT, *OTHER])
def test_one_call_s_refusal_changes_no_other(server: Server, who: str) -> None:
    told = CONTEXT.get(who) or OTHER[who]
    server.refuse = lambda body: (400, told) if body["messages"][0]["content"] == "long" else None
    first, second, third = server.ask(("hi", schema(0)), ("long", schema(0)), ("hi", schema(0)))
    assert first == third == "answered"
    assert second != "answered" and read(told).words[:60] in second
    assert server.formats() == ["json_schema"] * 3  # and it is asked once
    assert {"max_tokens", "temperature", "seed"} <= server.asked[-1].keys()


def test_a_schema_that_is_not_taken_lowers_itself_alone(server: Server) -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, object] | None:
        bad = "a1" in json.dumps(body.get("response_format"))
        return (400, FORMAT["vllm: xgrammar"]) if is_schema(body) and bad else None

    server.refuse = refuse
    calls = [("hi", schema(1)), ("hi", schema(0)), ("hi", schema(1)), ("hi", schema(2))]
    assert server.ask(*calls) == ["answered"] * 4
    strong, weak = "json_schema", "json_object"
    assert server.formats() == [strong, weak, strong, weak, strong]


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_format_that_is_not_taken_is_found_out_a_few_times(server: Server, status: int) -> None:
    server.refuse = lambda body: (status, FORMAT["lm studio"]) if is_schema(body) else None
    assert server.ask(*[("hi", schema(n)) for n in range(20)]) == ["answered"] * 20
    assert server.formats().count("json_schema") == dialects.SURE
    assert set(server.formats()) == {"json_schema", "json_object"}


def test_what_takes_no_format_at_all_is_asked_without_one(server: Server) -> None:
    server.refuse = lambda b: (422, FORMAT["tgi: variant"]) if "response_format" in b else None
    assert server.ask(("hi", schema(0)), ("hi", schema(0))) == ["answered"] * 2
    assert server.formats() == ["json_schema", "json_object", "text", "text"]
    # and nothing is learnt from a call that no format helps
    server.refuse = lambda _: (400, FORMAT["lm studio"])
    (told,) = server.ask(("hi", schema(1)))
    assert "response_format.type" in told
    server.refuse = lambda _: None
    assert server.ask(("hi", schema(1))) == ["answered"]
    assert server.formats()[-1] == "json_schema"


def test_a_parameter_that_is_not_taken_is_left_out_from_then_on(server: Server) -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, object] | None:
        for who, name in (("openai", "max_tokens"), ("openai: value", "temperature")):
            if name in body:
                return 400, PARAMETERS[who][0]
        return None

    server.refuse = refuse
    assert server.ask(("hi", schema(0)), ("hi", schema(1))) == ["answered"] * 2
    assert len(server.asked) == 4
    assert {"max_completion_tokens", "seed"} <= server.asked[-1].keys()
    assert server.formats() == ["json_schema"] * 4
