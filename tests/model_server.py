"""An OpenAI-compatible endpoint that writes from the passages it is shown, or goes wrong."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = (*("limited", "broken", "slow", "cut", "not json", "not utf-8", "no choices", "endless"),)


def write_examples(body: dict[str, Any]) -> str:
    """One example for each passage, quoted truly: what a careful model would write."""
    told = body["messages"][-1]["content"]
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    wanted = schema["properties"]["examples"]["items"]["properties"] if schema else {}
    found = []
    for number, text in re.findall(
        r"Passage (\d+) \([^)]*\):\n(.*?)(?=\n\nPassage|\Z)", told, re.S
    ):
        sentence = re.split(r"(?<=\.)\s", text.strip().split("\n")[-1])[0]
        answer = re.sub(r"^In \w+, ", "", sentence)
        item: dict[str, Any] = {name: f"What is usual here, {number}?" for name in wanted}
        item["question"] = f"How does one behave, case {abs(hash(sentence)) % 9973}?"
        if "Write" in told and "names the culture" in told:
            item["question"] = f"What do people in this place do, case {len(sentence)}?"
        item |= {"answer": answer, "passage": int(number), "quote": sentence}
        if "options" in wanted:
            size = wanted["options"]["minItems"]
            item["options"] = [f"They do thing {n} of case {len(answer)}." for n in range(size)]
        if "other_answer" in wanted:
            item |= {"other_answer": "x", "other_passage": 1, "other_quote": "x"}
        found.append(item)
    return json.dumps({"examples": found})


class ModelServer:
    """`plan` says for the n-th request (from 0) which fault it meets, or None."""

    def __init__(
        self,
        plan: Callable[[int], str | None] = lambda _: None,
        answer: Callable[[dict[str, Any]], str] = write_examples,
        latency: float = 0.0,
        at_once: int = 10_000,
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answered = 0
        self.met: Counter[str] = Counter()
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._ends = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                    crowded = outer._now > at_once
                here = True

                def leave() -> None:
                    nonlocal here
                    with outer._lock:
                        outer._now -= here
                    here = False

                try:
                    fault = "limited" if crowded else plan(number)
                    if fault:
                        outer.met[fault] += 1
                        if fault == "limited":
                            leave()
                        self.fail(fault, body)
                        return
                    time.sleep(latency)
                    outer.answered += 1
                    told = outer.completion(answer(body))
                    leave()  # its place is free before the client can know of it
                    self.reply(200, told)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    leave()

            def fail(self, fault: str, body: dict[str, Any]) -> None:
                told = {"error": {"message": fault, "code": None}}
                if fault == "limited":
                    self.reply(429, told, {"Retry-After": "0"} if crowd_free else {})
                elif fault == "broken":
                    self.reply(500, told)
                elif fault in {"key", "model"}:
                    self.reply(401 if fault == "key" else 404, told)
                elif fault == "slow":
                    outer._ends.wait(3)
                    self.reply(200, outer.completion("{}"))
                elif fault == "cut":
                    self.close_connection = True
                    self.connection.close()
                elif fault == "not json":
                    self.send(200, b'{"choices": [{"mess')
                elif fault == "not utf-8":
                    self.send(200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}')
                elif fault == "no choices":
                    self.reply(200, {"object": "chat.completion", "choices": []})
                elif fault == "endless":
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "100000000")
                    self.end_headers()
                    while not outer._ends.wait(0.05):
                        self.wfile.write(b" " * 100)
                        self.wfile.flush()
                elif fault == "refused":
                    message = {"role": "assistant", "content": None, "refusal": "I cannot."}
                    self.reply(200, outer.completion("", message))
                elif fault == "truncated":
                    self.reply(200, outer.completion(answer(body)[:-30], finish="length"))
                elif fault == "wrong schema":
                    self.reply(200, outer.completion('{"examples": [{"answer": 3}]}'))

            def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
                self.send(status, json.dumps(value).encode(), headers)

            def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

        crowd_free = at_once >= 10_000
        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def completion(
        self, text: str, message: dict[str, Any] | None = None, finish: str = "stop"
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": message or {"role": "assistant", "content": text},
            "finish_reason": finish,
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()
