"""The ranking fitted to a workspace's own questions: a linear map of a prompt's vector.

A general encoder does not know which words tell a recipe's passages apart. The map is learnt from
the questions that examples ask about passages, each as if it did not stand over its passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cmgr.retrieval.encoder import Vectors

TEMPERATURE = 0.05  # of the softmax over passages
WEIGHT = 0.02  # of the squared map: the more, the nearer the encoder's own ranking
STEPS = 150
RATE = 5e-3


class Asked(NamedTuple):
    """Questions about the passages of one culture.

    `questions` (n, size); `passages` (m, size); `right` (n,): the number of each question's own
    passage; `hidden` (n, size): that passage without the question.
    """

    questions: Vectors
    passages: Vectors
    right: np.ndarray[tuple[int], np.dtype[np.intp]]
    hidden: Vectors


def fit_map(asked: Sequence[Asked]) -> Vectors:
    """The map M, shape (size, size): a question q is compared as q + q @ M.

    It minimises the cross-entropy of each question's own passage among its culture's, plus WEIGHT
    times the sum of squares of M: a convex function, by Adam from zero.
    """
    size = asked[0].questions.shape[1]
    found = np.zeros((size, size), np.float32)
    first, second = np.zeros_like(found), np.zeros_like(found)
    total = sum(len(one.right) for one in asked)
    for step in range(1, STEPS + 1):
        gradient = 2 * WEIGHT * found
        for one in asked:
            gradient += _gradient(one, found) / total
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        found -= (RATE * (first / (1 - 0.9**step))) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return found


def mapped(questions: Vectors, by: Vectors | None) -> Vectors:
    """Questions as they are compared, each of length 1."""
    moved = questions if by is None else questions + questions @ by
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    unit: Vectors = moved / np.maximum(lengths, 1e-12)
    return unit


def _gradient(one: Asked, by: Vectors) -> Vectors:
    """Of the summed cross-entropy of a culture's questions, with respect to the map."""
    moved = one.questions + one.questions @ by
    rows = np.arange(len(one.right))
    scores = moved @ one.passages.T
    scores[rows, one.right] = (moved * one.hidden).sum(axis=1)
    scores /= TEMPERATURE
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    own = shares[rows, one.right].copy()
    shares[rows, one.right] = 0
    pull = shares @ one.passages + (own - 1)[:, None] * one.hidden
    found: Vectors = one.questions.T @ (pull / TEMPERATURE)
    return found
