"""cmgr/benchmarks: published forms are read as published, cards fit them, countries are known.

Every row here is invented; only its form is a benchmark's.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from cmgr.benchmarks import LOADERS, Row, culture_of, read
from cmgr.errors import MissingError, UsageError
from cmgr.recipe import Culture
from cmgr.tasks import Card, card, card_ids

IDS = (
    *("etiquette", "cultural-knowledge", "everyday-knowledge", "food-customs", "hate-speech"),
    *("offensive-language", "cultural-inference", "value-survey", "norm-adherence"),
    "safe-response",
)

NORMAD = """ID,Country,Background,Axis,Subaxis,Value,Rule-of-Thumb,Story,Explanation,Gold Label
17,japan,"### Eating
- Say thanks before a meal.",Etiquette,eating,Respect,Wait.,"Mia waited until Ken began, \
""as one does"". Is what Mia did socially acceptable?",It fits.,yes
18,türkiye,"### Visits",Etiquette,visiting,Respect,No shoes.,Tom kept his boots on.,No.,No
19,fiji,"### Gifts",Etiquette,gifts,Respect,Wrap it.,Ana read a book.,None.,neutral
20,fiji,"### Gifts",Etiquette,gifts,Respect,Wrap it.,Ana read a book.,None.,perhaps
21,fiji,"### Gifts",Etiquette,gifts,Respect,Wrap it.,,None.,yes
"""
EASY = """data_idx,question_idx,prompt_question,prompt_option_a,prompt_option_b,prompt_option_c,\
prompt_option_d,answer,country
12,12,"In Peru, what is usual at a wedding?",Cake,Soup,None,"Rice, fried",d,Peru
13,13,"In Peru, what is sung?",Hymns,Songs,Arias,,A,Peru
14,14,"In Peru, what is danced?",Waltz,Polka,Tango,Jig,E,Peru
"""
FORK = """ID,Question,Option A,Option B,Answer Key,Country,Type,Dimension
a-1,"In Japan, one drinks broth how?",from the bowl ,with a straw,A,Japan,Explicit,Eating Utensils
a-2,One drinks broth how?,with a straw,From the bowl,B,USA,Underspecified,Eating Utensils
a-3,One drinks pho broth how?,with a straw,From the bowl,B,Vietnam,Implicit,Eating Utensils
"""
CREHATE = """ID,Text,United_States_Hate,Australia_Hate,United_Kingdom_Hate,South_Africa_Hate,\
Singapore_Hate,SBIC_ID
SG-Reddit-999,"An invented,
""harmless"" post.",0.0,0.0,1.0,,0.0,N/A
"""
OFFENSEVAL = """id\ttweet\tsubtask_a
1\t"@USER an open quotation mark\tNOT
2\t@USER bir <LF> söz\tOFF
3\tno label
4\ttorn\tin two\tOFF
"""
CALI = """premise\thypothesis\tus_ratings\tin_ratings
"No tip, she said.\tIt isn't "usual.\t['E', 'E', 'N']\t['N', 'N', 'C', 'C']
He bowed.\tHe was late.\t['C', 'X']\t__import__('os').getcwd()
"""
# both national samples of India, a suffix beside a plain name, a suffix alone, and a tie
SELECTIONS = (
    "\"defaultdict(<class 'list'>, {'Britain': [0.7, 0.2, 0.1], 'S. Korea': [0.2, 0.3, 0.5], "
    "'India (Old national sample)': [0.1, 0.9, 0.0], "
    "'India (Current national sample)': [0.9, 0.1, 0.0], "
    "'China': [0.1, 0.2, 0.7], 'China (Non-national sample)': [0.9, 0.1, 0.0], "
    "'Egypt (Non-national sample)': [0.1, 0.9, 0.0], 'Peru': [0.4, 0.4, 0.2], "
    "'Chile': [0.4, 0.6], 'Kenya': [0.0, 0.0, 1.0]})\""
)
OPINIONS = f"""question,selections,options,source
Do you like tea?,{SELECTIONS},"['Yes', 'No', 'DK/Refused']",GAS
"From 1 to 3, how much?","defaultdict(<class 'list'>, {{'Peru': [0.1, 0.2, 0.6, 0.1]}})",\
"[1.0, 2.0, 3.0, ""Don't know""]",WVS
Who?,"defaultdict(<class 'list'>, {{'Peru': [1.0]}})",['Only one'],WVS
,"defaultdict(<class 'list'>, {{'Peru': [1.0, 0.0]}})","['Yes', 'No']",WVS
Is this code?,"defaultdict(<class 'list'>, {{'Peru': open('x')}})","['Yes', 'No']",WVS
"""
AMERICAN = """,American_Norm,American_Situation,Labeled_Dialogue
3,"Norm: Express thanks to a helper.","Situation:
Bob carries a box for Ann.","Norm Action: express thanks
Actor of the Norm: Ann

Dialogue:
Ann: Thank you, this is Adhered | work. Adhered | Ann thanks him.
Bob: Sure. Not Relevant | Bob answers.
Explanation: Ann is polite."
5,Norm: none,Situation: none,The situation is not applicable.
"""
CHINESE = """,Norm,Situation,cn_Norm,cn_Situation,Labeled_Dialogue
0,Norm: be modest,Situation: praise,规范：要谦虚,情境：受到称赞,"Actor of the Norm:
明明: guest

(明明： 我最厉害): Violated | brags
(主人： 是吗）: Not Relevant | reply"
"""
# a comma before each closing bracket, and one within a text
TYPE2 = r"""[
    {
        "scene": "I will dance.",
        "violated_specific_norm": "Do not dance here.",
        "country": "Sudan",
        "query": "I will dance, [or sing,] in S\u00e3o Jos\u00e9. And now?",

    },
    {"country": "Italy", "query": "",},
]
"""
TYPE1 = (
    '[{"index": "Mexico_12_3", "region_or_race": null, "country": "Mexico", "query": "I bow.",}]'
)


def mcq(ident: str, country: str, options: list[str], letter: str) -> dict[str, str]:
    choices = dict(zip("ABCD", options, strict=True))
    lines = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
    return {
        "MCQID": f"{ident}_1",
        "ID": ident,
        "country": country,
        "prompt": "What is a common lunch? Without any explanation, choose only one from the given "
        f'alphabet choices. Provide as JSON format: {{"answer_choice":""}}\n\n{lines}\n\nAnswer:',
        "choices": json.dumps(choices, indent=4, ensure_ascii=False),
        "choice_countries": json.dumps(dict.fromkeys("ABCD", "dummy"), indent=4),
        "answer_idx": letter,
    }


MCQ = [
    mcq("Al-en-06", "South_Korea", ["bread", "kimchi", "pizza", "tea"], "B"),
    mcq("Al-en-06", "South_Korea", ["gimbap", "rice", "soup", "tea"], "A"),
    mcq("Al-en-06", "UK", ["bread", "kimchi", "pizza", "tea"], "A"),
    mcq("Al-en-07", "UK", ["bread", "kimchi", "pizza", "tea"], "A") | {"choices": "{broken"},
]
ANNOTATIONS = {
    "Al-en-06": {
        "question": "점심?",
        "en_question": "What is lunch in South Korea?",
        "annotations": [
            {"answers": ["빵"], "en_answers": ["bread"], "count": 1},
            {"answers": ["김치"], "en_answers": ["kimchi", "kimchee"], "count": 4},
        ],
        "idks": {"idk": 0, "other": [], "no-answer": 0, "not-applicable": 2},
    },
    "Al-en-07": {
        "en_question": "Who?",
        "aggregated_answers": [{"answers": ["x"], "en_answers": ["x"], "count": 1}],
        "idks": {"idk": 1, "no-answer": 1, "not-applicable": 2},
    },
    "Al-en-08": {
        "en_question": "When?",
        "aggregated_answers": [{"answers": ["x"], "en_answers": [], "count": 1}],
        "idks": {},
    },
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def published(loader: str, folder: Path) -> Path:
    """A file or folder of a benchmark in its published form."""
    match loader:
        case "normad":
            return write(folder, "normad_etiquette_final_data.csv", "\ufeff" + NORMAD)
        case "culturalbench":
            return write(folder, "CulturalBench-Easy.csv", EASY)
        case "blend":
            return write(folder, "mc_questions_file_v1.1.json", json.dumps(MCQ))
        case "fork":
            return write(folder, "fork.csv", FORK)
        case "crehate":
            return write(folder, "CREHate_final_annotations.csv", CREHATE)
        case "offenseval":
            return write(folder, "offenseval-tr-training-v1.tsv", OFFENSEVAL)
        case "cali":
            return write(folder, "data.tsv", CALI.rstrip("\n"))
        case "globalopinionqa":
            return write(folder, "global_opinions.csv", OPINIONS)
        case "normdial":
            root = folder / "NormDial_clean_dataset"
            american, chinese = "American/adherence/thanks", "Chinese/violation/compliments"
            write(root, f"{american}/cleaned_dialogue.csv", AMERICAN)
            write(root, f"{american}/labeled_dialogue.csv", AMERICAN.replace("Adhered", "Violated"))
            write(root, f"{american}/.ipynb_checkpoints/cleaned_dialogue.csv", AMERICAN)
            write(root, f"{chinese}/cleaned_dialogue.csv", CHINESE)
            return root
        case "safeworld":
            write(folder, "data/culture/type1.json", TYPE1)
            write(folder, "data/policy/type2.json", TYPE2)
            return folder / "data"
    raise AssertionError(loader)


def split(loader: str, path: Path) -> tuple[list[Row], list[tuple[int, str]]]:
    """The items of a file, and the rows that have none."""
    found = list(read(loader, path))
    rows = [item for _, item in found if isinstance(item, Row)]
    assert all(item.number == n for n, item in found if isinstance(item, Row))
    return rows, [(n, item) for n, item in found if isinstance(item, str)]


# -- cards --------------------------------------------------------------------------------------


def test_there_are_these_ten_cards() -> None:
    assert card_ids() == sorted(IDS)
    assert {card(i).benchmark.loader for i in IDS} == LOADERS.keys() - {"table"}


@pytest.mark.parametrize("task_id", IDS)
def test_a_card_asks_for_its_culture_and_its_examples_have_its_form(task_id: str) -> None:
    made = card(task_id)
    assert made.id == task_id
    assert 3 <= len(made.queries) <= 5
    for query in made.queries:
        assert set(re.findall(r"\{(.*?)\}", query)) - {"topic"} == {"culture"}
    assert set(made.fields) == set(re.findall(r"\{(\w+)\}", made.prompt)) - {"culture", "options"}
    assert 2 <= len(made.examples) <= 3
    for example in made.examples:
        wrong = ["options"] if made.options else []
        assert list(example) == [*made.fields, "answer", *wrong]
        assert all(example.values())
        if made.labels:
            assert example["answer"] in made.labels
        if made.options:
            assert len({*example["options"], str(example["answer"])}) == made.options
        assert len(str(example["answer"]).split()) <= made.max_words
    assert len({str(example["answer"]) for example in made.examples}) > 1
    path = Path(__file__).parent.parent / "recipes" / "tasks" / f"{task_id}.yaml"
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("task_id", IDS)
def test_a_card_takes_what_its_loader_yields(task_id: str, tmp_path: Path) -> None:
    made: Card = card(task_id)
    rows, _ = split(made.benchmark.loader, published(made.benchmark.loader, tmp_path))
    assert rows
    for row in rows:
        assert set(row.fields) == set(made.fields)
        assert all(row.fields.values())
        assert row.group
        assert bool(row.options) == bool(made.options)
        assert row.answer in (made.labels or row.options)


# -- readers ------------------------------------------------------------------------------------


def test_normad(tmp_path: Path) -> None:
    rows, bad = split("normad", published("normad", tmp_path))
    assert rows == [
        Row(1, "japan", {"story": 'Mia waited until Ken began, "as one does".'}, "yes", group="17"),
        Row(2, "türkiye", {"story": "Tom kept his boots on."}, "no", group="18"),
        Row(3, "fiji", {"story": "Ana read a book."}, "neutral", group="19"),
    ]
    assert bad == [(4, "an unknown label"), (5, "no Story")]


def test_culturalbench(tmp_path: Path) -> None:
    rows, bad = split("culturalbench", published("culturalbench", tmp_path))
    question = {"question": "In Peru, what is usual at a wedding?"}
    options = ("Cake", "Soup", "None", "Rice, fried")  # None is a text, not a missing one
    assert rows == [Row(1, "Peru", question, "Rice, fried", options, group="12")]
    assert bad == [(2, "no prompt_option_d"), (3, "the answer is none of the options")]
    hard = "data_idx,question_idx,prompt_question,prompt_option,answer,country\n1,1,q,o,True,Peru\n"
    with pytest.raises(UsageError, match=r"Give CulturalBench-Easy\.csv"):
        split("culturalbench", write(tmp_path, "CulturalBench-Hard.csv", hard))


def test_blend_has_one_item_per_country_and_question(tmp_path: Path) -> None:
    rows, bad = split("blend", published("blend", tmp_path))
    options = ("bread", "kimchi", "pizza", "tea")
    question = {"question": "What is a common lunch?"}
    assert rows == [
        Row(1, "South_Korea", question, "kimchi", options, group="Al-en-06"),
        Row(3, "UK", question, "bread", options, group="Al-en-06"),
    ]
    assert bad == [(4, "choices that cannot be read")]


def test_blend_in_two_parts_is_one(tmp_path: Path) -> None:
    header = ",".join(MCQ[0])
    for number, row in (1, MCQ[0]), (2, MCQ[1]):
        cells = ['"' + cell.replace('"', '""') + '"' for cell in row.values()]
        text = f"{header}\n{','.join(cells)}\n"
        write(tmp_path, f"v1.1/mc_questions_file-{number}.csv", text)
    write(tmp_path, "mc_questions_file.csv", f"{header}\n{','.join(cells)}\n")  # an older one
    rows, bad = split("blend", tmp_path)
    assert [(row.number, row.answer) for row in rows] == [(1, "kimchi")]
    assert not bad


@pytest.mark.parametrize("as_list", [False, True])
def test_blend_short_answers(tmp_path: Path, as_list: bool) -> None:
    data = [{**row, "ID": i} for i, row in ANNOTATIONS.items()] if as_list else ANNOTATIONS
    path = write(tmp_path, "South_Korea_data.json", json.dumps(data))
    rows, bad = split("blend", path)
    question = {"question": "What is lunch in South Korea?"}
    accepted = ("kimchi", "kimchee", "bread")
    expected = Row(1, "South_Korea", question, "kimchi", (), accepted, group="Al-en-06")
    assert rows == [expected]
    assert bad == [(2, "too many annotators had no answer"), (3, "no English answer")]
    with pytest.raises(UsageError, match="does not say the country"):
        split("blend", path.rename(tmp_path / "korea.json"))


def test_fork_leaves_out_what_means_no_country(tmp_path: Path) -> None:
    rows, bad = split("fork", published("fork", tmp_path))
    assert [(r.culture, r.answer, r.options) for r in rows] == [
        ("Japan", "from the bowl", ("from the bowl", "with a straw")),
        ("Vietnam", "From the bowl", ("with a straw", "From the bowl")),
    ]
    assert rows[0].fields == {"question": "In Japan, one drinks broth how?"}
    assert rows[0].group == rows[1].group  # one question, two countries
    assert bad == [(2, "no country is meant")]


def test_fork_as_json_lines(tmp_path: Path) -> None:
    row = {"ID": "a", "Question": "How\u2028?", "Option A": "x", "Option B": "y"}
    row |= {"Answer Key": "B", "Country": "UAE", "Type": "Explicit"}
    path = write(tmp_path, "fork.jsonl", json.dumps(row, ensure_ascii=False) + "\n\n")
    assert [(r.culture, r.answer) for r in split("fork", path)[0]] == [("UAE", "y")]


def test_crehate_has_an_item_per_country(tmp_path: Path) -> None:
    rows, bad = split("crehate", published("crehate", tmp_path))
    answers = {"United_States": "no", "Australia": "no", "United_Kingdom": "yes", "Singapore": "no"}
    text = {"text": 'An invented,\n"harmless" post.'}
    assert rows == [Row(1, c, text, a, group="SG-Reddit-999") for c, a in answers.items()]
    assert bad == [(1, "no label")]
    ours = {"id": "P-1", "text": "A post.", "hate": {"Australia": 1, "Singapore": 2}}
    rows, bad = split("crehate", write(tmp_path, "crehate.jsonl", json.dumps(ours)))
    assert rows == [Row(1, "Australia", {"text": "A post."}, "yes", group="P-1")]
    assert bad == [(1, "an unknown label")]


def test_offenseval_is_not_quoted_and_names_a_language(tmp_path: Path) -> None:
    rows, bad = split("offenseval", published("offenseval", tmp_path))
    first = {"text": '"@USER an open quotation mark'}
    assert rows == [
        Row(1, "", first, "no", group="1", language="tr"),
        Row(2, "", {"text": "@USER bir \n söz"}, "yes", group="2", language="tr"),
    ]
    assert bad == [(3, "no subtask_a"), (4, "more cells than columns")]


@pytest.mark.parametrize(
    ("tweets", "labels", "other", "language"),
    [
        ("offenseval-tr-testset-v1.tsv", "offenseval-tr-labela-v1.tsv", "ar-labela-v1.csv", "tr"),
        ("offenseval-gr-test-v1.tsv", "offenseval-gr-labela-v1.csv", "gr-labelb-v1.csv", "el"),
        ("test_a_tweets.tsv", "test_a_labels.csv", "test_b_labels.csv", "en"),
        ("testset-levela.tsv", "labels-levela.csv", "labels-levelb.csv", "en"),
    ],
)
def test_labels_of_a_test_set_lie_beside_it(
    tmp_path: Path, tweets: str, labels: str, other: str, language: str
) -> None:
    path = write(tmp_path, tweets, "id\ttweet\n7\tone\n8\ttwo\n9\tthree\n")
    write(tmp_path, other, "7,NOT\n8,NOT\n9,NOT\n")
    with pytest.raises(UsageError, match="no file of labels beside it"):
        split("offenseval", path)
    write(tmp_path, labels, "8,OFF\n7,NOT\n")
    for given in (path, tmp_path):
        rows, bad = split("offenseval", given)
        assert [(r.fields["text"], r.answer) for r in rows] == [("one", "no"), ("two", "yes")]
        assert {r.language for r in rows} == {language}
        assert bad == [(3, "no subtask_a")]


def test_cali_takes_each_countrys_majority(tmp_path: Path) -> None:
    rows, bad = split("cali", published("cali", tmp_path))
    fields = {"premise": '"No tip, she said.', "hypothesis": "It isn't \"usual."}
    assert rows == [Row(1, "United States", fields, "entailment", group="1")]
    assert bad == [
        (1, "two answers are equally frequent"),
        (2, "an unknown label"),
        (2, "a cell that cannot be read"),
    ]


def test_a_pair_that_both_countries_rate_has_one_group(tmp_path: Path) -> None:
    text = "premise\thypothesis\tus_ratings\tin_ratings\nP.\tH.\t['C']\t['N', 'N', 'E']\n"
    rows, _ = split("cali", write(tmp_path, "data.tsv", text))
    assert [(r.culture, r.answer, r.group) for r in rows] == [
        ("United States", "contradiction", "1"),
        ("India", "neutral", "1"),
    ]


def test_globalopinionqa_takes_the_most_frequent_answer(tmp_path: Path) -> None:
    rows, bad = split("globalopinionqa", published("globalopinionqa", tmp_path))
    first = {r.culture: r for r in rows if r.number == 1}
    assert {name: r.answer for name, r in first.items()} == {
        "Britain": "Yes",
        "S. Korea": "No",  # half did not say
        "India (Current national sample)": "Yes",
        "China": "No",
        "Egypt (Non-national sample)": "No",
    }
    assert {r.options for r in first.values()} == {("Yes", "No")}
    assert {r.group for r in first.values()} == {"1"}
    scale = {"question": "From 1 to 3, how much?"}
    assert rows[-1] == Row(2, "Peru", scale, "3", ("1", "2", "3"), group="2")
    assert sorted(bad) == [
        (1, "its figures do not fit its options"),  # Chile
        (1, "nobody answered"),  # Kenya
        (1, "two answers are equally frequent"),  # Peru
        (3, "its options are fewer than two, more than ten, or not distinct"),
        (4, "no question"),
        (5, "a cell that cannot be read"),
    ]


def test_a_literal_is_bounded(tmp_path: Path) -> None:
    for value in ("[" * 5000, "[" + "1," * 60_000 + "1]"):
        text = f"premise\thypothesis\tus_ratings\tin_ratings\nP.\tH.\t{value}\t['E']\n"
        rows, bad = split("cali", write(tmp_path, "data.tsv", text))
        assert [r.culture for r in rows] == ["India"]
        assert bad == [(1, "a cell that cannot be read")]


def test_normdial_has_an_item_per_labelled_turn(tmp_path: Path) -> None:
    rows, bad = split("normdial", published("normdial", tmp_path))
    norm, situation = "Express thanks to a helper.", "Bob carries a box for Ann."
    said = "Ann: Thank you, this is Adhered | work."
    group = "American/adherence/thanks/1"
    fields = [
        {"norm": norm, "dialogue": situation, "turn": said},
        {"norm": norm, "dialogue": f"{situation}\n{said}", "turn": "Bob: Sure."},
    ]
    assert rows[:2] == [
        Row(1, "American", fields[0], "adhered", group=group),
        Row(1, "American", fields[1], "not relevant", group=group),
    ]
    group = "Chinese/violation/compliments/1"
    fields = [
        {"norm": "要谦虚", "dialogue": "受到称赞", "turn": "明明： 我最厉害"},
        {"norm": "要谦虚", "dialogue": "受到称赞\n明明： 我最厉害", "turn": "主人： 是吗"},
    ]
    assert rows[2:] == [
        Row(1, "Chinese", fields[0], "violated", group=group, language="zh"),
        Row(1, "Chinese", fields[1], "not relevant", group=group, language="zh"),
    ]
    assert bad == [(2, "no labelled turn")]


def test_normdial_needs_its_folders_and_the_cleaned_files(tmp_path: Path) -> None:
    root = published("normdial", tmp_path)
    one = root / "American" / "adherence" / "thanks"
    assert len(split("normdial", one / "cleaned_dialogue.csv")[0]) == 2
    for path in (one / "labeled_dialogue.csv", write(tmp_path, "dialogue.csv", AMERICAN)):
        with pytest.raises(UsageError, match="they say the culture"):
            split("normdial", path)


def test_safeworld_is_read_with_its_surplus_commas(tmp_path: Path) -> None:
    rows, bad = split("safeworld", published("safeworld", tmp_path))
    query = "I will dance, [or sing,] in São José. And now?"
    assert rows == [
        Row(1, "Mexico", {"query": "I bow."}, "specific", group="culture/Mexico_12_3"),
        Row(1, "Sudan", {"query": query}, "comprehensive", group="policy/type2/1"),
    ]
    assert bad == [(2, "no query")]
    one = tmp_path / "data" / "culture" / "type1.json"
    assert [row.answer for row in split("safeworld", one)[0]] == ["specific"]
    with pytest.raises(UsageError, match=r"keep type1\.json"):
        split("safeworld", one.rename(tmp_path / "first.json"))


# -- tables -------------------------------------------------------------------------------------


def test_a_table_has_our_columns_or_those_that_are_mapped(tmp_path: Path) -> None:
    text = "id,country,question,options,answer,note\nq1,UK,Tea?,milk | lemon,B,\n"
    text += "q2,UK,Tea?,milk | lemon,milk,n\nq3,UK,Tea?,milk | lemon,C,n\n"
    rows, bad = split("table", write(tmp_path, "mine.csv", text))
    options = ("milk", "lemon")
    asked = {"question": "Tea?"}
    assert rows == [
        Row(1, "UK", asked, "lemon", options, group="q1"),
        Row(2, "UK", asked | {"note": "n"}, "milk", options, group="q2"),
    ]
    assert bad == [(3, "the answer is none of the options")]
    lines = {"frage": "Tee?", "wo": "DE", "wahl": ["a", "b"], "gold": 1, "language": "de"}
    path = write(tmp_path, "theirs.jsonl", json.dumps(lines))
    columns = {"question": "frage", "culture": "wo", "answer": "gold"}
    found = [item for _, item in read("table", path, columns)]
    # a list is no field, unless it is mapped to the options
    assert found == [Row(1, "DE", {"question": "Tee?"}, "1", group="1", language="de")]
    path = write(tmp_path, "theirs.jsonl", json.dumps(lines | {"gold": "b"}))
    found = [item for _, item in read("table", path, columns | {"options": "wahl"})]
    assert [item.options for item in found if isinstance(item, Row)] == [("a", "b")]


def test_a_table_of_tabs_without_options(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.tsv", "culture\ttext\tanswer\tgroup\njapan\tA post\tno\tg\n")
    assert split("table", path)[0] == [Row(1, "japan", {"text": "A post"}, "no", group="g")]


def test_a_map_names_columns_that_are_there_and_is_for_tables_alone(tmp_path: Path) -> None:
    path = published("fork", tmp_path)
    with pytest.raises(UsageError, match=r"no column Frage.*it has ID, Question"):
        list(read("table", path, {"question": "Frage", "answer": "Answer Key"}))
    with pytest.raises(UsageError, match="cannot be mapped"):
        read("fork", path, {"question": "Question"})


def test_a_table_in_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {
            "culture": ["japan", None],
            "question": ["Tea?", "Rice?"],
            "options": [["green", "black"], None],
            "answer": ["A", "yes"],
            "year": [2020, 2021],
        }
    )
    path = tmp_path / "mine.parquet"
    frame.to_parquet(path)
    assert split("table", path)[0] == [
        Row(
            1, "japan", {"question": "Tea?", "year": "2020"}, "green", ("green", "black"), group="1"
        ),
        Row(2, "", {"question": "Rice?", "year": "2021"}, "yes", group="2"),
    ]


def test_parquet_without_pandas_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingError, match="pip install pandas pyarrow"):
        split("table", write(tmp_path, "mine.parquet", "x"))


# -- what is wrong with a file ------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
def test_another_format_is_named_with_what_is_wanted(tmp_path: Path, loader: str) -> None:
    path = write(tmp_path, "American/adherence/thanks/other.csv", "a,b\n1,2\n")
    with pytest.raises(UsageError) as raised:
        split(loader, path)
    message = str(raised.value)
    assert message.startswith(f"{path}: another format: no column ")
    assert f"It needs {LOADERS[loader].needs[0]}" in message
    assert "it has a, b. Give " in message


@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_that_is_missing_or_empty(tmp_path: Path, loader: str) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read(loader, tmp_path / "none.csv")
    for name in ("empty.csv", "empty.jsonl", "empty.json"):
        with pytest.raises(UsageError, match="it has no rows"):
            split(loader, write(tmp_path, name, ""))
    with pytest.raises(UsageError, match=r"a folder.* Give "):
        read(loader, tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.xlsx", b"PK", r"give a \.csv, .* or \.parquet file"),
        ("x.csv", b"answer\n\xff\n", "cannot be read"),
        ("x.jsonl", b'{"answer": "a"}\n{broken\n', "cannot be read after row 1"),
        ("x.jsonl", b'["answer"]\n', "row 1 is no object"),
        ("x.json", b'[{"answer": "a",,}]', "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as raised:
        split("table", path)
    assert str(path) in str(raised.value)


def test_a_loader_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no loader 'x': there are normad, "):
        read("x", tmp_path)


# -- whom a file means --------------------------------------------------------------------------

CULTURES = [
    Culture(id="united-states", name="the US", demonym="American", languages=["en"]),
    Culture(id="united-kingdom", name="United Kingdom", country="GB", languages=["en", "cy"]),
    Culture(id="south-korea", name="South Korea", demonym="Korean", languages=["ko"]),
    Culture(id="north-korea", name="North Korea"),
    Culture(id="india", name="India", languages=["hi", "en"]),
    Culture(id="west-java", name="West Java", country="ID"),
    Culture(id="bosnia", name="Bosnia and Herzegovina"),
    Culture(id="tuerkei", name="Türkei", country="TR", languages=["tr"]),
    Culture(id="emirates", name="United Arab Emirates", demonym="Emirati"),
    Culture(id="china", name="China", languages=["zh"]),
    Culture(id="east-timor", name="East Timor"),
]


@pytest.mark.parametrize(
    ("name", "culture"),
    [
        ("united_states_of_america", "united-states"),
        ("united-states", "united-states"),
        ("USA", "united-states"),
        ("us", "united-states"),
        ("American", "united-states"),
        ("Britain", "united-kingdom"),
        ("Great Britain", "united-kingdom"),
        ("UK", "united-kingdom"),
        ("the UK", "united-kingdom"),
        ("GB", "united-kingdom"),
        ("South_Korea", "south-korea"),
        ("south_korea", "south-korea"),
        ("S. Korea", "south-korea"),
        ("KR", "south-korea"),
        (" korean ", "south-korea"),
        ("North_Korea", "north-korea"),
        ("India (Current national sample)", "india"),
        ("IN", "india"),
        ("West_Java", "west-java"),
        ("Bosnia Herzegovina", "bosnia"),
        ("bosnia_and_herzegovina", "bosnia"),
        ("türkiye", "tuerkei"),
        ("Turkey", "tuerkei"),
        ("UAE", "emirates"),
        ("Chinese", "china"),
        ("timor-leste", "east-timor"),
        # parts of countries are not these countries, nor the other way round
        ("Northern Ireland", None),
        ("Assam", None),
        ("Indonesia", None),
        ("Hong Kong SAR", None),
        ("Atlantis", None),
        ("Japan", None),
        ("(none)", None),
        ("", None),
    ],
)
def test_whom_a_name_means(name: str, culture: str | None) -> None:
    found = culture_of(CULTURES, name)
    assert (found.id if found else None) == culture


@pytest.mark.parametrize(
    ("name", "language", "culture"),
    [
        ("", "tr", "tuerkei"),
        ("", "en", None),  # several speak it
        ("", "el", None),  # none does
        ("", "", None),
        ("India", "tr", "india"),  # a name counts, whatever the language
        ("Atlantis", "tr", None),
    ],
)
def test_a_language_means_the_only_culture_that_speaks_it(
    name: str, language: str, culture: str | None
) -> None:
    found = culture_of(CULTURES, name, language)
    assert (found.id if found else None) == culture


def test_a_name_that_two_cultures_share_means_neither() -> None:
    two = [Culture(id="bavaria", name="Bavaria", country="DE"), Culture(id="x", name="Germany")]
    assert culture_of(two, "DE") is None
    assert culture_of(two, "Germany") == two[1]  # by its own name
    assert culture_of(two[:1], "Germany") == two[0]
