"""The loss of examples over their answers: computed no more often, and nowhere else, than needed.

The output head is computed only where an answer token is predicted; what a batch begins with in
common is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cmgr.runtime.llama import common_prefix
from cmgr.train.model import Item, Trainable
from cmgr.train.prompts import WORTH, Prompts, cache_of, given, new_cache, stack


def answer_loss(
    trainable: Trainable, model: Any, items: Sequence[Item], prompts: Prompts | None
) -> tuple[Any, int]:
    """The summed loss of items over their answer tokens, a scalar tensor, and how many they are.

    With `prompts` the adapter continues the KV that the base has read (activated); without, it
    reads everything itself, what the items begin with in common once (standard).
    """
    import torch

    skip = len(trainable.invocation)
    device = trainable.device
    decoder = model.get_base_model().get_decoder()
    if prompts is not None:
        cache, mask = prompts.past(items)
        begin = [len(item.prompt) for item in items]
        rests = [item.target for item in items]
    else:
        shared = _beginning(items)
        cache, mask = None, torch.ones((len(items), shared), dtype=torch.long)
        if shared:
            ids = torch.tensor([items[0].prompt[:shared]], device=device)
            read = new_cache(len(decoder.layers))
            decoder(input_ids=ids, use_cache=True, **given(decoder, read))
            read = stack(read, 0)
            layers, two, _, *rest = read.shape
            cache = cache_of(read.expand(layers, two, len(items), *rest).unbind(0), kept=True)
        begin = [shared] * len(items)
        rests = [item.prompt[shared:] + item.target for item in items]
    width = max(map(len, rests))
    ids = torch.full((len(items), width), trainable.end)
    own = torch.zeros_like(ids)
    where = torch.zeros_like(ids)
    rows: list[int] = []
    columns: list[int] = []
    labels: list[int] = []
    for row, (item, tokens) in enumerate(zip(items, rests, strict=True)):
        n, answer = len(tokens), item.target[skip:]
        ids[row, :n] = torch.tensor(tokens)
        own[row, :n] = 1
        where[row] = begin[row] + torch.arange(width)
        rows += [row] * len(answer)
        columns += range(n - len(answer) - 1, n - 1)
        labels += answer
    hidden = decoder(
        input_ids=ids.to(device),
        attention_mask=torch.cat([mask, own], dim=1).to(device),
        position_ids=where.to(device),
        use_cache=cache is not None,
        **given(decoder, cache),
    ).last_hidden_state[torch.tensor(rows), torch.tensor(columns)]
    head = model.get_base_model().get_output_embeddings()
    logits = _capped(trainable, head(hidden).float())
    wanted = torch.tensor(labels, device=device)
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"), len(labels)


def _capped(trainable: Trainable, logits: Any) -> Any:
    """Gemma 2's soft cap, which its own forward pass applies behind the head."""
    import torch

    cap = getattr(trainable.model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def _beginning(items: Sequence[Item]) -> int:
    """How many tokens items begin with in common, 0 where it is not worth it."""
    first = min(item.prompt for item in items)
    last = max(item.prompt for item in items)
    shared = min(common_prefix(first, last), *(len(item.prompt) - 1 for item in items))
    return shared if shared >= WORTH and len(items) > 1 else 0
