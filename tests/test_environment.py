"""The places that name packages agree: requirements.txt is the short list, requirements.lock what it comes to."""

import re

import yaml
from helpers import REPOSITORY

PIN = re.compile(r"[a-z\d]+(-[a-z\d]+)*==\d+(\.\d+)*(\.post\d+)?")  # no local version such as +cpu, no hash


def lines_of(name: str) -> list[str]:
    """Return the lines of a file of the repository."""
    return (REPOSITORY / name).read_text(encoding="utf-8").splitlines()


def test_the_lists_are_exact():
    """Each line is a name with one released version, each name there once."""
    for name in ("requirements.txt", "tests/requirements.txt", "requirements.lock"):
        pins = lines_of(name)
        assert pins and [pin for pin in pins if not PIN.fullmatch(pin)] == [], name
        names = [pin.partition("==")[0] for pin in pins]
        assert len(set(names)) == len(names), name


def test_the_lock_has_what_the_lists_ask_for():
    """`make lock` was run after the last change of a list."""
    assert {*lines_of("requirements.txt"), *lines_of("tests/requirements.txt")} <= {*lines_of("requirements.lock")}


def test_the_lock_leaves_to_torch_what_is_torch_s():
    """CUDA's libraries depend on the machine; pip and setuptools come with it."""
    left_out = re.compile(r"(nvidia|cuda|triton|pip|setuptools|wheel)\b")
    assert [pin for pin in lines_of("requirements.lock") if left_out.match(pin)] == []


def test_the_conda_environment_reads_the_short_list():
    """It has no versions of its own."""
    environment = yaml.safe_load("\n".join(lines_of("env.yml")))
    assert environment["name"] == "randlora_glue"
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.txt"]}


def test_make_installs_the_lock():
    """And so does CI, which calls make."""
    assert "-r requirements.lock" in "\n".join(lines_of("Makefile"))
    assert "make test" in "\n".join(lines_of(".ci/run"))
