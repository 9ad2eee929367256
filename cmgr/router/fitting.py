"""Fit the workspace's router with scikit-learn; deciding needs none of this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmgr.base import threads
from cmgr.errors import MissingError
from cmgr.recipe import Culture
from cmgr.recipe import Router as Settings
from cmgr.records import Evidence, Example, Label, make_id
from cmgr.router import VERSION, Floats, Router, Spelt, fold, is_foreign, unknown_words, word_ngrams
from cmgr.router.card import check_installed, country_of, function_words
from cmgr.router.cues import (
    capitals_of,
    common_words,
    cues_of,
    english_names,
    english_words,
    neutral_prompts,
)
from cmgr.router.spelling import Letters, fit_letters
from cmgr.router.texts import Row, cue, prompt_of, training_rows
from cmgr.search import current_evidence
from cmgr.synthesize import current_examples
from cmgr.workspace import Progress, Workspace

C = 0.3
LEAST = 0.0  # of an unknown word's logit by its letters, to count

POSITIVE = 5.0  # what a row of a culture weighs for it, against one that is not of it
WEIGHTS = {
    **{"cue": 1.0, "rival": 2.0, "pair": 1.0, "language": 1.0, "neutral": 3.0},
    **{"document": 0.3, "noun": 0.5, "labelled": 10.0},
}
TELLING = 0.35  # the share of an n-gram's rows, classes weighing the same, that one must have
WORDS, CHARS = 50_000, 100_000  # n-grams at most
WEIGHTS_AT_MOST = 2_700_000  # of characters, and half as many of words: a file below 20 MB
NAMES_WEIGH = 4.0  # of countries and peoples, against other words: a name decides
ENGLISH_WEIGHS = 0.2  # of words that English writes in small letters and that are no cue
MOST = 1.5  # of a text's logit by the letters of its unknown words
REST = 300_000  # rows that share no word with a culture, over all cultures
CALIBRATE = 5  # cultures
HELD = 4  # one origin in so many is held out to calibrate on
UNSEEN = 0.08  # the share of cues that are taken to be unknown when the router is used


class Fitted(NamedTuple):
    """The scikit-learn parts: word features of texts, and one model per culture; and of words."""

    features: Any  # TfidfVectorizer of a text's words
    models: list[Any]  # LogisticRegression, the calibration in its weights
    letters: Letters
    spelt: Spelt
    plain: frozenset[str]
    capitals: dict[str, str]

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """What the numpy router must equal: texts x cultures."""
        texts = [fold(text, self.capitals) for text in texts]
        words = self.features.transform(texts)
        logits = np.stack([m.decision_function(words) for m in self.models], axis=1)
        known = self.features.vocabulary_
        logits += spelt_logits(self.letters, self.spelt, texts, known, self.plain)
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)

    def router(self, ids: Sequence[str], settings: Settings | None = None) -> Router:
        """The same as arrays."""
        parts = (self.features, self.letters.features)
        weights = [
            np.stack([m.coef_[0] for m in models], axis=1)
            for models in (self.models, self.letters.models)
        ]
        return Router(
            ids,
            [[str(g) for g in part.get_feature_names_out()] for part in parts],
            np.concatenate([part.idf_ for part in parts]),
            np.concatenate(weights),
            np.array([m.intercept_[0] for m in self.models]),
            settings,
            self.plain,
            self.spelt,
            self.capitals,
        )


def spelt_logits(
    letters: Letters,
    spelt: Spelt,
    texts: Sequence[str],
    known: Collection[str],
    plain: Collection[str],
) -> Floats:
    """What the unknown words of folded texts add to their logits: texts x cultures."""
    unknown = [unknown_words(text, known, plain) for text in texts]
    words = list(dict.fromkeys(w for found in unknown for w in found))
    result = np.zeros((len(texts), len(letters.models)))
    if words:
        sums = letters.logits(words)
        # a word of which no n-gram is known says nothing
        said = letters.features.transform(words).getnnz(axis=1) > 0
        at = {word: n for n, word in enumerate(words) if said[n]}
        for n, found in enumerate(unknown):
            if rows := [at[w] for w in found if w in at]:
                foreign = is_foreign(texts[n], plain)
                result[n] = spelt.says(sums[rows], foreign).sum(axis=0)
    return result


def fit(
    cultures: Sequence[Culture],
    examples: Sequence[Example],
    evidence: Sequence[Evidence],
    labels: Sequence[Label] = (),
    settings: Settings | None = None,
    seed: int = 1,
) -> Router:
    """Fit a router with scikit-learn; the same inputs give the same router."""
    rows = training_rows(cultures, examples, evidence, labels, seed)
    return fit_rows(rows, cultures, evidence).router([c.id for c in cultures], settings)


def fit_rows(
    rows: Sequence[Row], cultures: Sequence[Culture], evidence: Sequence[Evidence]
) -> Fitted:
    """Fit features, models and calibration."""
    common = common_words(evidence)
    mine, others = cues_of(cultures, evidence)
    own = {name for cues in mine.values() for name in (*cues.names, *cues.people)}
    named = {n for cues in (*mine.values(), *others) for n in (*cues.names, *cues.people)}
    capitals = capitals_of(list(mine.values()), others, common)
    # what is known to be elsewhere is not judged by its letters
    here, elsewhere = (
        {w for cues in some for n in cues.all() for w in word_ngrams(fold(n)) if w.isalpha()}
        for some in (mine.values(), others)
    )
    names = {name.lower() for name in english_names()}
    plain = frozenset(common | english_words() | (names | elsewhere) - here)
    texts = [fold(row.text, capitals) for row in rows]

    ids = [c.id for c in cultures]
    most = min(CHARS, WEIGHTS_AT_MOST // len(cultures))
    words, features = _vectoriser(rows, texts, min(WORDS, most // 2), common, own, named, capitals)
    weights = np.array([WEIGHTS[row.kind] for row in rows])
    targets = np.array([[i in row.cultures for row in rows] for i in ids])
    models = _models(features, targets, weights)
    letters = fit_letters(texts, rows, ids, plain, most, _beside)
    scale, shift = _calibrate(rows, features, targets, weights, models)
    for model in models:
        # rounded here, so that the file, half as long, holds the very same weights
        model.coef_ = (model.coef_ * scale).astype(np.float32)
        model.intercept_ = model.intercept_ * scale + shift
    for model in letters.models:
        model.coef_ = model.coef_.astype(np.float32)
    # a text of one unknown word has that word's logit
    prior = np.array([m.intercept_[0] for m in models])
    spelt = Spelt(letters.bias - prior, LEAST - prior, MOST - prior)
    return Fitted(words, models, letters, spelt, plain, capitals)


def _vectoriser(
    rows: Sequence[Row],
    texts: Sequence[str],
    most: int,
    plain: Collection[str],
    own: Collection[str],
    named: Collection[str],
    capitals: Mapping[str, str],
) -> tuple[Any, Any]:
    """A TF-IDF vectoriser of the telling word n-grams, and the rows' features.

    Without a norm: what a text says adds up, and what says nothing takes nothing from it. Names in
    `named` weigh more than other words. `texts` are the rows', folded.
    """
    from sklearn.feature_extraction.text import (
        CountVectorizer,
        TfidfTransformer,
        TfidfVectorizer,
    )

    counter = CountVectorizer(analyzer=word_ngrams, min_df=2, dtype=np.float64)
    counts = counter.fit_transform(texts).tocsr()
    grams = counter.get_feature_names_out()
    columns = _telling(rows, texts, counts, grams, most, plain, own, capitals)
    counts = counts[:, columns]
    how = {"sublinear_tf": True, "norm": None}
    tfidf = TfidfTransformer(**how).fit(counts)
    sure = _standing_for(named, capitals)
    cues, english = sure | _standing_for(_alone(rows), capitals, 2), english_words()
    tfidf.idf_ = tfidf.idf_ * [
        NAMES_WEIGH
        if gram in sure
        else ENGLISH_WEIGHS
        if gram not in cues and english.issuperset(gram.split())
        else 1.0
        for gram in grams[columns]
    ]
    found = TfidfVectorizer(analyzer=word_ngrams, vocabulary=grams[columns], lowercase=False, **how)
    found.idf_ = tfidf.idf_
    return found, tfidf.transform(counts)


def _telling(
    rows: Sequence[Row],
    texts: Sequence[str],
    counts: Any,
    grams: NDArray[Any],
    most: int,
    plain: Collection[str],
    own: Collection[str],
    capitals: Mapping[str, str],
) -> NDArray[np.intp]:
    """The columns of n-grams that point to a culture, or elsewhere.

    What any text may hold is left out, so that a long text weighs no more than the cue in it. Of
    n-grams that documents alone have, those count that three documents have; of `plain` words and
    of pairs with a function word, those that are a cue by themselves. Names in `own` always count.
    """
    from scipy.sparse import csr_matrix

    there = (counts > 0).astype(np.int32)
    classes: dict[str, list[int]] = {}
    origins: dict[str, int] = {}
    for n, row in enumerate(rows):
        if len(row.cultures) < 2:
            other = "calm" if row.kind == "neutral" else "elsewhere"
            classes.setdefault(row.cultures[0] if row.cultures else other, []).append(n)
        origins.setdefault(row.origin, len(origins))
    rates = {n: np.asarray(there[at].sum(axis=0)).ravel() / len(at) for n, at in classes.items()}
    best = np.max([rate for name, rate in rates.items() if name != "calm"], axis=0)
    at = [origins[row.origin] for row in rows]
    by_origin = csr_matrix((np.ones(len(rows), np.int32), (at, range(len(rows)))))
    spread = np.asarray((by_origin @ there > 0).sum(axis=0)).ravel()
    beside = [n for n, row in enumerate(rows) if row.kind != "document"]
    keep = best >= TELLING * np.sum(list(rates.values()), axis=0)
    keep &= (np.asarray(there[beside].sum(axis=0)).ravel() > 0) | (spread >= 3)
    cues, sure = _standing_for(_alone(rows), capitals, 2), _standing_for(own, capitals)
    small, english = {w.casefold() for w in function_words("en")}, english_words()

    def counts_alone(gram: str) -> bool:
        parts = gram.split()
        if any(p in small or p[0].isdigit() for p in parts):
            return False
        # a pair of English words that is no cue is in any text: "human rights"
        if len(parts) > 1 and english.issuperset(parts):
            return False
        return not all(p in plain for p in parts)

    keep &= np.array([g in cues or counts_alone(g) for g in grams])
    said = np.array([n for n, row in enumerate(rows) if row.kind == "labelled"], dtype=int)
    learnt = np.asarray(there[said].sum(axis=0)).ravel() > 0
    learnt &= np.array([not small.issuperset(g.split()) for g in grams])
    keep |= np.array([g in sure for g in grams]) | learnt
    common = np.argsort(-np.asarray(there.sum(axis=0)).ravel(), kind="stable")
    return np.sort(common[keep[common]][:most])


def _alone(rows: Sequence[Row]) -> set[str]:
    """The cues that are rows by themselves."""
    kinds = {"cue", "rival", "noun"}
    return {row.text for row in rows if row.text == row.origin and row.kind in kinds}


def _standing_for(cues: Collection[str], capitals: Mapping[str, str], most: int = 9) -> set[str]:
    """The n-grams that stand for cues of `most` words: one word by itself, or the pairs of more.

    A pair with a function word in small letters, "of the", stands for none: any text has it.
    """
    small = {w.casefold() for w in function_words("en")}
    found: set[str] = set()
    for name in cues:
        grams = word_ngrams(fold(name, capitals))
        if len(grams) > 2 * most - 1:
            continue
        minor = {w for w in name.split() if w.islower() and w in small}
        found |= {
            g
            for g in grams
            if len(grams) == 1 or (" " in g.strip() and minor.isdisjoint(g.split()))
        }
    return found


def _beside(task: Callable[..., Any], over: Sequence[Any]) -> list[Any]:
    """Each result of liblinear, which runs beside Python; its sums are too short for threads."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(task, over))


def _models(features: Any, targets: NDArray[np.bool_], weights: Floats) -> list[Any]:
    """One logistic regression per culture (targets: cultures x rows).

    On the culture's rows, on those that share a word with them, and on some of the rest, which
    stand for all of it. A row of a culture without any known word is left to the letters.
    """
    from sklearn.linear_model import LogisticRegression

    by_word = features.tocsc()
    empty = features.getnnz(axis=1) == 0

    def one(target: NDArray[np.bool_]) -> Any:
        own = np.unique(features[target].indices)
        near = target | (by_word[:, own].getnnz(axis=1) > 0)
        near &= ~(target & empty)
        rest = np.flatnonzero(~near & ~target)
        some = np.sort(np.random.default_rng(0).permutation(rest)[: REST // len(targets)])
        rows = np.concatenate([np.flatnonzero(near), some])
        weight = weights * np.where(target, POSITIVE, 1)
        if len(some):
            weight[some] *= weights[rest].sum() / weights[some].sum()
        model = LogisticRegression(C=C, solver="liblinear", tol=1e-3, random_state=0)
        return model.fit(features[rows], target[rows], sample_weight=weight[rows])

    return _beside(one, list(targets))


def _calibrate(
    rows: Sequence[Row],
    features: Any,
    targets: NDArray[np.bool_],
    weights: Floats,
    models: Sequence[Any],
) -> tuple[float, float]:
    """Scale and shift of all logits, so that they say how often they are right (Platt, 1999).

    On rows held out by origin, as models fitted without them see them, and as the router does;
    of the first cultures, for scale and shift are the same for all.
    """
    from sklearn.linear_model import LogisticRegression

    targets, models = targets[:CALIBRATE], models[:CALIBRATE]
    held = np.array([int(make_id("held", row.origin)[:8], 16) % HELD == 0 for row in rows])
    if not held.any() or held.all() or not targets[:, ~held].any(axis=1).all():
        return 1.0, 0.0
    without = _models(features[~held], targets[:, ~held], weights[~held])
    logits = [
        np.concatenate([m.decision_function(features[held]) for m in fitted])
        for fitted in (without, models)
    ]
    size = len(logits[0])
    right = np.tile(targets[:, held].ravel(), 2)
    trust = np.repeat([UNSEEN, 1 - UNSEEN], size)
    platt = LogisticRegression(C=1e6).fit(
        np.concatenate(logits).reshape(-1, 1), right, sample_weight=trust
    )
    return float(platt.coef_[0][0]), float(platt.intercept_[0])


# -- the stage ---------------------------------------------------------------------------------


def _records(ws: Workspace) -> tuple[list[Example], list[Evidence], list[Label], str]:
    examples, evidence = current_examples(ws), current_evidence(ws)
    labels = ws.read("labels", Label)
    inputs = make_id(
        VERSION,
        C,
        sorted([e.id, e.split, e.review, prompt_of(e)] for e in examples),
        sorted([p.id, p.sha256, p.heading, *p.also_asked[:1]] for p in evidence),
        [label.model_dump() for label in labels],
        [c.model_dump() for c in ws.recipe.cultures],
        ws.recipe.train.seed,
        neutral_prompts(),
    )
    return examples, evidence, labels, inputs


def wanted_inputs(ws: Workspace) -> str:
    """The hash of all that the router of a workspace is made from; `cmgr status` compares it."""
    return _records(ws)[3]


def build(ws: Workspace, force: bool = False, progress: Progress | None = None) -> bool:
    """Fit and save the workspace's router; False where it is up to date already.

    Raises MissingError where there is nothing to fit on yet.
    """
    examples, evidence, labels, inputs = _records(ws)
    if not evidence and not any(e.split == "fit" for e in examples):
        raise MissingError(f"{ws.folder} has no evidence to fit on. Find some: cmgr search")
    folder = ws.path("router")
    files = (folder / "router.json", folder / "router.npz")
    if not force and ws.is_current("route", inputs) and all(f.is_file() for f in files):
        return False
    check_installed()
    if progress:
        progress("router", 0, 1)
    cultures = ws.recipe.cultures
    rows = training_rows(cultures, examples, evidence, labels, ws.recipe.train.seed)
    ids = [c.id for c in cultures]
    router = fit_rows(rows, cultures, evidence).router(ids, ws.recipe.router)
    router.save(folder)
    ws.finish(
        "route",
        inputs,
        texts=len(rows),
        vocabulary=len(router.ngrams),
        countries={c.id: country_of(c) for c in cultures},
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
