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

from cmgr.dialects import format_of
from cmgr.errors import CmgrError, MissingError
from cmgr.generators.calls import Budget, Calls
from cmgr.generators.writing import Request
from cmgr.llm import Completion, api_key
from cmgr.recipe import Generator, Price
from cmgr.stats import counted
from cmgr.workspace import read_json, write_json

MOST = 50_000  # requests of a batch
ENDED = {"completed", "failed", "expired", "cancelled"}
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

    `state` remembers the batch on its way until all its answers are on disk, those to `requests`
    and those to any other. Returns the reasons of what came back without an answer, counted. Raises
    MissingError for a key that will not do, CmgrError where the API is not reached or its answers
    cannot be read.
    """
    import openai

    failed: Counter[str] = Counter()
    key = api_key(generator)

    def client_of(server: str | None) -> Any:
        return openai.OpenAI(api_key=key, base_url=server, max_retries=4, timeout=120)

    client = client_of(generator.base_url)
    way = read_json(state)
    try:
        if way and all(calls.has(key) for key in way["keys"]):  # a kill came before its deletion
            state.unlink()
        elif way:
            # the server that has it, whichever the recipe names by now
            its = client_of(way.get("base_url", generator.base_url))
            if not _collect(its, way, state, requests, calls, budget, done, say, failed):
                return failed
        missing = [r for r in requests if calls.get(r) is None]
        if missing and not failed:
            _submit(client, generator, state, missing, budget, say)
    except openai.AuthenticationError:
        raise MissingError("OpenAI refuses the key. Set another.") from None
    except openai.NotFoundError as error:
        if not way:
            raise CmgrError(f"the Batch API: {error.message}"[:300]) from None
        raise CmgrError(
            f"the Batch API does not know batch {way.get('batch')} (or its files) any more. "
            f"Use the key that it was submitted with, or give it up: delete {state}"
        ) from None
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
                    **format_of(0, request.schema),
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
    way: dict[str, Any] = {
        "file": file.id,
        "batch": None,
        "keys": keys,
        "base_url": generator.base_url,
        "price": budget.price and budget.price.model_dump(),
    }
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
    """Keep what a batch has brought, also to calls not asked for now; returns whether it ended.

    Raises CmgrError where a line cannot be read; what can be is kept, and the batch remembered.
    """
    if not way.get("batch"):
        mine = [b for b in client.batches.list(limit=100) if b.input_file_id == way["file"]]
        if mine:
            way["batch"] = mine[0].id
            write_json(state, way)
        else:
            _create(client, way, state)
    batch = client.batches.retrieve(way["batch"])
    if batch.status not in ENDED:
        counts = batch.request_counts
        of = f", {counts.completed} of {counts.total} calls" if counts else ""
        say(f"batch {batch.id}: {batch.status}{of}. Run `cmgr synthesize` again later.")
        return False
    by_key = {r.key: r for r in requests}
    price = Price.model_validate(way["price"]) if way.get("price") else budget.price
    left = {key for key in way["keys"] if not calls.has(key)}
    others: Counter[str] = Counter()  # what became of calls that are not asked for now
    unread = 0
    for line in (*_lines(client, batch.output_file_id), *_lines(client, batch.error_file_id)):
        if line is None:
            unread += 1
            continue
        key = str(line.get("custom_id"))
        if key not in left:
            continue  # kept before, or none of ours
        left.remove(key)
        answer = _answer(line)
        reason = answer if isinstance(answer, str) else None
        whole = None if isinstance(answer, str) else answer
        cost = budget.collect(key, whole, price)
        if whole:
            calls.put(key, whole, cost)
        if request := by_key.get(key):
            failed.update([reason] if reason else [])
            done(request, reason)
        else:
            others[reason or ""] += 1
    if kept := others.pop("", 0):
        say(f"batch {batch.id}: {kept} answers to other calls are kept for when they are asked for")
    if others:
        say(f"batch {batch.id}: other calls without an answer: {counted(others)}")
    if unread:
        raise CmgrError(
            f"batch {batch.id}: {unread} of its lines cannot be read; the others are kept. "
            f"Run again to read them again, or give them up: delete {state}"
        )
    if batch.status != "completed":
        told = "; ".join(e.message or "" for e in (batch.errors.data or [])) if batch.errors else ""
        reason = f"batch {batch.status}" + (f": {told}"[:200] if told else "")
        failed.update({reason: n} if (n := len(left & by_key.keys())) else {})
        if left and not n:
            say(f"{reason}: {len(left)} other calls without an answer")
    for key in left:
        budget.collect(key, None, price)
    state.unlink(missing_ok=True)
    return True


def _lines(client: Any, file: str | None) -> Iterator[dict[str, Any] | None]:
    """The lines of a file of answers; None for one that is no JSON object."""
    # not by splitlines, which cuts inside answers (U+2028)
    for line in client.files.content(file).content.split(b"\n") if file else ():
        try:
            value = json.loads(line or b"{}")
        except ValueError:
            value = None
        if value != {}:
            yield value if isinstance(value, dict) else None


def _answer(line: dict[str, Any]) -> Completion | str:
    """What a line of a batch's output says: the answer, or why there is none."""
    response = line.get("response") or {}
    body = response.get("body") or {}
    status = response.get("status_code")
    if status != 200:
        error = body.get("error") or line.get("error") or {}
        what = f"status {status}" if status else error.get("code") or "no response"
        return f"{what}: {error.get('message') or 'no answer'}"[:200]
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
