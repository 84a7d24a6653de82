"""tables/protocol.py: which settings of runs are compared, and what a caption says of them."""

import pytest
from helpers import FIVE, results_of, shifted, write_rows, write_run

from glue_peft.flags import FLAG_KINDS, FlagKind
from glue_peft.tables import protocol
from glue_peft.tables.protocol import caption, row_differences, settings_of


def test_deeply_nested_arguments_are_no_traceback():
    """What can be read but not written again, as it is nested too deeply, is not compared."""
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert settings_of({"arguments": {"rank": 4, "deep": deep}}) == {}
    assert settings_of({"arguments": {"rank": 4}})["rank"] == "4"


@pytest.mark.parametrize(
    ("kind", "compared"),
    [(kind, kind in (FlagKind.PATH, FlagKind.MOVES_SCORES)) for kind in FlagKind],
    ids=lambda value: getattr(value, "name", ""),
)
def test_which_flags_are_compared_goes_by_their_kind(monkeypatch, kind, compared):
    """The tables have no list of flags of their own: a flag whose kind changes is treated by its new kind."""
    monkeypatch.setattr(protocol, "kind_of", lambda flag: kind)
    assert ("learning_rate" in settings_of({"arguments": {"learning_rate": 1e-4}})) is compared
    assert ("adapter_config.r" in settings_of({"adapter_config": {"r": 4}})) is compared


def test_every_listed_flag(tmp_path):
    """Of flags.FLAG_KINDS only the paths that no hash stands for can move a score."""
    names = " ".join(FLAG_KINDS.values()).split()
    compared = settings_of({"arguments": dict.fromkeys(names, 1)}).keys() - {"starts from an adapter"}
    assert compared == {"config_name", "tokenizer_name"}


def caption_of(*argv: object) -> str:
    """Return the caption of a table's command line."""
    return caption(results_of(*argv), "mean", 0)


def test_caption_names_starts_metrics_and_drops(tmp_path):
    """Starts from an adapter, with the row if there are several; other metrics than the default; what is dropped."""
    write_rows(tmp_path / "a", {"rte": [0.6, 0.7]}, arguments={"init_adapter_from": "x/mnli"})
    write_rows(tmp_path / "a", {"mrpc": [0.8, 0.8], "cola": [0.5, 0.0]})
    assert caption_of(tmp_path / "a", 2).endswith("; started from an adapter: rte; peak memory: process")
    dropped = caption_of(tmp_path / "a", 2, "--drop_collapsed")
    assert "over up to 2 seeds" in dropped
    assert "; collapsed and diverged runs dropped (--drop_collapsed): 1; " in dropped
    write_rows(tmp_path / "b", {"mrpc": [0.8, 0.8], "cola": [0.5, 0.4], "rte": [0.6, 0.5]})
    assert "; started from an adapter: a (rte); " in caption_of(tmp_path / "b", tmp_path / "a", 2)
    write_run(tmp_path / "c", 1, "mrpc", 0.7, scores={"last": {"eval_accuracy": 0.7, "eval_f1": 0.81}})
    write_run(tmp_path / "c", 1, "stsb", 0.5)
    named = "; last epoch; mrpc: F1; STS-B: combined score; "
    assert named in caption_of(tmp_path / "c", 1, "--metric", "mrpc=f1")


def test_a_part_of_the_data_stands_in_the_caption(tmp_path):
    """Whatever share or number of rows any run had."""
    write_run(tmp_path / "lora4", 1, "mrpc", 0.75, arguments={"selection_fraction": 0.1})
    odd = {"max_train_samples": ["no number"]}
    write_run(tmp_path / "lora4", 2, "mrpc", 0.5, arguments={"max_eval_samples": 100, "selection_fraction": 0.1} | odd)
    said = "; selection_fraction 0.1; max_eval_samples 100 or none; no MNLI starts"
    assert said in caption_of(tmp_path / "lora4", 2)


def differences(*argv: object) -> str:
    """Return in what two rows differ."""
    results = results_of(*argv)
    return ", ".join(row_differences(*results.rows, results.tasks))


def test_rows_of_one_method_differ_in_its_settings(tmp_path):
    """Of one method every setting counts, also one whose first 40 characters are the same, and the global batch."""
    layers = [f"encoder.layer.{i}.attention.self.query" for i in range(3)]
    for name, alpha, chosen, processes in (("a", 8, layers[:2], 1), ("b", 16, layers, 4)):
        write_rows(
            tmp_path / name,
            {"rte": FIVE},
            adapter_config={"lora_alpha": alpha, "target_modules": chosen},
            processes=processes,
        )
    line = differences(tmp_path / "a", tmp_path / "b", 5)
    assert "lora_alpha 8 / 16" in line and "layers [" in line and "processes 1 / 4" in line and "method" not in line


def test_comparison_names_what_else_differs(tmp_path):
    """Rank and method, as PEFT has them, and every argument and hash that differs; not the flags of the method."""
    write_rows(tmp_path / "a", {"rte": FIVE, "cola": FIVE})
    other = {"arguments": {"adapter_name": "none", "rank": 16, "num_train_epochs": 80.0}, "adapter_config": None}
    write_rows(tmp_path / "b", {"rte": shifted([0.01, 0.02, 0.03, 0.01, 0.02])}, **other)
    write_rows(tmp_path / "b", {"cola": FIVE}, **other, data_sha256={"validation": "other"})
    assert differences(tmp_path / "a", tmp_path / "b", 5) == (
        'method "LORA" / none, rank 4 / none, layers ["dense", "key", "query", "value"] / none, '
        "num_train_epochs 10.0 / 80.0, "
        'validation data "cola validation" / "other"'
    )
    assert differences(tmp_path / "a", write_rows(tmp_path / "c", {"rte": FIVE, "cola": FIVE}), 5) == ""
