"""Write requirements.lock: every package that requirements.txt and tests/requirements.txt come to, with its version.

    python .ci/lock.py          (what `make lock` calls; pip asks its package index, nothing is installed)

Left out are pip's own kind (setuptools), torch's CUDA libraries, which follow torch's version and the machine, and the
local part of a version (+cpu), which a package index may not have.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LEFT_TO_THE_MACHINE = re.compile(r"(pip|setuptools|wheel|triton|nvidia-.*|cuda-.*)")


def resolve() -> list[dict]:
    """Return what pip would install into an empty environment, one dictionary a package."""
    wanted = ["-r", REPOSITORY / "requirements.txt", "-r", REPOSITORY / "tests" / "requirements.txt"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*command, *wanted], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["install"]


def main() -> None:
    """Resolve, and write the file."""
    lines = []
    for package in resolve():
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        if not LEFT_TO_THE_MACHINE.fullmatch(name):
            lines.append(f"{name}=={package['metadata']['version'].partition('+')[0]}\n")
    (REPOSITORY / "requirements.lock").write_text("".join(sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
