"""Fit the workspace's router with scikit-learn; deciding needs none of this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmgr.errors import MissingError
from cmgr.recipe import Culture
from cmgr.recipe import Router as Settings
from cmgr.records import Evidence, Example, make_id
from cmgr.router import CHAR_NGRAMS, VERSION, Router, fold
from cmgr.router.texts import cue, neutral_prompts, prompt_of, training_texts
from cmgr.search import current_evidence
from cmgr.synthesize import current_examples
from cmgr.workspace import Progress, Workspace

C = 10.0  # weak regularisation: names are rare n-grams and must count


def fit(
    cultures: Sequence[Culture],
    examples: Sequence[Example],
    evidence: Sequence[Evidence],
    settings: Settings | None = None,
    seed: int = 1,
) -> Router:
    """Fit a router with scikit-learn; the same inputs give the same router."""
    vectorisers, models, _ = fit_pipeline(
        training_texts(cultures, examples, evidence, seed), [c.id for c in cultures]
    )
    return Router(
        [c.id for c in cultures],
        [[str(g) for g in v.get_feature_names_out()] for v in vectorisers],
        np.concatenate([np.asarray(v.idf_, dtype=np.float64) for v in vectorisers]),
        np.stack([np.asarray(m.coef_[0], dtype=np.float64) for m in models], axis=1),
        np.array([float(m.intercept_[0]) for m in models]),
        settings,
    )


def fit_pipeline(rows: Sequence[tuple[str, list[str]]], ids: Sequence[str]) -> Any:
    """The fitted scikit-learn parts: two vectorisers, one model per culture, the features."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [text for text, _ in rows]
    vectorisers = [
        TfidfVectorizer(
            preprocessor=fold,
            analyzer=kind,
            ngram_range=ngrams,
            max_features=most,
            sublinear_tf=True,
            min_df=2,
        )
        for kind, ngrams, most in (("word", (1, 2), 50_000), ("char_wb", CHAR_NGRAMS, 100_000))
    ]
    features = hstack([v.fit_transform(texts) for v in vectorisers]).tocsr()
    models = []
    for culture in ids:
        target = np.array([culture in labels for _, labels in rows])
        models.append(LogisticRegression(C=C, max_iter=1000).fit(features, target))
    return vectorisers, models, features


# -- the stage ---------------------------------------------------------------------------------


def _records(ws: Workspace) -> tuple[list[Example], list[Evidence], str]:
    examples, evidence = current_examples(ws), current_evidence(ws)
    inputs = make_id(
        VERSION,
        C,
        sorted([e.id, e.split, e.review, prompt_of(e)] for e in examples),
        sorted([p.id, p.sha256, p.heading, *p.also_asked[:1]] for p in evidence),
        ws.recipe.router.model_dump(),
        [c.model_dump() for c in ws.recipe.cultures],
        ws.recipe.train.seed,
        neutral_prompts(),
    )
    return examples, evidence, inputs


def wanted_inputs(ws: Workspace) -> str:
    """The hash of all that the router of a workspace is made from; `cmgr status` compares it."""
    return _records(ws)[2]


def build(ws: Workspace, force: bool = False, progress: Progress | None = None) -> bool:
    """Fit and save the workspace's router; False where it is up to date already.

    Raises MissingError where there are no examples yet.
    """
    examples, evidence, inputs = _records(ws)
    if not any(e.split == "fit" for e in examples):
        raise MissingError(f"{ws.folder} has no examples to fit on. Make them: cmgr synthesize")
    folder = ws.path("router")
    files = (folder / "router.json", folder / "router.npz")
    if not force and ws.is_current("route", inputs) and all(f.is_file() for f in files):
        return False
    if progress:
        progress("router", 0, 1)
    cultures, seed = ws.recipe.cultures, ws.recipe.train.seed
    router = fit(cultures, examples, evidence, ws.recipe.router, seed)
    router.save(folder)
    ws.finish(
        "route",
        inputs,
        texts=len(training_texts(cultures, examples, evidence, seed)),
        vocabulary=len(router.ngrams),
        held_out=held_out(router, cultures, examples),
    )
    if progress:
        progress("router", 1, 1)
    return True


def held_out(
    router: Router, cultures: Sequence[Culture], examples: Sequence[Example]
) -> dict[str, dict[str, float]]:
    """Accuracy on held-out prompts, by split, and apart for those that name no culture."""
    names_one = cue(cultures)
    groups: dict[str, list[bool]] = {}
    for example in examples:
        if example.split == "fit" or example.review == "rejected":
            continue
        prompt = prompt_of(example)
        right = router.decide(prompt).culture == example.culture
        for group in (example.split, "named" if names_one(prompt) else "unnamed"):
            groups.setdefault(group, []).append(right)
    return {g: {"n": len(r), "accuracy": sum(r) / len(r)} for g, r in sorted(groups.items())}
