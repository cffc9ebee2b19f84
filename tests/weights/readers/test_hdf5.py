"""Keras's files: names in both layouts, and invalid or malicious structures."""

import gc
import io
import json
import struct
import sys
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.weights.readers import hdf5_chunks


def hdf5(fill, **options):
    """Returns the content of an HDF5 file that `fill(file)` has filled."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        fill(file)
    return buffer.getvalue()


def read(tmp_path, content):
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    return weights.read(path)


TYPES = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8", "i1", "<i2", "<i4", "<i8", ">i4", "u1", "<u8")


@pytest.mark.parametrize("libver", [("earliest", "v108"), ("earliest", "latest")])
def test_element_types_and_shapes(tmp_path, libver):
    arrays = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in TYPES}
    arrays["scalar"] = np.array(2.5)
    arrays["empty"] = np.zeros((0, 2))
    arrays["bfloat16"] = np.arange(6).astype(ml_dtypes.bfloat16)

    def fill(file):
        for name, array in arrays.items():
            file[f"layer/{name}"] = array

    result = read(tmp_path, hdf5(fill, libver=libver))
    assert result.keys() == {f"layer/{name}" for name in arrays}
    for name, array in arrays.items():
        actual = result[f"layer/{name}"]
        assert actual.dtype == array.dtype.newbyteorder("=")
        assert actual.shape == array.shape
        np.testing.assert_array_equal(actual, array)


@pytest.mark.parametrize("members", [3, 60, 900])  # in the header, in one block, in many
def test_the_newest_layout(tmp_path, members):
    def fill(file):
        for i in range(members):
            file[f"layer/{i}/kernel"] = np.full((2, i % 3), i, "f4")
        layer = file.create_group("ordered", track_order=True)
        layer["bias"] = np.arange(3.0)
        for i in range(20):
            layer.attrs[f"attribute {i}"] = i

    old, new = (read(tmp_path, hdf5(fill, libver=v)) for v in ("earliest", "latest"))
    assert new.keys() == old.keys()
    assert len(new) == members + 1
    for name, array in old.items():
        np.testing.assert_array_equal(new[name], array)


def test_attributes_of_the_newest_layout(tmp_path):
    names = ["fc1000/kernel:0", "fc1000/bias:0"]

    def fill(file):
        keras_2(file, "fc1000", names)
        for i in range(30):  # over eight are stored outside of the header
            file.attrs[f"attribute {i:04}"] = "x" * i

    assert read(tmp_path, hdf5(fill, libver="latest")).keys() == {"fc1000/kernel", "fc1000/bias"}


def test_arrays_inside_the_object_header(tmp_path):
    def fill(file):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        group = file.create_group("layer")
        dataset = h5py.h5d.create(group.id, b"bias", h5py.h5t.IEEE_F32LE, space, properties)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype=np.float32))

    assert read(tmp_path, hdf5(fill))["layer/bias"].tolist() == [0, 1, 2]


def test_many_members_in_a_group(tmp_path):
    """Enough for the tree of names to have several levels."""

    def fill(file):
        for i in range(1000):
            file[f"layers/conv2d_{i}/vars/0"] = np.full(1, i, np.float32)

    result = read(tmp_path, hdf5(fill))
    assert len(result) == 1000
    assert result["conv2d_731/kernel"] == 731


def keras_2(file, layer, weight_names):
    group = file.create_group(layer)
    group.attrs["weight_names"] = [name.encode() for name in weight_names]
    for i, name in enumerate(weight_names):
        group[name] = np.full(2, i, np.float32)


@pytest.mark.parametrize("root", ["", "model_weights/"])
def test_names_of_keras_2(tmp_path, root):
    def fill(file):
        keras_2(file, f"{root}conv1/conv", ["conv1/conv/kernel:0"])
        keras_2(file, f"{root}bn", ["bn/gamma:0", "bn/beta:0"])
        keras_2(file, f"{root}fc", ["kernel", "bias"])
        keras_2(file, f"{root}densenet121", ["conv2_block1_1_conv/kernel:0"])  # a nested model
        keras_2(file, f"{root}head", ["sequential/head/kernel"])
        keras_2(file, f"{root}dropout", ["seed_generator/seed_generator_state"])
        file.create_group(f"{root}relu").attrs["weight_names"] = np.zeros(0)
        file["optimizer_weights/Adam/bn/gamma/m:0"] = np.zeros(2)

    assert set(read(tmp_path, hdf5(fill))) == {
        *("conv1_conv/kernel", "bn/gamma", "bn/beta", "fc/kernel", "fc/bias"),
        *("conv2_block1_1_conv/kernel", "head/kernel"),
    }


@pytest.mark.parametrize("attribute", ["text", "fixed", "none"])
def test_names_of_keras_3(tmp_path, attribute):
    def variables(file, path, name, count):
        group = file.create_group(f"{path}/vars")
        if attribute != "none":
            group.attrs["name"] = name if attribute == "text" else np.bytes_(name)
        for i in range(count):
            group[str(i)] = np.full(2, i, np.float32)

    def fill(file):
        variables(file, "layers/conv2d_3", "conv2_block1_1_conv", 1)
        variables(file, "layers/functional/layers/batch_normalization", "bn", 4)
        variables(file, "layers/batch_normalization_1", "half_bn", 2)
        variables(file, "layers/dense", "predictions", 2)
        variables(file, "layers/dropout/seed_generator", "seed_generator", 1)
        variables(file, "optimizer", "adam", 9)

    result = read(tmp_path, hdf5(fill))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    if attribute == "none":
        assert set(result) == {
            *("conv2d_3/kernel", "batch_normalization_1/0", "batch_normalization_1/1"),
            *(f"functional_batch_normalization/{name}" for name in names),
            *("dense/kernel", "dense/bias"),
        }
    else:
        assert set(result) == {
            *("conv2_block1_1_conv/kernel", "half_bn/0", "half_bn/1"),
            *(f"bn/{name}" for name in names),
            *("predictions/kernel", "predictions/bias"),
        }
        assert result["bn/moving_variance"].tolist() == [3, 3]


def shards(folder, **changes):
    """Writes two shards of Keras 3 and their index, and returns the path of the index."""
    places = {
        "/layers/conv2d/vars": "w_00000.weights.h5",
        "/layers/batch_normalization/vars": ["w_00000.weights.h5", "w_00001.weights.h5"],
    }
    inside = [{"conv2d": (0,), "batch_normalization": (0, 1)}, {"batch_normalization": (2, 3)}]
    for number, layers in enumerate(inside):
        with h5py.File(folder / f"w_{number:05}.weights.h5", "w") as file:
            for layer, variables in layers.items():
                group = file.create_group(f"layers/{layer}/vars")
                group.attrs["name"] = {"conv2d": "conv1_conv", "batch_normalization": "bn"}[layer]
                for i in variables:
                    group[str(i)] = np.full(2, i, np.float32)
    index = folder / "w.weights.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places | changes}))
    return index


def test_weights_in_shards(tmp_path):
    found = weights.read(shards(tmp_path))
    assert {name: array[0] for name, array in found.items()} == {
        "conv1_conv/kernel": 0,
        **{f"bn/{v}": i for i, v in enumerate(["gamma", "beta", "moving_mean", "moving_variance"])},
    }
    with pytest.raises(weights.WeightsError, match="do not say which network"):
        weights.load(tmp_path)  # the index is found in the folder
    with pytest.raises(weights.WeightsError, match="no common SHA-256"):
        weights.load(tmp_path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("w_00009.weights.h5", "no such file"),
        *((name, "is no index") for name in ("../x", "", "\0", "\ud800", 3, [3], [["x"]], None)),
    ],
)
def test_an_index_of_shards_that_does_not_fit_its_files(tmp_path, place, words):
    with pytest.raises(weights.WeightsError, match=words):
        weights.read(shards(tmp_path, **{"/layers/dense/vars": place}))


def test_a_variable_in_two_shards_is_refused(tmp_path):
    index = shards(tmp_path)
    first, second = (tmp_path / f"w_0000{i}.weights.h5" for i in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(weights.WeightsError, match="two variables have this name"):
        weights.read(index)


def test_a_keras_archive_may_be_compressed(tmp_path):
    def fill(file):
        file["layers/dense/vars/0"] = np.ones((2, 2))

    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{" * 100)  # Not read, because it may name code to run.
        archive.writestr("model.weights.h5", hdf5(fill))
    np.testing.assert_array_equal(weights.read(path)["dense/kernel"], np.ones((2, 2)))


def external_data(file):
    file.create_dataset("x/y", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual_data(file):
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("x/y", layout)


def two_names_for_a_group(file):
    file["a/x"] = np.ones(2)
    file["b"] = file["a"]


def a_group_in_itself(file):
    group = file.create_group("a")
    group["b"] = group


def nested(file):
    file["/".join("g" * 100)] = np.ones(2)


def same_layer_names(file):
    for i in range(2):
        file[f"layers/conv2d_{i}/vars/0"] = np.ones(2)
        file[f"layers/conv2d_{i}/vars"].attrs["name"] = "conv"


def a_large_name(file):
    file["layers/conv2d/vars/0"] = np.ones(2)
    file["layers/conv2d/vars"].attrs["name"] = "x" * 10_000


def a_number_for_a_name(file):
    file["layers/conv2d/vars/0"] = np.ones(2)
    file["layers/conv2d/vars"].attrs["name"] = 5


def chunks(**options):
    options = {"shape": (8,), "dtype": "f4", "chunks": (2,)} | options
    return lambda file: file.create_dataset("x/y", **options)


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "y")), "damaged"),
        (lambda file: file.__setitem__("x", h5py.SoftLink("/y")), "links to other names"),
        (external_data, "data in other files"),
        (virtual_data, "in other files"),
        (two_names_for_a_group, "contain each other"),
        (a_group_in_itself, "contain each other"),
        (nested, "nested too deeply"),
        (chunks(), "exist"),
        (chunks(scaleoffset=4, dtype="i4", data=np.arange(8)), "number 6"),
        (chunks(shape=(1 << 40,), chunks=(1 << 20,)), "has more than 20000 chunks"),
        (chunks(shape=(1 << 30,), chunks=(1 << 20,)), "expands to far more memory"),
        (lambda file: file.create_dataset("x/y", (1 << 40,), "f8"), "exist"),
        (lambda file: file.create_dataset("x/y", (1 << 50,), "u1"), "sizes that are negative"),
        (lambda file: file.create_dataset("x/y", (2,), "S4"), "element type"),
        (lambda file: file.create_dataset("x/y", (2,), "c8"), "element type"),
        (lambda file: file.create_dataset("x/y", (2,), h5py.string_dtype()), "element type"),
        (lambda file: file.create_dataset("x/y", (1,) * 9, "f4"), "dimensions"),
        (lambda file: file.create_dataset("x/y", dtype="f4", data=h5py.Empty("f4")), "shape"),
        (lambda file: file.__setitem__("x", np.dtype("f8")), "newer HDF5"),
        (same_layer_names, "two variables"),
        (a_large_name, "limit is 512"),
        (a_number_for_a_name, "damaged"),
        (lambda file: None, "no tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_that_keras_does_not_write_are_refused(refused, fill, words):
    refused(hdf5(fill), words)


def test_files_with_a_user_block_are_refused(refused):
    refused(hdf5(lambda file: file.create_group("x"), userblock_size=512), "none of the formats")


def test_links_to_names_in_the_newest_layout_are_refused(refused):
    def fill(file):
        file["x"] = h5py.SoftLink("/y")

    refused(hdf5(fill, libver="latest"), "newer HDF5")


def test_chunks_of_the_newest_layout_are_refused_with_a_command_that_rewrites_it(
    refused, tmp_path, monkeypatch
):
    def fill(file):
        keras_2(file, "fc1000", ["fc1000/kernel:0", "fc1000/bias:0"])
        file.create_dataset("more/kernel:0", data=np.ones((4, 5)), chunks=(2, 5))
        file.attrs["backend"] = "jax"

    message = refused(hdf5(fill, libver="latest"), "newer HDF5", "FILE new.h5")
    program, new = message.split('"')[1], tmp_path / "new.h5"
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "weights.bin"), str(new)])
    exec(program, {})
    gc.collect()  # h5py closes the file
    found, expected = weights.read(new), read(tmp_path, hdf5(fill))
    assert found.keys() == expected.keys() == {"fc1000/kernel", "fc1000/bias", "more/kernel"}
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    with h5py.File(new) as file:
        assert file.attrs["backend"] == "jax"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True},
        {"compression": "gzip", "fletcher32": True},
        {"shuffle": True},
        {"fletcher32": True},
        {"compression": "lzf"},
        {"compression": "lzf", "shuffle": True},
    ],
)
@pytest.mark.parametrize("dtype", ["<f4", ">f2", "<f8", "<i4"])
def test_chunks(tmp_path, options, dtype):
    arrays = {
        "matrix": (np.arange(35).reshape(5, 7).astype(dtype), (2, 3)),
        "large": (np.arange(4000).reshape(40, 100).astype(dtype), (1, 7)),
        "whole": (np.arange(24).reshape(2, 3, 4).astype(dtype), (2, 3, 4)),
        "padded": (np.arange(3).astype(dtype), (2,)),
        "runs": (np.repeat(np.arange(9), 500).astype(dtype), (4500,)),
    }

    def fill(file):
        for name, (array, size) in arrays.items():
            file.create_dataset(f"layer/{name}", data=array, chunks=size, **options)
        file.create_dataset("layer/empty", (0, 2), "f4", maxshape=(None, 2), chunks=(4, 2))

    found = read(tmp_path, hdf5(fill))
    assert found.pop("layer/empty").shape == (0, 2)
    assert all(np.array_equal(array, arrays[name[6:]][0]) for name, array in found.items())
    assert found["layer/matrix"].dtype == np.dtype(dtype).newbyteorder("=")


def in_chunks(**options):
    data = np.zeros(2048, np.float32)
    return hdf5(chunks(shape=None, data=data, chunks=(512,), **options))


@pytest.mark.parametrize(
    ("offset", "value", "size"),
    [
        (4, 9, 1),  # another kind of node
        (5, 9, 1),  # too many levels
        (5, 3, 1),
        (6, 60_000, 2),
        (24, 1 << 30, 4),  # size of the first chunk
        (24, 1, 4),
        (28, 1, 4),  # its filters are skipped
        (32, 3, 8),  # the chunk begins elsewhere
        (32, 512, 8),
        (48, 0, 8),  # its data are elsewhere
        (48, 1 << 60, 8),
    ],
)
def test_damaged_trees_of_chunks(refused, offset, value, size):
    content = in_chunks(compression="gzip")
    at = content.rindex(b"TREE\1")  # the tree of a group begins with TREE\0
    refused(content[:at] + patched(content[at:], b"TREE\1", offset, value, size))


def test_a_tree_of_chunks_that_contains_itself(refused):
    content = in_chunks()
    at = content.rindex(b"TREE\1")
    node = bytearray(content[at:])
    for entry in range(4):
        struct.pack_into("<Q", node, 24 + 32 * entry + 24, at)
    for level in range(1, 9):
        node[5] = level
        refused(content[:at] + bytes(node))


def test_chunks_that_expand_to_too_much(refused):
    data = np.zeros(1 << 27, np.uint8)
    options = {"shape": None, "data": data, "chunks": (1 << 24,), "dtype": "u1"}
    refused(hdf5(chunks(compression="gzip", **options)), "expands to far more memory", memory=200e6)


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        (b"\2abc", b"abc"),
        (b"\0a\xe0\x05\0", b"a" * 15),  # 7 + 2 + 5 bytes, from one byte before
        (b"\1ab\x40\1\0c", b"ababab"[:6] + b"c"),
        (b"\1ab\x20\2", None),  # three bytes before, of two
        (b"\1ab\xe0", None),  # cut short
        (b"\0a" + b"\xe0\xff\0" * 9, b"a" * (1 + 264 * 4)),  # more than the room: left out
    ],
)
def test_lzf(packed, unpacked):
    if unpacked is None:
        with pytest.raises((ValueError, IndexError)):
            hdf5_chunks._unpacked(packed, 1000)
    else:
        assert hdf5_chunks._unpacked(packed, 1000) == unpacked


def patched(content, signature, offset, value, size=8):
    """Returns a file with a number after the first occurrence of a signature replaced."""
    content = bytearray(content)
    at = content.index(signature) + offset
    content[at : at + size] = value.to_bytes(size, "little")
    return bytes(content)


@pytest.fixture(scope="module")
def keras_3():
    def fill(file):
        file["layers/conv2d/vars/0"] = np.ones((2, 2), np.float32)
        file["layers/conv2d/vars"].attrs["name"] = "conv"

    return hdf5(fill)


@pytest.mark.parametrize("value", [0, 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
@pytest.mark.parametrize(
    ("signature", "offset"),
    [
        (b"\x89HDF", 64),  # address of the root group
        (b"HEAP", 8),  # size of its names
        (b"HEAP", 24),  # address of its names
        (b"TREE", 32),  # address of its table of members
        (b"SNOD", 16),  # address of a member
        (b"GCOL", 8),  # size of a heap of texts
    ],
)
def test_invalid_addresses_are_refused(refused, keras_3, signature, offset, value):
    refused(patched(keras_3, signature, offset, value))


def test_a_tree_that_contains_itself(refused, keras_3):
    tree = keras_3.index(b"TREE")
    for level in (1, 200):
        content = patched(keras_3, b"TREE", 5, level, size=1)
        refused(patched(content, b"TREE", 32, tree))
    content = patched(keras_3, b"TREE", 5, 3, size=1)
    content = patched(content, b"TREE", 6, 0xFFFF, size=2)
    refused(patched(content, b"TREE", 32, tree), memory=5e6)


def test_a_header_that_continues_in_itself(refused, keras_3):
    header = struct.unpack("<Q", keras_3[64:72])[0]
    content = bytearray(keras_3)
    struct.pack_into("<HHLQQ", content, header + 16, 0x10, 16, 0, header + 16, 24)
    refused(bytes(content), "damaged")


@pytest.mark.parametrize("cut", range(1, 8000, 501))
def test_truncated_files(refused, golden_weights, cut):
    content = (golden_weights / "keras_legacy.h5").read_bytes()
    refused(content[:-cut] if cut % 2 else content[:cut])
