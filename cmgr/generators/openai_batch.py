"""The same calls through OpenAI's Batch API, at half the price: submit, leave, collect later.

(platform.openai.com/docs/guides/batch)
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cmgr.errors import CmgrError, MissingError
from cmgr.generators.calls import Budget, Calls
from cmgr.generators.writing import Request
from cmgr.llm import Completion, api_key, response_format
from cmgr.recipe import Generator
from cmgr.workspace import read_json, write_json

MOST = 50_000  # requests of a batch
MOST_BYTES = 150 * 1024**2  # of a batch's file; the API takes 200 MB


def write(
    generator: Generator,
    state: Path,
    requests: Sequence[Request],
    calls: Calls,
    budget: Budget,
    done: Callable[[Request, str | None], None],
    say: Callable[[str], None],
) -> Counter[str]:
    """Collect the batch that was submitted before, or submit one; nothing is waited for.

    `state` remembers the batch on its way. Returns the reasons of what came back without an answer,
    counted. Raises MissingError for a key that will not do, CmgrError where the API is not reached.
    """
    import openai

    failed: Counter[str] = Counter()
    client = openai.OpenAI(
        api_key=api_key(generator), base_url=generator.base_url, max_retries=4, timeout=120
    )
    try:
        way = read_json(state)
        if way and not _collect(client, way, state, requests, calls, budget, done, say, failed):
            return failed
        missing = [r for r in requests if calls.get(r) is None]
        if missing and not failed:
            _submit(client, generator, state, missing, budget, say)
    except openai.AuthenticationError:
        raise MissingError("OpenAI refuses the key. Set another.") from None
    except openai.APIError as error:
        raise CmgrError(f"the Batch API: {error.message}"[:300]) from None
    return failed


def _submit(
    client: Any,
    generator: Generator,
    state: Path,
    requests: Sequence[Request],
    budget: Budget,
    say: Callable[[str], None],
) -> None:
    lines: list[bytes] = []
    keys: list[str] = []
    size = 0
    for request in requests:
        line = json.dumps(
            {
                "custom_id": request.key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": generator.model,
                    "messages": [m.model_dump() for m in request.messages],
                    "max_tokens": request.tokens,
                    "temperature": generator.temperature,
                    "seed": generator.seed,
                    "response_format": response_format("json_schema", request.schema),
                },
            },
            ensure_ascii=False,
        ).encode()
        if len(lines) == MOST or size + len(line) > MOST_BYTES or not budget.begin(request):
            break
        lines.append(line)
        keys.append(request.key)
        size += len(line) + 1
    if not lines:
        return
    file = client.files.create(
        file=("requests.jsonl", io.BytesIO(b"\n".join(lines) + b"\n")), purpose="batch"
    )
    # known before the batch is: a crash between the two must not pay for it twice
    way: dict[str, Any] = {"file": file.id, "batch": None, "keys": keys}
    write_json(state, way)
    _create(client, way, state)
    say(
        f"batch {way['batch']}: {len(lines)} calls submitted, at half the price, within 24 hours. "
        "Run `cmgr synthesize` again to collect them."
    )


def _create(client: Any, way: dict[str, Any], state: Path) -> None:
    batch = client.batches.create(
        input_file_id=way["file"], endpoint="/v1/chat/completions", completion_window="24h"
    )
    way["batch"] = batch.id
    write_json(state, way)


def _collect(
    client: Any,
    way: dict[str, Any],
    state: Path,
    requests: Sequence[Request],
    calls: Calls,
    budget: Budget,
    done: Callable[[Request, str | None], None],
    say: Callable[[str], None],
    failed: Counter[str],
) -> bool:
    """Take what a batch has brought; returns whether it has ended."""
    if not way.get("batch"):
        mine = [b for b in client.batches.list(limit=100) if b.input_file_id == way["file"]]
        if mine:
            way["batch"] = mine[0].id
            write_json(state, way)
        else:
            _create(client, way, state)
    batch = client.batches.retrieve(way["batch"])
    if batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
        counts = batch.request_counts
        of = f", {counts.completed} of {counts.total} calls" if counts else ""
        say(f"batch {batch.id}: {batch.status}{of}. Run `cmgr synthesize` again later.")
        return False
    by_key = {r.key: r for r in requests}
    for line in (
        *_lines(client, batch.output_file_id),
        *_lines(client, batch.error_file_id),
    ):
        request = by_key.pop(str(line.get("custom_id")), None)
        if request is None:
            continue
        answer = _answer(line)
        if isinstance(answer, str):
            failed[answer] += 1
            done(request, answer)
        else:
            calls.put(request, answer, budget.end(request, answer))
            done(request, None)
    if batch.status != "completed":
        told = "; ".join(e.message or "" for e in (batch.errors.data or [])) if batch.errors else ""
        failed[f"batch {batch.status}" + (f": {told}"[:200] if told else "")] += sum(
            key in by_key for key in way["keys"]
        )
    state.unlink(missing_ok=True)
    return True


def _lines(client: Any, file: str | None) -> Iterator[dict[str, Any]]:
    if file:
        for line in client.files.content(file).text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def _answer(line: dict[str, Any]) -> Completion | str:
    """What a line of a batch's output says: the answer, or why there is none."""
    response = line.get("response") or {}
    body = response.get("body") or {}
    if response.get("status_code") != 200:
        error = (body.get("error") or line.get("error") or {}).get("message", "no answer")
        return f"status {response.get('status_code')}: {error}"[:200]
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        return Completion(
            str(choice["message"].get("content") or ""),
            int(usage.get("prompt_tokens", 0)),
            int(usage.get("completion_tokens", 0)),
            "refused" if choice["message"].get("refusal") else choice.get("finish_reason", "stop"),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        return "invalid answer"
