"""flag_effects.py: Trainer's flags that would have no effect, lack a package or can't be used, before data."""

import re

import pytest
import torch
from helpers import arguments
from transformers import Trainer
from transformers.training_args import OptimizerNames

import run_glue
from glue_peft.arguments import parse_arguments
from glue_peft.errors import UsageError
from glue_peft.flag_effects import NEEDS, optimizer_settings

STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}
BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch"}


@pytest.mark.parametrize(
    ("flags", "message", "mended"),
    [
        ({"metric_for_best_model": "loss"}, "--metric_for_best_model has no effect without --load_best", BEST),
        ({"greater_is_better": "False"}, "--greater_is_better has no effect", {**BEST, "metric_for_best_model": "f1"}),
        ({"greater_is_better": "False", **BEST}, "--greater_is_better has no", {"metric_for_best_model": "f1"}),
        ({"eval_steps": 3}, "--eval_steps has no effect without --eval_strategy steps", STEPS),
        ({"eval_delay": 1}, "--eval_delay has no effect without --eval_strategy", {"eval_strategy": "epoch"}),
        ({"save_steps": 3}, "--save_steps has no effect without --save_strategy steps", STEPS),
        ({"logging_steps": 3, "logging_strategy": "epoch"}, "--logging_steps has no", {"logging_strategy": "steps"}),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": '{"power": 2}'},
            "--lr_scheduler_kwargs has no effect",
            {"lr_scheduler_type": "polynomial"},
        ),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 5},
            "--warmup_steps has no effect without a",
            {"lr_scheduler_type": "constant_with_warmup"},
        ),
        (
            {"gradient_checkpointing_kwargs": '{"use_reentrant": true}'},
            "--gradient_checkpointing_kwargs has no effect without --gradient_checkpointing",
            {"gradient_checkpointing": "True"},
        ),
        ({"adam_beta1": 0.5, "optim": "sgd"}, "--adam_beta1 has no effect with --optim sgd", {"optim": "adamw_torch"}),
        ({"adam_epsilon": 0.5, "optim": "adafactor"}, "--adam_epsilon has no effect", {"optim": "adamw_torch"}),
        ({"optim_args": "momentum=0.9"}, "momentum has no effect with --optim adamw_torch", {"optim": "sgd"}),
        ({"optim": "sgd", "optim_args": "momentum=0.9, foo=1"}, "foo has no effect", {"optim_args": "momentum=0.9"}),
        ({"optim": "sgd", "optim_args": "momentum"}, "momentum: is not a list like", {"optim_args": None}),
        ({"optim": "sgd", "optim_args": "momentum=-1"}, "--optim_args momentum=-1: Invalid", {"optim_args": None}),
        ({"optim": "sgd", "optim_args": "momentum=x"}, "--optim_args momentum=x: ", {"optim_args": "momentum=0"}),
        ({"optim_target_modules": "query"}, "--optim_target_modules has no effect", {"optim_target_modules": None}),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"a": 1}'}, "polynomial, --lr", None),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "--lr_scheduler_type warmup_stable_decay: ", None),
        ({"lr_scheduler_kwargs": "{"}, "--lr_scheduler_kwargs {: is not a JSON object", None),
        ({"lr_scheduler_kwargs": "[]"}, "--lr_scheduler_kwargs []: is not a JSON object", None),
        ({"accelerator_config": "{"}, "--accelerator_config {: is not a JSON object, nor the name of a file", None),
        ({"accelerator_config": '{"a": 1}'}, "--accelerator_config: no setting a; allowed are split_batches", None),
        ({"accelerator_config": '{"non_blocking": 1}'}, "non_blocking is 1; allowed: true or false", None),
        ({"accelerator_config": '{"split_batches": true}'}, "--accelerator_config: split_batches", None),
        ({"torch_compile_backend": "nope"}, "--torch_compile_backend nope: allowed are aot_eager", None),
        ({"torch_compile_mode": "nope"}, "--torch_compile_mode nope: allowed are default", None),
        ({"use_liger_kernel": "True"}, "--use_liger_kernel: needs the package liger-kernel", None),
    ],
)  # fmt: skip
def test_a_flag_has_its_effect_or_is_refused(tiny, tmp_path, flags, message, mended):
    """Where what it needs is there, it is accepted; a flag at its default is no mistake."""
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse_arguments(arguments(tiny, tmp_path, **flags))
    assert "\n" not in str(caught.value)
    if mended is not None:
        parse_arguments(arguments(tiny, tmp_path, **{**flags, **mended}))


def test_defaults_may_be_written_out(tiny, tmp_path):
    """As in a file of all arguments."""
    flags = {"save_steps": 500, "eval_delay": 0, "warmup_steps": 0.06, "lr_scheduler_type": "constant"}
    *_, args = parse_arguments(arguments(tiny, tmp_path, **flags, optim="sgd", adam_beta1=0.9, adam_epsilon=1e-6))
    assert (args.save_steps, args.warmup_steps, args.adam_beta1) == (500, 0.06, 0.9)


def test_a_file_may_hold_the_accelerator_s_settings(tiny, tmp_path):
    """Its content is checked alike."""
    path = tmp_path / "accelerator.json"
    path.write_text('{"even_batches": false}')
    *_, args = parse_arguments(arguments(tiny, tmp_path, accelerator_config=path))
    assert args.accelerator_config.even_batches is False
    path.write_text('{"evn_batches": false}')
    with pytest.raises(UsageError, match="--accelerator_config: no setting evn_batches"):
        parse_arguments(arguments(tiny, tmp_path, accelerator_config=path))


@pytest.mark.parametrize("optimizer", [kind.value for kind in OptimizerNames])
def test_an_optimizer_is_there_or_refused_before_a_model_is_loaded(tiny, tmp_path, optimizer, monkeypatch):
    """With the package that it lacks."""
    monkeypatch.setattr(run_glue, "load_model", lambda *_: pytest.fail("a model was loaded"))
    try:
        *_, args = parse_arguments(arguments(tiny, tmp_path, optim=optimizer))
        Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
    except UsageError as error:
        assert str(error).startswith(f"--optim {optimizer}: ") and ("nstall" in str(error) or "import" in str(error))


def test_asking_for_an_optimizer_s_settings_changes_nothing(tiny, tmp_path):
    """Neither the arguments nor the random state; the same question has the same answer."""
    *_, args = parse_arguments(arguments(tiny, tmp_path, optim="sgd"))
    before = torch.get_rng_state(), dict(vars(args))
    assert optimizer_settings(args, optim_args="momentum=0.5") != optimizer_settings(args) == optimizer_settings(args)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == vars(args)


def test_every_flag_that_needs_something_is_one(tiny, tmp_path):
    """A typing error in the table would leave a flag unchecked."""
    *_, args = parse_arguments(arguments(tiny, tmp_path))
    assert all(hasattr(args, name) for name in NEEDS)
