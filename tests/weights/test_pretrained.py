"""Loading of weights, offline: from folders, and from a local server with the hub's layout."""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import huggingface_hub.constants
import jax
import numpy as np
import pytest

from densenet_jax import load_pretrained, weights
from densenet_jax.models.variants import create_model, list_models
from densenet_jax.tasks.outputs import SOFTMAX
from densenet_jax.weights import adapt, hub
from densenet_jax.weights.published import PUBLISHED, model_of
from tests import hub_server
from tests.random_variables import random_variables

TINY = {"block_sizes": (1, 1, 1, 1), "growth_rate": 4, "stem_features": 8}
TIMM_TINY = {"block_config": [1, 1, 1, 1], "growth_rate": 4}


def tiny(**overrides):
    return create_model("densenet121", **{**TINY, "num_classes": 5, **overrides})


def tensors_of(model):
    """Returns a random state dict under PyTorch's names."""
    return weights.to_state_dict(model, random_variables(model))


@pytest.fixture(scope="module")
def state_dict():
    return tensors_of(tiny())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state_dict):
    """A folder with the files that timm's `save_for_hf` writes."""
    folder = tmp_path_factory.mktemp("timm")
    weights.write_safetensors(folder / "model.safetensors", state_dict)
    config = {
        "architecture": "densenet121",
        "num_classes": 5,
        "model_args": TIMM_TINY,
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "license": "mit",
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Hides the caches of this machine, and prevents requests to the hub."""
    monkeypatch.setenv("DENSENET_JAX_CACHE", str(tmp_path / "placed"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_server.point_client_to("http://nowhere.invalid", monkeypatch)
    return tmp_path


def cached(cache, repository, folder, revision="main"):
    """Copies the files of a folder into a cache with the layout of the hub's client."""
    root = cache / "hub" / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "snapshots" / hub_server.COMMIT).mkdir(parents=True)
    (root / "refs" / revision).write_text(hub_server.COMMIT, encoding="utf-8")
    for file in folder.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (root / "snapshots" / hub_server.COMMIT / file.name).symlink_to(blob)
    return root


@pytest.fixture
def server(folder, monkeypatch):
    """A local server with the part of the hub's protocol that a download needs."""
    with hub_server.serve(folder, "someone/small") as (hub, address):
        hub_server.point_client_to(address, monkeypatch)
        yield hub


def assert_same(model, variables, state_dict):
    back = weights.to_state_dict(model, variables)
    assert back.keys() == state_dict.keys()
    assert all(np.array_equal(back[name], tensor) for name, tensor in state_dict.items())


def test_published_weights_belong_to_variants_and_have_preprocessing():
    assert {model_of(name) for name in PUBLISHED} <= set(list_models())
    assert PUBLISHED["densenet121.ra_in1k"].larger[0].image_size == 288
    assert PUBLISHED["rdnet_large.nv_in1k_ft_in1k_384"].preprocessing.crop_fraction == 1.0
    assert all(row.licence and row.repository.endswith(name) for name, row in PUBLISHED.items())


def test_folder_with_timm_s_config(folder, state_dict):
    loaded = weights.load(folder)
    assert loaded.model == tiny()
    assert_same(loaded.model, loaded.variables, state_dict)
    assert loaded.preprocessing.image_size == 96
    assert loaded.preprocessing.interpolation == "bilinear"
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    assert loaded.licence == "mit"


def test_file_that_does_not_say_its_network(tmp_path, folder, state_dict, caplog):
    file = tmp_path / "weights.safetensors"
    weights.write_safetensors(file, state_dict)
    assert_same(*load_pretrained(file), state_dict)  # the shapes say it
    named = tmp_path / "densenet121-0a1b2c3d.safetensors"
    weights.write_safetensors(named, state_dict)
    assert_same(*load_pretrained(named, **TINY), state_dict)
    weights.write_safetensors(file, {"layer.weight": np.ones((3, 3), np.float32)})
    with pytest.raises(weights.WeightsError, match=r"weights.safetensors.*pass model=.*--model="):
        load_pretrained(file)
    resnet = {f"layer{i}.0.conv1.weight": np.ones(3, np.float32) for i in range(1, 4)}
    weights.write_safetensors(file, resnet)
    with pytest.raises(weights.WeightsError, match=r"layer1\.0\.conv1\.weight.*a ResNet"):
        load_pretrained(file)


def test_model_may_be_a_module(folder, state_dict):
    model, variables = load_pretrained(folder, tiny(dropout_rate=0.1))
    assert model.dropout_rate == 0.1
    assert_same(model, variables, state_dict)
    with pytest.raises(ValueError, match="dtype must be fields of the model"):
        load_pretrained(folder, tiny(), dtype="bfloat16")


@pytest.mark.parametrize("name", ["densenet121.tv_in1k", "densenet121"])
def test_published_name_from_the_hub_s_cache(own_cache, folder, state_dict, name):
    repository = PUBLISHED[name if "." in name else "densenet121.ra_in1k"].repository
    cached(own_cache, repository, folder)
    loaded = weights.load(name, **TINY)
    assert_same(loaded.model, loaded.variables, state_dict)
    assert loaded.preprocessing == PUBLISHED["densenet121.tv_in1k"].preprocessing
    assert loaded.licence == "apache-2.0"


def test_changed_file_in_the_cache_is_refused(own_cache, folder):
    root = cached(own_cache, "timm/densenet121.tv_in1k", folder)
    blob = (root / "snapshots" / hub_server.COMMIT / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    with pytest.raises(weights.WeightsError, match=r"SHA-256 is .* download it again"):
        load_pretrained("densenet121.tv_in1k", **TINY)


def test_hash_that_the_user_gives(folder):
    file = folder / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    load_pretrained(folder, sha256=digest.upper())
    with pytest.raises(weights.WeightsError, match="SHA-256"):
        load_pretrained(folder, sha256="0" * 64)


def test_download_then_cache(server, state_dict):
    assert_same(*load_pretrained("hf-hub:someone/small"), state_dict)
    assert server.requests
    server.requests.clear()
    assert_same(*load_pretrained("hf-hub:someone/small"), state_dict)
    assert not server.requests


def test_revisions(server, state_dict):
    assert_same(*load_pretrained("hf-hub:someone/small@v1"), state_dict)
    assert all("/v1/" in path for _, path in server.requests)
    assert_same(*load_pretrained("hf-hub:someone/small", revision="v1"), state_dict)
    with pytest.raises(weights.WeightsError, match="someone/small has no revision 'v2'"):
        load_pretrained("hf-hub:someone/small@v2")


def test_repository_that_does_not_exist(server):
    with pytest.raises(weights.WeightsError, match="no public repository 'someone/large'"):
        load_pretrained("hf-hub:someone/large")
    with pytest.raises(weights.WeightsError, match=r"cannot be downloaded|no public repository"):
        load_pretrained("hf-hub:not a name")


def test_repository_without_weights(server, folder, tmp_path, monkeypatch):
    kept = (folder / "model.safetensors").rename(folder / "away")
    try:
        with pytest.raises(weights.WeightsError, match=r"someone/small lacks .*model.safetensors"):
            load_pretrained("hf-hub:someone/small")
    finally:
        kept.rename(folder / "model.safetensors")


def test_without_network_the_message_says_what_to_put_where(folder, state_dict):
    with pytest.raises(weights.WeightsError) as error:
        load_pretrained("densenet121.ra_in1k")
    url = "https://huggingface.co/timm/densenet121.ra_in1k/resolve/main/model.safetensors"
    place = hub.placed_folder("densenet121.ra_in1k")
    assert url in str(error.value)
    assert place in str(error.value)
    Path(place).mkdir(parents=True)
    weights.write_safetensors(Path(place) / "model.safetensors", state_dict)
    assert_same(*load_pretrained("densenet121.ra_in1k", **TINY), state_dict)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "v1"}, "has no revision='v1'"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_options_that_a_source_cannot_have_are_refused(folder, tmp_path, options, message):
    with pytest.raises(weights.WeightsError, match=message):
        load_pretrained(folder, **options)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(weights.WeightsError, match=r"revision='v1'|no single SHA-256"):
        weights.load(tmp_path / "run", **options)


def test_two_revisions_are_refused():
    with pytest.raises(weights.WeightsError, match="another revision than revision='v2'"):
        load_pretrained("hf-hub:someone/small@v1", revision="v2")


def test_a_published_name_beside_a_file_of_that_name_is_said(
    own_cache, folder, state_dict, tmp_path, monkeypatch, caplog
):
    cached(own_cache, PUBLISHED["densenet121.ra_in1k"].repository, folder)
    monkeypatch.chdir(tmp_path)
    Path("densenet121").mkdir()
    assert_same(*load_pretrained("densenet121", **TINY), state_dict)
    assert "write ./densenet121 for the file or folder" in caplog.text


def test_a_folder_with_one_file_of_another_name(tmp_path, state_dict):
    weights.write_safetensors(tmp_path / "best_metric_model.safetensors", state_dict)
    assert_same(*load_pretrained(tmp_path), state_dict)
    weights.write_safetensors(tmp_path / "other.safetensors", state_dict)
    with pytest.raises(weights.WeightsError, match="2 weight files"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *(("saved_model.pb", "SavedModel"), (".metadata", "dcp_to_torch"), ("_METADATA", "Orbax")),
        ("checkpoint", "a checkpoint of TensorFlow"),
        ("100/_CHECKPOINT_METADATA", "Orbax"),
    ],
)
def test_folders_of_other_formats_are_named(tmp_path, name, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(weights.WeightsError, match=message):
        load_pretrained(tmp_path)


def test_the_prefix_of_a_checkpoint_of_tensorflow(tmp_path):
    (tmp_path / "model.index").touch()
    with pytest.raises(weights.WeightsError, match="it is a checkpoint of TensorFlow"):
        load_pretrained(tmp_path / "model")


def test_a_preset_of_kerashub(tmp_path):
    model = tiny(stem="imagenet_same")
    theirs = weights.to_state_dict(model, random_variables(model), "keras_hub")
    body = {name: x for name, x in theirs.items() if "predictions" not in name}
    head = {name: x for name, x in theirs.items() if "predictions" in name}
    for file, tensors in (("model.weights.h5", body), ("task.weights.h5", head)):
        np.savez(tmp_path / "x.npz", **tensors)
        (tmp_path / "x.npz").rename(tmp_path / file)  # the content says the format
    converter = {"class_name": "ImageConverter", "config": {"image_size": [48, 48], "scale": 0.01}}
    (tmp_path / "image_converter.json").write_text(json.dumps(converter))
    loaded = weights.load(tmp_path)
    assert loaded.model == model.clone(norm_epsilon=1.001e-5)
    assert loaded.report.fresh == ()
    assert (loaded.preprocessing.image_size, loaded.preprocessing.mean) == (48, (0.0,) * 3)
    with pytest.raises(weights.WeightsError, match="two files"):
        weights.load(tmp_path, sha256="0" * 64)
    with pytest.raises(weights.WeightsError, match="need a model with stem='imagenet_same'"):
        weights.load(tmp_path, tiny())
    with pytest.raises(weights.WeightsError, match="need a model with stem='imagenet_same'"):
        weights.from_state_dict(tiny(), theirs)


def test_a_pipe_is_refused_before_its_hash_is_computed(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(weights.WeightsError, match="not a regular file"):
        load_pretrained(tmp_path / "weights.pth", "densenet121", sha256="0" * 64)


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(weights.WeightsError, match="pip install huggingface_hub, or download"):
        load_pretrained("densenet121.ra_in1k")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("densenet121.ra_in1x", "Did you mean densenet121.ra_in1k"),
        ("densenet264", "No weights of densenet264 are published"),
        ("missing.pth", r"missing.pth: there is no such file"),
        ("no/where", "no such file"),
        *((f"missing{suffix}", "no such file") for suffix in (".pt", ".keras", ".ckpt", ".bin")),
        ("https://host/weights.pth", "download the file first"),
    ],
)
def test_source_that_does_not_exist(source, message):
    with pytest.raises(weights.WeightsError, match=message):
        load_pretrained(source)


def test_folder_without_weights(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        weights.WeightsError, match=r"no weight file \(notes.txt\), neither model.safetensors"
    ):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"architecture": "densenet121", "pretrained_cfg": 3}'])
def test_broken_config(tmp_path, state_dict, text):
    weights.write_safetensors(tmp_path / "model.safetensors", state_dict)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(weights.WeightsError, match=r"config.json: it cannot be used"):
        load_pretrained(tmp_path)


def test_the_directory_of_a_run(tmp_path, state_dict):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(weights.WeightsError, match=r"load it with densenet_jax\.load_pretrained"):
        weights.load(tmp_path)
    trained = tiny(dropout_rate=0.2)
    variables = weights.from_state_dict(trained, state_dict)
    preprocessing = weights.Preprocessing(image_size=32)
    reader = lambda folder: (trained, variables, preprocessing, SOFTMAX)  # noqa: E731
    loaded = weights.load(tmp_path, num_classes=2, read_run=reader)
    assert loaded.model == trained.clone(num_classes=2)
    assert loaded.preprocessing == preprocessing


def test_new_head_is_fresh_and_the_rest_loaded(folder, state_dict, caplog):
    with caplog.at_level(logging.INFO):
        model, variables = load_pretrained(folder, num_classes=7)
    assert model.num_classes == 7
    back = weights.to_state_dict(model, variables)
    assert back["classifier.weight"].shape[0] == 7
    assert not back["classifier.bias"].any()
    assert np.std(back["classifier.weight"]) > 0
    for name, tensor in state_dict.items():
        assert name.startswith("classifier") or np.array_equal(back[name], tensor)
    assert "fresh: params/classifier/bias, params/classifier/kernel" in caplog.text
    again = weights.load(folder, num_classes=7, seed=1)
    kernels = (v["params"]["classifier"]["kernel"] for v in (variables, again.variables))
    assert not np.array_equal(*kernels)


def test_pooled_features(folder, state_dict):
    loaded = weights.load(folder, num_classes=0)
    assert loaded.report.dropped == ("classifier.bias", "classifier.weight")
    images = np.ones((2, 32, 32, 3), np.float32)
    pooled = jax.jit(loaded.model.apply)(loaded.variables, images)
    full = tiny()
    logits = jax.jit(full.apply)(weights.from_state_dict(full, state_dict), images)
    kernel, bias = state_dict["classifier.weight"], state_dict["classifier.bias"]
    np.testing.assert_allclose(pooled @ kernel.T + bias, logits, rtol=1e-5)


def test_weights_without_a_head(tmp_path, state_dict):
    headless = {n: x for n, x in state_dict.items() if not n.startswith("classifier")}
    weights.write_safetensors(tmp_path / "densenet121.safetensors", headless)
    source = tmp_path / "densenet121.safetensors"
    assert load_pretrained(source, **TINY)[0].num_classes == 0
    loaded = weights.load(source, num_classes=4, **TINY)
    assert loaded.report.fresh == ("params/classifier/bias", "params/classifier/kernel")


def test_other_differences_are_errors(folder):
    with pytest.raises(weights.MismatchError, match=r"Missing in the weights.*denselayer2"):
        load_pretrained(folder, "densenet121", **{**TINY, "block_sizes": (1, 2, 1, 1)})


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_input_channels(folder, state_dict, channels):
    loaded = weights.load(folder, in_channels=channels)
    kernel = weights.to_state_dict(loaded.model, loaded.variables)["features.conv0.weight"]
    original = state_dict["features.conv0.weight"]
    if channels == 1:
        expected = original.sum(1, keepdims=True)
    else:
        expected = np.stack([original[:, i % 3] for i in range(channels)], 1) * (3 / channels)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert (loaded.report.adapted is None) == (channels == 3)


def test_grey_image_gives_what_it_gave_in_three_channels(folder):
    grey = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    three, one = weights.load(folder), weights.load(folder, in_channels=1)
    np.testing.assert_allclose(
        jax.jit(one.model.apply)(one.variables, grey),
        jax.jit(three.model.apply)(three.variables, np.repeat(grey, 3, -1)),
        rtol=1e-4,
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_preprocessing_follows_the_channels(folder, channels):
    given = weights.load(folder, in_channels=channels).preprocessing
    assert given.mean == (0.5,) * channels
    assert given.std == (0.25,) * channels
    imagenet = weights.Preprocessing().for_channels(channels)
    assert imagenet.mean[0] == pytest.approx(
        0.485 if channels == 3 else (0.485 + 0.456 + 0.406) / 3
    )
    assert len(imagenet.std) == channels


def test_channels_of_the_file_are_the_default(tmp_path):
    state_dict = tensors_of(tiny(in_channels=2))
    weights.write_safetensors(tmp_path / "densenet121.safetensors", state_dict)
    model, variables = load_pretrained(tmp_path / "densenet121.safetensors", **TINY)
    assert model.in_channels == 2
    assert_same(model, variables, state_dict)


def test_keras_epsilon_comes_with_keras_weights(tmp_path):
    model = tiny()
    variables = weights.from_state_dict(model, tensors_of(model))
    np.savez(tmp_path / "densenet121.npz", **weights.to_state_dict(model, variables, "keras"))
    assert load_pretrained(tmp_path / "densenet121.npz", **TINY)[0].norm_epsilon == 1.001e-5


def test_half_precision_kernels_are_summed_in_float32():
    kernel = np.full((1, 1, 3, 1), 1.001, np.float16)
    assert adapt.adapt_channels(kernel, 1).dtype == np.float16
