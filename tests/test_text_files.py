"""text_files.py, and what data.py makes of its texts: kinds of tasks, faults by file, row and value."""

import logging
from pathlib import Path

import datasets
import pytest

from glue_peft.arguments import DataTrainingArguments, GlueTrainingArguments, ModelArguments
from glue_peft.data import check_names_of_labels, check_tokenizer, describe_task, load_raw_datasets
from glue_peft.errors import UsageError


def task_of(tmp_path: Path, train: str, validation: str | None = None, suffix: str = ".csv", **flags: object):
    """Return what files of this content are read as, and their rows."""
    paths = {}
    for split, text in {"train": train, "validation": validation or train}.items():
        paths[f"{split}_file"] = str(tmp_path / f"{split}{suffix}")
        Path(paths[f"{split}_file"]).write_bytes(text.encode() if isinstance(text, str) else text)
    data_args = DataTrainingArguments(**paths, **flags)
    training_args = GlueTrainingArguments(output_dir=str(tmp_path / "out"), do_train=True, do_eval=True)
    raw_datasets = load_raw_datasets(data_args, ModelArguments(), training_args)
    return describe_task(raw_datasets, data_args, training_args)


def test_words_for_nothing_are_texts(tmp_path):
    """As pandas would not have them."""
    task, rows = task_of(tmp_path, "sentence,label\nnull,pos\nNA,neg\nNone of it,neg\nnan,pos\n")
    assert rows["train"]["sentence"] == ["null", "NA", "None of it", "nan"]
    assert task.label_counts == {"neg": 2, "pos": 2}


def test_labels_keep_their_spelling(tmp_path):
    """Zeros in front, and an order by number where all are whole numbers."""
    task, _ = task_of(tmp_path, "sentence,label\na,001\nb,010\n")
    assert task.label_list == ("001", "010") and not task.is_regression
    task, _ = task_of(tmp_path, "sentence,label\na,10\nb,9\nc,2\n")
    assert task.label_list == ("2", "9", "10")


def test_numbers_that_are_not_all_whole_are_scores(tmp_path):
    """In whichever file and row the first of them stands."""
    many = "".join(f"text {i},{i % 3}\n" for i in range(20_000))
    task, rows = task_of(tmp_path, "sentence,label\n" + many, "sentence,label\na,1\nb,2.5\n")
    assert task.is_regression and task.label_list == () and len(rows["train"]) == 20_000
    assert task_of(tmp_path, "sentence,label\na,1e-3\nb,2\n")[0].is_regression


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ("sentence,label\nthe film, great,pos\n", None, r"train.csv: row 1 has 3 fields, the header has 2: .*quotes"),
        ("sentence,label\na,pos\nb\n", None, r"train.csv: row 2 has 1 fields, the header has 2"),
        ("sentence,label\na,0.5\nb,good\n", None, r"train.csv: row 2: the label 'good' is not a number, but '0.5'"),
        ("sentence,label\na,0.5\nb,1\n", "sentence,label\na,1\nb,bad\n", r"validation.csv: row 2: the label 'bad'"),
        ("sentence,label\na,0\nb,1\nc,nan\n", None, r"train.csv: row 3: the label 'nan' is not a finite number"),
        ("sentence,label\na,1\nb,1.0\nc,0\n", None, r"row 2: the label '1.0' has a decimal point, '1' \(.*row 1\)"),
        ("sentence,label\na,pos\nb,neg\nc,pos \n", None, r"row 3: the label 'pos ' differs from 'pos' in blanks"),
        ("sentence,label\na,1\nb,0\n", "sentence,label\na,01\n", r"row 1: the label '01' differs from '1' in spell"),
        ("sentence,label\na,x\nb, \n", None, r"row 2 has an empty cell in the column `label`"),
        ("sentence,label\na,0.5\nb,inf\n", None, r"train.csv: row 2: the label 'inf' is not a finite number"),
        (
            "sentence,label\na,x\nb,y\n",
            "sentence,label\na,x\nb,z\n",
            "validation.csv: row 2: the label 'z'",
        ),
        ("sentence,label\na,x\n,y\n", None, r"train.csv: row 2 has an empty cell in the column `sentence`"),
        ("sentence,label\na,x\nb,\n", None, r"train.csv: row 2 has an empty cell in the column `label`"),
        ("sentence,label\na,-1\nb,-1\n", None, r"every label is -1"),
        ("sentence,label\na,x\nb,x\n", None, r"train.csv.*all labels are x"),
        ("sentence,sentence,label\na,b,x\n", None, r"two columns have the same name"),
        ("a,b,c,label\nx y,z w,v u,1\nx,z,v,0\n", None, r"3 columns with texts, a, b, c, .*--text_columns"),
        ("n,label\n1,x\n2,y\n", None, r"no column with texts"),
        ("sentence,gold\na,x\nb,y\n", None, r"no column `label`, only sentence, gold; --label_column"),
        ('sentence,label\n"a"b,x\n', None, r"train.csv: not a CSV file: line 2"),
        ("", None, r"train.csv: has no rows"),
    ],
)
def test_faults_are_named_by_file_row_and_value(tmp_path, train, validation, message):
    """One line each."""
    with pytest.raises(UsageError, match=message) as caught:
        task_of(tmp_path, train, validation)
    assert "\n" not in str(caught.value)


def test_what_is_not_utf8_is_named(tmp_path):
    """With the byte."""
    with pytest.raises(UsageError, match=r"train.csv: is not UTF-8 \(byte 15 is 0xe9\)"):
        task_of(tmp_path, b"sentence,label\n\xe9t\xe9,x\n")


def test_hidden_labels_are_left_out_and_counted(tmp_path):
    """-1 beside 0, 1, … or beside words, over all files; where it is one of two labels it is a class."""
    task, rows = task_of(tmp_path, "sentence,label\na,0\nb,-1\nc,1\nd,-1\n")
    assert task.dropped_rows == {"train": 2, "validation": 2} and rows["train"]["sentence"] == ["a", "c"]
    task, _ = task_of(tmp_path, "sentence,label\na,pos\nb,-1\n")
    assert task.label_list == ("-1", "pos") and task.dropped_rows == {}
    task, _ = task_of(tmp_path, "sentence,label\na,pos\nb,-1\nc,neg\n", "sentence,label\na,pos\nb,-1\n")
    assert task.label_list == ("neg", "pos") and task.dropped_rows == {"train": 1, "validation": 1}
    task, _ = task_of(tmp_path, "sentence,label\na,1\nb,-1\n", "sentence,label\na,1\n")
    assert task.label_list == ("-1", "1") and task.dropped_rows == {}
    task, _ = task_of(tmp_path, "sentence,label\na,-1\nb,-2\nc,-1\n")
    assert task.label_list == ("-2", "-1") and task.dropped_rows == {}
    with pytest.raises(UsageError, match="validation.csv: every label is -1"):
        task_of(tmp_path, "sentence,label\na,0\nb,1\n", "sentence,label\na,-1\n")


def test_columns_are_found_or_chosen(tmp_path):
    """Ids and numbers are no texts; flags choose."""
    train = "id,score,message,source,gold\n7,1,good film,web page,pos\n8,2,bad film,a book,neg\n"
    task, rows = task_of(tmp_path, train, text_columns=["message"], label_column="gold")
    assert task.sentence_keys == ("message", None) and task.label_list == ("neg", "pos")
    task, _ = task_of(tmp_path, train, text_columns=["source", "message"], label_column="gold")
    assert task.sentence_keys == ("source", "message")
    with pytest.raises(UsageError, match="2 columns with texts, message, source, beside `gold`; .*--text_columns"):
        task_of(tmp_path, train, label_column="gold")
    with pytest.raises(UsageError, match=r"there are id, score, message, source, gold\)"):
        task_of(tmp_path, train, label_column="gold")
    with pytest.raises(UsageError, match="row 3 has an empty cell in the column `gold`"):
        task_of(tmp_path, train + "9,3,good,a film,\n", text_columns=["message"], label_column="gold")
    with pytest.raises(UsageError, match=r"train.csv: no column `nope`"):
        task_of(tmp_path, train, text_columns=["nope"], label_column="gold")
    with pytest.raises(UsageError, match=r"--label_column gould: not in .*train.csv"):
        task_of(tmp_path, train, label_column="gould")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("premise,hypothesis", ("premise", "hypothesis")),
        ("source,text1,text2", ("text1", "text2")),
        ("q_a,q_b", ("q_a", "q_b")),
        ("text,idx", ("text", None)),
        ("uid,text", None),  # an id beside a text is no pair
        ("a,b", None),
        ("text1,text2,q_a,q_b", None),
    ],
)
def test_a_pair_goes_by_its_names_alone(tmp_path, columns, found):
    """What is only beside the text is never taken for a second one."""
    width = len(columns.split(","))
    rows = "".join(",".join(f"word{number}{row}" for number in range(width)) + f",{row % 2}\n" for row in range(4))
    if found is not None:
        assert task_of(tmp_path, f"{columns},label\n{rows}")[0].sentence_keys == found
        return
    with pytest.raises(UsageError, match=f"{width} columns with texts, .*; name one or two with --text_columns"):
        task_of(tmp_path, f"{columns},label\n{rows}")


def test_whole_numbers_with_a_decimal_point_are_scores_with_a_warning(tmp_path, caplog):
    """As pandas writes classes beside an empty cell: only the user knows."""
    assert task_of(tmp_path, "sentence,label\na,1.0\nb,0.0\n")[0].is_regression
    assert any("row 1: labels like '1.0' are read as scores" in message for message in caplog.messages)
    caplog.clear()
    assert task_of(tmp_path, "sentence,label\na,1\nb,2.0\nc,2.5\n")[0].is_regression
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "content",
    [
        '{"sentence": "a\\u2028b", "label": 0.50}\n{"sentence": "null", "label": 1}\n',
        '[{"sentence": "a\\u2028b", "label": 0.50},\n {"sentence": "null", "label": 1}]',
    ],
)
def test_json_is_read_as_text_too(tmp_path, content):
    """Numbers as they are written."""
    task, rows = task_of(tmp_path, content, suffix=".json")
    assert rows["train"]["label"] == ["0.50", "1"] and rows["train"]["sentence"] == ["a\u2028b", "null"]
    assert task.is_regression


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "row 1 is not an object but null"),
        ("[1]", "row 1 is not an object"),
        ('{"sentence": ["a"], "label": 1}', "row 1: 'sentence' is not a text or a number"),
        ('{"sentence": "a", "label": 1}\n{"sentence": "b"', "train.json: not JSON"),
        ('{"sentence": "a", "label": 1}\n{"sentence": "b"}', "row 2 has an empty cell in the column `label`"),
        ("[]", "has no rows"),
    ],
)
def test_json_faults(tmp_path, content, message):
    """One line each."""
    with pytest.raises(UsageError, match=message):
        task_of(tmp_path, content, suffix=".json")


def test_line_ends_inside_texts(tmp_path):
    """Quoted line ends and separators that only Python's splitlines knows belong to the text."""
    _, rows = task_of(tmp_path, 'sentence,label\r\n"a\nb",x\r\n"c\u2028d\x0be",y\r\n')
    assert rows["train"]["sentence"] == ["a\nb", "c\u2028d\x0be"]


@pytest.mark.parametrize(
    ("tokens", "embedded", "refused"),
    [(50_265, 50_265, False), (128_001, 128_100, False), (5, 30_522, True), (30_522, 5_000, True)],
)
def test_the_tokenizer_has_to_be_the_models(tokens, embedded, refused):
    """Rounded-up embeddings pass; an empty tokenizer and a larger one don't."""

    class Tokenizer:
        """As much of a tokenizer as the check asks."""

        name_or_path, pad_token_id = "x", 0
        __len__ = lambda self: tokens  # noqa: E731

    if refused:
        with pytest.raises(UsageError, match="^x: the tokenizer there has .*--tokenizer_name"):
            check_tokenizer(Tokenizer(), embedded)
    else:
        check_tokenizer(Tokenizer(), embedded)


@pytest.mark.parametrize(
    ("task", "names", "is_right"),
    [
        ("sst2", ["negative", "positive"], True),
        ("sst2", ["positive", "negative"], False),
        ("rte", ["not_entailment", "entailment"], False),
        ("wnli", ["not_entailment", "entailment"], True),
        ("qnli", ["no", "yes"], False),
    ],
)
def test_a_glue_tasks_labels_are_glues_own_in_their_order(task, names, is_right):
    """WNLI's order is the reverse of RTE's; F1 and the leaderboard go by it."""
    feature = datasets.ClassLabel(names=names)
    if is_right:
        check_names_of_labels(feature, tuple(names), task)
    else:
        with pytest.raises(UsageError, match=f"--task_name {task}: its labels are .*, the data's "):
            check_names_of_labels(feature, tuple(names), task)
    check_names_of_labels(datasets.Value("int64"), (0, 1), task)
    with pytest.raises(UsageError, match="its labels are"):
        check_names_of_labels(datasets.Value("int64"), (1, 2), task)


def test_half_a_letter_is_named(tmp_path):
    """A lone surrogate, which no file of ours could hold."""
    with pytest.raises(UsageError, match="row 1: 'sentence' holds half a letter"):
        task_of(tmp_path, '{"sentence": "\\ud800 a", "label": 1}', suffix=".json")
