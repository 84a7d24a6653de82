"""paper_bases.py: RandLoRA's bases as its authors' code draws them, in a run and at every load of what it saved."""

import math

import peft
import pytest
import torch
from helpers import assert_same_results, read, saved_weights
from transformers import RobertaConfig, RobertaForSequenceClassification

import plot_spectrum
import run_glue
from glue_peft.errors import UsageError
from glue_peft.paper_bases import draw_paper_bases

# The first numbers of A and the last of B that the authors' code gave for key 8, rank 5 and a width of 96 (run once on
# a CPU): PaulAlbert31/RandLoRA, peft/src/peft/tuners/randlora/model.py, _init_randbasis_A_randbasis_B.
FIRST_OF_A = ["0x1.5f8a220000000p-2", "0x1.35e2e20000000p+0", "0x1.90a1940000000p+0"]
LAST_OF_B = ["0x1.78176e0000000p-1", "0x1.54264e0000000p+0", "-0x1.17c48a0000000p+0"]
FLAGS = {"adapter_name": "randlora", "rank": 5, "paper_scaling": True, "paper_bases": True}


def adapted(targets: list[str]) -> peft.PeftModel:
    """Return a RandLoRA of key 8 and rank 5, widths 48 and 96, with PEFT's bases."""
    config = RobertaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, vocab_size=50
    )
    adapter = peft.RandLoraConfig(r=5, target_modules=targets, projection_prng_key=8, save_projection=False)
    return peft.get_peft_model(RobertaForSequenceClassification(config), adapter)


def test_the_bases_are_the_authors_to_the_bit():
    """And PEFT's are others, not the same ones rounded."""
    model = adapted(["query", "key", "value", "dense"])
    theirs = model.base_model.randlora_A["default"].clone()
    draw_paper_bases(model)
    small, large = model.base_model.randlora_A["default"], model.base_model.randlora_B["default"]
    assert small.dtype == large.dtype == torch.float32
    assert [number.item().hex() for number in small[0, 0, :3]] == FIRST_OF_A
    assert [number.item().hex() for number in large[-1, -1, :3]] == LAST_OF_B
    assert large.shape == (96, math.ceil(96 / 5), 5)
    assert (small - theirs).abs().max() > 0.1
    layer = model.base_model.model.roberta.encoder.layer[0].attention.self.query
    assert layer.randlora_A["default"] is small  # the layers see them


def test_layers_whose_bases_would_have_other_shapes_are_refused():
    """The authors draw A as wide as the widest output and B as the widest input; PEFT the smaller and the larger."""
    with pytest.raises(UsageError, match="--paper_bases: .*differ, 48 and 96"):
        draw_paper_bases(adapted(["intermediate.dense"]))


def test_a_run_s_bases_are_drawn_again_at_every_load(run, tiny, tmp_path):
    """By --adapter_path, --init_adapter_from and plot_spectrum.py; what it saved is loaded on no others."""
    folder = run("paper", **FLAGS)
    bases, record = read(folder / "random_bases.json"), read(folder / "run.json")
    assert bases["paper_bases"] is True and record["arguments"]["paper_bases"] is True
    other = read(run("pefts", **FLAGS | {"paper_bases": None}) / "random_bases.json")
    assert other["sha256"] != bases["sha256"] and "paper_bases" not in other
    loaded = run("loaded", adapter_path=folder, do_train=None, adapter_name=None, rank=None)
    scores = [read(path / "eval_results.json") for path in (folder, loaded)]
    assert scores[0]["eval_loss"] == scores[1]["eval_loss"]
    started = run("started", init_adapter_from=folder, **FLAGS | {"paper_bases": None, "seed": 2})
    assert read(started / "random_bases.json") == bases
    assert plot_spectrum.main([str(folder), str(tmp_path / "spectrum.png")]) == 0
    (folder / "random_bases.json").write_text('{"sha256": "0", "projection_prng_key": 8, "paper_bases": true}')
    with pytest.raises(UsageError, match="draws other random bases from key 8"):
        run("changed", adapter_path=folder, do_train=None, adapter_name=None, rank=None)
    with pytest.raises(UsageError, match="its random bases are PEFT's, not those of --paper_bases"):
        run("other", init_adapter_from=tmp_path / "pefts", **FLAGS)


def test_a_stopped_run_resumes_on_the_same_bases(run, monkeypatch):
    """To the bit."""
    whole = run("whole", num_train_epochs=2, **FLAGS)
    step = run_glue.GlueTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(run_glue.GlueTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", num_train_epochs=2, **FLAGS)
    monkeypatch.setattr(run_glue.GlueTrainer, "training_step", step)
    assert_same_results(whole, run("stopped", num_train_epochs=2, resume=True, **FLAGS))


def test_merging_and_the_fast_path_use_them(run, tmp_path):
    """PEFT's own layers on the same bases give the same weights up to rounding; so does the merged model's loss."""
    fast = run("fast", save_merged=tmp_path / "merged", **FLAGS)
    slow = run("slow", no_fast_adapters=True, **FLAGS)
    left, right = saved_weights(fast), saved_weights(slow)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-5)
    merged = run("merged_again", model_name_or_path=tmp_path / "merged", do_train=None, adapter_name=None, rank=None)
    losses = [read(path / "eval_results.json")["eval_loss"] for path in (fast, merged)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"save_projection": True}, "--paper_bases excludes --save_projection"),
        ({"randlora_sparse": True}, "--paper_bases excludes --randlora_sparse"),
        ({"adapter_name": "vera", "paper_scaling": None}, "--paper_bases has no effect with vera"),
    ],
)
def test_what_contradicts_them_is_refused(run, flags, message):
    """Before anything is loaded."""
    with pytest.raises(UsageError, match=message):
        run(**FLAGS | flags)
