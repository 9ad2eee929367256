"""A language model asked for JSON: an OpenAI-compatible endpoint, or a GGUF in this process."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.recipe import Generator

Shape = TypeVar("Shape", bound=BaseModel)
Complete = Callable[[list[dict[str, str]], dict[str, Any]], str]  # messages, schema -> text

TOKENS = 2048  # of an answer
CONTEXT = 4096  # of a model in this process


class RefusedError(CmgrError):
    """The model did not give what it was asked for."""


class Writer:
    """The model of a recipe's generator.

    Raises MissingError where its key or file is not there, UsageError where the recipe names none.
    """

    def __init__(self, generator: Generator, folder: Path) -> None:
        self.name = generator.model
        if generator.kind == "openai_compatible":
            self._complete: Complete = _Endpoint(generator).complete
        elif generator.kind == "llama":
            self._complete = _Local(generator.model, folder).complete
        else:
            raise UsageError(
                "the recipe's generator is extractive: no model that could write. "
                "Set generator.kind to openai_compatible or llama."
            )

    def ask(self, system: str, user: str, shape: type[Shape]) -> Shape:
        """An answer of this shape, checked. Raises RefusedError; MissingError for a bad key."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        text = self._complete(messages, shape.model_json_schema())
        found = re.search(r"\{.*\}", text, re.DOTALL)
        try:
            return shape.model_validate_json(found[0] if found else text)
        except ValidationError:
            raise RefusedError(f"{self.name} gave no such JSON: {text[:120]!r}") from None


class _Endpoint:
    """Chat completions; the strongest structured output that the server takes, found out once."""

    def __init__(self, generator: Generator) -> None:
        import openai

        key = os.environ.get(generator.key_env, "").strip()
        if not key and generator.base_url is None:
            raise MissingError(
                f"{generator.model} needs a key in the environment variable {generator.key_env}. "
                "Set it, or name a server of your own: generator.base_url."
            )
        self._model = generator.model
        self._where = generator.base_url or "OpenAI"
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=generator.base_url, max_retries=4, timeout=120
        )
        self._formats = ["json_schema", "json_object", "text"]

    def complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> str:
        import openai

        while True:
            try:
                answer = self._client.chat.completions.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    max_tokens=TOKENS,
                    response_format=self._format(schema),
                )
                break
            except openai.AuthenticationError:
                raise MissingError(f"{self._where} refuses the key. Set another.") from None
            except openai.NotFoundError:
                raise MissingError(
                    f"{self._where} has no model {self._model!r}: correct generator.model"
                ) from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if len(self._formats) == 1:
                    raise RefusedError(f"{self._where}: {error.message}"[:300]) from None
                self._formats.pop(0)
            except openai.APIError as error:
                raise CmgrError(f"{self._where}: {error.message}"[:300]) from None
        choice = answer.choices[0].message if answer.choices else None
        if choice is None or getattr(choice, "refusal", None) or not choice.content:
            raise RefusedError(f"{self._model} refused to answer")
        return choice.content

    def _format(self, schema: dict[str, Any]) -> Any:
        name = self._formats[0]
        if name == "json_schema":
            inner = {"name": "answer", "strict": True, "schema": schema}
            return {"type": "json_schema", "json_schema": inner}
        if name == "json_object":
            return {"type": "json_object", "schema": schema}
        return {"type": "text"}


class _Local:
    """A GGUF through llama-cpp-python, its grammar made from the schema."""

    def __init__(self, reference: str, folder: Path) -> None:
        from cmgr.base import resolve
        from cmgr.loading import library

        base = resolve(reference, folder)
        self._model = library().Llama(str(base.gguf), n_ctx=CONTEXT, verbose=False)

    def complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> str:
        try:
            answer = self._model.create_chat_completion(
                messages=messages,
                max_tokens=TOKENS,
                temperature=0.7,
                seed=1,
                response_format={"type": "json_object", "schema": schema},
            )
        except ValueError as error:  # the prompt does not fit
            raise RefusedError(str(error)) from None
        return str(answer["choices"][0]["message"]["content"] or json.dumps(None))
