"""recipe.py: what the lines above a recipe's table say."""

import pytest

from glue_peft.errors import UsageError
from glue_peft.recipe import devices_and_batch, read_header

HEADER = """# about: somebody's runs
# seeds: 0 7-8 (not stated)
# statistic: median
# epoch: best
# published: lora: LoRA: lora (no MNLI start)
# published: vera: VeRA: vera
# differs: in one thing: the optimizer
# uncertain: the batch
adapter\tmodel
"""


def header_of(tmp_path, text: str):
    """Return the header of a recipe with this text."""
    (tmp_path / "recipe.tsv").write_text(text)
    return read_header(tmp_path / "recipe.tsv")


def test_every_line_is_read(tmp_path):
    """Those that may be repeated, too."""
    header = header_of(tmp_path, HEADER)
    assert (header.about, header.seeds, header.statistic, header.epoch) == (
        *("somebody's runs", "0 7-8", "median", "best"),
    )
    assert header.not_stated == ("seeds",)
    assert header.published == {"lora": ("LoRA", "lora (no MNLI start)"), "vera": ("VeRA", "vera")}
    assert (header.differs, header.uncertain) == (("in one thing: the optimizer",), ("the batch",))


def test_without_a_header_it_is_the_grid_s_protocol(tmp_path):
    """Seeds 1 to 5, mean, last epoch."""
    header = header_of(tmp_path, "adapter\tmodel\n")
    assert (header.seeds, header.statistic, header.epoch, header.published) == ("1-5", "mean", "last", {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# sedes: 1-5", "allowed is `# key: value` with key one of about, seeds"),
        ("# a comment", "allowed is `# key: value`"),
        ("# statistic: mode", "statistic is mode; allowed: mean, median"),
        ("# epoch: 10", "epoch is 10; allowed: last, best, selected"),
        ("# published: LoRA: lora", "`published` is ADAPTER: PAPER: METHOD"),
        ("# published_seeds: Uni-LoRA", "`published_seeds` ADAPTER: PAPER"),
    ],
)
def test_what_it_can_t_say_is_refused(tmp_path, line, message):
    """With the file and what is allowed."""
    with pytest.raises(UsageError, match=f"recipe.tsv: .*{message}"):
        header_of(tmp_path, f"{line}\n")


def test_a_batch_may_be_spread_over_devices():
    """8x16 is 128 rows a step."""
    assert devices_and_batch("64") == (1, 64)
    assert devices_and_batch("8x16") == (8, 16)
    for text in ("8x", "x16", "8*16", "", "2x8x4"):
        with pytest.raises(UsageError, match="batch: .* is not a number of rows"):
            devices_and_batch(text)
