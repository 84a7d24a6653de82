"""learning_rates.py: rates by name, in the optimizer's steps."""

import json

import peft
import pytest
import torch
from helpers import arguments, read
from peft.optimizers import create_loraplus_optimizer
from torch import nn

import run_glue
from glue_peft.errors import UsageError
from glue_peft.learning_rates import parse_rates, patterns_of, split_groups
from glue_peft.trainer import GlueTrainer

VBLORA = {"peft_type": "VBLORA", "r": 2, "num_vectors": 8, "vector_length": 16, "target_modules": ["query", "value"]}
RATES = {"vblora_vector_bank": 0.1, "vblora_logits": 0.5, "head": 0.02}


class Small(nn.Module):
    """Three named parameters, two of them a head."""

    def __init__(self):
        """Start from known numbers."""
        super().__init__()
        self.lora_A = nn.Parameter(torch.tensor([1.0]))
        self.lora_B = nn.Parameter(torch.tensor([2.0]))
        self.classifier = nn.Linear(1, 1)

    @property
    def head(self) -> list[nn.Parameter]:
        """The head's parameters."""
        return list(self.classifier.parameters())


def test_the_steps_of_three_rates_by_hand():
    """p - rate g in the first step, and at a schedule's half p - rate g / 2 in the second."""
    model = Small()
    with torch.no_grad():
        model.classifier.weight.fill_(3.0)
        model.classifier.bias.fill_(4.0)
    rates = parse_rates(["lora_B=0.5 head=0.02"], None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    split_groups(optimizer, patterns_of(model, model.head, rates), rates)
    split_groups(optimizer, patterns_of(model, model.head, rates), rates)  # once is enough
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for gradient in (1.0, 2.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        schedule.step()
    assert model.lora_A.item() == pytest.approx(1 - 0.1 * 1 - 0.05 * 2)
    assert model.lora_B.item() == pytest.approx(2 - 0.5 * 1 - 0.25 * 2)
    assert model.classifier.weight.item() == pytest.approx(3 - 0.02 * 1 - 0.01 * 2)
    assert model.classifier.bias.item() == pytest.approx(4 - 0.02 * 1 - 0.01 * 2)


def test_a_run_takes_the_steps_of_its_rates(run, tmp_path, monkeypatch):
    """VB-LoRA's bank, logits and head, in two steps of SGD under a linear schedule: 1 and 1/2 times the rates."""
    (tmp_path / "vblora.json").write_text(json.dumps(VBLORA))
    gradients, before, after = [], {}, {}
    step = GlueTrainer.training_step
    train = GlueTrainer.train

    def watched_step(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        return loss

    def watched_train(self, *args, **kwargs):
        before.update({n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad})
        result = train(self, *args, **kwargs)
        after.update({n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad})
        return result

    monkeypatch.setattr(GlueTrainer, "training_step", watched_step)
    monkeypatch.setattr(GlueTrainer, "train", watched_train)
    flags = {"optim": "sgd", "max_grad_norm": 0, "warmup_steps": 0, "max_steps": 2, "learning_rate": 9.0}
    flags |= {"adapter_name": None, "rank": None, "adapter_config": tmp_path / "vblora.json"}
    folder = run(learning_rates=[f"{pattern}={rate}" for pattern, rate in RATES.items()], **flags)
    assert len(gradients) == 2
    moved = set()
    for name in before:
        pattern = next((p for p in RATES if p in name), "head")
        expected = before[name] - RATES[pattern] * (gradients[0][name] + gradients[1][name] / 2)
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-7)
        moved |= {pattern} if not torch.equal(after[name], before[name]) else set()
    assert moved == set(RATES)
    recorded = read(folder / "run.json")["arguments"]["learning_rates"]
    assert parse_rates(recorded, None) == RATES


def test_lora_plus_is_expressed_by_them():
    """B's rate a multiple of A's: the rates of PEFT's own optimizer for it."""
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    head = [p for n, p in model.named_parameters() if "modules_to_save" in n]
    rates = parse_rates(["lora_B=1.6e-2"], None)
    ours = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    split_groups(ours, patterns_of(model, head, rates), rates)
    found = [
        {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (ours, theirs)
    ]
    adapter = [id(p) for n, p in model.named_parameters() if "lora_" in n]
    assert len(adapter) == 2 and sorted(found[0][i] for i in adapter) == [1e-3, 1.6e-2]
    assert [found[0][i] for i in adapter] == [found[1][i] for i in adapter]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (["lora_C=1"], "'lora_C' fits no trained parameter; they are named .*lora_A"),
        (["lora_=1", "lora_A=2"], "'lora_' and 'lora_A' both fit lora_A"),
        (["head=1", r"classifier\.bias=2"], "'head' and .* both fit classifier.bias"),
    ],
)
def test_patterns_that_fit_nothing_or_twice_are_refused(rates, message):
    """With the name."""
    model = Small()
    with pytest.raises(UsageError, match=message):
        patterns_of(model, model.head, parse_rates(rates, None))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lora_A", "must be PATTERN=RATE"),
        ("=1e-3", "must be PATTERN=RATE"),
        ("lora_A=fast", "must be PATTERN=RATE.*could not convert"),
        ("lora_A=0", "with a rate above 0"),
        ("lora_A=nan", "with a rate above 0"),
        ("lora_(=1", "must be PATTERN=RATE.*unterminated"),
        ("lora_A=1 lora_A=2", "lora_A has a rate already, 1"),
        (" ", "needs PATTERN=RATE"),
    ],
)
def test_words_that_are_no_rates_are_refused(words, message):
    """One line, with what is allowed."""
    with pytest.raises(UsageError, match=message):
        parse_rates([words], None)


def test_a_run_refuses_them_before_anything_is_touched(tiny, tmp_path):
    """On the command line, or where the parameters' names are known."""
    for flags, message in (
        ({"learning_rates": "head=1e-3", "classifier_learning_rate": 1e-3}, "give one of them"),
        ({"learning_rates": "vera_lambda=1e-3"}, "'vera_lambda' fits no trained parameter"),
    ):
        with pytest.raises(UsageError, match=message):
            run_glue.main(arguments(tiny, tmp_path / "out", **flags))
        assert not list((tmp_path / "out").glob("*.json"))
