"""tables/health.py: every run that a reader has to know about is listed with its folder, and no other."""

import json

import pytest
from helpers import fail_run, health, metrics_of, refusal, write_result, write_rows, write_run


def test_nothing_to_report(tmp_path):
    """A complete row with records is one line."""
    assert health(write_rows(tmp_path, {"rte": [0.6, 0.7], "cola": [0.5, 0.6]}), 2) == ["nothing found in 4 runs"]


def test_missing_and_unusable(tmp_path):
    """With --allow_missing each is listed, the broken one with its reason."""
    write_rows(tmp_path, {"rte": [0.6, 0.7], "mrpc": [0.8]})
    (tmp_path / "2" / "rte" / "run.json").write_text("")
    lines = health(tmp_path, 2, "--allow_missing")
    assert lines[0] == f"missing: {tmp_path}/2/mrpc"
    assert lines[1].startswith(f"unusable: {tmp_path}/2/rte (not valid JSON")


def test_dropped_runs_of_a_task_without_a_column_are_listed(tmp_path):
    """Where all runs of a task collapsed or are broken, their folders and reasons are there all the same."""
    write_run(tmp_path, 1, "rte", 0.7)
    write_run(tmp_path, 1, "cola", 0.0)
    (write_run(tmp_path, 1, "mrpc", 0.5) / "run.json").write_text("{")
    lines = health(tmp_path, 1, "--drop_collapsed", "--allow_missing")
    assert f"collapsed, dropped: {tmp_path}/1/cola (eval_matthews_correlation is 0)" in lines
    assert any(line.startswith(f"unusable: {tmp_path}/1/mrpc (not valid JSON") for line in lines)


def test_what_was_not_checked_is_said(tmp_path):
    """Without run.json the arguments aren't known, and eval_results.json may lack what tells of other mistakes."""
    write_rows(tmp_path, {"rte": [0.6, 0.7], "cola": [0.5, 0.6]})
    (tmp_path / "1" / "cola" / "run.json").unlink()
    (tmp_path / "2" / "rte" / "run.json").unlink()
    assert health(tmp_path, 2)[1:] == [
        "not checked: arguments (no run.json: 2 runs), epochs (no epoch: 2 runs), rows (no eval_samples: 2 runs), "
        "copies (no eval_loss: 2 runs)"
    ]


def write_bare(root, seed, task, score, **more):
    """Write an eval_results.json as Hugging Face's example leaves it, and no run.json."""
    rows = {"rte": 277, "mrpc": 408}[task]
    results = {"epoch": 10.0, "eval_loss": 0.5 + score / 7, "eval_runtime": 1.5, "eval_samples": rows} | more
    return write_result(root, seed, task, json.dumps(metrics_of(task, score) | results))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"epoch": 3.0}, "epoch 3, not 10"),
        ({"eval_samples": 64}, "eval_samples 64, not 277"),
        ({"eval_runtime": 9.0}, None),
    ],
)
def test_files_without_a_record_are_compared(tmp_path, more, reason):
    """Epochs and rows are in eval_results.json itself; runs that are as they should be leave nothing unchecked."""
    for seed, score in enumerate((0.6, 0.61, 0.62), start=1):
        write_bare(tmp_path, seed, "rte", score, **more if seed == 3 else {})
    expected = "nothing found in 3 runs" if reason is None else f"differs from its row: {tmp_path}/3/rte: {reason}"
    found, unchecked = health(tmp_path, 3)
    assert found == expected and unchecked.startswith("not checked: arguments (no run.json: 3 runs)")


def test_rows_of_another_number_than_glues(tmp_path):
    """All runs on 64 rows agree with each other, and not with the validation set; then the share isn't known."""
    for seed, score in enumerate((0.5, 0.61), start=1):
        write_bare(tmp_path, seed, "rte", score, eval_samples=64)
    assert health(tmp_path, 2) == [
        f"evaluated on 64 rows, where GLUE's rte has 277: {tmp_path}",
        "not checked: arguments (no run.json: 2 runs), collapse (no eval_majority_share: 2 runs)",
    ]


def test_copied_files(tmp_path):
    """Seeds with the same score and loss to all digits are one file, also where only the time is there to tell."""
    for seed in (1, 2, 3):
        write_bare(tmp_path, seed, "mrpc", 0.8)
        write_bare(tmp_path, seed, "rte", 0.6, eval_loss=None, eval_runtime=1.4142 if seed < 3 else 1.4143)
    assert health(tmp_path, 3)[:3] == [
        f"repeated, counted: {tmp_path}/2/mrpc (score and eval_loss of {tmp_path}/1/mrpc)",
        f"repeated, counted: {tmp_path}/3/mrpc (score and eval_loss of {tmp_path}/1/mrpc)",
        f"repeated, counted: {tmp_path}/2/rte (score and eval_runtime of {tmp_path}/1/rte)",
    ]


def test_copied_records(tmp_path):
    """The same of run.json's scores; equal scores with other losses are chance."""
    for seed, loss in ((1, 0.123456), (2, 0.123456), (3, 0.123457)):
        metrics = metrics_of("rte", 0.6) | {"eval_loss": loss}
        write_run(tmp_path, seed, "rte", 0.6, scores={"last": metrics})
    assert health(tmp_path, 3) == [
        f"repeated, counted: {tmp_path}/2/rte (score and eval_loss of {tmp_path}/1/rte)",
    ]


def test_a_score_that_is_no_number(tmp_path):
    """SciPy's Spearman of a constant output is NaN; Pearson, which is reported, stands beside it."""
    for seed, spearman in ((1, 0.8), (2, float("nan"))):
        metrics = {"eval_pearson": 0.8, "eval_spearmanr": spearman}
        write_result(tmp_path, seed, "stsb", json.dumps(metrics))
    lines = health(tmp_path, 2, "--stsb_metric", "pearson")
    assert lines[0] == f"diverged, counted: {tmp_path}/2/stsb (eval_spearmanr is nan)"


def test_diverged_and_failed(tmp_path):
    """A loss that is no number, and the kind of failure that run_glue.py noted; its words decide nothing."""
    write_run(tmp_path, 1, "rte", 0.6)
    write_run(tmp_path, 2, "rte", 0.6, metrics={"train_loss": float("nan")})
    fail_run(tmp_path, 3, "rte", "diverged", "the training loss is nan at step 7")
    fail_run(tmp_path, 4, "rte", "out of memory", "take less")
    fail_run(tmp_path, 5, "rte", "error", "diverged: stopped")
    fail_run(tmp_path, 6, "rte", "stopped", "by SIGTERM")
    assert f"{tmp_path}/4/rte/failure.json: failed: out of memory: take less" in refusal(tmp_path, 6)
    assert f"{tmp_path}/3/rte/failure.json: diverged: the training loss is nan at step 7" in refusal(tmp_path, 6)
    lines = health(tmp_path, 6, "--allow_missing")
    assert lines == [
        f"diverged: {tmp_path}/3/rte (the training loss is nan at step 7)",
        f"failed: {tmp_path}/4/rte (out of memory: take less)",
        f"failed: {tmp_path}/5/rte (diverged: stopped)",
        f"missing: {tmp_path}/6/rte",
        f"diverged, counted: {tmp_path}/2/rte (train_loss is nan)",
    ]
    assert "diverged, dropped" in health(tmp_path, 6, "--allow_missing", "--drop_collapsed")[4]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arguments": {"rank": 8}}, "rank 8, not 4"),
        ({"arguments": {"num_train_epochs": 3.0}}, "num_train_epochs 3.0, not 10.0"),
        ({"base_model": {"sha256": "0"}}, 'base model "0", not "5f63"'),
        ({"data_sha256": {"train": "other"}}, 'train data "other", not "rte train"'),
        ({"adapter_config": {"lora_alpha": 1}}, None),  # the others don't record it
        ({"adapter_config": {"r": 8}}, "adapter_config.r 8, not 4"),
        (
            {"adapter_config": {"target_modules": ["query"]}},
            'adapter_config.target_modules ["query"], not ["dense", "key", "query", "value"]',
        ),
        ({"arguments": {"target_modules": ["query"]}}, None),  # what earlier versions recorded without an adapter too
        ({"arguments": {"init_adapter_from": "x/3/mnli"}}, "starts from an adapter true, not false"),
        ({"arguments": {"seed": 1}}, "its seed is 1"),
        ({"precision": "fp16"}, 'precision "fp16", not "float32"'),
        ({"arguments": {"output_dir": "elsewhere", "logging_steps": 7, "dataset_path": "b"}}, None),
        ({"arguments": {"fast_adapters": False}}, None),  # --no_fast_adapters computes the same, ...
        ({"arguments": {"fast_adapters": "stacked"}}, None),  # ... and so does every way of today
        ({"arguments": {"learning_rate": 2e-4}}, "learning_rate 0.0002, not 0.0001"),
        ({"arguments": {"tokenizer_name": "another"}}, 'tokenizer_name "another", not null'),
    ],
)
def test_runs_made_in_another_way(tmp_path, changes, reason):
    """The odd one out is listed with what differs; what only names a run may differ."""
    usual = {"fast_adapters": True, "learning_rate": 1e-4, "tokenizer_name": None}
    write_rows(tmp_path, {"rte": [0.6, 0.61, 0.62, 0.63]}, arguments=usual)
    changes = changes | {"arguments": usual | changes.get("arguments", {})}
    write_run(tmp_path, 3, "rte", 0.62, **changes)
    expected = "nothing found in 4 runs"
    if reason is not None:
        expected = f"differs from its row: {tmp_path}/3/rte: {reason}"
    assert health(tmp_path, 4) == [expected]


def test_held_out_rows_go_by_the_seed(tmp_path):
    """With --selection_fraction the training rows differ between seeds by design; a run without it is another one."""
    for seed in (1, 2, 3):
        write_run(
            tmp_path, seed, "rte", 0.6, arguments={"selection_fraction": 0.1}, data_sha256={"train": f"rows of {seed}"}
        )
    assert health(tmp_path, 3) == ["nothing found in 3 runs"]
    for other, text in ((None, "null"), (0.2, "0.2")):
        write_run(tmp_path, 3, "rte", 0.6, arguments={"selection_fraction": other})
        (line,) = health(tmp_path, 3)
        assert line.endswith(f"3/rte: selection_fraction {text}, not 0.1")


def test_tasks_may_differ_in_epochs_but_not_in_rank(tmp_path):
    """Recipes train each task in its own way; the row's adapter and model are one."""
    write_rows(tmp_path, {"rte": [0.6, 0.6], "mrpc": [0.8, 0.8]})
    write_rows(tmp_path, {"cola": [0.5, 0.5]}, arguments={"num_train_epochs": 80.0, "learning_rate": 4e-4})
    assert health(tmp_path, 2) == ["nothing found in 6 runs"]
    write_rows(tmp_path, {"cola": [0.5, 0.5]}, arguments={"rank": 8})
    assert health(tmp_path, 2) == [f"differs from its row: {tmp_path}/{seed}/cola: rank 8, not 4" for seed in (1, 2)]
    write_rows(tmp_path, {"cola": [0.5, 0.5]}, adapter_config={"target_modules": ["query", "value"]})
    assert [line.split(": ")[2] for line in health(tmp_path, 2)] == [
        'adapter_config.target_modules ["query", "value"], not ["dense", "key", "query", "value"]'
    ] * 2


def test_odd_values_are_compared_and_shortened(tmp_path):
    """Arguments of any JSON type are compared; a long value is cut, and names can't break the line."""
    write_rows(tmp_path, {"rte": [0.6, 0.6]})
    write_run(tmp_path, 3, "rte", 0.6, arguments={"rank": {"a": ["x" * 500]}})
    (line,) = health(tmp_path, 3)
    assert line == f'differs from its row: {tmp_path}/3/rte: rank {{"a": ["{"x" * 29}..., not 4'
    write_rows(tmp_path, {"rte": [0.6, 0.6, 0.6]}, arguments={"odd\nname": 1})
    write_run(tmp_path, 3, "rte", 0.6, arguments={"odd\nname": 2})
    assert health(tmp_path, 3) == [rf"differs from its row: {tmp_path}/3/rte: odd\nname 2, not 1"]
