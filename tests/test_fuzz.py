"""Flags and argument files that nobody would write: a run ends with exit status 0, or with 1 or 2 and one line."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from helpers import arguments
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_glue
from glue_peft.arguments import AdapterArguments, DataTrainingArguments, GlueTrainingArguments, ModelArguments
from glue_peft.errors import run_script

# These would start other processes, compile for minutes, train for hours, or ask the network.
LEFT_OUT = {
    "output_dir", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers", "deepspeed",
    "torch_compile", "push_to_hub", "max_steps", "num_train_epochs", "ddp_timeout", "local_rank", "model_name_or_path",
    "dataset_name", "log_level", "log_level_replica", "disable_tqdm", "max_train_samples",
    "gradient_accumulation_steps", "cache_dir",
}  # fmt: skip
FLAGS = sorted(
    field.name
    for kind in (ModelArguments, DataTrainingArguments, AdapterArguments, GlueTrainingArguments)
    for field in dataclasses.fields(kind)
    if field.init and field.name not in LEFT_OUT
)
WORDS = [
    "", "x", "0", "1", "-1", "2", "0.5", "nan", "inf", "1e400", "1e-300", "99999999999999999999", "true", "False",
    "None", "null", "[]", "{}", '{"a": 1}', "no", "epoch", "steps", "best", "all", "none", "loss", "accuracy", "f1",
    "linear", "cosine", "polynomial", "reduce_lr_on_plateau", "adafactor", "sgd", "adamw_bnb_8bit", "mrpc", "stsb",
    "mnli", "query", "lora", "randlora", "vera", "/", "/dev/null", "nowhere/at all", "a" * 300, "\udcff", "é",
    "--seed",
]  # fmt: skip
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FLAGS), inner, max_size=3),
    max_leaves=6,
)


def assert_ends_as_it_may(argv: list[str], capsysbinary: pytest.CaptureFixture) -> None:
    """Run with these flags: the exit status is 0, or 1 or 2 with one line, and there is no traceback."""
    capsysbinary.readouterr()
    logging.disable(logging.WARNING)
    try:
        status = run_script(lambda: run_glue.main(argv), "run_glue.py")
    finally:
        logging.disable(logging.NOTSET)
    said = capsysbinary.readouterr().err.decode(errors="replace")
    lines = [line for line in said.splitlines() if line.startswith("run_glue.py: ")]
    assert status in (0, 1, 2) and "Traceback" not in said, said[-3000:]
    assert len(lines) == (status != 0), said[-3000:]


@pytest.fixture
def base(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the flags of a run of one step, in a folder where a relative path does no harm."""
    monkeypatch.chdir(tmp_path)
    flags = {"max_steps": 1, "max_train_samples": 8, "max_eval_samples": 8, "per_device_train_batch_size": 4}
    return arguments(tiny, tmp_path / "out", overwrite_output_dir=True, **flags)


def few(examples: int) -> settings:
    """Return the settings of a test that draws so many examples, the same at every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks)


EXTRA_FLAGS = st.lists(
    st.tuples(st.sampled_from(FLAGS), st.lists(st.sampled_from(WORDS), max_size=2)), min_size=1, max_size=2
)


@few(30)
@given(extra=EXTRA_FLAGS)
def test_some_flags(base, capsysbinary, extra):
    """A sample; test_many_flags has more."""
    assert_ends_as_it_may([*base, *(word for name, values in extra for word in (f"--{name}", *values))], capsysbinary)


@pytest.mark.slow
@few(400)
@given(extra=EXTRA_FLAGS)
def test_many_flags(base, capsysbinary, extra):
    """One or two further flags with values that may be of another kind, or none."""
    assert_ends_as_it_may([*base, *(word for name, values in extra for word in (f"--{name}", *values))], capsysbinary)


@few(60)
@given(content=JSONS)
def test_argument_files(base, tmp_path, capsysbinary, content):
    """Any JSON, of which objects with our flags' names are a part."""
    del base  # what it makes is not needed, but the models are
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps(content))
    assert_ends_as_it_may([str(path)], capsysbinary)
