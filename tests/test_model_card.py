"""The model card of a run's folder."""

import json
from pathlib import Path

import huggingface_hub
import peft
import pytest
import yaml
from helpers import read
from huggingface_hub import HfApi, ModelCard, RepoUrl

from glue_peft import record as run_record
from glue_peft.errors import UsageError


def test_a_card_tells_what_came_out_of_what(run, tiny):
    """Model, data set, scores with their protocol, the adapter's config, the command; a license only where given."""
    folder = run(adapter_name="randlora", rank=8, license="mit", num_train_epochs=2)
    card = ModelCard.load(folder / "README.md")
    record = read(folder / "run.json")
    assert card.data.base_model == str(tiny / "roberta")
    head = card.data.to_dict()
    assert (head["datasets"], head["license"], head["library_name"]) == (["nyu-mll/glue"], "mit", "peft")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores == {name: record["metrics"][f"eval_{name}"] for name in ("accuracy", "f1", "combined_score")}
    assert {result.dataset_config for result in card.data.eval_results} == {"mrpc"}
    assert f"| accuracy | {record['metrics']['eval_accuracy']:.4f} |" in card.text
    assert "epoch 2, the last" in card.text
    assert "--rank 8" in card.text
    assert json.loads(card.text.split("```json\n")[1].split("```")[0])["r"] == 8
    assert "More Information Needed" not in card.text


def test_a_fork_is_named_by_its_commit_and_not_by_its_place(run, monkeypatch):
    """Where PEFT is a clone with changes."""
    fork = {"peft": {"place": "/home/me/secret/peft", "commit": "5eed", "changed_files": ["a.py"]}}
    monkeypatch.setattr(run_record, "imported_from_clones", lambda repository: fork)
    text = (run() / "README.md").read_text()
    assert f"peft {peft.__version__} (commit 5eed, changed)" in text and "secret" not in text


def test_full_fine_tuning_and_own_data_have_a_card_too(run, tmp_path):
    """Without a data set of the hub, and without an adapter's config."""
    for name in ("train", "validation"):
        rows = "".join(f"a text {i},{i % 2}\n" for i in range(32))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    flags = {"train_file": tmp_path / "train.csv", "validation_file": tmp_path / "validation.csv"}
    folder = run(task_name=None, dataset_path=None, adapter_name="none", rank=None, **flags)
    head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1:3]
    data = yaml.safe_load(head)
    assert "license" not in data
    assert "datasets" not in data
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "train.csv"
    assert "Full fine-tuning" in text
    assert "PEFT config" not in text


def test_push_to_hub_uploads_adapter_card_and_record(run, monkeypatch, caplog):
    """With the hub's calls replaced: once, when everything is there; a failure undoes nothing."""
    calls = []

    def create(self, repo_id, **kwargs):
        """Answer as the hub does."""
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, *, repo_id, folder_path, **kwargs):
        """Note what is there to be uploaded, then lose the network."""
        calls.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
        raise ConnectionError("gone")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    folder = run(push_to_hub=True, hub_model_id="someone/mrpc", num_train_epochs=2)
    [(name, files)] = calls
    assert name == "someone/mrpc"
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "run.json", "tokenizer.json"} <= files
    assert f"--push_to_hub: gone; the run is finished: hf upload someone/mrpc {folder}" in caplog.text


def test_push_to_hub_offline_is_refused_at_the_start(run):
    """Before anything is trained."""
    with pytest.raises(UsageError, match="--push_to_hub: HF_HUB_OFFLINE"):
        run(push_to_hub=True)
