"""Which of a culture's passages answer a prompt, if any does.

A passage is one vector: the mean of the vectors of its questions, of its text, and of all of it
together. A prompt is its vector and those of its sentences, by a map that is fitted to the
workspace's own examples (fitting.py). Without a sentence encoder the passages are ranked by BM25
over the same words. Below a threshold, calibrated on the same examples, nothing is shown.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmgr.errors import unless_read_only
from cmgr.records import Evidence, Example, make_id
from cmgr.retrieval import encoder as encoders
from cmgr.retrieval import fitting
from cmgr.retrieval.encoder import Vectors
from cmgr.retrieval.fitting import Asked, fit_map, mapped
from cmgr.retrieval.texts import fields_of, held_wordings, joined, names_in_prompts, pieces
from cmgr.search import current_evidence
from cmgr.sources.hygiene import addresses_a_model
from cmgr.sources.ranking import Ranking, terms
from cmgr.workspace import Workspace, write_atomic

VERSION = 1  # of what is kept; a change makes it again
COVERED = 0.99  # the share of prompts that a passage answers which the threshold lets through
MOST = 400  # examples that the map is fitted to
LEAST = 20  # examples from which on there is a map, and the threshold is the workspace's own
FOLDS = ("one half", "other half")  # of the passages
# where there are fewer: the threshold that quickstart's examples gave, by kind of score
USUAL = {"encoder": 0.3, "bm25": 0.1}


class Found(NamedTuple):
    """A passage that is shown, and its score: of its kind of ranking, 1 at most."""

    passage: Evidence
    score: float


class Index:
    """The evidence of a workspace's cultures, ready to be searched. Close it after use."""

    def __init__(self, ws: Workspace) -> None:
        self._ws = ws
        self._recipe = ws.recipe
        self._path = encoders.find(ws.recipe.answer.encoder, ws.folder)
        self._encoder: Any = None
        self._passages: dict[str, list[Evidence]] = defaultdict(list)
        for item in current_evidence(ws):
            # what addresses a model is marked in the evidence; it does not reach a prompt
            if not item.flags and not addresses_a_model(item.text):
                self._passages[item.culture].append(item)
        self._held = held_wordings(ws.recipe)
        self._cultures: dict[str, Vectors | Ranking] = {}
        self._names = {c.id: names_in_prompts(c) for c in ws.recipe.cultures}
        self._seen: dict[str, Vectors] = {}
        self._learnt: _Learnt | None = None

    def close(self) -> None:
        """Free the encoder."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None

    @property
    def kind(self) -> str:
        """What ranks: `encoder` or `bm25`."""
        return "encoder" if self._path else "bm25"

    def fingerprint(self, culture: str | None = None) -> str:
        """A hash of all that decides what is found for a culture (or for any), but the threshold.

        Of other cultures it covers what stands under the same question.
        """
        mine = {(e.topic, e.heading) for e in self.passages(culture)} if culture else set()
        return make_id(
            VERSION,
            encoders.fingerprint(self._path) if self._path else self.kind,
            sorted(self._held),
            sorted(
                e.id
                for whose, passages in self._passages.items()
                for e in passages
                if culture in (None, whose) or (e.heading and (e.topic, e.heading) in mine)
            ),
        )

    def passages(self, culture: str) -> list[Evidence]:
        """Every passage of a culture."""
        return self._passages.get(culture, [])

    def questions(self, passage: Evidence) -> list[str]:
        """The questions that a passage answers, those of the evaluation left out."""
        fields = fields_of(passage, self._held)
        return [text for name, text in fields.items() if name not in ("text", "all")]

    def search(self, culture: str, prompt: str, limit: int) -> list[Found]:
        """The passages that match a prompt best, best first, whatever their scores."""
        passages = self.passages(culture)
        if not passages:
            return []
        return _best(passages, self._scores(culture, prompt), limit)

    def search_unasked(self, example: Example, limit: int) -> list[Found]:
        """The same for an example's prompt, as if its question did not stand over its passage.

        So a question that the index has word for word is as hard to find as one in other words.
        """
        passages = self.passages(example.culture)
        return _best(passages, self._unasked(example, self._learning().maps), limit)

    def find(self, culture: str, prompt: str, limit: int) -> list[Found]:
        """The passages to show with a prompt; none where the best is below the threshold."""
        found = self.search(culture, prompt, limit) if limit else []
        if not found or found[0].score < self.threshold:
            return []
        return [one for one in found if one.score > 0]

    # -- scores ------------------------------------------------------------------------------

    def _scores(self, culture: str, prompt: str) -> Vectors:
        """A score per passage of a culture, shape (passages,)."""
        asked = self.query(culture, prompt)
        return self._matched(self._of(culture), asked, self._learning().maps.get("all"))

    def _matched(self, among: Vectors | Ranking, asked: str, by: Vectors | None) -> Vectors:
        if isinstance(among, Ranking):
            return _shares(among, asked)
        # a row a piece: the maximum over rows is faster than over columns
        cosines: Vectors = mapped(self._encode(pieces(asked)), by) @ among.T
        matched: Vectors = (cosines[0] + cosines.max(axis=0)) / 2
        return matched

    def query(self, culture: str, prompt: str) -> str:
        """What is looked for: a prompt without its task's instruction and the culture's name."""
        text = prompt
        for task in self._recipe.tasks:
            if task.instruction:
                text = text.removeprefix(task.instruction)
        without = " ".join(self._names[culture].sub("", text).split())
        return without or " ".join(text.split())

    def _encode(self, texts: Sequence[str]) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in self._seen]
        if new:
            if self._encoder is None:
                assert self._path is not None
                self._encoder = encoders.open_encoder(self._path, self._ws.path("cache"))
            if len(self._seen) > 10_000:
                self._seen.clear()
                new = list(dict.fromkeys(texts))
            self._seen.update(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._seen[text] for text in texts])

    # -- what is kept ------------------------------------------------------------------------

    def _of(self, culture: str) -> Vectors | Ranking:
        """A culture's vectors, or its BM25 index: kept in `index/`, and made where out of date."""
        if culture not in self._cultures:
            mine = self._passages[culture]
            fields = [fields_of(item, self._held) for item in mine]
            if self._path is None:
                made_from = make_id(VERSION, [e.id for e in mine], sorted(self._held))
                self._cultures[culture] = Ranking(
                    lambda: [terms(f["all"]) for f in fields],
                    [False] * len(mine),
                    (self._ws.path("index", f"{culture}.bm25"), made_from),
                )
            else:
                self._cultures[culture] = self._vectors(culture, fields)
        return self._cultures[culture]

    def _vectors(self, culture: str, fields: Sequence[Mapping[str, str]]) -> Vectors:
        """One vector a passage; only those of new or changed passages are computed."""
        assert self._path is not None
        path = self._ws.path("index", f"{culture}.npz")
        made_by = encoders.fingerprint(self._path)
        keys = [make_id(VERSION, made_by, list(f.items())) for f in fields]
        kept = _load(path)
        known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True)) if kept else {}
        missing = [n for n, key in enumerate(keys) if key not in known]
        if missing:
            texts = [text for n in missing for text in fields[n].values()]
            rows = iter(self._encode(texts))
            for n in missing:
                mean = np.mean([next(rows) for _ in fields[n]], axis=0)
                known[keys[n]] = mean.astype(np.float32)
        if missing or len(known) > len(set(keys)):
            rows_now = np.stack([known[key] for key in keys])
            with unless_read_only():
                _save(path, {"keys": np.array(keys), "vectors": rows_now})
        return np.stack([known[key] for key in keys])

    # -- what is learnt from the examples -----------------------------------------------------

    @property
    def threshold(self) -> float:
        """The score of the best passage from which on passages are shown.

        It lets through 99 in 100 of the workspace's own prompts, each as if its question did not
        stand over its passage, by a map that was fitted without that passage's questions.
        """
        return self._learning().threshold

    def _learning(self) -> _Learnt:
        """The maps and the threshold: kept in `index/`, and made where out of date."""
        if self._learnt is None:
            from cmgr.synthesize import current_examples

            known = {e.id for mine in self._passages.values() for e in mine}
            examples = [
                e
                for e in current_examples(self._ws)
                if e.stage == "task" and e.split == "fit" and known & set(e.evidence_ids)
            ]
            examples.sort(key=lambda e: make_id("learnt", e.id))
            how = (COVERED, MOST, LEAST, fitting.WEIGHT, fitting.STEPS)
            made_from = make_id(how, self.fingerprint(), sorted(e.id for e in examples))
            path = self._ws.path("index", "learnt.npz")
            kept = _load(path)
            if made_from not in kept:
                kept = self._learn(examples[:MOST]) | {made_from: np.zeros(1, np.float32)}
                with unless_read_only():
                    _save(path, kept)
            maps = {name: kept[name] for name in ("all", *FOLDS) if name in kept}
            self._learnt = _Learnt(maps, float(kept["threshold"][0]))
        return self._learnt

    def _learn(self, examples: Sequence[Example]) -> dict[str, Vectors]:
        """The map fitted to all questions, those to each half of the passages, the threshold."""
        usual = {"threshold": np.array([USUAL[self.kind]], np.float32)}
        if len(examples) < LEAST:
            return usual
        maps: dict[str, Vectors] = {}
        if self._path is not None:
            by_culture: dict[str, list[Example]] = defaultdict(list)
            for example in examples:
                by_culture[example.culture].append(example)
            asked = [self._asked(culture, mine) for culture, mine in by_culture.items()]
            maps["all"] = fit_map(asked)
            for fold in FOLDS:
                half = [
                    self._asked(culture, some)
                    for culture, mine in by_culture.items()
                    if (some := [e for e in mine if self._fold(e) == fold])
                ]
                maps[fold] = fit_map(half) if half else np.zeros_like(maps["all"])
        covered = [float(self._unasked(e, maps).max()) for e in examples]
        threshold = np.quantile(covered, 1 - COVERED)
        return {**maps, "threshold": np.array([threshold], np.float32)}

    def _asked(self, culture: str, examples: Sequence[Example]) -> Asked:
        """Questions and the passages that they are about: others are no wrong answers to learn."""
        vectors = self._of(culture)
        assert not isinstance(vectors, Ranking)
        own = [self._own(e) for e in examples]
        places = {n: place for place, n in enumerate(sorted(set(own)))}
        prompts = [self.query(culture, e.messages[-1].content) for e in examples]
        passages = self.passages(culture)
        hidden = [
            self._vector(self._hidden(e, passages[n])) for e, n in zip(examples, own, strict=True)
        ]
        return Asked(
            self._encode(prompts),
            vectors[sorted(places)],
            np.array([places[n] for n in own]),
            np.stack(hidden),
        )

    def _own(self, example: Example) -> int:
        """The number of the passage that an example rests on."""
        mine = set(example.evidence_ids)
        return next(n for n, e in enumerate(self.passages(example.culture)) if e.id in mine)

    def _fold(self, example: Example) -> str:
        """The half of the passages that an example's is in; one question's are in one."""
        own = self.passages(example.culture)[self._own(example)]
        return FOLDS[int(make_id("fold", own.topic, own.heading or own.id), 16) % 2]

    def _unasked(self, example: Example, maps: Mapping[str, Vectors]) -> Vectors:
        """An example's scores, its passage without its question, by the map of the other half."""
        culture = example.culture
        asked = self.query(culture, example.messages[-1].content)
        by = maps.get(FOLDS[1 - FOLDS.index(self._fold(example))])
        scores = self._matched(self._of(culture), asked, by).copy()
        own = self._own(example)
        fields = self._hidden(example, self.passages(culture)[own])
        alone: Vectors | Ranking
        if self._path is None:
            alone = Ranking(lambda: [terms(fields["all"])], [False])
        else:
            alone = self._vector(fields)[None]
        scores[own] = self._matched(alone, asked, by)[0]
        return scores

    def _hidden(self, example: Example, passage: Evidence) -> dict[str, str]:
        """The fields of an example's passage without its question."""
        question = str(example.inputs.get("question", ""))
        fields = {
            name: text
            for name, text in fields_of(passage, self._held).items()
            if text != question and name != "all"
        }
        return {**fields, "all": joined(passage, fields)}

    def _vector(self, fields: Mapping[str, str]) -> Vectors:
        mean: Vectors = np.mean(self._encode(list(fields.values())), axis=0)
        return mean


class _Learnt(NamedTuple):
    """Maps by name (of all passages, and of each half), and the threshold."""

    maps: Mapping[str, Vectors]
    threshold: float


# -- scores --------------------------------------------------------------------------------------


def _best(passages: Sequence[Evidence], scores: Vectors, limit: int) -> list[Found]:
    """The passages of the highest scores, the earlier one first where they are equal."""
    limit = min(limit, len(scores))
    least = np.partition(scores, len(scores) - limit)[len(scores) - limit] if limit else np.inf
    among = np.flatnonzero(scores >= least)  # few, of many thousand
    order = among[np.argsort(-scores[among], kind="stable")][:limit]
    return [Found(passages[i], round(float(scores[i]), 4)) for i in order]


def _shares(ranking: Ranking, asked: str) -> Vectors:
    """BM25 scores as a share of about the most that a text of this query's words could have."""
    most = len(set(terms(asked))) * np.log(1 + max(ranking.size, 2)) * 1.5
    shares: Vectors = ranking.scores(asked) / max(most, 1e-9)
    return shares


# -- the disk ------------------------------------------------------------------------------------


def _load(path: Path) -> dict[str, Vectors]:
    """Kept arrays by key; none where the file is not there, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(path, data.getvalue())
