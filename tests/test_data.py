"""data.py: GLUE, files and hub data sets; rows held out; tokens; what is wrong with data."""

import json
import os
import shutil
import subprocess
import sys

import datasets
import pytest
from helpers import REPOSITORY, arguments, equal, read, saved_weights

import run_glue
from glue_peft.data import order_of_labels
from glue_peft.errors import UsageError
from glue_peft.trainer import GlueTrainer

# GLUE, files and the hub


def test_mnli_has_two_validation_sets_two_test_sets_and_ax(run):
    """With metrics and predictions of each."""
    folder = run(task_name="mnli", do_predict=True, max_predict_samples=10)
    results = read(folder / "eval_results.json")
    assert {"eval_accuracy", "eval_accuracy_mm", "eval_loss", "eval_loss_mm"} <= results.keys()
    assert results["eval_loss"] != results["eval_loss_mm"]
    for name in ("predict_results_mnli.txt", "predict_results_mnli-mm.txt", "predict_results_ax.txt"):
        assert len((folder / name).read_text().splitlines()) == 11


def test_stsb_is_regression_with_three_scores(run):
    """It learns, and predicts numbers."""
    folder = run(task_name="stsb", do_predict=True, max_train_samples=None, max_eval_samples=None, num_train_epochs=4)
    results = read(folder / "eval_results.json")
    assert results["eval_pearson"] > 0.3
    mean = (results["eval_pearson"] + results["eval_spearmanr"]) / 2
    assert results["eval_combined_score"] == pytest.approx(mean)
    float((folder / "predict_results_stsb.txt").read_text().splitlines()[1].split("\t")[1])


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize("labels", [["bad", "good"], [0, 1], [0.25, 1.5]])
def test_own_files_for_classification_and_regression(run, tmp_path, suffix, labels):
    """Names, whole numbers and floats as labels, from CSV and JSON, learnt to the end."""
    for name in ("train", "validation", "test"):
        rows = [
            {"text": f"a {word} film", "label": label} for word, label in zip(["dull", "great"], labels, strict=True)
        ] * 8
        if name == "test":
            rows = [{"text": row["text"]} for row in rows]
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "json":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            path.write_text("\n".join([",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]))
    files = {f"{name}_file": tmp_path / f"{name}.{suffix}" for name in ("train", "validation", "test")}
    folder = run(task_name=None, dataset_path=None, do_predict=True, num_train_epochs=10, **files)
    results = read(folder / "eval_results.json")
    predictions = [line.split("\t")[1] for line in (folder / "predict_results_test.txt").read_text().splitlines()[1:]]
    if isinstance(labels[0], float):
        assert results["eval_mse"] < 0.4  # the variance of the labels
        assert float(predictions[0]) < float(predictions[1])
    else:
        assert results["eval_accuracy"] == 1.0
        assert predictions == [str(label) for label in labels] * 8


def test_file_names_are_no_patterns_and_unused_splits_no_matter(run, tiny, tmp_path):
    """As a browser names a second download; a split without labels, as IMDb's `unsupervised`, is left alone."""
    folder = tmp_path / "data[1]"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}(*).csv").write_text("text,label\n" + "a dull film,bad\na great film,good\n" * 8)
    files = {f"{name}_file": folder / f"{name}(*).csv" for name in ("train", "validation")}
    assert read(run("files", task_name=None, dataset_path=None, **files) / "eval_results.json")["eval_samples"] == 16

    shutil.copytree(tiny / "glue" / "mrpc", tmp_path / "own")
    rows = datasets.load_dataset("parquet", data_files=str(tiny / "glue/mrpc/test-*"), split="train")
    rows.to_parquet(tmp_path / "own" / "unsupervised-00000-of-00001.parquet")  # its labels are -1
    hub = run("hub", task_name=None, dataset_path=None, dataset_name=tmp_path / "own")
    assert set(read(hub / "run.json")["data_sha256"]) == {"train", "validation", "test"}


def test_labels_of_a_test_file_are_not_looked_at(run, tmp_path):
    """They may be empty or anything, for a regression too."""
    for name, labels in (("train", "0.5 1.5"), ("validation", "0.5 1.5"), ("test", "? -")):
        lines = [f"a film,{label}" for label in labels.split()] * 8
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    files = {f"{name}_file": tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    folder = run(task_name=None, dataset_path=None, do_predict=True, **files)
    assert len((folder / "predict_results_test.txt").read_text().splitlines()) == 17


def test_a_data_set_by_name(run, tiny):
    """A folder stands for a data set of the hub, which load_dataset treats alike."""
    folder = run(task_name=None, dataset_path=None, dataset_name=tiny / "glue" / "mrpc", do_predict=True)
    assert 0 <= read(folder / "eval_results.json")["eval_accuracy"] <= 1
    predictions = (folder / "predict_results_mrpc.txt").read_text()
    assert "equivalent" in predictions


def test_local_data_are_never_stale_nor_mixed_up(run, tiny, tmp_path):
    """Two folders of one name and the same modification times, then one of them rewritten in place."""
    first, second = tmp_path / "a" / "glue", tmp_path / "b" / "glue"
    for folder, rows in ((first, "train"), (second, "validation")):
        shutil.copytree(tiny / "glue" / "mrpc", folder / "mrpc")
        source = tiny / "glue" / "mrpc" / f"{rows}-00000-of-00001.parquet"
        shutil.copy(source, folder / "mrpc" / "train-00000-of-00001.parquet")
    records = [read(run(str(i), dataset_path=folder) / "run.json") for i, folder in enumerate((first, second))]
    assert records[0]["data_sha256"]["train"] != records[1]["data_sha256"]["train"]
    old = (first / "mrpc" / "train-00000-of-00001.parquet").stat()
    shutil.copy(second / "mrpc" / "train-00000-of-00001.parquet", first / "mrpc")
    os.utime(first / "mrpc" / "train-00000-of-00001.parquet", ns=(old.st_atime_ns, old.st_mtime_ns))
    rewritten = read(run("2", dataset_path=first) / "run.json")
    assert rewritten["data_sha256"]["train"] == records[1]["data_sha256"]["train"]


# Rows held out


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_selection_holds_rows_out_and_picks_the_epoch_on_them(run, monkeypatch, task):
    """They are not trained on, and the validation set takes no part."""
    trainers = []
    make_trainer = run_glue.make_trainer
    monkeypatch.setattr(run_glue, "make_trainer", lambda *a: trainers.append(make_trainer(*a)) or trainers[-1])
    flags = {"task_name": task, "max_train_samples": 200, "selection_fraction": 0.25, "num_train_epochs": 4}
    folder = run(load_best_model_at_end=True, **flags)
    trained, held_out = trainers[0].train_dataset, trainers[0].evaluations["eval_selection"]
    assert (len(trained), len(held_out)) == (150, 50)
    texts = [{str(row["input_ids"] + [row["labels"]]) for row in rows} for rows in (trained, held_out)]
    assert not texts[0] & texts[1]
    key = {"cola": "matthews_correlation", "stsb": "combined_score"}[task]
    scores = read(folder / "run.json")["scores"]
    values = [entry[f"selection_{key}"] for entry in scores["history"]]
    assert len(values) == 4 and scores["selected"] == scores["history"][values.index(max(values))]
    results = read(folder / "eval_results.json")
    assert results[f"eval_{key}"] == scores["selected"][f"eval_{key}"]
    assert scores["metric"] == f"eval_{key}"


@pytest.mark.parametrize("content", [None, b"not parquet"])
def test_without_do_eval_the_validation_set_is_not_read(run, tiny, tmp_path, content):
    """It may be missing or broken; the run is the one that evaluates on it too, to the bit."""
    shutil.copytree(tiny / "glue" / "mrpc", tmp_path / "glue" / "mrpc")
    (validation,) = (tmp_path / "glue" / "mrpc").glob("validation*")
    validation.unlink()
    if content is not None:
        validation.write_bytes(content)
    flags = {"selection_fraction": 0.25, "num_train_epochs": 2, "eval_strategy": "epoch"}
    alone = run("alone", do_eval=None, dataset_path=tmp_path / "glue", **flags)
    record, both = read(alone / "run.json"), read(run("both", **flags) / "run.json")
    assert not (alone / "eval_results.json").exists() and "validation" not in record["data_sha256"]
    assert record["arguments"]["do_eval"] is False and record["scores"]["metric"] == "selection_accuracy"
    assert not any(name.startswith("eval_") for entry in record["scores"]["history"] for name in entry)
    assert equal(saved_weights(alone), saved_weights(tmp_path / "both"))
    for mine, theirs in zip(record["scores"]["history"], both["scores"]["history"], strict=True):
        assert mine == {name: value for name, value in theirs.items() if not name.startswith("eval_")}
    assert (
        read(alone / "selection_results.json")["selection_accuracy"] == record["scores"]["last"]["selection_accuracy"]
    )
    assert record["metrics"]["selection_samples"] == 16


def test_without_do_eval_a_file_for_it_is_not_read(run, tmp_path):
    """Neither the user's own."""
    rows = "".join(f"{text},{label}\n" for label, text in enumerate(["a dull film", "a great film"])) * 20
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "validation.csv").write_bytes(b"\xff\xfe")
    files = {"train_file": tmp_path / "train.csv", "validation_file": tmp_path / "validation.csv"}
    flags = {"task_name": None, "dataset_path": None, "do_eval": None, "selection_fraction": 0.25}
    scores = read(run(**flags, **files) / "run.json")["scores"]
    assert 0 <= scores["last"]["selection_accuracy"] <= 1 and "best" not in scores


def test_selection_is_stratified_and_follows_the_seed(run, monkeypatch):
    """The classes keep their shares, the same seed holds out the same rows, and no row is lost."""
    held_out = []
    hold_out = run_glue.hold_out
    monkeypatch.setattr(run_glue, "hold_out", lambda *a: held_out.append(hold_out(*a)) or held_out[-1])
    for seed in (1, 1, 2):
        run(f"{len(held_out)}", seed=seed, selection_fraction=0.1, max_train_samples=500)
    rows = [parts["selection"]["idx"] for _, parts in held_out]
    assert rows[0] == rows[1] != rows[2]
    parts = [held_out[0][1][split]["label"] for split in ("train", "selection")]
    assert abs(sum(parts[0]) / 450 - sum(parts[1]) / 50) < 0.02
    assert set(held_out[0][1]["train"]["idx"]) | set(rows[0]) == set(range(500))


def test_selection_says_how_rows_were_held_out(run, caplog):
    """In the log and in run.json; by groups where rows share a text, as MRPC's of the test data do."""
    texts = {}
    for task in ("mrpc", "cola"):
        caplog.clear()
        found = read(run(task, task_name=task, selection_fraction=0.1, max_train_samples=500) / "run.json")["data"]
        (texts[task],) = (line for line in caplog.messages if line.startswith("selection: 50 of 500 training rows"))
        assert found["selection"]["rows"] == 50
        assert f"of the {found['selection']['comparable_rows']} with three or more words" in texts[task]
    assert "in whole groups of rows that repeat or contain one another" in texts["mrpc"]
    assert "drawn one by one" in texts["cola"]
    assert "selection" not in read(run("plain") / "run.json")["data"]


# Tokens


@pytest.mark.slow
def test_tokenised_data_are_found_again_by_the_next_process(tiny, tmp_path):
    """Another seed of the same task adds nothing to the cache."""
    cache = tmp_path / "home"
    counts = []
    for seed in (1, 2):
        command = arguments(tiny, tmp_path / f"out{seed}", seed=seed, cache_dir=cache, max_steps=1)
        subprocess.run([sys.executable, REPOSITORY / "run_glue.py", *command], check=True, capture_output=True)
        counts.append(len(list(cache.rglob("cache-*.arrow"))))
    assert counts[0] == counts[1] > 0


def test_padding_is_to_the_longest_of_the_batch_unless_asked_for(run, monkeypatch):
    """And to multiples of 8 in reduced precision, or of what the flag says."""
    widths = []
    training_step = GlueTrainer.training_step

    def watch(self, model, inputs, *args):
        widths.append(inputs["input_ids"].shape[1])
        return training_step(self, model, inputs, *args)

    monkeypatch.setattr(GlueTrainer, "training_step", watch)
    run("dynamic", per_device_train_batch_size=2)
    assert len(set(widths)) > 1
    widths.clear()
    run("fixed", per_device_train_batch_size=2, pad_to_max_length=True, max_seq_length=40)
    assert set(widths) == {40}
    widths.clear()
    run("reduced", per_device_train_batch_size=2, bf16=True, use_cpu=True)
    assert all(width % 8 == 0 for width in widths)
    widths.clear()
    run("chosen", per_device_train_batch_size=2, pad_to_multiple_of=16)
    assert {width % 16 for width in widths} == {0} and len(set(widths)) > 1


def test_too_long_a_max_seq_length_is_clipped_with_a_warning(run, caplog):
    """To the model's positions."""
    run(max_seq_length=10_000, pad_to_max_length=True)
    assert any("--max_seq_length 10000 is above the model's 64" in message for message in caplog.messages)


@pytest.mark.parametrize(("flags", "allowed"), [({"max_seq_length": 5}, ""), ({}, "together allow 5")])
def test_a_length_that_leaves_no_room_for_texts_is_refused(run, tiny, tmp_path, flags, allowed):
    """A pair's special tokens are four; by the flag, or by what the tokenizer says of its model."""
    shutil.copytree(tiny / "roberta", tmp_path / "short")
    settings = read(tmp_path / "short" / "tokenizer_config.json") | ({} if flags else {"model_max_length": 5})
    (tmp_path / "short" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        UsageError, match=f"--max_seq_length {flags.get('max_seq_length', 128)}: needed are 6.*{allowed}"
    ):
        run(model_name_or_path=tmp_path / "short", **flags)


@pytest.mark.parametrize(
    ("label2id", "order"),
    [
        ({"same": 1, "different": 0}, [1, 0]),
        ({"SAME": 1, "DIFFERENT": 0}, [1, 0]),
        ({"same": 0, "different": 0}, None),  # one output for both
        ({"same": 5, "different": 7}, None),  # outputs that the head doesn't have
        ({"same": 0, "different": 1, "unknown": 2}, None),
    ],
)
def test_labels_are_matched_by_name(label2id, order):
    """Each to an output of its own, or none."""
    assert order_of_labels(label2id, ["same", "different"]) == order


def test_labels_that_differ_in_case_alone_stay_apart():
    """As a run on such data saved them."""
    assert order_of_labels({"A": 0, "a": 1}, ["A", "a"]) == [0, 1]


# Bad input


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "sentence,label\na film,0\nb,1\n"}, "--validation_file is needed for --do_eval"),
        ({"train": None, "validation": "x"}, "exactly one of --task_name"),
        ({"train.txt": "sentence,label\n"}, "train.txt: must be a .csv or a .json file"),
        ({"train": "sentence\na\n", "validation": "sentence\na\n"}, "no column `label`"),
        ({"train": "label\n0\n1\n", "validation": "label\n0\n"}, "no column with texts"),
        (
            {"train": "s,label\na,0\nb,1\n", "validation": "s,label\na,2\n"},
            "validation.csv: row 1: the label '2' is unseen in training, which has 0, 1",
        ),
        ({"train": "s,label\na,0\nb,0\n", "validation": "s,label\na,0\n"}, "all labels are "),
        (
            {"train": "s,label\na,x\nb,\n", "validation": "s,label\na,x\n"},
            "train.csv: row 2 has an empty cell in the column `label`",
        ),
        (
            {"train": "s,label\na,x\n,y\n", "validation": "s,label\na,x\n"},
            "train.csv: row 2 has an empty cell in the column `s`",
        ),
        ({"train": "s,label\n1,x\n2,y\n", "validation": "s,label\n1,x\n"}, "train.csv: no column with texts"),
        ({"train.json": "{broken", "validation.json": "{}"}, "train.json: not JSON"),
        (
            {"train.json": '{"s": "a", "label": ["x"]}', "validation.json": '{"s": "a", "label": ["x"]}'},
            "train.json: row 1: 'label' is not a text or a number",
        ),
    ],
)
def test_bad_files_are_one_line(tiny, tmp_path, files, message):
    """It names the file, and what is wrong in it."""
    flags = {"task_name": None, "dataset_path": None}
    for name, content in files.items():
        path = tmp_path / (name if "." in name else f"{name}.csv")
        if content is not None:
            path.write_text(content)
            flags[f"{path.stem}_file"] = path
    with pytest.raises(UsageError, match=message) as caught:
        run_glue.main(arguments(tiny, tmp_path / "out", **flags))
    assert "\n" not in str(caught.value)


def test_missing_column_and_unreadable_parquet_name_the_folder(tiny, tmp_path):
    """Of a local copy of GLUE."""
    shutil.copytree(tiny / "glue" / "cola", tmp_path / "glue" / "mrpc")
    with pytest.raises(UsageError, match="no column `sentence1`, only sentence, label, idx"):
        run_glue.main(arguments(tiny, tmp_path / "out", dataset_path=tmp_path / "glue"))
    (tmp_path / "glue" / "mrpc" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(UsageError, match="train-00000-of-00001.parquet: not a readable parquet file"):
        run_glue.main(arguments(tiny, tmp_path / "out", dataset_path=tmp_path / "glue"))


@pytest.mark.parametrize(("score", "refused"), [(5.0, False), (5.5, True), (-1.0, True), (float("nan"), True)])
def test_a_glue_tasks_scores_are_in_their_range(run, tiny, tmp_path, score, refused):
    """STS-B's go from 0 to 5."""
    shutil.copytree(tiny / "glue" / "stsb", tmp_path / "glue" / "stsb")
    path = tmp_path / "glue/stsb/validation-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"), keep_in_memory=True)
    rows.map(lambda row, i: {"label": score if i == 2 else row["label"]}, with_indices=True).to_parquet(path)
    flags = {"task_name": "stsb", "dataset_path": tmp_path / "glue", "max_steps": 1}
    if not refused:
        run(**flags)
        return
    with pytest.raises(UsageError, match=f"validation split: row 3: the label {score} is not a score from 0 to 5"):
        run(**flags)


def test_a_cache_that_cannot_be_written_is_named(run, tiny, tmp_path, monkeypatch):
    """And not the file that was to be read through it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(UsageError, match=f"--cache_dir {tmp_path}/file: can't be written or read: "):
        run()
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("text,label\na,x\nb,y\n")
    files = {f"{name}_file": tmp_path / f"{name}.csv" for name in ("train", "validation")}
    with pytest.raises(UsageError, match=f"--cache_dir {tmp_path}/file: can't be written or read: "):
        run(task_name=None, dataset_path=None, **files)


def test_hub_out_of_reach_names_the_ways_to_work_offline(tiny, tmp_path):
    """--dataset_path, or what was downloaded before."""
    with pytest.raises(UsageError, match="nyu-mll/glue .*--dataset_path.*HF_HUB_OFFLINE"):
        run_glue.main(arguments(tiny, tmp_path / "out", dataset_path=None))
