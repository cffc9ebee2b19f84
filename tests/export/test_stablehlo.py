"""StableHLO: one file for all platforms and batch sizes that needs only JAX."""

import re
import runpy
import sys

import jax
import jax.export
import numpy as np
import pytest

from densenet_jax import export
from densenet_jax.export import formats, stablehlo
from tests.export.conftest import images_of, make_bundle


@pytest.mark.parametrize("key", ["imagenet", "blur", "rdnet"])
def test_a_program_of_plain_operations_for_every_platform(key):
    exported = stablehlo.to_stablehlo(make_bundle(key))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
    assert "gather" not in text  # indexing becomes a gather if the batch size is symbolic


def test_the_loader_maps_pixels_to_probabilities(cifar, tmp_path, monkeypatch, capsys):
    model, loader, *_ = export.export(cifar, "stablehlo", tmp_path, preprocess=True)
    pixels = images_of(cifar, 3)
    given = cifar.preprocessing
    images = ((pixels / 255 - np.array(given.mean)) / given.std).astype(np.float32)
    expected = jax.nn.softmax(jax.jit(cifar.model.apply)(cifar.variables, images))
    load = runpy.run_path(str(loader))["load"]
    np.testing.assert_allclose(load(model)(pixels), expected, atol=1e-6)
    np.save(tmp_path / "images.npy", pixels[:2])
    monkeypatch.setattr(sys, "argv", ["load", str(model), str(tmp_path / "images.npy")])
    runpy.run_path(str(loader), run_name="__main__")
    assert f"[{np.argmax(expected[0])} " in capsys.readouterr().out


def test_images_of_any_size(cifar, tmp_path):
    path, *_, card = export.export(cifar, "stablehlo", tmp_path, dynamic="size")
    run = jax.export.deserialize(bytearray(path.read_bytes())).call
    for height, width in ((9, 12), (16, 11)):
        images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
        expected = jax.jit(cifar.model.apply)(cifar.variables, images)
        np.testing.assert_allclose(run(images), expected, atol=1e-5, rtol=1e-5)
    assert "| batch x height x width x 3 |" in card.read_text()
    assert "any size from 9 pixels on" in card.read_text()


def test_the_loader_needs_only_jax_and_is_short():
    text = formats.LOADER.read_text()
    assert set(re.findall(r"^import (\S+)", text, re.M)) == {
        "pathlib", "sys", "jax", "jax.export", "numpy",
    }  # fmt: skip
    assert "from " not in text.split('"""')[2]
    assert len(text.splitlines()) <= 25
