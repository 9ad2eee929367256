"""A language model asked for JSON: an OpenAI-compatible endpoint, or a GGUF in this process."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from cmgr import dialects
from cmgr.dialects import FORMATS, Taken, format_of
from cmgr.errors import CmgrError, MissingError, UsageError
from cmgr.recipe import Generator
from cmgr.records import Message, make_id

if TYPE_CHECKING:
    import openai

Shape = TypeVar("Shape", bound=BaseModel)

CONTEXT = 8192  # of a model in this process


class RefusedError(CmgrError):
    """The model did not give what it was asked for; asking again would not help."""


class TroubleError(CmgrError):
    """The server had trouble; asking again may help. `wait`: seconds that it asked for."""

    def __init__(self, reason: str, limited: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.limited = limited
        self.wait = wait


@dataclass(frozen=True)
class Completion:
    """What a model wrote; tokens as the server counts them (0 where it does not)."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish: str = "stop"


class Endpoint:
    """Chat completions, in the strongest structured output that the server takes (`taken`).

    Raises MissingError where a key is needed and not there.
    """

    def __init__(self, generator: Generator, taken: Taken | None = None) -> None:
        import openai

        key = api_key(generator)
        self._settings = generator
        self._where = generator.base_url or "OpenAI"
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=generator.base_url,
            max_retries=0,
            timeout=generator.timeout,
        )
        self._taken = taken or Taken()

    async def complete(
        self, messages: Sequence[Message], schema: dict[str, Any], tokens: int
    ) -> Completion:
        """One answer within the recipe's time.

        Raises RefusedError, TroubleError, and MissingError for a key or model that will not do.
        """
        import openai

        about = make_id(schema)
        form, left_out = self._taken.form(about), set(self._taken.left_out)
        refused: set[int] = set()
        while True:
            try:
                answer = await asyncio.wait_for(
                    self._client.chat.completions.create(
                        model=self._settings.model,
                        messages=[m.model_dump() for m in messages],  # type: ignore[misc]  # plain dicts do
                        **format_of(form, schema),
                        **self._options(tokens, left_out),
                    ),
                    self._settings.timeout,
                )
                found = self._read(answer)
                self._taken.learn(about, form, refused, left_out)
                return found
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                lower = self._less(error, form, left_out)
                refused |= set(range(form, lower))
                form = lower
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                told = f" ({error.status_code})"
                raise MissingError(f"{self._where} refuses the key{told}. Set another.") from None
            except openai.NotFoundError:
                raise MissingError(
                    f"{self._where} has no model {self._settings.model!r}: correct generator.model"
                ) from None
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise MissingError(f"{self._where}: the account has no quota left") from None
                wait = error.response.headers.get("retry-after", "")
                seconds = float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else 0.0
                raise TroubleError("rate limited (429)", limited=True, wait=seconds) from None
            except (TimeoutError, openai.APITimeoutError):
                raise TroubleError("timed out") from None
            except openai.APIConnectionError:
                raise TroubleError("broken connection") from None
            except openai.APIStatusError as error:
                # llama-cpp-python's server says 500 of a format that it does not know, and Ollama
                # of a schema, and some of a text that is too long
                if dialects.read(error.body, error.message).kind in {"parameters", "other"}:
                    raise TroubleError(f"status {error.status_code}") from None
                lower = self._less(error, form, left_out)
                refused |= set(range(form, lower))
                form = lower
            except (openai.APIError, ValueError) as error:  # a body that is no JSON, no UTF-8
                raise TroubleError(f"invalid answer ({type(error).__name__})") from None

    def _options(self, tokens: int, left_out: set[str]) -> dict[str, Any]:
        """How it is to answer, in the words that this model knows."""
        wanted = {
            "max_tokens": tokens,
            "temperature": self._settings.temperature,
            "seed": self._settings.seed,
        }
        if "max_tokens" in left_out:  # OpenAI's models that reason have another word for it
            wanted["max_completion_tokens"] = tokens
        return {name: value for name, value in wanted.items() if name not in left_out}

    def _less(self, error: openai.APIStatusError, form: int, left_out: set[str]) -> int:
        """The format to try next, after parameters that the server named were added to `left_out`.

        Raises RefusedError with its words where asking for less would not help.
        """
        refusal = dialects.read(error.body, error.message)
        if named := refusal.parameters - left_out:
            left_out |= named
            return form
        if refusal.kind == "format" and form + 1 < len(FORMATS):
            return form + 1
        raise RefusedError(f"{self._where}: {refusal.words}"[:300])

    def _read(self, answer: Any) -> Completion:
        choices = getattr(answer, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise TroubleError("invalid answer (no choices)")
        message = choices[0].message
        usage = answer.usage
        finish = "refused" if getattr(message, "refusal", None) else choices[0].finish_reason
        return Completion(
            str(message.content or ""),
            int(getattr(usage, "prompt_tokens", 0) or 0),
            int(getattr(usage, "completion_tokens", 0) or 0),
            finish or "stop",
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.close()


def api_key(generator: Generator) -> str:
    """The key, from the environment alone; a server of one's own may need none.

    Raises MissingError.
    """
    key = os.environ.get(generator.key_env, "").strip()
    if not key and generator.base_url is None:
        raise MissingError(
            f"{generator.model} needs a key in the environment variable {generator.key_env}. "
            "Set it, or name a server of your own: generator.base_url."
        )
    return key or "none"


class Local:
    """A GGUF through llama-cpp-python, its grammar made from the schema.

    Raises MissingError where the file is not there.
    """

    def __init__(self, generator: Generator, folder: Path) -> None:
        from cmgr.base import resolve
        from cmgr.loading import library

        self._settings = generator
        base = resolve(generator.model, folder)
        self._model = library().Llama(str(base.gguf), n_ctx=CONTEXT, verbose=False)

    def complete(
        self, messages: Sequence[Message], schema: dict[str, Any], tokens: int
    ) -> Completion:
        """One answer. Raises RefusedError where the prompt does not fit."""
        try:
            answer = self._model.create_chat_completion(
                messages=[m.model_dump() for m in messages],
                max_tokens=tokens,
                temperature=self._settings.temperature,
                seed=self._settings.seed,
                response_format={"type": "json_object", "schema": schema},
            )
        except ValueError as error:
            raise RefusedError(str(error)[:200]) from None
        usage = answer["usage"]
        return Completion(
            str(answer["choices"][0]["message"]["content"] or ""),
            int(usage["prompt_tokens"]),
            int(usage["completion_tokens"]),
            answer["choices"][0]["finish_reason"] or "stop",
        )


class Writer:
    """The model of a recipe's generator, for one answer at a time.

    Raises MissingError where its key or file is not there, UsageError where the recipe names none.
    """

    def __init__(self, generator: Generator, folder: Path) -> None:
        if generator.kind == "extractive":
            raise UsageError(
                "the recipe's generator is extractive: no model that could write. "
                "Set generator.kind to openai_compatible or llama."
            )
        self._generator = generator
        self._taken = Taken()
        self._local = Local(generator, folder) if generator.kind == "llama" else None
        if self._local is None:
            Endpoint(generator)  # its key is missed now rather than later

    def ask(self, system: str, user: str, shape: type[Shape], tokens: int = 2048) -> Shape:
        """An answer of this shape, checked; asked again where the server has trouble.

        Raises RefusedError, MissingError, and TroubleError where the trouble does not end.
        """
        messages = [Message(role="system", content=system), Message(role="user", content=user)]
        schema = shape.model_json_schema()
        if self._local:
            text = self._local.complete(messages, schema, tokens).text
        else:
            text = asyncio.run(self._patiently(messages, schema, tokens))
        try:
            return shape.model_validate(repair(text))
        except ValidationError:
            name = self._generator.model
            raise RefusedError(f"{name} gave no such JSON: {text[:120]!r}") from None

    async def _patiently(
        self, messages: Sequence[Message], schema: dict[str, Any], tokens: int
    ) -> str:
        endpoint = Endpoint(self._generator, self._taken)
        try:
            for tried in range(self._generator.retries + 1):
                try:
                    return (await endpoint.complete(messages, schema, tokens)).text
                except TroubleError as trouble:
                    if tried == self._generator.retries:
                        raise
                    await asyncio.sleep(trouble.wait or self._generator.backoff * 2**tried)
        finally:
            await endpoint.close()
        raise AssertionError  # not reached


def repair(text: str) -> Any:
    """The JSON object in a model's words, or None.

    Around it there may be talk and code fences; one that was cut off is closed after its last
    complete value, so that what is whole in it counts.
    """
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
        return value
    except ValueError:
        pass
    body = re.sub(r",(\s*[}\]])", r"\1", text[start:])  # a comma too many
    open_brackets: list[str] = []
    inside = escaped = False
    ends: list[tuple[int, str]] = []  # where a value ends, and what would close the rest
    for at, c in enumerate(body):
        if inside:
            inside = escaped or c != '"'
            escaped = c == "\\" and not escaped
        elif c == '"':
            inside, escaped = True, False
        elif c in "{[":
            open_brackets.append("}" if c == "{" else "]")
        elif c in "}]":
            if not open_brackets or open_brackets.pop() != c:
                break
            ends.append((at + 1, "".join(reversed(open_brackets))))
            if not open_brackets:
                break
    for end, closing in reversed(ends[-20:]):
        try:
            return json.loads(body[:end] + closing)
        except ValueError:
            continue
    return None
