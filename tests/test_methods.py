"""Every method of PEFT, and LoRA's variants: each does what it says, or is refused in one line; and their files.

The cases and what is done with each stand in benchmarks/method_matrix.py, which writes docs/methods.md.
"""

import json
import math
import pickle
import shutil
from pathlib import Path

import peft
import pytest
import torch
from helpers import Killed, arguments, assert_same_results, killed_at_step_5, read, saved_weights
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import plot_spectrum
import run_glue
from benchmarks import method_matrix
from glue_peft import adapters, methods
from glue_peft.errors import UsageError

# What no run can do here, and where it says so: all of a case, or what is merged and measured.
REFUSED = {
    "ADAMSS",
    "ADAPTION_PROMPT",
    "CPT",
    "FOURIERFT no seed",
    "LORA alora",
    "LORA arrow",
    "LORA init corda",
    "LORA init eva",
    "LORA init loftq",  # without the package bitsandbytes
    "LORA init lora_ga",
    "LORA kasa",
    "LORA monteclora",
    "LORA qalora",
    "MULTITASK_PROMPT_TUNING",
    "POLY",
    "PVERA sampled",
    "SHADOW",
    "TRAINABLE_TOKENS",
    "VBLORA topk",
    "XLORA",
}
UNMERGED = {"CARTRIDGE", "LILY", "LORA layer_replication", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
# Quick ones of each kind: ranks move, no merging, the base changed at random, more saved, less saved, refused.
QUICK = {"ADALORA", "LILY", "LORA init pissa_niter_4", "LORA modules_to_save", "P_TUNING", "SHADOW"}


def test_every_method_has_a_case():
    assert {name.split()[0] for name in method_matrix.SETTINGS} == {kind.value for kind in peft.PeftType}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in method_matrix.SETTINGS],
)
def test_method_does_what_it_says_or_is_refused(name, tiny, tmp_path):
    cells, lines = method_matrix.try_method(name, tiny, tmp_path)
    expected = dict.fromkeys(method_matrix.COLUMNS, method_matrix.EQUAL) | {"training": "trained"}
    if name in REFUSED:
        expected = dict.fromkeys(method_matrix.COLUMNS, method_matrix.REFUSED)
    elif name in UNMERGED or name.split()[0] in UNMERGED:
        expected |= {"merge": method_matrix.REFUSED, "spectrum": method_matrix.REFUSED}
    elif name == "LN_TUNING":  # no update of a matrix
        expected |= {"spectrum": method_matrix.REFUSED}
    assert cells == expected
    assert all(line and "\n" not in line for line in lines)
    assert len(lines) == (1 if name in REFUSED else sum(cell == method_matrix.REFUSED for cell in cells.values()))


def test_document_is_of_these_cases():
    document = (Path(__file__).parents[1] / "docs/methods.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in document.splitlines() if line.startswith("| ")]
    assert rows == ["method", *method_matrix.SETTINGS]


@pytest.fixture
def architecture(tiny):
    """Give the tiny BERT's layers and sizes."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny / "bert"))


def write(path: Path, **content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(set(method_matrix.SETTINGS) - REFUSED))
def test_a_config_that_peft_saved_is_accepted_as_it_is(name, tiny, tmp_path, architecture):
    """With classifier and score in modules_to_save, whatever the head is called."""
    content = {"task_type": "SEQ_CLS", **method_matrix.config_of(name)}
    content |= {"total_step": 8} if name.startswith("ADALORA") else {}
    model = peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(tiny / "bert"), peft.PeftConfig.from_peft_type(**content)
    )
    model.active_peft_config.save_pretrained(tmp_path)
    saved = read(tmp_path / "adapter_config.json")
    assert {"classifier", "score"} <= set(saved["modules_to_save"])
    config = adapters.read_adapter_config(tmp_path / "adapter_config.json", architecture, merges=False)
    for setting, value in config.to_dict().items():
        if setting not in ("modules_to_save", "inference_mode", "total_step", "rank_pattern"):
            assert in_order(value) == in_order(saved[setting]), setting


def in_order(value: object) -> object:
    """Return a setting as JSON has it, with names in the order of the alphabet."""
    value = json.loads(json.dumps(value, default=sorted))
    return sorted(value) if isinstance(value, list) else value


LORA = method_matrix.LORA


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules_to_save": "classifier"}, "modules_to_save is 'classifier'; allowed: a list of a string or null"),
        ({"modules_to_save": ["pool"]}, "modules_to_save: 'pool' fits nothing"),
        ({"bias": "lora"}, "bias is 'lora'; allowed: 'none', 'all', 'lora_only'"),
        ({"r": "8"}, "r is '8'; allowed: a whole number"),
        ({"r": 2.5}, "r is 2.5; allowed: a whole number"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf; it must be finite"),
        ({"lora_dropout": math.nan}, "lora_dropout is nan; it must be finite"),
        ({"lora_dropout": -1}, "lora_dropout is -1; it must be at least 0 and below 1"),
        ({"alpha_pattern": {"query": math.nan}}, "query is nan; it must be finite"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying can't be used here: a classifier has no output layer"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out has no effect on BertForSequenceClassification"),
        ({"runtime_config": {"foo": 1}}, "runtime_config can't be used here"),
        ({"velora_config": {"foo": 1}}, "velora_config has no setting foo"),
        ({"layers_pattern": ["layer"]}, "layers_pattern has no effect without layers_to_transform"),
        ({"layers_to_transform": [0], "layers_pattern": ["layer", "block"]}, "layers_pattern: 'block' fits nothing"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; allowed: true or false"),
        ({"init_lora_weights": "loftq"}, "'loftq' needs a loftq_config with loftq_bits and loftq_iter"),
        ({"init_lora_weights": "loftq", "loftq_config": {"bits": 4}}, "loftq_config has no setting bits"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "with loftq_bits and loftq_iter"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config has no effect"),
        ({"init_lora_weights": "pisa"}, "init_lora_weights is 'pisa'; allowed: true or false or 'gaussian'"),
        ({"target_modules": ["query", "v_proj"]}, "target_modules: 'v_proj' fits nothing .*named dense, key, query"),
        ({"target_modules": ["query", "classifier"]}, "target_modules: 'classifier' fits nothing"),
        ({"target_modules": [1]}, "target_modules is \\[1\\]; allowed: a list of a string or a string or null"),
        ({"target_modules": "nothing.*"}, ": "),
        ({"r": 0}, "r is 0; it must be at least 1"),
        ({"rank_pattern": {"query": -1}}, "rank_pattern: query is -1; it must be at least 1"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be above 0"),
        ({"alpha_pattern": {"query": 0}}, "alpha_pattern: query is 0; it must be above 0"),
        ({"exclude_modules": ["key"]}, "exclude_modules: 'key' fits nothing"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform: 2 fits nothing"),
        ({"layers_to_transform": [9]}, "layers_to_transform: 9 fits nothing"),
        (
            {"layers_to_transform": [1], "target_modules": ["query", "layer.0.attention.self.key"]},
            "target_modules: 'layer.0.attention.self.key' fits nothing",
        ),
        ({"rank_pattern": {"key": 2}}, "rank_pattern: 'key' fits nothing"),
        ({"alpha_pattern": {"layer.5.*query": 2}}, "alpha_pattern: 'layer.5.\\*query' fits nothing"),
        ({"target_parameters": ["query.wight"]}, "target_parameters: 'query.wight' fits nothing"),
        ({"trainable_token_indices": [40]}, "trainable_token_indices: 40; allowed are 0 to 39"),
        ({"trainable_token_indices": {"words": [4]}}, "trainable_token_indices: 'words' fits nothing"),
        ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM'; allowed: 'SEQ_CLS'"),
        ({"lora_alpha": 1e-300}, "does nothing on BertForSequenceClassification: it gets no gradient"),
        ({"rank": 4}, "LORA has no setting rank"),
        ({"peft_type": None}, "peft_type is None"),
        ({"peft_type": 5}, "peft_type is 5"),
        (
            {"peft_type": "ADALORA", "use_rslora": True},
            "use_rslora has no effect with ADALORA",
        ),
        ({"peft_type": "ADALORA", "target_r": 12}, "target_r is 12; it must be at least 1 and below init_r, 12"),
        ({"peft_type": "ADALORA"}, "r has no effect with ADALORA, which goes from init_r to target_r"),
        ({"peft_type": "ADALORA", "r": 8, "tinit": 4}, "tinit 4 and tfinal 0 leave none of the run's 4 steps"),
    ],
)
def test_a_bad_setting_is_one_line(changes, message, run, tiny, tmp_path):
    path = write(tmp_path / "adapter.json", **{**LORA, **changes})
    with pytest.raises(UsageError, match=f"--adapter_config.*{message}") as caught:
        run(adapter_name=None, rank=None, adapter_config=path, model_name_or_path=tiny / "bert")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_ia3s_inner_layers_have_to_be_there(architecture, tmp_path):
    """Whatever target_modules is: PEFT compares the two only where both are lists."""
    path = write(tmp_path / "adapter.json", peft_type="IA3", target_modules=".*dense", feedforward_modules=["dnse"])
    with pytest.raises(UsageError, match="feedforward_modules: 'dnse' fits nothing"):
        adapters.read_adapter_config(path, architecture, merges=False)


def test_prompts_count_as_tokens(run, tiny, tmp_path):
    """A row as long as the model allows has no room for them."""
    flags = {"adapter_name": None, "rank": None, "model_name_or_path": tiny / "bert", "max_seq_length": 64}
    path = write(tmp_path / "adapter.json", peft_type="PROMPT_TUNING", num_virtual_tokens=59)
    folder = run("trained", adapter_config=path, **flags)
    run("again", **{**flags, "adapter_path": folder, "do_train": None})
    path = write(tmp_path / "longer.json", peft_type="PROMPT_TUNING", num_virtual_tokens=61)
    with pytest.raises(UsageError, match="num_virtual_tokens is 61, and the model has 64 positions"):
        run("longer", adapter_config=path, **flags)


# The head


@pytest.mark.parametrize("extra", [None, [], ["pooler"]])
def test_the_head_is_trained_and_saved_whatever_the_file_says(extra, run, tiny, tmp_path):
    """RoBERTa's head has two layers; with a file's own list it is not replaced but added to."""
    extra = ["LayerNorm"] if extra else extra
    path = write(tmp_path / "adapter.json", **LORA, modules_to_save=extra)
    folder = run(adapter_name=None, rank=None, adapter_config=path)
    weights = saved_weights(folder)
    head = sum(tensor.numel() for name, tensor in weights.items() if ".classifier." in name)
    assert head == read(folder / "run.json")["parameters"]["head"] == 48 * 48 + 48 + 48 * 2 + 2
    assert any("LayerNorm" in name for name in weights) == bool(extra)


# What is loaded


def damage(folder: Path, what: str) -> None:
    """Change a saved adapter's weights."""
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = min(name for name in weights if "lora_B" in name)
    if what == "missing":
        del weights[name]
    elif what == "no head":
        del weights["base_model.model.classifier.bias"]
    elif what == "unexpected":
        weights["base_model.model.bert.extra"] = torch.zeros(2)
    elif what == "shape":
        weights[name] = weights[name][:, :1].contiguous()
    save_file(weights, path)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    if what in ("text", "pickle", "list"):
        path.unlink()
        binary = folder / "adapter_model.bin"
        if what == "text":
            binary.write_text("not a pickle")
        elif what == "pickle":
            binary.write_bytes(pickle.dumps(print))
        else:
            torch.save([1, 2], binary)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Train LoRA once, keeping the checkpoints of its two epochs."""
    folder = tmp_path_factory.mktemp("trained") / "lora"
    run_glue.main(arguments(tiny, folder, model_name_or_path=tiny / "bert", num_train_epochs=2, save_total_limit=2))
    return folder


MESSAGES = {
    "missing": "its weights lack .*lora_B",
    "unexpected": "its weights hold base_model.model.bert.extra",
    "shape": "lora_B|size mismatch",
    "truncated": "its weights can't be read",
    "text": "its weights can't be read",
    "pickle": "its weights can't be read",
    "list": "its weights are not tensors by name",
}


@pytest.mark.parametrize("what", MESSAGES)
def test_a_damaged_adapter_is_refused(what, trained, run, tiny, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(folder, what)
    flags = {"model_name_or_path": tiny / "bert"}
    with pytest.raises(UsageError, match=f"--adapter_path {folder}: .*({MESSAGES[what]})"):
        run("a", adapter_path=folder, do_train=None, adapter_name=None, rank=None, **flags)
    with pytest.raises(UsageError, match=f"--init_adapter_from {folder}: .*({MESSAGES[what]})"):
        run("b", init_adapter_from=folder, **flags)


def test_an_adapter_without_its_head_is_a_start_but_no_result(trained, run, tiny, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(folder, "no head")
    flags = {"model_name_or_path": tiny / "bert"}
    with pytest.raises(UsageError, match=f"--adapter_path {folder}: 'base_model.model.classifier.bias' is missing"):
        run("a", adapter_path=folder, do_train=None, adapter_name=None, rank=None, **flags)
    run("b", init_adapter_from=folder, max_steps=1, **flags)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(trained, run, tiny, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    damage(folder / "checkpoint-4", "missing")
    with pytest.raises(UsageError, match="checkpoint-4: its weights lack .*lora_B"):
        run(
            "out",
            model_name_or_path=tiny / "bert",
            num_train_epochs=2,
            save_total_limit=2,
            resume_from_checkpoint=folder / "checkpoint-4",
        )


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"peft_type": "NOPE"}', '{"peft_type": 3}', '{"peft_type": "LORA", "r": []}']
)
def test_a_saved_config_that_is_none_is_refused(content, trained, run, tiny, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "adapter_config.json").write_text(content)
    flags = {"model_name_or_path": tiny / "bert"}
    with pytest.raises(UsageError, match=f"--adapter_path {folder}"):
        run("a", adapter_path=folder, do_train=None, adapter_name=None, rank=None, **flags)
    with pytest.raises(UsageError, match=f"--init_adapter_from {folder}"):
        run("b", init_adapter_from=folder, **flags)


# What an adapter stands on


@pytest.fixture(scope="module")
def pissa(tiny, tmp_path_factory):
    """Train PiSSA with an init that is drawn, at rank 4."""
    folder = tmp_path_factory.mktemp("pissa")
    path = write(folder / "adapter.json", **LORA, init_lora_weights="pissa_niter_4")
    flags = {"model_name_or_path": tiny / "bert", "adapter_name": None, "rank": None, "adapter_config": path}
    run_glue.main(arguments(tiny, folder / "run", save_merged=folder / "merged", **flags))
    return folder / "run"


def test_a_changed_base_is_verified(pissa, run, tiny, tmp_path):
    """By the hash of every weight under the adapter; drawn with another seed it would be another one."""
    folder = shutil.copytree(pissa, tmp_path / "copy")
    fixed = read(folder / "fixed_tensors.json")
    assert all(".base_layer." in name for name in fixed["sha256"]) and fixed["seed"] == 1
    flags = {"adapter_path": folder, "do_train": None, "adapter_name": None, "rank": None, "seed": 5}
    flags["model_name_or_path"] = tiny / "bert"
    assert (
        read(run("same", **flags) / "eval_results.json")["eval_loss"] == read(pissa / "eval_results.json")["eval_loss"]
    )
    write(folder / "fixed_tensors.json", **{**fixed, "seed": 2})
    with pytest.raises(UsageError, match="query.base_layer.weight is not what the adapter was trained on: LORA draws"):
        run("other", **flags)
    with pytest.raises(UsageError, match="is not what the adapter was trained on"):
        list(plot_spectrum.weight_updates(folder, None))


def test_the_update_counts_from_the_pretrained_weight(pissa):
    """PiSSA of rank 4 takes 4 directions away and trains 4: the update has rank 8."""
    updates = plot_spectrum.measure(pissa, None)
    assert {update.rank for update in updates} == {8}


def test_rounding_is_no_rank(run, tiny, tmp_path):
    """PiSSA's residual is rounded to float32 all over; of a tiny update its own directions count alone."""
    path = write(tmp_path / "adapter.json", **LORA, init_lora_weights="pissa")
    flags = {"adapter_name": None, "rank": None, "adapter_config": path, "model_name_or_path": tiny / "bert"}
    folder = run(learning_rate=1e-6, do_eval=None, **flags)
    updates = plot_spectrum.measure(folder, None)
    assert updates and all(1 <= update.rank <= 8 and update.effective_rank <= 8 for update in updates)
    for _, before, after, is_rounded in plot_spectrum.weight_updates(folder, None):
        values = torch.linalg.svdvals(after.double() - before.double())
        assert is_rounded and (values > plot_spectrum.NEGLIGIBLE * values[0]).sum() > 8  # what would be counted


def test_other_random_parts_are_refused(run, tiny, tmp_path):
    path = write(tmp_path / "adapter.json", **method_matrix.config_of("UNILORA"))
    flags = {"model_name_or_path": tiny / "bert", "adapter_name": None, "rank": None}
    folder = run("trained", adapter_config=path, **flags)
    config = read(folder / "adapter_config.json")
    write(folder / "adapter_config.json", **{**config, "proj_seed": 43})
    with pytest.raises(UsageError, match="unilora_indices.* is not what the adapter was trained on: UNILORA"):
        run("again", adapter_path=folder, do_train=None, **flags)


# What PEFT saves less of than is trained


@pytest.mark.parametrize("name", ["ADALORA", "LORA velora once", "P_TUNING lstm"])
def test_a_killed_run_ends_as_if_it_had_not_been(name, run, tiny, tmp_path):
    """From a checkpoint in mid-epoch."""
    path = write(tmp_path / "adapter.json", **method_matrix.config_of(name))
    flags = {"adapter_name": None, "rank": None, "adapter_config": path, "model_name_or_path": tiny / "bert"}
    flags |= {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    whole = run("whole", **flags)
    with killed_at_step_5(), pytest.raises(Killed):
        run("killed", **flags)
    assert_same_results(whole, run("killed", **flags, resume=True))


# AdaLoRA


def test_adaloras_ranks_move_and_are_saved_as_trained(run, tiny, tmp_path):
    """The budget falls from 6 ranks a matrix to 3 on average, in as many steps as the run has."""
    path = write(tmp_path / "adapter.json", **method_matrix.config_of("ADALORA"))
    flags = {"adapter_name": None, "rank": None, "adapter_config": path, "model_name_or_path": tiny / "bert"}
    folder = run("trained", num_train_epochs=4, **flags)
    config = read(folder / "adapter_config.json")
    assert config["total_step"] == 16
    ranks = [sum(kept) for kept in config["rank_pattern"].values()]
    assert len(ranks) == 4 and sum(ranks) == 4 * 3 and set(ranks) != {3}
    weights = saved_weights(folder)
    shapes = [len(tensor) for name, tensor in sorted(weights.items()) if "lora_E" in name]
    assert sorted(shapes) == sorted(ranks) and all(weights[name].all() for name in weights if "lora_E" in name)


def test_adaloras_own_file_is_accepted_for_a_run_of_another_length(run, tiny, tmp_path):
    path = write(tmp_path / "adapter.json", **method_matrix.config_of("ADALORA"))
    flags = {"adapter_name": None, "rank": None, "model_name_or_path": tiny / "bert"}
    first = run("first", num_train_epochs=2, adapter_config=path, **flags)
    second = run("second", num_train_epochs=3, adapter_config=first / "adapter_config.json", **flags)
    assert read(second / "adapter_config.json")["total_step"] == 12
    with pytest.raises(UsageError, match="--init_adapter_from .*AdaLoRA starts with all ranks"):
        run("third", adapter_config=path, init_adapter_from=first, **flags)


def test_in_words_and_types():
    assert methods.fits_type(4, float) and methods.fits_type(None, int | None)
    assert not methods.fits_type(True, int) and not methods.fits_type("a", int | None)
    assert methods.fits_type(4.5, float) and not methods.fits_type(4.5, int)
    assert methods.in_words(int | None) == "a whole number or null"
