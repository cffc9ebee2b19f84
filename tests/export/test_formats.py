"""Exports as files: their names, the files next to them, and refusals."""

import json
import pathlib
import re
import sys

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pool, message_factory, text_format

from densenet_jax import export, load_pretrained, weights
from densenet_jax.export import ExportError, bundle
from densenet_jax.weights import timm_config
from tests.export.conftest import NETWORKS, images_of, make_bundle

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def test_default_names_in_a_folder_and_names_after_an_output_file(cifar, tmp_path):
    names = sorted(p.name for p in export.export(cifar, "onnx", tmp_path / "new" / "folder"))
    assert names == ["README.md", "model.json", "model.onnx"]
    assert {p.parent for p in export.export(cifar, "onnx", tmp_path / "net.onnx")} == {tmp_path}
    assert {"net.onnx", "net.json", "net.md"} <= {p.name for p in tmp_path.iterdir()}
    spec = json.loads((tmp_path / "net.json").read_text())
    assert (spec["model"], spec["output"], spec["preprocess"]) == (
        "densenet_cifar",
        "logits",
        False,
    )


def test_the_card_has_usage_results_and_limits(cifar, tmp_path):
    card = export.export(cifar, "onnx", tmp_path)[-1].read_text()
    for words in (
        *("license: ", "Weights: a test", "opset 17", "top-1: 12.50%", "mean 0.4, 0.5, 0.6"),
        *("Format stability", "batch x 9 x 9 x 3", "differed from JAX's by at most"),
    ):
        assert words in card
    assert "six months" in export.export(cifar, "stablehlo", tmp_path)[-1].read_text()


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("tflite", {}, "no format 'tflite'; the formats are stablehlo, onnx, safetensors, triton"),
        ("safetensors", {"preprocess": True}, "does not support --preprocess; stablehlo, onnx"),
        ("stablehlo", {"int8": "images"}, "not support --int8; onnx and triton support it"),
    ],
)
def test_unknown_formats_and_unsupported_options_are_refused(
    cifar, tmp_path, format, options, message
):
    with pytest.raises(ExportError, match=message):
        export.export(cifar, format, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_a_file_in_place_of_the_output_folder_is_named(cifar, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file is a file; --output takes a folder"):
        export.export(cifar, "onnx", tmp_path / "file")
    with pytest.raises(ExportError, match="cannot be created: Not a directory"):
        export.export(cifar, "onnx", tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("format", "package", "remedy"),
    [
        ("onnx", "onnx", '"densenet-jax[onnx]"'),
        ("onnx", "onnxruntime", '"densenet-jax[onnx]"'),
        ("triton", "onnx", '"densenet-jax[onnx]"'),
        ("stablehlo", "flatbuffers", "flatbuffers"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    cifar, tmp_path, monkeypatch, format, package, remedy
):
    monkeypatch.setitem(sys.modules, package, None)
    wanted = re.escape(f"{package} is missing: pip install {remedy}")
    with pytest.raises(ExportError, match=wanted):
        export.export(cifar, format, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("key", NETWORKS)
def test_safetensors_load_bit_identical(key, tmp_path):
    made = make_bundle(key)
    export.export(made, "safetensors", tmp_path)
    model, variables = load_pretrained(tmp_path)
    assert model == made.model.clone(**{"implementation": "auto"} if key != "rdnet" else {})
    np.testing.assert_equal(variables, made.variables)
    assert weights.load(tmp_path).preprocessing == made.preprocessing


def test_a_configuration_for_timm_has_only_arguments_of_timm():
    config = timm_config.to_config(make_bundle("imagenet").model, weights.Preprocessing(64))
    assert config["architecture"] == "densenet121"
    assert config["model_args"] == {"block_config": (2, 1), "growth_rate": 4}
    assert timm_config.fits_timm(make_bundle("imagenet").model)
    assert not timm_config.fits_timm(make_bundle("cifar").model)
    assert not timm_config.fits_timm(make_bundle("imagenet").model.clone(stem_features=12))


@pytest.mark.parametrize(
    "fields", [{"block_sizes": [10**9]}, {"block_sizes": [1] * 100}, {"growth_rate": {}}, 3]
)
def test_a_hostile_configuration_is_refused(tmp_path, fields):
    export.export(make_bundle("cifar"), "safetensors", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["densenet_jax"]["fields"] = fields
    path.write_text(json.dumps(config))
    with pytest.raises(weights.WeightsError, match="it cannot be used"):
        load_pretrained(tmp_path)


def triton_config(text):
    """Parses a configuration into Triton's own message; unknown fields and values are errors.

    The schema is model_config.proto, compiled, as in tritonclient 2.73 (BSD 3-clause, NVIDIA).
    """
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile((GOLDEN / "triton_model_config.binpb").read_bytes())
    config = pool.FindMessageTypeByName("inference.ModelConfig")
    return text_format.Parse(text, message_factory.GetMessageClass(config)())


@pytest.mark.parametrize("preprocess", [True, False])
def test_a_triton_repository_matches_the_schema_and_the_model(cifar, tmp_path, preprocess):
    images = [images_of(cifar, 4)]
    given = export.Calibration(images, images, None, "4 images", "4 images")
    export.export(cifar, "triton", tmp_path, preprocess=preprocess, int8=given)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "densenet_cifar", "densenet_cifar_int8",
    ]  # fmt: skip
    for folder in (p for p in tmp_path.iterdir() if p.is_dir()):
        config = triton_config((folder / "config.pbtxt").read_text())
        assert (config.name, config.backend) == (folder.name, "onnxruntime")
        assert config.max_batch_size > 1
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
        graph = onnx.load(folder / "1" / "model.onnx").graph  # the backend's default name
        for side, values in ((config.input, graph.input), (config.output, graph.output)):
            (stated,), (value,) = side, values
            kind = value.type.tensor_type
            batch, *shape = kind.shape.dim
            assert (stated.name, batch.dim_param) == (value.name, "batch")
            assert list(stated.dims) == [size.dim_value for size in shape]
            types = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}
            name = type(stated).DESCRIPTOR.fields_by_name["data_type"].enum_type
            assert types[name.values_by_number[stated.data_type].name] == kind.elem_type
        labels = (folder / config.output[0].label_filename).read_text().splitlines()
        assert labels == list(cifar.class_names)
    assert config.output[0].name == ("probabilities" if preprocess else "logits")
    with pytest.raises(text_format.ParseError, match="max_batch"):
        triton_config("max_batch: 3")


def test_a_bundle_is_named_after_its_variant_or_its_family(cifar):
    assert cifar.name == "densenet_cifar"
    assert make_bundle("imagenet").name == "densenet"
    model = cifar.model.clone(block_sizes=(16,) * 3, growth_rate=12, stem_features=24)
    assert bundle.dataclasses.replace(cifar, model=model).name == "densenet_bc_100_12"


def test_a_wrong_number_of_class_names_is_refused():
    with pytest.raises(ExportError, match="7 classes, but there are 2 names"):
        make_bundle("cifar", class_names=["a", "b"])
