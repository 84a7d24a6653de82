"""plot_spectrum.py on runs of tiny models: its numbers against the saved files, its figure, and what it refuses."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from helpers import arguments, read, said
from matplotlib.text import Text
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, BertModel

import plot_spectrum
import run_glue
from glue_peft.errors import UsageError
from glue_peft.tables.figure_style import Sheet
from plot_spectrum import Update

BLOCK = "encoder.layer.0."
KINDS = [
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
# Methods that are not built in: two whose own "delta weight" isn't the update, and one without any.
CONFIGS = {
    "dora": {"peft_type": "LORA", "use_dora": True, "r": 4, "target_modules": ["query", "dense"]},
    "oft": {"peft_type": "OFT", "oft_block_size": 4, "r": 0, "target_modules": ["query", "dense"]},
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
}


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Train an adapter once and return its folder RESULTS/<adapter>/<seed>/<task>; <folder>_merged is plain."""
    results = tmp_path_factory.mktemp("results")

    def train(adapter: str) -> Path:
        """Train, unless it was done before."""
        folder = results / adapter / "1" / "mrpc"
        flags: dict[str, object] = {"adapter_name": adapter, "do_eval": None}
        if adapter in CONFIGS:
            path = results / f"{adapter}.json"
            path.write_text(json.dumps(CONFIGS[adapter]))
            flags |= {"adapter_name": None, "rank": None, "adapter_config": path}
        if adapter == "none":
            flags["rank"] = None
        elif adapter != "prompt":
            flags["save_merged"] = folder.with_name("mrpc_merged")
        if not folder.exists():
            run_glue.main(arguments(tiny, folder, **flags))
        return folder

    return train


def weight(folder: Path, kind: str) -> np.ndarray:
    """Return a weight of the first block in a plain model's file, with or without the name of the model before it."""
    tensors = load_file(folder / "model.safetensors")
    name = f"{BLOCK}{kind}.weight"
    return next(tensors[key] for key in (name, f"roberta.{name}") if key in tensors).astype(np.float64)


def plot(capsys, *argv: object) -> tuple[int, str]:
    """Call the script and return its exit status and what it printed."""
    status, out, err = said(capsys, plot_spectrum, *argv)
    return status, "\n".join(out + err)


def orthogonal(size: int, seed: int) -> torch.Tensor:
    """Return random orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


@pytest.mark.parametrize("shape", [(24, 24), (24, 16), (16, 24)])
def test_planted_intruder_dimensions(shape):
    """A new direction counts once its singular value is among the ten largest; a scaled old one never does."""
    rows, columns = shape
    left, right = orthogonal(rows, 1), orthogonal(columns, 2)
    k = min(shape)
    values = torch.linspace(10, 1, k, dtype=torch.float64)
    base = (left[:, :k] * values) @ right[:, :k].T
    # The even mixture of 9 old directions has a cosine of 1/3 with each of them: hardly any of the old ones.
    new = left[:, :9].sum(dim=1) / 3
    assert plot_spectrum.intruders(base, base) == 0
    assert plot_spectrum.intruders(base, base + 5 * torch.outer(left[:, 3], right[:, 3])) == 0
    assert plot_spectrum.intruders(base, base + 60 * torch.outer(new, right[:, 0])) == 1
    assert plot_spectrum.intruders(base, base + 1e-3 * torch.outer(new, right[:, 0])) == 0
    two = 60 * torch.outer(new, right[:, 0]) + 80 * torch.outer(second_mixture(left), right[:, 1])
    assert plot_spectrum.intruders(base, base + two) == 2


def second_mixture(left: torch.Tensor) -> torch.Tensor:
    """Return an even mixture of the first 9 directions with other signs, orthogonal to the even sum of 8 of them."""
    signs = torch.tensor([1, -1, 1, -1, 1, -1, 1, -1, 1], dtype=torch.float64)
    return (left[:, :9] * signs).sum(dim=1) / 3


def test_intruders_of_an_init_that_changes_the_weight(tiny, tmp_path, capsys):
    """PiSSA takes the largest part out of W: before any training the whole weight is W, and nothing intrudes."""
    config = {
        "peft_type": "LORA",
        "init_lora_weights": "pissa",
        "r": 12,
        "lora_alpha": 12,
        "target_modules": ["query"],
    }
    (tmp_path / "pissa.json").write_text(json.dumps(config))
    flags = {"adapter_name": None, "rank": None, "adapter_config": tmp_path / "pissa.json", "do_eval": None}
    run_glue.main(arguments(tiny, tmp_path / "pissa", learning_rate=1e-9, max_steps=1, **flags))
    run_glue.main(arguments(tiny, tmp_path / "far", learning_rate=3, max_steps=2, **flags))
    capsys.readouterr()
    found = []
    for name in ("pissa", "far"):
        assert plot_spectrum.main([str(tmp_path / name), str(tmp_path / "spectrum.png")]) == 0
        found.append([int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[2:]])
    assert found[0] == [0, 0] and min(found[1]) > 0


def test_effective_rank_of_known_spectra():
    """r equal values give r, a single one gives 1, scale doesn't matter, and an entropy worked out by hand."""
    assert plot_spectrum.effective_rank(np.array([3.0] * 5 + [0.0] * 4)) == pytest.approx(5)
    assert plot_spectrum.effective_rank(np.array([0.2, 0.0])) == pytest.approx(1)
    assert plot_spectrum.effective_rank(np.zeros(3)) == 0
    # shares 1/2, 1/4, 1/4: entropy 3/2 ln 2
    for scale in (1, 1e-9):
        assert plot_spectrum.effective_rank(scale * np.array([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)


@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera", "dora", "oft", "none"])
def test_updates_are_those_of_the_merged_model(trained, tiny, adapter):
    """For every layer of a block: singular values, rank and norms of the merged weight minus the pre-trained one."""
    folder = trained(adapter)
    updates = plot_spectrum.measure(folder, None)
    merged = folder if adapter == "none" else folder.with_name("mrpc_merged")
    kinds = [kind for kind in KINDS if adapter not in CONFIGS or not kind.endswith(("key", "value"))]
    assert len(updates) == 2 * len(kinds) and list(dict.fromkeys(update.kind for update in updates)) == kinds
    for kind in kinds:
        update = next(update for update in updates if update.kind == kind)
        before, after = weight(tiny / "roberta", kind), weight(merged, kind)
        values = np.linalg.svd(after - before, compute_uv=False)
        assert values[0] > 1e-4
        # The merged model is saved in float32, so the smallest singular values of the difference are rounding.
        np.testing.assert_allclose(update.spectrum * np.linalg.norm(before, 2), values, rtol=1e-3, atol=2e-6)
        assert update.frobenius == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-3)


def test_lora_has_its_rank_and_randlora_the_full_one(trained):
    """The paper's point in small; and the effective rank lies between 1 and the rank."""
    for adapter, rank in (("lora", 4), ("vera", 4), ("randlora", 48)):
        for update in plot_spectrum.measure(trained(adapter), None):
            assert rank - 1 <= update.rank <= rank
            assert 1 <= update.effective_rank <= update.rank + 1e-6


def test_table_has_the_medians():
    """Worked by hand: two layers of one kind, and one of another."""
    adapters = {
        "lora4": [
            Update("query", np.array([0.4, 0.4, 0.0]), 0.3, 3),
            Update("query", np.array([0.2, 0.0, 0.0]), 0.1, 1),
            Update("key", np.array([0.9, 0.9, 0.9]), 0.8),
        ]
    }
    _, header, query, key, everything = plot_spectrum.table_lines(adapters)
    assert header.split() == "layer adapter layers spectral Frobenius effective rank rank of intruders".split()
    assert query.split() == ["query", "lora4", "2", "0.3000", "0.2000", "1.5", "2", "3", "4"]
    assert key.split() == ["key", "lora4", "1", "0.9000", "0.8000", "3.0", "3", "3", "0"]
    assert everything.split() == ["all", "lora4", "3", "0.4000", "0.3000", "2.0", "2", "3", "4"]


def test_figure_has_a_panel_a_kind_and_a_colour_an_adapter(trained, tmp_path, capsys):
    """Lines are medians as far as the rank, markers stand on them at the effective rank, and no two look alike."""
    adapters = {name: plot_spectrum.measure(trained(name), None) for name in ("lora", "randlora")}
    figure = plot_spectrum.draw(adapters)
    assert [axes.get_title() for axes in figure.axes] == KINDS
    looks = []
    for axes, kind in zip(figure.axes, KINDS, strict=True):
        for (line, mark), updates in zip([axes.lines[:2], axes.lines[2:]], adapters.values(), strict=True):
            chosen = [update for update in updates if update.kind == kind]
            length = len(line.get_ydata())
            expected = np.median([update.spectrum for update in chosen], axis=0)[:length]
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert length == np.median([update.rank for update in chosen]) or length >= 46
            assert mark.get_xdata()[0] == pytest.approx(np.median([update.effective_rank for update in chosen]))
            around = np.interp(math.log(mark.get_xdata()[0]), np.log(line.get_xdata()), np.log(line.get_ydata()))
            assert math.log(mark.get_ydata()[0]) == pytest.approx(around)
            looks.append((line.get_color(), line.get_linestyle(), mark.get_marker()))
    assert len(set(looks)) == 2 and all(len({look[i] for look in looks}) == 2 for i in range(3))
    assert [text.get_text() for text in figure.legends[0].texts] == ["lora", "randlora"]


def test_a_spectrum_for_a_column():
    """As wide as asked for, two panels side by side, and no letter below 7 points, exponents included."""
    updates = [Update(kind, np.array([0.4, 0.2, 0.1]), 0.3) for kind in ("query", "key", "value", "dense")]
    figure = plot_spectrum.draw({"LoRA (r=4)": updates, "randlora32_all-MiniLM-L6-v2": updates}, Sheet(3.3, False))
    figure.draw_without_rendering()
    assert figure.get_figwidth() == 3.3 and len({round(axes.get_position().x0, 2) for axes in figure.axes}) == 2
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) == 7 and not any("^" in text.get_text() for text in texts)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and "marker" not in figure.get_supxlabel()


def test_rows_of_a_spectrum_are_called_as_asked(trained, tmp_path, capsys):
    """In the table too; a row that isn't there is refused."""
    command = (trained("lora"), tmp_path / "a.png", "--names")
    status, out, _ = said(capsys, plot_spectrum, *command, "lora=LoRA")
    assert status == 0 and out[2].split()[1] == "LoRA"
    status, _, err = said(capsys, plot_spectrum, *command, "vera=VeRA")
    assert status == 2 and "--names vera=VeRA: must be ROW=NAME with ROW one of lora" in err[0]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figure_file_is_complete_and_repeatable(trained, tmp_path, capsys, suffix):
    """The table goes to stdout; twice the same runs give twice the same bytes."""
    for name in ("a", "b"):
        status, said = plot(capsys, trained("lora"), tmp_path / f"{name}.{suffix}")
        assert status == 0 and said.splitlines()[-1].split()[:3] == ["all", "lora", "12"]
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert {path.name for path in tmp_path.iterdir()} == {f"a.{suffix}", f"b.{suffix}"}


def test_runs_of_one_adapter_share_a_line(trained, tmp_path, capsys):
    """RESULTS/<adapter>/<seed>/<task> is named for the adapter, another folder for itself; a run counts once."""
    first, second = (tmp_path / "results" / "lora" / seed / "mrpc" for seed in "12")
    for folder in (first, second, tmp_path / "own"):
        shutil.copytree(trained("lora"), folder)
    _, said = plot(capsys, first, second, f"{first}/", tmp_path / "own", tmp_path / "a.png")
    assert [line.split()[1:3] for line in said.splitlines()[-2:]] == [["lora", "24"], ["own", "12"]]


def test_adapters_of_one_name_have_lines_of_their_own(trained, tmp_path, capsys):
    """a/results/lora and b/results/lora are two adapters."""
    folders = [tmp_path / above / "results" / "lora" / "1" / "mrpc" for above in "ab"]
    for folder in folders:
        shutil.copytree(trained("lora"), folder)
    _, said = plot(capsys, *folders, tmp_path / "a.png")
    assert [line.split()[1:3] for line in said.splitlines()[-2:]] == [
        ["a/results/lora", "12"],
        ["b/results/lora", "12"],
    ]


def test_broken_run_folders(trained, tmp_path, capsys):
    """A file that can't be used is named in one line."""
    for content, name, reason in (
        ("{", "adapter_config.json", "can't be loaded"),
        ('{"peft_type": "NOPE", "base_model_name_or_path": "%s"}', "adapter_config.json", "can't be loaded"),
        ("{", "config.json", "no usable config.json in it"),
        ('{"base_model": null}', "run.json", None),
    ):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained("lora"), folder)
        base = read(folder / "adapter_config.json")["base_model_name_or_path"]
        (folder / name).write_text(content.replace("%s", base))
        status, said = plot(capsys, folder, tmp_path / "a.png")
        assert status == (0 if reason is None else 2)
        assert reason is None or f"RUN_FOLDER {folder}: {reason}" in said


def test_methods_without_an_update(trained, tiny, tmp_path, capsys):
    """Prompts change no weight; Poly's layers can't be merged."""
    base = AutoModelForSequenceClassification.from_pretrained(tiny / "roberta")
    poly = peft.get_peft_model(base, peft.PolyConfig(task_type="SEQ_CLS", r=4, target_modules=["query"]))
    poly.save_pretrained(tmp_path / "poly")
    base.config.save_pretrained(tmp_path / "poly")
    for folder, reason in (
        (trained("prompt"), "PROMPT_TUNING has no weight updates of linear layers"),
        (tmp_path / "poly", "POLY can't be merged, so it has no weight update"),
    ):
        status, said = plot(capsys, folder, tmp_path / "a.png")
        assert status == 2 and not (tmp_path / "a.png").exists()
        assert said.splitlines()[-1] == f"plot_spectrum.py: error: RUN_FOLDER {folder}: {reason}"


def test_random_bases_are_verified(trained, tmp_path, capsys):
    """Other bases would give a wrong update without any other sign."""
    folder = tmp_path / "randlora"
    shutil.copytree(trained("randlora"), folder)
    bases = read(folder / "random_bases.json")
    (folder / "random_bases.json").write_text(json.dumps(bases | {"sha256": "0" * 64}))
    status, said = plot(capsys, folder, tmp_path / "a.png")
    assert status == 2 and "draws other random bases" in said and not (tmp_path / "a.png").exists()


def test_base_model_that_has_moved(trained, tiny, tmp_path, capsys):
    """It is named; --model_name_or_path gives the new place, and another model is refused by its hash."""
    for adapter in ("lora", "none"):
        folder = tmp_path / adapter
        shutil.copytree(trained(adapter), folder)
        record = read(folder / "run.json")
        record["base_model"]["name"] = "/moved/model"
        (folder / "run.json").write_text(json.dumps(record))
        if adapter == "lora":
            config = read(folder / "adapter_config.json") | {"base_model_name_or_path": "/moved/model"}
            (folder / "adapter_config.json").write_text(json.dumps(config))
        status, said = plot(capsys, folder, tmp_path / "a.png")
        assert status == 2 and "/moved/model can't be loaded" in said and "--model_name_or_path" in said
        assert plot(capsys, folder, tmp_path / "a.png", "--model_name_or_path", tiny / "roberta")[0] == 0
        status, said = plot(capsys, folder, tmp_path / "a.png", "--model_name_or_path", trained("none"))
        assert status == 2 and "has other weights than the model that the run started from" in said


def test_a_part_that_the_pretrained_model_lacks(tiny, tmp_path, capsys):
    """BERT's pooler, where the file has none, is drawn from the run's seed, so the base model is the run's."""
    base = tmp_path / "bert"
    shutil.copytree(tiny / "bert", base)
    model = BertModel.from_pretrained(base, add_pooling_layer=False)
    model.save_pretrained(base)
    folder = tmp_path / "full"
    flags = {"adapter_name": "none", "rank": None, "model_name_or_path": base}
    run_glue.main(arguments(tiny, folder, seed=3, do_eval=None, **flags))
    status, said = plot(capsys, folder, tmp_path / "a.png")
    assert status == 0 and "pooler.dense" in said
    record = read(folder / "run.json")
    record["arguments"]["seed"] = 4
    (folder / "run.json").write_text(json.dumps(record))
    assert plot(capsys, folder, tmp_path / "a.png")[0] == 2


def test_bad_folders_and_files(trained, tmp_path, capsys):
    """One line that names the argument; nothing is written."""
    broken = tmp_path / "broken"
    shutil.copytree(trained("lora"), broken)
    weights = (broken / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    nameless = tmp_path / "nameless"
    shutil.copytree(trained("none"), nameless)
    (nameless / "run.json").unlink()
    for argv, named in (
        ([tmp_path / "none", tmp_path / "a.png"], "neither adapter_config.json nor model.safetensors"),
        ([trained("lora"), tmp_path / "a.gif"], "OUT must be a file .png, .pdf, .svg"),
        ([trained("lora"), tmp_path / "missing" / "a.png"], "in an existing folder"),
        ([broken, tmp_path / "a.png"], f"{broken}: its weights can't be read"),
        ([nameless, tmp_path / "a.png"], "doesn't name its pre-trained model; give --model_name_or_path"),
    ):
        status, said = plot(capsys, *argv)
        assert status == 2 and named in said.splitlines()[-1], said
    assert not list(tmp_path.glob("a.*"))


def test_runs_of_different_models_under_one_name():
    """Their layers have different sizes, and no median."""
    adapters = {"lora": [Update("query", np.ones(size), 1.0) for size in (3, 4)]}
    with pytest.raises(UsageError, match="the runs of lora have layers query of different sizes"):
        plot_spectrum.check_sizes(adapters)


def test_full_disk_leaves_no_figure(trained, tmp_path, capsys, monkeypatch):
    """What savefig raises is one line, and the older figure stays."""

    def full(*args, **kwargs):
        """Fail as on a full disk."""
        raise OSError(28, "No space left on device")

    out = tmp_path / "a.png"
    out.write_bytes(b"older")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    status, said = plot(capsys, trained("lora"), out)
    assert status == 2 and "No space left on device" in said.splitlines()[-1]
    assert out.read_bytes() == b"older" and list(tmp_path.iterdir()) == [out]


def test_an_adapter_without_a_layer_or_without_a_change_has_no_line_there():
    """Query and value alone beside all layers, an update of zeros, and one of which most layers were pruned."""
    adapters = {
        "all": [Update("query", np.array([0.2, 0.1]), 0.1), Update("dense", np.array([0.2, 0.1]), 0.1)],
        "few": [Update("query", np.array([0.3, 0.1]), 0.1)],
        "untrained": [Update("query", np.zeros(2), 0.0), Update("dense", np.zeros(2), 0.0)],
        "pruned": [Update("query", np.array(values), 0.0) for values in ([0.0, 0.0], [0.0, 0.0], [0.2, 0.1])],
    }
    query, dense = plot_spectrum.draw(adapters).axes
    assert (len(query.lines), len(dense.lines)) == (4, 2)
    zeros = [line.split() for line in plot_spectrum.table_lines(adapters) if "untrained" in line]
    assert zeros[-1] == ["all", "untrained", "2", "0.0000", "0.0000", "0.0", "0", "2", "0"]
