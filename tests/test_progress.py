"""What a run prints while it trains."""

import re

from helpers import arguments

from glue_peft.arguments import parse_arguments


def test_a_run_prints_about_twenty_losses_and_each_evaluation_in_a_line(run, capfd, caplog):
    """Whatever its length; the score stands once at the end; no library's report, bar or colour code in a log."""
    place = r"step \d+/\d+, epoch \d\.\d\d: loss \d\.\d{4}"
    for rows in (128, 512):
        capfd.readouterr()
        run(str(rows), max_train_samples=rows, num_train_epochs=4, eval_strategy="epoch", learning_rate=5e-3)
        out, err = capfd.readouterr()
        lines = out.splitlines()
        losses = [line for line in lines if re.fullmatch(place + r", learning rate \d\.\d\de-\d\d", line)]
        evaluations = [line for line in lines if re.match(place + r"  accuracy [01]\.\d{4}", line)]
        assert 16 <= len(losses) <= 20
        assert len(evaluations) == 4
        assert sum(line.startswith("accuracy ") for line in lines) == 1
        assert "\x1b[" not in out + err
        assert "LOAD REPORT" not in out + err
        assert "|" not in err  # as bars have
    assert "drawn at random, as its file has none: classifier.dense, classifier.out_proj" in caplog.text


def test_the_rate_of_logging_does_not_change_what_is_trained(run):
    """Asking for the loss at each step trains the same weights as never asking."""
    folders = [run(str(steps), logging_steps=steps) for steps in (1, 500)]
    first, second = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == second


def test_bars_are_for_terminals(tiny, tmp_path):
    """A log file gets none, unless they are asked for."""
    *_, args = parse_arguments(arguments(tiny, tmp_path))
    assert args.disable_tqdm
    *_, args = parse_arguments(arguments(tiny, tmp_path, disable_tqdm=False))
    assert not args.disable_tqdm
