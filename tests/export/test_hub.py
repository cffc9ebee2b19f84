"""A run published on the hub, and read back from where the hub's client keeps it."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import ml_collections
import numpy as np
import pytest

import densenet_jax
from densenet_jax import export
from densenet_jax.training import runs
from tests.export.conftest import make_bundle
from tests.weights.test_pretrained import cached, point_client_to

CONFIG = {"data": {"name": "pets", "eval_split": "test"}, "seed": 3}
NAMES = [f"pet {i}" for i in range(7)]


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run's directory, of which only the checkpoint is not there."""
    folder, made = tmp_path / "run", make_bundle("cifar")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    line = {"step": 40, "split": "eval", "top1": 0.875, "top5": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 5')

    def read(workdir, config, which):
        assert (workdir, which) == (str(folder), "best")
        assert isinstance(config, ml_collections.ConfigDict)
        return made.model, made.variables, made.preprocessing, 40

    monkeypatch.setattr(runs, "read", read)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What was uploaded, as a folder; nothing outside the machine is asked."""
    folder, calls = tmp_path / "uploaded", []

    class Api(huggingface_hub.HfApi):
        def create_repo(self, repo_id, **options):
            calls.append(("create_repo", repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls.append(("upload_folder", repo_id, options))
            shutil.copytree(folder_path, folder)
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("DENSENET_JAX_CACHE", str(tmp_path / "placed"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    point_client_to("http://nowhere.invalid", monkeypatch)
    return folder, calls


def test_what_is_pushed_is_read_back(workdir, hub, tmp_path):
    folder, calls = hub
    done = densenet_jax.push_to_hub(workdir, "me/pets", licence="mit", private=True)
    assert done == "https://hub/me/pets/commit/1"
    assert [call[:2] for call in calls] == [
        ("create_repo", "me/pets"), ("upload_folder", "me/pets"),
    ]  # fmt: skip
    assert calls[0][2] == {"private": True, "exist_ok": True}
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    cached(tmp_path, "me/pets", folder)
    loaded = densenet_jax.weights.load("hf-hub:me/pets")
    made = make_bundle("cifar")
    np.testing.assert_equal(loaded.variables, made.variables)
    assert (loaded.preprocessing, loaded.licence) == (made.preprocessing, "mit")
    assert json.loads((folder / "config.json").read_text())["label_names"] == NAMES


def test_the_card_has_front_matter_results_and_the_line_that_loads_it(workdir, hub):
    densenet_jax.push_to_hub(workdir, "me/pets", licence="mit")
    card = huggingface_hub.ModelCard.load(Path(hub[0]) / "README.md")
    assert card.data.license == "mit"
    assert "image-classification" in card.data.tags
    assert 'load_pretrained("hf-hub:me/pets")' in card.text
    assert "top-1: 87.50% on pets/test" in card.text
    assert "step 40 of a run on pets, seed 3" in card.text


def test_a_refusal_is_one_sentence(workdir, hub, monkeypatch):
    def refuse(self, repo_id, **options):
        raise huggingface_hub.errors.HFValidationError("Repo id must be in the form owner/name")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(export.ExportError, match=r"did not take a b \(Repo id must.*hf auth login"):
        densenet_jax.push_to_hub(workdir, "a b")
