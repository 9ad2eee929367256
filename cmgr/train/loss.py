"""The losses of examples over their answers: computed no more often, or elsewhere, than needed.

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

    logits, wanted, _ = _predictions(trainable, model, items, prompts)
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"), len(wanted)


def preference_loss(
    trainable: Trainable,
    model: Any,
    items: Sequence[Item],
    prompts: Prompts | None,
    weight: float,
) -> tuple[Any, int]:
    """The summed `odds_ratio` loss of items that have rivals, a scalar tensor, and how many.

    Prompts are read as in `answer_loss`.
    """
    import torch

    rows = [answer for item in items for answer in item.answers()]
    logits, wanted, where = _predictions(trainable, model, rows, prompts)
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return odds_ratio(losses, where, [len(i.rivals) for i in items], weight), len(items)


def odds_ratio(losses: Any, where: list[int], rivals: Sequence[int], weight: float) -> Any:
    """ORPO's loss, summed over items (Hong and others, arXiv 2403.07691): a scalar tensor.

    `losses` holds each answer token's own, shape (tokens,), and `where` the answer each is of. Of
    each item the right answer comes first, then its rivals (one or more). An item's loss is the
    mean loss of the right answer's tokens, plus `weight` times the mean over its rivals of
    -log sigmoid(log odds of the right answer - log odds of the rival), where the odds are those of
    the geometric mean of an answer's token probabilities.
    """
    import torch

    at = torch.tensor(where, device=losses.device)
    answers = sum(rivals) + len(rivals)
    summed = losses.new_zeros(answers).index_add(0, at, losses)
    mean = -summed / torch.bincount(at, minlength=answers)
    # the odds of an answer that is certain have no end
    log_odds = mean - torch.log1p(-mean.clamp(max=-1e-6).exp())
    loss, right = losses.new_zeros(()), 0
    for number in rivals:
        after = right + 1 + number
        ratios = torch.nn.functional.logsigmoid(log_odds[right] - log_odds[right + 1 : after])
        loss = loss - mean[right] - weight * ratios.mean()
        right = after
    return loss


def _predictions(
    trainable: Trainable, model: Any, items: Sequence[Item], prompts: Prompts | None
) -> tuple[Any, Any, list[int]]:
    """(logits, right tokens, which item each is of) at every answer token of the items."""
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
    return logits, torch.tensor(labels, device=device), rows


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
