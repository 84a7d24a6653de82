"""The scripts on top, as a user starts them."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY

SCRIPTS = ("run_glue.py", "parse_results.py", "plot_results.py", "plot_spectrum.py", "make_submission.py")


def test_these_are_all():
    """No other Python file stands on top."""
    assert {path.name for path in REPOSITORY.glob("*.py")} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_runs_from_any_folder(tmp_path, script):
    """Nothing is installed, and PYTHONPATH isn't set."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, REPOSITORY / script, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and f"usage: {script}" in done.stdout
