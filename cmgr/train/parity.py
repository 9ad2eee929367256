"""Whether llama.cpp says with the exported adapter what PEFT says with the trained one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmgr.errors import CmgrError
from cmgr.records import Message
from cmgr.runtime.llama import Logits
from cmgr.train.model import Trainable

PROMPTS = 20
COSINE_BAR = 0.98
TOP1_BAR = 0.7  # of the base's own agreement
AT_ONCE = 5  # so that something is heard of it now and then


def parity(
    trainable: Trainable,
    folder: Path,
    prompts: list[list[Message]],
    context: int,
    tell: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, float]:
    """Next-token logits after the invocation: PEFT's own forward pass, and llama.cpp.

    Returns mean cosine and top-1 agreement of the adapter, and of the bare base on the same
    prompts (a quantised base's own arithmetic costs some). The likeliest token is the same, too,
    where the two are nearer to each other than the base's own arithmetic can tell. Raises CmgrError
    below the bar. `tell` hears of (prompts done, in all, by which program).
    """
    import numpy as np

    from cmgr.runtime import Runtime

    ids = [trainable.prompt_tokens(messages) for messages in prompts]
    done, total = 0, 4 * len(prompts)  # adapter and base, here and there

    def count(more: int, what: str) -> None:
        nonlocal done
        done += more
        tell(done, total, what)

    count(0, "PEFT")
    ours = {name: _peft_logits(trainable, folder, ids, name, count) for name in ("adapter", "base")}
    theirs: dict[str, list[Logits]] = {"adapter": [], "base": []}
    runtime = Runtime(trainable.base, context)
    try:
        runtime.load_adapter("adapter", folder)
        for number, messages in enumerate(prompts):
            if ids[number] != runtime.prompt_tokens(messages):
                raise CmgrError("transformers and llama.cpp give other tokens for the same prompt")
            for name, rows in theirs.items():
                scales = {"adapter": 1.0} if name == "adapter" else {}
                rows.append(runtime.next_logits(messages, scales))
                count(1, "llama.cpp")
    finally:
        runtime.close()
    noise = float(np.mean(np.abs(np.asarray(ours["base"]) - np.asarray(theirs["base"]))))
    result: dict[str, float] = {}
    for name in theirs:
        pairs = [
            (one.astype(np.float64), np.asarray(other, np.float64))
            for one, other in zip(ours[name], theirs[name], strict=True)
        ]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
        same = [float(a[b.argmax()] >= a.max() - noise) for a, b in pairs]
        result[f"{name}_cosine"] = round(float(np.mean(cosines)), 6)
        result[f"{name}_top1"] = round(float(np.mean(same)), 4)
    result["prompts"] = len(prompts)
    cosine, top1 = result["adapter_cosine"], result["adapter_top1"]
    if cosine < min(COSINE_BAR, result["base_cosine"] - 0.01) or (
        top1 < TOP1_BAR * result["base_top1"]
    ):
        raise CmgrError(
            f"the export of {folder} does not agree with PEFT: cosine {cosine} (base "
            f"{result['base_cosine']}), likeliest token the same on {top1:.0%} of the prompts "
            f"(base {result['base_top1']:.0%}). The adapter is not put into use"
        )
    return result


def _peft_logits(
    trainable: Trainable,
    folder: Path,
    prompts: list[list[int]],
    name: str,
    count: Callable[[int, str], None],
) -> list[Logits]:
    """The logits behind the invocation of each prompt, by PEFT over the base."""
    import torch
    from peft import PeftModel

    rows: list[Logits] = []
    model = trainable.model
    if name == "adapter":
        model = PeftModel.from_pretrained(model, str(folder)).eval()
    try:
        for start in range(0, len(prompts), AT_ONCE):
            whole = [p + trainable.invocation for p in prompts[start : start + AT_ONCE]]
            longest = max(map(len, whole))
            ids = torch.full((len(whole), longest), trainable.end)
            mask = torch.zeros_like(ids)
            for row, tokens in enumerate(whole):  # left-padded: the last column is the invocation's
                ids[row, longest - len(tokens) :] = torch.tensor(tokens)
                mask[row, longest - len(tokens) :] = 1
            where = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.no_grad(), trainable.pace.step(ids.numel(), "parity"):
                logits = model(
                    input_ids=ids.to(trainable.device),
                    attention_mask=mask.to(trainable.device),
                    position_ids=where.to(trainable.device),
                    logits_to_keep=1,
                ).logits[:, -1]
            rows += list(logits.float().cpu().numpy())
            count(len(whole), "PEFT")
    finally:
        if name == "adapter":
            model.unload()
    return rows
