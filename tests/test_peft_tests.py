"""How PEFT's own tests are run with our layers on: which are taken, and that ours are what they meet."""

import io
import json
import sys
import tarfile

import pytest

from benchmarks import peft_tests

# Stands for PEFT's test files, two of them empty.
TESTS = """
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model

def model_of(config):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    return get_peft_model(model, config)

@pytest.mark.parametrize("config_cls", [IA3Config, LoraConfig, VeraConfig])
def test_repr(config_cls):
    layer = model_of(config_cls(target_modules=["0"])).base_model.model[0]
    assert "Fast" not in repr(layer), "an odd name"

@pytest.mark.parametrize("config", [LoraConfig(target_modules=["0"])])
def test_training(config):
    model_of(config)(torch.ones(512, 8)).sum().backward()  # enough tokens for the path through the weight

def test_hub():
    raise OSError("offline")
"""


@pytest.mark.slow
def test_what_ends_differently_is_listed(tmp_path, monkeypatch, capsys):
    """Another method's case isn't run; one call had gradients; what fails on both sides is no difference."""
    with tarfile.open(tmp_path / "peft-0.tar.gz", "w:gz") as archive:
        for name in peft_tests.FILES:
            content = TESTS.encode() if name == "test_custom_models.py" else b""
            member = tarfile.TarInfo(f"peft-0/tests/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(sys, "argv", ["peft_tests", str(tmp_path / "peft-0.tar.gz")])
    peft_tests.main()
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["off"] == {"passed": 3, "failure": 1} and found["on"] == {"passed": 1, "failure": 3}
    assert found["calls"] == 1
    names = [f"test_custom_models::test_repr[{kind}Config]" for kind in ("Lora", "Vera")]
    assert sorted(found["differ"]) == names and any("an odd name" in line for line in lines)
