"""What every PEFT method does here: trained, resumed, best epoch, reloaded, merged, counted, measured; or refused.

    python tests/make_tiny.py TINY
    python -m benchmarks.method_matrix TINY > docs/methods.md

runs run_glue.py and plot_spectrum.py on a tiny BERT for each method and each of LoRA's variants, and prints a table.
A cell is "equal" or "refused", with the line that the script prints below the table; anything else is a defect, and
the exit status is 1. tests/test_methods.py runs the same.
"""

import argparse
import contextlib
import io
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import plot_spectrum
import run_glue
from glue_peft.errors import UsageError
from glue_peft.run_folder import read_json

COLUMNS = ("training", "resume", "best epoch", "reload", "merge", "counts", "spectrum")
EQUAL, REFUSED, NOTHING = "equal", "refused", "-"
MERGED = 1e-4  # by which merging may move the loss: float32 weights are rounded once more
MERGED_WEIGHT = 1e-5  # of a weight's norm, likewise; without HRA's Gram-Schmidt 1e-7 would do
TARGETS = ["query", "value"]
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": TARGETS}
INITS = (False, "gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica", "eva", "corda", "lora_ga")
PROMPT = {"num_virtual_tokens": 4}
# One entry a method, and for each of its settings that changes what is drawn, trained or saved: "METHOD setting".
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2, "deltaT": 2},
    "ADALORA no final phase": {"init_r": 6, "target_r": 2, "target_modules": "all-linear"},
    "ADAMSS": {"r": 8},
    "ADAPTION_PROMPT": {"target_modules": None, "adapter_len": 4, "adapter_layers": 1},
    "BEFT": {},
    "BOFT": {},
    "BOFT bias": {"bias": "boft_only", "boft_dropout": 0.1},
    "C3A": {"block_size": 8},
    "C3A kaiming": {"block_size": 8, "init_weights": "kaiming_uniform"},
    "CARTRIDGE": {**PROMPT},
    "CPT": {"cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "DEFT": {"r": 4},
    "DEFT qr": {"r": 4, "decomposition_method": "qr"},
    "DEFT para": {"r": 4, "para": True},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 100},
    "FOURIERFT no seed": {"n_frequency": 100, "random_loc_seed": None},
    "FROD": {"progressbar": False},
    "FROD unsaved": {"progressbar": False, "save_projection": False},
    "GLORA": {"r": 4},
    "GLORA vector": {"r": 4, "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
    "GRALORA": {"r": 8},
    "GRALORA hybrid": {"r": 8, "hybrid_r": 4},
    "HIRA": {"r": 4},
    "HIRA gaussian": {"r": 4, "init_weights": "gaussian"},
    "HRA": {"r": 4},
    "HRA Gram-Schmidt": {"r": 4, "apply_GS": True},
    "IA3": {"feedforward_modules": []},
    "IA3 feedforward": {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
    "LILY": {"r": 4},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "LOHA": {"r": 4},
    "LOHA dropout": {"r": 4, "rank_dropout": 0.1, "module_dropout": 0.1},
    "LOKR": {"r": 4},
    "LOKR decompose": {"r": 2, "decompose_both": True, "decompose_factor": 8},
    "LOKR lycoris": {"r": 4, "init_weights": "lycoris"},
    "LORA": LORA,
    **{f"LORA init {init}": {**LORA, "init_lora_weights": init} for init in INITS},
    "LORA init loftq": {**LORA, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "LORA alora": {**LORA, "alora_invocation_tokens": [5, 6]},
    "LORA all-linear": {**LORA, "target_modules": "all-linear"},
    "LORA arrow": {**LORA, "arrow_config": {}},
    "LORA bdlora": {
        **LORA,
        "use_bdlora": {"target_modules_bd_a": ["query"], "target_modules_bd_b": ["value"], "nblocks": 2},
    },
    "LORA bias all": {**LORA, "bias": "all"},
    "LORA bias lora_only": {**LORA, "bias": "lora_only"},
    "LORA DoRA": {**LORA, "use_dora": True},
    "LORA dropout": {**LORA, "lora_dropout": 0.1},
    "LORA embedding": {**LORA, "target_modules": ["query", "word_embeddings"]},
    "LORA exclude": {**LORA, "exclude_modules": ["layer.0.attention.self.query"]},
    "LORA kasa": {**LORA, "kasa_config": {}},
    "LORA layer_replication": {**LORA, "layer_replication": [[0, 2], [1, 2]]},
    "LORA layers": {**LORA, "layers_to_transform": [1]},
    "LORA lora_bias": {**LORA, "lora_bias": True},
    "LORA monteclora": {**LORA, "monteclora_config": {}},
    "LORA patterns": {**LORA, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
    "LORA PiSSA DoRA": {**LORA, "init_lora_weights": "pissa", "use_dora": True},
    "LORA modules_to_save": {**LORA, "modules_to_save": ["pooler"]},
    "LORA OLoRA bias all": {**LORA, "init_lora_weights": "olora", "bias": "all"},
    "LORA qalora": {**LORA, "use_qalora": True},
    "LORA regex": {**LORA, "target_modules": r".*\.(query|value)"},
    "LORA rsLoRA": {**LORA, "use_rslora": True},
    "LORA target_parameters": {**LORA, "target_modules": [], "target_parameters": ["query.weight"]},
    "LORA trainable_token_indices": {**LORA, "trainable_token_indices": [3, 4, 5]},
    "LORA trainable_token_indices by name": {**LORA, "trainable_token_indices": {"word_embeddings": [3, 4]}},
    "LORA velora": {**LORA, "velora_config": {"num_groups": 8}},
    "LORA velora once": {**LORA, "velora_config": {"num_groups": 8, "init_type": "batch_average_once"}},
    "LORA velora random": {**LORA, "velora_config": {"num_groups": 8, "init_type": "random"}},
    "MISS": {"r": 4},
    "MISS bat": {"r": 4, "init_weights": "bat"},
    "MISS mini": {"r": 4, "init_weights": "mini", "mini_r": 2},
    "MULTITASK_PROMPT_TUNING": {**PROMPT},
    "OFT": {"oft_block_size": 8},
    "OFT constrained": {"oft_block_size": 8, "coft": True},
    "OFT shared": {"oft_block_size": 8, "block_share": True},
    "OSF": {"effective_rank": 8},
    "PEANUT": {"r": 4},
    "PEANUT deep": {"r": 4, "depth": 2},
    "POLY": {"r": 4},
    "PREFIX_TUNING": {**PROMPT},
    "PREFIX_TUNING projection": {**PROMPT, "prefix_projection": True, "encoder_hidden_size": 16},
    "PROMPT_TUNING": {**PROMPT},
    "PSOFT": {"r": 8},
    "PSOFT pissa": {"r": 8, "ab_svd_init": "pissa_init"},
    "PSOFT lowrank": {"r": 8, "psoft_svd": "lowrank"},
    "PVERA": {"r": 8},
    "PVERA generator": {"r": 8, "generator_seed": 3},
    "PVERA sampled": {"r": 8, "sample_at_inference": True},
    "PVERA unsaved": {"r": 8, "save_projection": False},
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 16},
    "P_TUNING lstm": {
        **PROMPT,
        "encoder_hidden_size": 16,
        "encoder_reparameterization_type": "LSTM",
        "encoder_dropout": 0.1,
    },
    "RANDLORA": {"r": 8},
    "RANDLORA sparse": {"r": 8, "sparse": True},
    "RANDLORA unsaved": {"r": 8, "save_projection": False},
    "ROAD": {"group_size": 8},
    "ROAD 2": {"group_size": 8, "variant": "road_2"},
    "ROAD 4": {"group_size": 8, "variant": "road_4"},
    "SHADOW": {"r": 4},
    "SHIRA": {"r": 4},
    "SHIRA seed": {"r": 4, "random_seed": 3},
    "SUPERTUNING": {},
    "SUPERTUNING lora": {"r": 4, "lora_alpha": 8},
    "SUPERTUNING unsaved": {"save_precomputed_indices": False},
    "TINYLORA": {"u": 8},
    "TINYLORA tied": {"u": 8, "weight_tying": 1.0},
    "TINYLORA unsaved": {"u": 8, "save_projection": False},
    "TRAINABLE_TOKENS": {"target_modules": None, "token_indices": [3, 4, 5]},
    "UNILORA": {},
    "UNILORA saved": {"save_indices": True},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "VBLORA topk": {"vector_length": 8, "num_vectors": 16, "save_only_topk_weights": True},
    "VERA": {"r": 8},
    "VERA unsaved": {"r": 8, "save_projection": False},
    "WAVEFT": {"n_frequency": 100},
    "WAVEFT proportional": {"n_frequency": 100, "proportional_parameters": True},
    "WAVEFT no inverse": {"n_frequency": 100, "use_idwt": False},
    "XLORA": {"hidden_size": 48, "adapters": {"a": "nowhere"}},
}


def config_of(name: str) -> dict[str, Any]:
    """Return the content of a case's config file."""
    method = peft.PeftType(name.split()[0])
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[method]
    targets = {} if issubclass(kind, peft.PromptLearningConfig) or name == "XLORA" else {"target_modules": TARGETS}
    return {"peft_type": method.value, **targets, **SETTINGS[name]}


def try_method(name: str, tiny: Path, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Run all that there is of one case in `folder`; return its cells and the lines of what was refused."""
    path = folder / "adapter.json"
    path.write_text(json.dumps(config_of(name)), encoding="utf-8")
    flags = {"adapter_config": path, "eval_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 3}
    # The first epoch is to be the best, so that it differs from the last one.
    flags |= {"metric_for_best_model": "loss", "greater_is_better": "True", "do_train": True, "num_train_epochs": 2}
    cells, lines = dict.fromkeys(COLUMNS, NOTHING), []
    trained = folder / "trained"
    line = run(tiny, trained, **flags, save_merged=folder / "merged")
    merges = line is None
    if line is not None and line.startswith("--save_merged"):
        cells["merge"], lines = REFUSED, [line]
        line = run(tiny, trained, **flags)
    if line is not None:
        return dict.fromkeys(COLUMNS, REFUSED), [line]
    cells["training"] = "trained"
    cells["best epoch"] = compare_best(trained)
    if cells["best epoch"] == NOTHING:  # the last epoch was the best
        run(tiny, folder / "other", **{**flags, "greater_is_better": "False"})
        cells["best epoch"] = compare_best(folder / "other")
    cells["resume"], more = try_resume(tiny, trained, folder / "resumed", flags)
    lines += more
    cells["reload"], more = try_reload(tiny, trained, folder / "reloaded")
    lines += more
    cells["counts"] = compare_counts(tiny, trained, config_of(name))
    if merges:
        cells["merge"] = compare_merged(tiny, trained, folder / "merged", folder / "plain")
    cells["spectrum"], more = try_spectrum(tiny, trained, folder / "merged")
    return cells, lines + more


def run(tiny: Path, output: Path, **flags: Any) -> str | None:
    """Call run_glue.py on the tiny BERT and MRPC; return the line of its refusal, None where it ran."""
    settings = {"model_name_or_path": tiny / "bert", "dataset_path": tiny / "glue", "task_name": "mrpc"}
    settings |= {"do_eval": True, "do_predict": True, "max_train_samples": 64, "max_eval_samples": 32}
    settings |= {"per_device_train_batch_size": 16, "learning_rate": 1e-2, "seed": 1, "disable_tqdm": "True"}
    settings |= {"max_predict_samples": 32, "output_dir": output, **flags}
    argv = []
    for flag, value in settings.items():
        argv += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    try:
        with silence():
            run_glue.main(argv)
    except UsageError as error:
        return str(error)
    return None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what runs print off the table."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def metrics_of(folder: Path) -> dict[str, float]:
    """Return a run's metrics on the validation set, without timings."""
    metrics = read_json(folder / "eval_results.json") or {}
    clock = ("runtime", "_second", "samples", "_time", "epoch")
    return {name: value for name, value in metrics.items() if not name.endswith(clock)}


def same_tensors(left: Path, right: Path) -> bool:
    """Say whether two files hold the same tensors, to the bit."""
    first, second = load_file(left), load_file(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def compare_best(trained: Path) -> str:
    """Compare what was saved and evaluated at the end with the best checkpoint, unless that is the last one."""
    state = read_json(trained / "trainer_state.json")
    step, last = state["best_global_step"], state["global_step"]
    if step == last:
        return NOTHING
    entry = next(e for e in state["log_history"] if e["step"] == step and "eval_loss" in e)
    metrics = metrics_of(trained)
    if any(entry[name] != value for name, value in metrics.items() if name in entry):
        return f"DIFFERS: {metrics} after {entry}"
    name = "adapter_model.safetensors"
    return EQUAL if same_tensors(trained / name, trained / f"checkpoint-{step}" / name) else "DIFFERS: tensors"


def try_resume(tiny: Path, trained: Path, resumed: Path, flags: dict[str, Any]) -> tuple[str, list[str]]:
    """Train from the first epoch's checkpoint to the end, and compare the last checkpoints and the results."""
    first, last = (f"checkpoint-{step}" for step in (4, 8))
    line = run(tiny, resumed, **flags, resume_from_checkpoint=trained / first)
    if line is not None:
        return REFUSED, [line]
    for path in (trained / last).glob("*.safetensors"):
        if not same_tensors(path, resumed / last / path.name):
            return f"DIFFERS: {path.name}", []
    states = [torch.load(folder / last / "optimizer.pt")["state"] for folder in (trained, resumed)]
    for key, values in states[0].items():
        if not all(torch.equal(values[name], states[1][key][name]) for name in ("exp_avg", "exp_avg_sq")):
            return "DIFFERS: optimizer", []
    same = metrics_of(trained) == metrics_of(resumed)
    return EQUAL if same and predictions(trained) == predictions(resumed) else "DIFFERS: results", []


def predictions(folder: Path) -> str:
    """Return the predictions that a run wrote."""
    return (folder / "predict_results_mrpc.txt").read_text()


def try_reload(tiny: Path, trained: Path, reloaded: Path) -> tuple[str, list[str]]:
    """Evaluate and predict with the saved adapter, under another seed, and compare."""
    line = run(tiny, reloaded, adapter_path=trained, seed=2)
    if line is not None:
        return REFUSED, [line]
    if metrics_of(trained) != metrics_of(reloaded):
        return f"DIFFERS: {metrics_of(trained)} became {metrics_of(reloaded)}", []
    return EQUAL if predictions(trained) == predictions(reloaded) else "DIFFERS: predictions", []


def compare_counts(tiny: Path, trained: Path, content: dict[str, Any]) -> str:
    """Compare the record's counts with PEFT's own count and with the saved file."""
    counts = read_json(trained / "run.json")["parameters"]
    stored = sum(tensor.numel() for tensor in load_file(trained / "adapter_model.safetensors").values())
    if counts["stored"] != stored:
        return f"DIFFERS: {counts['stored']} stored, {stored} in the file"
    content = {"task_type": "SEQ_CLS", "total_step": 8, **content} if "ADALORA" in content.values() else content
    with silence():
        config = peft.PeftConfig.from_peft_type(**{"task_type": "SEQ_CLS", **content})
        model = peft.get_peft_model(load_plain(tiny / "bert"), config)
    trainable = model.get_nb_trainable_parameters()[0]
    head = 48 * 2 + 2
    same = counts["head"] == head and counts["adapter"] + head == trainable
    return EQUAL if same else f"DIFFERS: {counts} for {trainable}"


def load_plain(folder: Path) -> torch.nn.Module:
    """Load a model without an adapter."""
    with silence():
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def compare_merged(tiny: Path, trained: Path, merged: Path, plain: Path) -> str:
    """Evaluate and predict with the merged model, and compare."""
    line = run(tiny, plain, model_name_or_path=merged)
    if line is not None:
        return f"DIFFERS: {line}"
    off = abs(metrics_of(trained)["eval_loss"] - metrics_of(plain)["eval_loss"])
    return EQUAL if off < MERGED and predictions(trained) == predictions(plain) else f"DIFFERS: loss by {off:.2g}"


def try_spectrum(tiny: Path, trained: Path, merged: Path) -> tuple[str, list[str]]:
    """Compare the updates that plot_spectrum.py measures with the merged model minus the pre-trained one."""
    try:
        with silence():
            updates = {name: after - before for name, before, after, _ in plot_spectrum.weight_updates(trained, None)}
    except UsageError as error:
        return REFUSED, [str(error)]
    if not merged.exists():
        return "DIFFERS: measured, but can't be merged", []
    base, after = load_plain(tiny / "bert").state_dict(), load_plain(merged).state_dict()
    for name, update in updates.items():
        truth = after[f"bert.{name}.weight"].double() - base[f"bert.{name}.weight"].double()
        error = (update - truth).norm() / base[f"bert.{name}.weight"].norm()
        if not error < MERGED_WEIGHT:
            return f"DIFFERS: {name} by {error:.2g} of the weight's norm", []
    return EQUAL, []


def is_right(cells: dict[str, str]) -> bool:
    """Say whether every cell is one of those that may be."""
    return all(cell in (EQUAL, REFUSED, NOTHING, "trained") for cell in cells.values())


def table(results: dict[str, tuple[dict[str, str], list[str]]]) -> str:
    """Return the document: the table, and what was refused with which words."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cells[column] for column in COLUMNS) + " |" for name, (cells, _) in results.items()
    ]
    refused = [f"- {name}: `{shown(line)}`" for name, (_, words) in results.items() for line in words]
    return "\n".join([*INTRODUCTION, *lines, "", "## What is refused, and with which words", "", *refused])


def shown(line: str) -> str:
    """Return a refusal's words without the folder that they happen to name."""
    return re.sub(r"/\S*/", "", line)


INTRODUCTION = (
    f"# What each method of PEFT {peft.__version__} does here",
    "",
    "Can a method of PEFT be trained, resumed, merged and reloaded here? Look it up before you start its runs. To",
    "train one, [write its config](extending.md#an-adapter) to a file and name the file:",
    "",
    "```bash",
    "ADAPTERS=hra.json TASKS=mrpc bash train_all.sh --learning_rate 5e-3",
    "```",
    "",
    "A row of the table is a method, or a method with settings that change what is drawn, trained or saved. Each",
    "was trained on a tiny BERT for two epochs of four steps, and then each column was tried:",
    "",
    "- **resume**: the run goes on from the first epoch's checkpoint. Weights, optimizer, metrics and predictions",
    "  must be those of a run without a break, to the bit.",
    "- **best epoch**: `--load_best_model_at_end` must save and evaluate the best checkpoint, to the bit.",
    "- **reload**: `--adapter_path` loads the adapter under another seed. Metrics, loss and predictions must be",
    "  the same, to the bit.",
    "- **merge**: `--save_merged` saves a plain model. Its predictions must be the same, its loss within 1e-4.",
    "- **counts**: the numbers of parameters in run.json must be those that PEFT counts and those in the saved",
    "  file.",
    "- **spectrum**: the updates that plot_spectrum.py reads must be the merged weights minus the pre-trained",
    "  ones.",
    "",
    "`refused` means that one line says why, before any training; the lines are below the table. Tests try the",
    "cells again (`make test-slow` all of them, `make test` a few). The page is written by",
    "",
    "```bash",
    "python -m benchmarks.method_matrix TINY > docs/methods.md",
    "```",
    "",
    "where `python tests/make_tiny.py TINY` has made the model and the data.",
    "",
)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tiny", metavar="TINY", type=Path, help="where tests/make_tiny.py has made model and data")
    parser.add_argument("starts", metavar="NAME", nargs="*", help="only the rows whose names begin so")
    return parser.parse_args()


def main() -> int:
    """Print the table for all cases, or for those whose names begin as given."""
    args = parse_arguments()
    results = {}
    for name in SETTINGS:
        if args.starts and not name.startswith(tuple(args.starts)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[name] = cells, _ = try_method(name, args.tiny, Path(folder))
        print(name, *cells.values(), sep="\t", file=sys.stderr)
    print(table(results))
    return 0 if all(is_right(cells) for cells, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
