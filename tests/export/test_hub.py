"""Publishing a run on the hub, and loading it from the cache of the hub's client."""

import json

import huggingface_hub.constants
import ml_collections
import numpy as np
import pytest

import densenet_jax
from densenet_jax import export
from densenet_jax.training.rundir import run_weights
from tests import hub_server
from tests.export.conftest import make_bundle

CONFIG = {"data": {"name": "pets", "eval_split": "test"}, "seed": 3}
NAMES = [f"pet {i}" for i in range(7)]


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run's directory without a checkpoint; its reader is replaced."""
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

    monkeypatch.setattr(run_weights, "read", read)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub for the real client; chunked storage is not simulated."""
    monkeypatch.setenv("DENSENET_JAX_CACHE", str(tmp_path / "placed"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "uploaded").mkdir()
    with hub_server.serve(tmp_path / "uploaded") as (hub, address):
        hub_server.point_client_to(address, monkeypatch)
        yield hub


def test_pushed_weights_load_again(workdir, hub):
    done = densenet_jax.push_to_hub(
        workdir, "me/pets", licence="mit", private=True, revision="v1", token="hf_mine"
    )
    assert done.endswith(f"/me/pets/commit/{hub_server.COMMIT}")
    assert hub.token == "Bearer hf_mine"
    assert ("POST", "/api/models/me/pets/branch/v1") in hub.requests
    assert ("POST", "/api/models/me/pets/commit/v1") in hub.requests
    files = {p.name for p in hub.folder.iterdir()}
    assert files == {"model.safetensors", "config.json", "README.md"}
    loaded = densenet_jax.weights.load("hf-hub:me/pets@v1")
    made = make_bundle("cifar")
    np.testing.assert_equal(loaded.variables, made.variables)
    assert (loaded.preprocessing, loaded.licence) == (made.preprocessing, "mit")
    assert json.loads((hub.folder / "config.json").read_text())["label_names"] == NAMES


def test_the_card_has_front_matter_results_and_loading_code(workdir, hub):
    densenet_jax.push_to_hub(workdir, "me/pets", licence="mit")
    card = huggingface_hub.ModelCard.load(hub.folder / "README.md")
    assert card.data.license == "mit"
    assert "image-classification" in card.data.tags
    assert 'load_pretrained("hf-hub:me/pets")' in card.text
    assert "top-1: 87.50% on pets/test" in card.text
    assert "step 40 of a run on pets, seed 3" in card.text


@pytest.mark.parametrize(
    ("repo_id", "invalid", "reason"),
    [
        ("pets", None, "'pets' is not the name of a repository; write it as owner/name"),
        ("me/a b", None, r"did not accept me/a b \(Repo id must.*hf auth login"),
        (
            "me/pets",
            '"license" is unknown',
            r'me/pets \(Invalid metadata in README.md: - "license" is',
        ),
    ],
)
def test_a_refusal_is_one_sentence(workdir, hub, repo_id, invalid, reason):
    hub.invalid = invalid
    with pytest.raises(export.ExportError, match=reason) as refused:
        densenet_jax.push_to_hub(workdir, repo_id)
    assert "\n" not in str(refused.value)
    assert not any("commit" in path for _, path in hub.requests)


def test_a_hub_that_cannot_be_reached_is_one_sentence(workdir, hub, monkeypatch):
    hub_server.point_client_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(export.ExportError, match=r"did not accept me/pets \(.*refused"):
        densenet_jax.push_to_hub(workdir, "me/pets")
