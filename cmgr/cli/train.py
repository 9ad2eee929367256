"""`cmgr train`: one adapter per culture."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any, Literal

import typer

from cmgr.cli.console import (
    CultureOption,
    ForceOption,
    JsonOption,
    WorkspaceOption,
    emit_json,
    is_terminal,
    out,
    plain,
    progress,
    say,
    table,
)
from cmgr.recipe import PREFER
from cmgr.workspace import Workspace, read_json


def command(
    workspace: WorkspaceOption = None,
    culture: CultureOption = None,
    kind: Annotated[
        Literal["activated", "standard"] | None,
        typer.Option("--kind", help="Instead of the recipe's adapter.kind"),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="To compare with: shared, broad, no-broad, no-contrast, no-evidence"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only every N-th culture, from the I-th on"),
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Show one example per stage as it is trained")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, after a short probe")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train, export, check; finished cultures are skipped."""
    from cmgr import train
    from cmgr.errors import UsageError
    from cmgr.train.model import is_main
    from cmgr.train.variants import VARIANTS, name_of

    if variant and variant not in VARIANTS:
        raise UsageError(f"no variant {variant!r}: there are {', '.join(VARIANTS)}")

    main = is_main()
    ws = Workspace.find(workspace, say if main else lambda _: None)
    if kind:
        ws.recipe.adapter.kind = kind
    cultures = [c.id for c in ws.recipe.pick(culture)]
    if shard:
        cultures = train.shard(cultures, shard)
    if inspect or dry_run:
        from cmgr.train import forecast

        if inspect:
            _show(forecast.inspect(ws, cultures), json)
        if dry_run:
            _estimate(forecast.dry_run(ws, force, cultures, variant), json)
        return
    name = "cmgr train" + (f" --shard {shard}" if shard else "")
    with ws.lock(name, shard) if main else nullcontext(), progress() as tell:
        if cultures and not train.build(ws, force, tell, cultures, variant) and main:
            say("train: up to date")
    if main:
        _report(ws, list(dict.fromkeys(name_of(c, variant) for c in cultures)), json)


def _report(ws: Workspace, cultures: list[str], json: bool) -> None:
    rows = []
    kinds = set()
    for name in cultures:
        folder = ws.path("adapters", name)
        manifest = read_json(folder / "manifest.json") or {}
        if json:
            emit_json({**manifest, "folder": str(folder)})
        done, parity = manifest.get("training", {}), manifest.get("parity", {})
        kinds.add(manifest.get("kind"))
        rows.append(
            [
                name,
                sum(n for stage, n in manifest.get("examples", {}).items() if stage != PREFER),
                done.get("seconds"),
                round(done.get("tokens", 0) / max(done.get("seconds", 0), 0.1)),
                done.get("loss"),
                f"{parity.get('adapter_cosine')} ({parity.get('base_cosine')})",
                folder,
            ]
        )
    if json:
        return
    table(
        "Adapters",
        [
            *("culture", "examples", "seconds", "tokens/s", "last loss"),
            *("GGUF parity (the base's own)", "folder"),
        ],
        rows,
    )
    say("Use them: cmgr chat --culture NAME. Elsewhere, a folder is what PEFT loads")
    say("(PeftModel.from_pretrained), and adapter.gguf what llama-server --lora loads.")
    if "activated" in kinds:
        say("Ollama and vLLM want standard ones: cmgr train --kind standard")


def _show(found: list[dict[str, Any]], json: bool) -> None:
    """Each stage's example: what is not learnt is dim, or in brackets where there is no colour."""
    import os
    import sys

    coloured = is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
    for example in found:
        if json:
            emit_json(example)
            continue
        out(f"{example['culture']}, {example['stage']} stage, example {example['id']}")
        masked = [text for text, learnt in example["tokens"] if not learnt]
        learnt = [text for text, learnt in example["tokens"] if learnt]
        before, after = plain("".join(masked)), plain("".join(learnt))
        out(f"\x1b[2m{before}\x1b[0m{after}" if coloured else f"[{before}]{after}")
        for rival in example["rivals"]:
            out(f"rather than: {plain(rival)}")
        out(f"({len(masked)} tokens read, {len(learnt)} learnt)\n")


def _estimate(found: dict[str, Any], json: bool) -> None:
    if json:
        emit_json(found)
        return
    rows = [
        [
            *(c["culture"], c["examples"], c["tokens"], c["steps"]),
            f"{c['seconds'] / 60:.1f} min",
            f"{c['read_seconds'] / 60:.1f} min",
            f"{c['prompts_mb']:.0f} MB",
        ]
        for c in found["cultures"]
    ]
    heads = ["culture", "examples", "tokens", "steps", "time", "of it prompts", "prompts' KV"]
    table("What training would take", heads, rows)
    total = sum(c["seconds"] for c in found["cultures"])
    out(f"In all {total / 60:.1f} min; memory about {found['memory_mb'] / 1024:.1f} GB.")
