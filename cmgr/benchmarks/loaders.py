"""The benchmarks by name: which files, which columns, which reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmgr.benchmarks import readers
from cmgr.benchmarks.formats import Record, rows_of
from cmgr.benchmarks.readers import Row


@dataclass(frozen=True)
class Loader:
    """How the files of a benchmark are read.

    `needs` are the columns that a file must have ("a or b": either will do); `give` tells a user
    which file is wanted; in a folder those count that match the first of `files` that any matches.
    `once`: of items with the same culture and group only the first counts.
    """

    items: Callable[[Path, int, Record], Iterator[Row | str]]
    needs: tuple[str, ...]
    give: str
    files: tuple[str, ...] = ()
    once: bool = False
    rows: Callable[[Path], Iterator[tuple[int, Record]]] = rows_of


LOADERS = {
    "normad": Loader(
        readers.normad,
        ("Country", "Story", "Gold Label"),
        "the csv of akhilayerukola/NormAd",
        ("normad*.csv", "normad*.jsonl"),
    ),
    "culturalbench": Loader(
        readers.culturalbench,
        (
            *("question_idx", "prompt_question", "answer", "country"),
            *(f"prompt_option_{letter}" for letter in "abcd"),
        ),
        "CulturalBench-Easy.csv (-Hard asks the same questions option by option)",
        ("CulturalBench-Easy.csv",),
    ),
    "blend": Loader(
        readers.blend,
        ("choices or annotations or aggregated_answers", "prompt or en_question", "ID"),
        "mc_questions_file*.csv or .json, or a country's short answers (South_Korea_data.json)",
        # both parts of 1.1, else what there is
        ("mc_questions_file-[12].csv", "mc_questions_file*", "*_data.json"),
        once=True,  # a question has a row for every set of wrong answers
    ),
    "fork": Loader(
        readers.fork,
        ("Question", "Option A", "Option B", "Answer Key", "Country", "Type"),
        "fork.csv or fork.jsonl",
        ("fork.csv", "fork.jsonl"),
    ),
    "crehate": Loader(
        readers.crehate,
        ("Text or text", "United_States_Hate or hate"),
        "CREHate_final_annotations.csv, which has a label per country",
        ("CREHate_final_annotations.csv",),
    ),
    "offenseval": Loader(
        readers.offenseval,
        ("tweet or text", "subtask_a"),
        "tweets under their published name, such as offenseval-tr-testset-v1.tsv, with the file of "
        "their labels beside it",
        ("*-test*.tsv", "test_a_tweets.tsv", "testset-levela.tsv"),
        rows=readers.offenseval_rows,
    ),
    "cali": Loader(
        readers.cali,
        ("premise", "hypothesis", "us_ratings", "in_ratings"),
        "data/data.tsv of CulturallyAwareNLI",
        ("data.tsv",),
        rows=partial(rows_of, quoted=False),
    ),
    "globalopinionqa": Loader(
        readers.globalopinionqa,
        ("question", "selections", "options"),
        "data/global_opinions.csv of llm_global_opinions",
        ("global_opinions.csv",),
    ),
    "normdial": Loader(
        readers.normdial,
        ("Labeled_Dialogue", "American_Norm or cn_Norm or Norm"),
        "NormDial_clean_dataset, or a cleaned_dialogue.csv in its folders",
        ("cleaned_dialogue.csv",),
    ),
    "safeworld": Loader(
        readers.safeworld,
        ("query", "country"),
        "the data folder, or one of its type1.json to type4.json",
        ("type[1-4].json",),
    ),
    "table": Loader(
        readers.table,
        ("answer",),
        "a file with the columns `answer`, `culture` or `country`, and the task's fields; map "
        "others with --map",
    ),
}
