"""Tiny models and data for the tests, made once a session; no network, one thread."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests compare to the bit, and with results from the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")

import make_tiny
import pytest
import torch
from helpers import arguments, read
from peft.tuners import lora, randlora, vera
from torch import nn

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with roberta, bert and glue."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny.main(folder)
    return folder


@pytest.fixture(scope="session")
def without_dropout(tiny: Path) -> Path:
    """Folder with roberta and bert as in `tiny`, but no dropout: what differs then differs for another reason."""
    folder = tiny / "without_dropout"
    for kind in ("roberta", "bert"):
        shutil.copytree(tiny / kind, folder / kind)
        config = read(folder / kind / "config.json")
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (folder / kind / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what `datasets` and `evaluate` cache out of the user's home."""
    import datasets
    import evaluate

    cache = tmp_path_factory.mktemp("cache")
    datasets.config.HF_DATASETS_CACHE = cache / "datasets"
    evaluate.config.HF_METRICS_CACHE = cache / "metrics"


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Call run_glue.main in this process on tiny data and return the output folder; keywords override the flags."""
    import run_glue

    def call(output: str = "out", **flags: object) -> Path:
        """Run, and return the folder."""
        folder = tmp_path / output
        run_glue.main(arguments(tiny, folder, **flags))
        return folder

    return call


@pytest.fixture
def left_to_peft(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Record the converted layers whose call ran PEFT's own forward; all others run in weight space."""
    seen = []
    for kind in (randlora.Linear, vera.Linear, lora.Linear):

        def forward(self, *args, kind=kind, theirs=kind.forward, **kwargs):
            if type(self) is not kind:
                seen.append(self)
            return theirs(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    return seen
