"""Log-probabilities of given answers: nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cmgr.runtime.llama import Context, Logits, Model, Token, log_softmax


@dataclass
class Branch:
    """A sequence that ends at `position`, the logits of what follows, and what may follow."""

    sequence: int
    position: int
    logits: Logits
    encoded: Sequence[Sequence[int]]


def encode_choices(model: Model, choices: Sequence[str]) -> list[list[int]]:
    """The tokens of each choice; with the end token where one choice begins another.

    Without it "5" would always be at least as likely as "50".
    """
    encoded = [model.chat.answer(choice) for choice in choices]
    nested = any(
        a is not b and len(a) < len(b) and b[: len(a)] == a for a in encoded for b in encoded
    )
    return [[*tokens, *model.chat.end] for tokens in encoded] if nested else encoded


def weigh(context: Context, branches: Sequence[Branch], free: int, cells: int) -> list[list[float]]:
    """The log-probability of each token list of each branch, whose sequence stays as it is.

    First tokens cost nothing. The others are computed in copies, many at once: in sequences from
    `free` on, which are left empty, and within `cells` (one that needs more goes alone).
    """
    totals: list[list[float]] = []
    waiting: list[tuple[int, int]] = []
    for number, branch in enumerate(branches):
        first = log_softmax(branch.logits)
        totals.append([float(first[tokens[0]]) for tokens in branch.encoded])
        waiting += [(number, i) for i, tokens in enumerate(branch.encoded) if len(tokens) > 1]
    while waiting:
        count, size = 0, 0
        for number, i in waiting[: max(1, context.sequences - free)]:
            size += len(branches[number].encoded[i]) - 1
            if count and size > cells:
                break
            count += 1
        now, waiting = waiting[:count], waiting[count:]
        items: list[Token] = []
        for place, (number, i) in enumerate(now, free):
            branch = branches[number]
            context.copy(branch.sequence, place)
            tokens = branch.encoded[i][:-1]
            items += [(t, p, place, True) for p, t in enumerate(tokens, branch.position)]
        rows = iter(context.decode(items))
        for place, (number, i) in enumerate(now, free):
            for token in branches[number].encoded[i][1:]:
                totals[number][i] += float(log_softmax(next(rows))[token])
            context.drop(place)
    return totals
