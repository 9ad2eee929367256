"""Who hears of a training while it runs: the screen, and `log.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Watch:
    """What a training calls: with log lines, (stage, steps done, all steps, rate), and messages."""

    log: Callable[[dict[str, Any]], None] = lambda line: None
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, what: None
    say: Callable[[str], None] = lambda text: None


class Log:
    """`log.jsonl`: one line a step, without those that came after the checkpoint gone on from."""

    def __init__(self, path: Path, lines: int) -> None:
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.is_file() else []
        path.write_bytes(b"".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
