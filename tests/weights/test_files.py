"""Golden files are read exactly; files that are not weights are refused with their format named."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from densenet_jax import weights
from tests.weights.torch_writer import tensor, torch_zip

PYTORCH = ["torchvision_zip.pth", "torchvision_legacy_names.pth", "trainer_wrapped.pth.tar"]
SAFETENSORS = {"half.safetensors": np.float16, "bfloat16.safetensors": ml_dtypes.bfloat16}
KERAS = ["keras_legacy.h5", "keras_applications.weights.h5", "keras_applications.keras"]
ALL = [*PYTORCH, "one_channel.pth", *SAFETENSORS, *KERAS, "mindcv.ckpt"]


def torchvision_shapes(in_channels=3):
    """Returns name -> shape of the golden PyTorch network, from its published architecture."""
    shapes = {"features.conv0.weight": (16, in_channels, 7, 7)}

    def norm(name, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"features.{name}.{part}"] = (width,)
        shapes[f"features.{name}.num_batches_tracked"] = ()

    norm("norm0", 16)
    width = 16
    for block, layers in enumerate((2, 3, 2, 2), start=1):
        for layer in range(1, layers + 1):
            prefix = f"denseblock{block}.denselayer{layer}"
            norm(f"{prefix}.norm1", width)
            shapes[f"features.{prefix}.conv1.weight"] = (32, width, 1, 1)
            norm(f"{prefix}.norm2", 32)
            shapes[f"features.{prefix}.conv2.weight"] = (8, 32, 3, 3)
            width += 8
        if block < 4:
            norm(f"transition{block}.norm", width)
            shapes[f"features.transition{block}.conv.weight"] = (width // 2, width, 1, 1)
            width //= 2
    norm("norm5", width)
    return shapes | {"classifier.weight": (10, width), "classifier.bias": (10,)}


@pytest.mark.parametrize("name", [*PYTORCH, "one_channel.pth", *SAFETENSORS])
def test_pytorch_tensors_are_exact(golden_weights, recipe, name):
    state_dict = weights.read(golden_weights / name)
    shapes = torchvision_shapes(in_channels=1 if name == "one_channel.pth" else 3)
    if "legacy" in name:
        shapes = {n: s for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
    assert state_dict.keys() == shapes.keys()
    for tensor_name, shape in shapes.items():
        expected = recipe.tensor(tensor_name, shape)
        if expected.dtype == np.float32:
            expected = expected.astype(SAFETENSORS.get(name, np.float32))
        actual = state_dict[tensor_name]
        assert actual.dtype == expected.dtype
        assert actual.shape == shape
        np.testing.assert_array_equal(actual, expected)


def test_keras_names_are_the_same_in_every_version(golden_weights):
    legacy, weights_only, archive = (weights.read(golden_weights / name) for name in KERAS)
    assert weights_only.keys() == archive.keys()
    # Only the classifier had another name in Keras 2.
    assert {name.replace("fc1000", "predictions") for name in legacy} == archive.keys()
    for name, array in legacy.items():
        name = name.replace("fc1000", "predictions")
        np.testing.assert_array_equal(array, archive[name])
        np.testing.assert_array_equal(array, weights_only[name])
        assert array.dtype == np.float32
    assert archive["conv1_conv/kernel"].shape == (7, 7, 3, 64)
    assert archive["conv2_block1_1_conv/kernel"].shape == (1, 1, 64, 128)
    assert archive["conv5_block2_2_conv/kernel"].shape == (3, 3, 128, 32)
    assert archive["predictions/kernel"].shape == (128, 10)
    for part in ("gamma", "beta", "moving_mean", "moving_variance"):
        assert archive[f"conv2_block1_0_bn/{part}"].shape == (64,)
    assert archive["bn/moving_variance"].min() > 0
    assert len(archive) == 106


def test_mindspore_names_and_shapes(golden_weights):
    state_dict = weights.read(golden_weights / "mindcv.ckpt")
    shapes = torchvision_shapes()
    assert len(state_dict) == sum(not name.endswith("tracked") for name in shapes)
    assert state_dict["features.conv0.weight"].shape == (16, 3, 7, 7)
    layer = "features.denseblock2.cell_list.2"
    assert state_dict[f"{layer}.conv2.weight"].shape == (8, 32, 3, 3)
    assert state_dict[f"{layer}.norm2.moving_variance"].min() > 0
    assert state_dict["features.transition1.features.conv.weight"].shape == (16, 32, 1, 1)
    assert state_dict["classifier.weight"].shape[0] == 10
    assert all(array.dtype == np.float32 for array in state_dict.values())


def test_golden_files_are_the_ones_in_the_manifest(golden_weights):
    manifest = json.loads((golden_weights / "manifest.json").read_text())["files"]
    assert set(ALL) <= manifest.keys()
    for name in ALL:
        digest = hashlib.sha256((golden_weights / name).read_bytes()).hexdigest()
        assert digest == manifest[name]["sha256"]


def test_format_is_detected_from_the_content(golden_weights, tmp_path):
    for name in ALL:
        shutil.copy(golden_weights / name, tmp_path / "weights.txt")
        assert weights.read(tmp_path / "weights.txt").keys() == (
            weights.read(str(golden_weights / name)).keys()
        )


def test_arrays_are_contiguous_and_writable(golden_weights):
    for name in ALL:
        for array in weights.read(golden_weights / name).values():
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.dtype.isnative


def test_modules_that_wrappers_add_are_removed_from_names(tmp_path):
    path = tmp_path / "wrapped.npz"
    names = {
        "module.features.conv0.weight": "features.conv0.weight",
        "_orig_mod.module.classifier.bias": "classifier.bias",
        "features.module.norm0.bias": "features.norm0.bias",
        "module.features.denseblock1.denselayer10.conv.2.weight": (
            "features.denseblock1.denselayer10.conv2.weight"
        ),
        "features.transition1.norm.weight": "features.transition1.norm.weight",
    }
    np.savez(path, n_averaged=np.zeros(()), **{name: np.ones(1) for name in names})
    assert list(weights.read(path)) == list(names.values())


def test_two_names_for_one_tensor_are_refused(tmp_path):
    path = tmp_path / "both.npz"
    np.savez(path, **{"module.a": np.ones(1), "a": np.ones(1)})
    with pytest.raises(weights.WeightsError, match=r"both\.npz: tensor 'a': it appears twice"):
        weights.read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b'{"metadata": {"total_size": 1}, "weight_map": {}}', "text file"),
        ("tensor, größer\n".encode() * 100, "text file"),
        (b"x" * 257 + b"ustar\x0000", "tar archive"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "compressed"),
        (b"\x93NUMPY\1\0v\0", "numpy.savez"),
        (bytes(4096), "none of the formats"),
        (b"\x08\x01\x12\x04onnx" + bytes(60), "none of the formats"),
        (b"\x80\x04\x95", "cut short"),
        (b"PK\3\4", "end of the archive"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_files_that_are_not_weights_are_refused(refused, content, words):
    refused(content, words)


def test_paths_that_are_not_files_are_refused(tmp_path):
    with pytest.raises(weights.WeightsError, match="there is no such file"):
        weights.read(tmp_path / "nothing.pth")
    with pytest.raises(weights.WeightsError, match="it is a folder"):
        weights.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(weights.WeightsError, match="not a regular file"):
        weights.read(tmp_path / "pipe")


def test_an_unexpected_error_in_a_reader_names_the_file(golden_weights, monkeypatch):
    def fail(*_):
        raise KeyError("secret")

    monkeypatch.setattr("densenet_jax.weights.files.read_safetensors", fail)
    with pytest.raises(
        weights.WeightsError, match=r"half\.safetensors: the file is damaged"
    ) as caught:
        weights.read(golden_weights / "half.safetensors")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 600, "\u202e"])
def test_names_that_cannot_be_printed_are_refused(refused, name):
    refused(torch_zip({name: tensor((1,), count=1)}, {"0": bytes(4)}), "name is")


def test_reading_needs_no_other_framework():
    """Importing the readers imports neither a framework nor the library of a format."""
    program = (
        "import sys, densenet_jax.weights.files\n"
        "print([m for m in ('torch', 'keras', 'h5py', 'safetensors', 'mindspore', 'tensorflow')"
        " if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def parts(folder, **changes):
    """Writes two files and their index, and returns the path of the index."""
    tensors = {"a.weight": np.ones((2, 3)), "module.b": np.zeros(2), "c": np.ones(1)}
    places = {"a.weight": "one.safetensors", "module.b": "two.safetensors", "c": "two.safetensors"}
    for file in ("one.safetensors", "two.safetensors"):
        inside = {name: x for name, x in tensors.items() if places[name] == file}
        weights.write_safetensors(folder / file, inside)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**places, **changes}}), encoding="utf-8")
    return index


def test_weights_in_several_files(tmp_path):
    found = weights.read(parts(tmp_path))
    assert {name: x.shape for name, x in found.items()} == {
        "a.weight": (2, 3),
        "b": (2,),
        "c": (1,),
    }
    with pytest.raises(weights.WeightsError, match="do not say which network"):
        weights.load(tmp_path)  # the index is found in the folder


@pytest.mark.parametrize(
    "changes",
    [
        *({"c": file} for file in ("three.safetensors", "one.safetensors", "../x", "/dev/zero", 3)),
        {"d": "two.safetensors"},
        {f"x{i}": f"{i}.safetensors" for i in range(100)},
    ],
)
def test_an_index_that_does_not_fit_its_files(tmp_path, changes):
    with pytest.raises(weights.WeightsError, match=r"index|no such file"):
        weights.read(parts(tmp_path, **changes))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 99_999]
)
def test_a_damaged_index(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(weights.WeightsError, match=r"index\.json: it is no index"):
        weights.read(path)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *(("x.onnx", "ONNX"), ("x.pdparams", "PaddlePaddle"), ("__0_0.distcp", "dcp_to_torch")),
        *(("x.index", "TensorFlow"), ("x.data-00000-of-00001", "TensorFlow"), ("x.tflite", "Lite")),
    ],
)
def test_other_formats_are_refused_by_name(refused, name, word):
    refused(b"\x08\x07\x12\x07pytorch", word, name=name)


@pytest.mark.parametrize(
    ("member", "word"), [("x/archive_format", "torch.export"), ("w.pth", "pass 'w.pth'")]
)
def test_other_archives_are_refused_by_name(refused, member, word):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, b"pt2")
    refused(buffer.getvalue(), word)
