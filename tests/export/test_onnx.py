"""ONNX files: outputs equal JAX's for all batch sizes, and only fast operators are used."""

import dataclasses
import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from densenet_jax import export
from densenet_jax.export import stablehlo
from densenet_jax.export.bundle import ExportError
from densenet_jax.export.onnx import file, int8
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.weights import timm_config
from tests.export.conftest import NETWORKS, images_of, make_bundle

# Operators that only move data; a network needs none of them after its input.
MOVING = {"ScatterND", "ScatterElements", "Gather", "GatherND", "Slice", "Expand", "Where"}


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize("key", NETWORKS)
def test_outputs_equal_those_of_jax(key):
    bundle = make_bundle(key)
    model = file.to_onnx(bundle)
    images = images_of(bundle, 3, np.float32)
    expected = np.asarray(jax.jit(bundle.model.apply)(bundle.variables, images))
    for batch in (images, images[:1]):
        np.testing.assert_allclose(run(model, batch), expected[: len(batch)], atol=1e-5, rtol=1e-5)
    assert model.opset_import[0].version == 17
    operators = {node.op_type for node in model.graph.node}
    assert not operators & MOVING
    if key != "rdnet":
        assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1


def test_norms_after_convolutions_are_folded(cifar):
    model = file.to_onnx(cifar)
    names = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert all("norm2" not in name for name in names)
    assert len(names) == 3 + 1 + 1  # norm1 of each layer, the norm of the transition, the last norm


def test_preprocessing_is_part_of_the_graph(cifar):
    model = file.to_onnx(cifar, preprocess=True)
    pixels = images_of(cifar, 2)
    given = cifar.preprocessing
    images = ((pixels / 255 - np.array(given.mean)) / given.std).astype(np.float32)
    logits = jax.jit(cifar.model.apply)(cifar.variables, images)
    np.testing.assert_allclose(run(model, pixels), jax.nn.softmax(logits), atol=1e-6)
    assert model.graph.output[0].name == "probabilities"
    spec = json.loads(next(p.value for p in model.metadata_props if p.key == "densenet_jax"))
    assert spec["class_names"] == [f"class {i}" for i in range(7)]
    assert spec["preprocessing"]["mean"] == list(given.mean)


def test_outputs_that_differ_from_jax_are_refused(cifar, tmp_path):
    model = file.to_onnx(cifar)
    bias = next(c for c in model.graph.initializer if c.name == "classifier/bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(7, 0.01, np.float32), bias.name))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="outputs differ from JAX's by"):
        file.difference(cifar, tmp_path / "model.onnx", False)


@pytest.fixture(scope="module")
def quantized(cifar, tmp_path_factory):
    """The files of an export with int8, and the images on which it was compared."""
    images = [images_of(cifar, 8), images_of(cifar, 5)]
    labels = np.arange(13) % 7
    given = export.Calibration(images[:1], images, labels, "8 images", "13 images")
    folder = tmp_path_factory.mktemp("int8")
    return export.export(cifar, "onnx", folder / "net.onnx", int8=given), images


def test_int8_has_int8_weights_and_similar_outputs(quantized, cifar):
    (before, after, *_), _ = quantized
    model = onnx.load(after)
    integers = [c for c in model.graph.initializer if c.data_type == onnx.TensorProto.INT8]
    kernels = [c for c in integers if len(c.dims) > 1]
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert len(kernels) == convolutions + 1  # and the classifier's
    images = images_of(cifar, 8, np.float32)  # not those used for calibration
    exact, rough = (int8.answers(path, [images]) for path in (before, after))
    assert 0 < abs(exact - rough).max() < 0.1 * np.ptp(exact)


def test_the_card_of_int8_has_accuracy_before_and_after(quantized):
    (*_, card), _ = quantized
    assert card.name == "net.md"
    text = card.read_text()
    assert "calibrated on 8 images), on 13 images:" in text
    assert "| | float32 | int8 |" in text
    assert "\n| top-1 | " in text


def test_int8_without_images_is_refused(cifar, tmp_path):
    given = export.Calibration([], [], None, "", "")
    with pytest.raises(ExportError, match="no images to calibrate"):
        export.export(cifar, "onnx", tmp_path, int8=given)


def test_labels_and_numbers_leave_the_graph_as_they_are_meant(cifar):
    pixels, given = images_of(cifar, 2), cifar.preprocessing
    images = ((pixels / 255 - np.array(given.mean)) / given.std).astype(np.float32)
    logits = np.asarray(jax.jit(cifar.model.apply)(cifar.variables, images))
    scale, shift = tuple(np.linspace(0.5, 2, 7)), tuple(np.linspace(-1, 1, 7))
    for task, activation in (("multilabel", "sigmoid"), ("regression", "identity")):
        means = Outputs(task, activation, scale, shift)
        bundle = dataclasses.replace(cifar, outputs=means)
        model = file.to_onnx(bundle, preprocess=True)
        wanted = logits * scale + shift
        wanted = 1 / (1 + np.exp(-wanted)) if activation == "sigmoid" else wanted
        np.testing.assert_allclose(run(model, pixels), wanted, atol=1e-5, rtol=1e-5)
        assert model.graph.output[0].name == means.noun
        spec = json.loads(next(p.value for p in model.metadata_props if p.key == "densenet_jax"))
        assert spec["outputs"]["scale"] == list(scale)
        program, _ = stablehlo.program(bundle, True)
        np.testing.assert_allclose(jax.jit(program)(pixels), wanted, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(run(file.to_onnx(bundle), images), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "ends"), [("uint16", (0, 4095)), ("float32", (-500, 800))])
def test_other_types_of_pixels_are_part_of_the_graph(tmp_path, dtype, ends):
    bundle = make_bundle("cifar")
    given = dataclasses.replace(
        bundle.preprocessing, dtype=dtype, value_range=ends, fit="pad", exif=True
    )
    bundle = dataclasses.replace(bundle, preprocessing=given)
    pixels = np.random.default_rng(0).uniform(*ends, (2, *bundle.image_shape)).astype(dtype)
    images = (pixels.astype(float) - ends[0]) / (ends[1] - ends[0])
    images = ((images - given.mean) / given.std).astype(np.float32)
    expected = jax.nn.softmax(jax.jit(bundle.model.apply)(bundle.variables, images))
    found = run(file.to_onnx(bundle, preprocess=True), pixels)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    program, taken = stablehlo.program(bundle, preprocess=True)
    assert taken == np.dtype(dtype)
    np.testing.assert_allclose(jax.jit(program)(pixels), expected, atol=1e-6)
    export.export(bundle, "triton", tmp_path / "triton", preprocess=True)
    text = next((tmp_path / "triton").rglob("config.pbtxt")).read_text()
    assert f"data_type: {'TYPE_UINT16' if dtype == 'uint16' else 'TYPE_FP32'}" in text
    card = (tmp_path / "triton/README.md").read_text()
    assert "with the mean" in card
    assert f"scale pixels so that {ends[0]} becomes 0 and\n{ends[1]} becomes 1" in card
    export.export(bundle, "safetensors", tmp_path / "hub")
    read = timm_config.read_config(str(tmp_path / "hub")).preprocessing
    assert (read.dtype, read.value_range, read.exif) == (dtype, ends, True)


@pytest.mark.parametrize("key", ["cifar", "rdnet"])
@pytest.mark.parametrize("opset", [11, 13, 16, 18, 23])
def test_every_opset_gives_the_same_outputs(key, opset):
    bundle = make_bundle(key)
    model = file.to_onnx(bundle, opset=opset)
    assert model.opset_import[0].version == opset
    images = images_of(bundle, 2, np.float32)
    expected = run(file.to_onnx(bundle), images)
    np.testing.assert_allclose(run(model, images), expected, atol=1e-5, rtol=1e-5)


def test_images_of_any_size(cifar, tmp_path):
    path, *_, card = export.export(cifar, "onnx", tmp_path, dynamic="size", opset=13)
    assert "| batch x height x width x 3 |" in card.read_text()
    assert "may have any size; those" in card.read_text()
    height, width, channels = cifar.image_shape
    images = np.random.default_rng(0).normal(size=(2, height + 5, width + 2, channels))
    images = images.astype(np.float32)
    expected = jax.jit(cifar.model.apply)(cifar.variables, images)
    np.testing.assert_allclose(run(onnx.load(path), images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": "batch"}, "--dynamic=batch must be size"),
        ({"opset": 10}, "--opset=10 must be one of 11 to 23"),
        ({"format": "safetensors", "opset": 13}, "safetensors does not support --opset"),
        ({"format": "triton", "dynamic": "size"}, "triton does not support --dynamic"),
    ],
)
def test_options_that_an_export_cannot_have_are_refused(cifar, tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export.export(cifar, **({"format": "onnx", "output": tmp_path} | options))


@pytest.mark.parametrize("format", ["onnx", "stablehlo", "safetensors"])
def test_weights_that_are_not_finite_are_refused(cifar, tmp_path, format):
    variables = jax.tree.map(np.array, cifar.variables)
    variables["params"]["conv0"]["kernel"][0] = np.nan
    with pytest.raises(ExportError, match=r"they have NaN in 1 tensor \(features.conv0.weight\)"):
        export.export(dataclasses.replace(cifar, variables=variables), format, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_quantisation_leaves_no_file(cifar, tmp_path, monkeypatch):
    from onnxruntime import quantization

    def killed(source, target, *args, **options):
        with open(target, "wb") as partial:
            partial.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "quantize_static", killed)
    (tmp_path / "a.onnx").write_bytes(file.to_onnx(cifar).SerializeToString())
    with pytest.raises(KeyboardInterrupt):
        int8.quantize(tmp_path / "a.onnx", tmp_path / "b.onnx", [images_of(cifar, 1)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
