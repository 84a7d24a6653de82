#!/usr/bin/env python
"""Run PEFT's own tests with our layers switched on and off, and list those that end differently.

    pip download --no-deps --no-binary :all: peft==0.21.2        (the version of requirements.txt)
    python -m benchmarks.peft_tests peft-0.21.2.tar.gz           3 minutes of processor time

The tests are those of PEFT's source distribution: test_randlora.py, test_vera.py and test_custom_models.py without the
cases of other methods. The PEFT that they test is the one that is installed. Switched on means that every adapter that
a test adds is converted at once, and that weight space is taken wherever it is exact, however few the tokens. Nothing
is downloaded: tests that need a model of the hub fail on both sides. The last line is one JSON object.

This module is also the pytest plugin that switches our layers on.
"""

import argparse
import importlib.machinery
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import peft
import pytest
from peft.tuners import lora, randlora, vera
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from glue_peft import fast_adapters

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = ("test_randlora.py", "test_vera.py", "test_custom_models.py")
METHODS = {peft.LoraConfig, peft.RandLoraConfig, peft.VeraConfig}
TAKEN = "calls in weight space: "
N_CALLS = [0]  # in weight space


# As a plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch."""
    parser.addoption("--switched_on", action="store_true", help="convert every adapter")


def pytest_configure(config: pytest.Config) -> None:
    """Stand in for diffusers, whose pipelines these tests only name, and switch our layers on."""
    diffusers = types.ModuleType("diffusers")
    diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    diffusers.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)
    sys.modules["diffusers"] = diffusers
    if config.getoption("switched_on"):
        switch_on()


def switch_on() -> None:
    """Convert what PEFT injects, and count the calls that our layers answer themselves."""
    inject = BaseTuner.inject_adapter

    def inject_and_convert(self: BaseTuner, *args: Any, **kwargs: Any) -> Any:
        """PEFT's own, then ours."""
        result = inject(self, *args, **kwargs)
        fast_adapters.use_fast_adapters(self, as_on_gpu=True)
        return result

    BaseTuner.inject_adapter = inject_and_convert
    for kind in (lora.Linear, randlora.Linear, vera.Linear):

        def forward(self: nn.Module, *args: Any, theirs: Callable = kind.forward, **kwargs: Any) -> Any:
            """Take off a call that a layer of ours leaves to PEFT's."""
            N_CALLS[0] -= is_ours(self)
            return theirs(self, *args, **kwargs)

        kind.forward = forward

    def count(module: nn.Module, _inputs: tuple, _output: Any) -> None:
        """Add a call."""
        N_CALLS[0] += is_ours(module)

    register_module_forward_hook(count)


def is_ours(module: nn.Module) -> bool:
    """Say whether a layer was converted."""
    return type(module).__module__ == fast_adapters.__name__


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases of other methods than ours."""
    of_others = [item for item in items if is_another_methods(item)]
    config.hook.pytest_deselected(items=of_others)
    items[:] = [item for item in items if item not in set(of_others)]


def is_another_methods(item: pytest.Item) -> bool:
    """Say whether a test's parameters name PEFT configs, and none of our methods' own."""
    values = getattr(item, "callspec", types.SimpleNamespace(params={})).params.values()
    kinds = {value if isinstance(value, type) else type(value) for value in values}
    configs = {kind for kind in kinds if issubclass(kind, peft.PeftConfig)}
    return bool(configs) and not configs & METHODS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how often weight space was taken."""
    terminalreporter.write_line(f"{TAKEN}{N_CALLS[0]}")


# As a program


def run_tests(folder: Path, *flags: str) -> tuple[dict[str, tuple[str, str]], int]:
    """Return how each test ended and with what message, and the number of calls in weight space."""
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "benchmarks.peft_tests",
        "-c",
        "/dev/null",
        "--rootdir",
        str(folder),
    ]
    command += ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *flags, *(f"tests/{name}" for name in FILES)]
    own = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a test failed
        raise SystemExit(f"{done.stdout[-3000:]}{done.stderr[-3000:]}\npytest ended with {done.returncode}")
    ended = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        ended[name] = ("passed", "") if problem is None else (problem.tag, problem.get("message", ""))
    taken = next(line for line in done.stdout.splitlines() if line.startswith(TAKEN))
    return ended, int(taken.removeprefix(TAKEN))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="PEFT's source distribution, a .tar.gz")
    return parser.parse_args()


def main() -> None:
    """Run both sides, print how they differ and the JSON."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(args.sdist) as archive:
            for member in archive.getmembers():
                if "/tests/" in member.name:
                    member.name = member.name.partition("/")[2]  # without peft-<version>
                    archive.extract(member, folder, filter="data")
        (Path(folder) / "tests" / "__init__.py").touch()  # not in the distribution, but the tests import each other
        off, _ = run_tests(Path(folder))
        on, calls = run_tests(Path(folder), "--switched_on")
    differ = {name: (off.get(name), on.get(name)) for name in off | on if off.get(name, "")[0] != on.get(name, "")[0]}
    for name, (without, with_) in differ.items():
        print(f"{name}\n  off: {' '.join(without or ['missing'])}\n  on:  {' '.join(with_ or ['missing'])}")
    counts = {side: dict(Counter(how for how, _ in ended.values())) for side, ended in (("off", off), ("on", on))}
    print(json.dumps(counts | {"calls": calls, "differ": list(differ)}))


if __name__ == "__main__":
    main()
