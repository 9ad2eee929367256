"""`cmgr bench`: how fast this machine is, and what would make it faster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cmgr.cli.console import JsonOption, WorkspaceOption, emit_json, out, progress, say, table
from cmgr.workspace import Workspace


def command(
    prompts: Annotated[
        int, typer.Option("--prompts", min=3, help="How many prompts the batch has")
    ] = 48,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure base and adapters on this machine."""
    from cmgr.bench import measure

    ws = Workspace.find(workspace, say)
    with progress() as show:
        found = measure(ws, prompts, show)
    if json:
        emit_json(found)
        return
    facts = found["machine"]
    out(
        f"{facts['processor']}, {facts['threads']} threads, {facts.get('memory_gb', '?')} GB, "
        f"{facts['system']}; {facts['base']} ({facts['base_mb']} MB), "
        f"llama-cpp-python {facts['llama_cpp_python']}"
    )
    table("", ["what", "value", "unit"], rows(found))
    for line in found["advice"]:
        out(f"- {line}")


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures as lines of a table."""
    first, batch = found["first_token"], found["batch"]
    lines = [
        ("load an adapter", f"{found['adapter_load_ms']:.1f}", "ms"),
        ("switch adapters", f"{found['switch_ms']:.3f}", "ms"),
    ]
    for name, rate in found["rates"].items():
        lines.append((f"read a prompt, {name}", f"{rate['prompt']:.0f}", "tokens/s"))
    for name, rate in found["rates"].items():
        lines.append((f"write an answer, {name}", f"{rate['decode']:.0f}", "tokens/s"))
    where = f"thread of {first['thread_tokens']} tokens"
    return [
        *lines,
        (f"first token, cold, {where}", f"{first['cold_ms']:.0f}", "ms"),
        ("first token of the next turn", f"{first['kept_ms']:.0f}", "ms"),
        ("the same after a switch of culture", f"{first['switched_ms']:.0f}", "ms"),
        (
            f"batch of {batch['prompts']}, mixed cultures",
            f"{batch['prompts_per_s']:.1f}",
            "prompts/s",
        ),
    ]
