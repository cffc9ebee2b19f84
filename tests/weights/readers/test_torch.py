"""PyTorch's files: all kinds of views and checkpoints are read, and no pickle runs code."""

import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.weights.readers import pickles
from tests.weights.torch_writer import (
    MAGIC,
    Call,
    Name,
    Persistent,
    Raw,
    code,
    dump,
    tensor,
    torch_stream,
    torch_zip,
)

STORAGE = np.arange(24, dtype=np.float32)
CONTAINERS = [torch_zip, torch_stream]


def read(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return weights.read(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_views_into_one_storage(tmp_path, container):
    base = STORAGE.reshape(2, 3, 4)
    views = {
        "whole": (tensor((2, 3, 4), count=24), base),
        "tied": (tensor((2, 3, 4), count=24), base),
        "transposed": (tensor((4, 2, 3), (1, 12, 4), count=24), base.transpose(2, 0, 1)),
        "part": (tensor((3, 2), (4, 2), offset=12, count=24), base[1, :, ::2]),
        "expanded": (tensor((3, 1000), (1, 0), count=24), np.tile(STORAGE[:3, None], 1000)),
        "scalar": (tensor((), offset=5, count=24), STORAGE[5]),
        "empty": (tensor((0, 7), count=24), np.zeros((0, 7))),
        "single": (tensor((1, 2), (1 << 60, 1), count=24), STORAGE[None, :2]),
    }
    state_dict = {name: view for name, (view, _) in views.items()}
    arrays = read(tmp_path, container(state_dict, {"0": STORAGE.tobytes()}))
    assert list(arrays) == list(views)
    for name, (_, expected) in views.items():
        assert arrays[name].dtype == np.float32
        assert arrays[name].flags.c_contiguous
        np.testing.assert_array_equal(arrays[name], expected, strict=False)
        assert arrays[name].shape == expected.shape
    arrays["whole"][:] = 0  # Tied tensors must not share memory.
    np.testing.assert_array_equal(arrays["tied"], base)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", np.float64),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
@pytest.mark.parametrize("big_endian", [False, True])
def test_element_types(tmp_path, kind, dtype, big_endian):
    expected = np.array([0, 1, 1, 0]).astype(dtype)
    raw = np.frombuffer(expected.tobytes(), np.uint8).reshape(4, -1)
    data = (raw[:, ::-1] if big_endian else raw).tobytes()
    archive = torch_zip(
        {"x": tensor((2, 2), (1, 2), count=4, kind=kind)},
        {"0": data},
        byteorder=b"big" if big_endian else b"little",
    )
    arrays = read(tmp_path, archive)
    assert arrays["x"].dtype == dtype
    np.testing.assert_array_equal(arrays["x"], expected.reshape(2, 2).T)


def test_bool_bytes_other_than_0_and_1_are_true(tmp_path):
    state_dict = {"x": tensor((3,), count=3, kind="BoolStorage")}
    arrays = read(tmp_path, torch_zip(state_dict, {"0": b"\0\2\xff"}))
    assert arrays["x"].view(np.uint8).tolist() == [0, 1, 1]


def test_a_compressed_archive(tmp_path):
    archive = torch_zip(
        {"x": tensor((24,), count=24)},
        {"0": STORAGE.tobytes()},
        compression=zipfile.ZIP_DEFLATED,
    )
    np.testing.assert_array_equal(read(tmp_path, archive)["x"], STORAGE)


def test_legacy_views(tmp_path):
    """Before PyTorch 0.4, a storage could itself be a view of another storage."""
    pid = ("storage", Name("torch", "FloatStorage"), "0", "cpu", 24, ("1", 6, 3))
    rebuild = Name("torch._utils", "_rebuild_tensor")
    content = {"x": Call(rebuild, (Persistent(pid), 1, (2,), (1,)))}
    arrays = read(tmp_path, torch_stream(content, {"0": STORAGE.tobytes()}))
    np.testing.assert_array_equal(arrays["x"], STORAGE[7:9])


@pytest.mark.parametrize("name", ["variants_zip.pth", "variants_legacy.pth"])
def test_files_that_pytorch_wrote(golden_weights, name):
    """`tests/golden/weights/variants.py` wrote the files and documents their contents."""
    arrays = weights.read(golden_weights / name)
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(arrays["transposed"], base.transpose(2, 0, 1))
    np.testing.assert_array_equal(arrays["tied_a"], base)
    np.testing.assert_array_equal(arrays["tied_b"], base)
    np.testing.assert_array_equal(arrays["part"], base[1:, ::2])
    np.testing.assert_array_equal(arrays["expanded"], np.tile(np.arange(4.0)[:, None], 50))
    np.testing.assert_array_equal(arrays["parameter"], [0, 1, 2])
    types = ("float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")
    for dtype in (*types, "uint16", "uint32", "float8_e4m3fn", "float8_e5m2"):
        assert arrays[dtype].dtype.name == dtype
        np.testing.assert_array_equal(arrays[dtype].astype(float), [0, 1, 1, 0])


@pytest.mark.parametrize("name", ["variants_trainer.pth", "variants_trainer_legacy.pth"])
def test_other_contents_of_a_checkpoint_are_ignored(golden_weights, name):
    arrays = weights.read(golden_weights / name)
    assert list(arrays) == ["weight", "bias"]
    np.testing.assert_array_equal(arrays["weight"], [[2, 2, 2]])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": {"x": 1}, "epoch": 3, "best": 0}, 1),
        ({"model": {"x": 0}, "state_dict": {"x": 1}}, 1),
        ({"model": {"x": 0}, "model_ema": {"x": 1}}, 1),
        ({"state_dict": {"x": 0}, "state_dict_ema": {"x": 1}, "optimizer": {"state": {0: {}}}}, 1),
        ({"net": {"module.x": 1}, "acc": 97.5}, 1),
        ({"model": {"state_dict": {"_orig_mod.module.x": 1}}}, 1),
        ({"model": {}, "x": 1}, 1),
    ],
)
def test_where_the_state_dict_is_found(tmp_path, content, expected):
    def filled(value, key=None):
        if isinstance(value, dict):
            return {name: filled(item, name) for name, item in value.items()}
        if key in ("x", "module.x", "_orig_mod.module.x", "best"):
            return tensor((), offset=value, count=2)
        return value

    arrays = read(tmp_path, torch_zip(filled(content), {"0": STORAGE[:2].tobytes()}))
    assert {name: float(array) for name, array in arrays.items()} == {"x": expected}


def harmless_objects(payload):
    """Returns a checkpoint with objects that trainers save, and with `payload` among them."""
    return {
        "epoch": Call(Name("numpy.core.multiarray", "scalar"), (Name("numpy", "dtype"), "8")),
        "args": Call(Name("argparse", "Namespace"), (payload,)),
        "date": Call(Name("datetime", "datetime"), ("now",)),
        "config": Raw(code(Name("my.project", "Config")) + code(()) + pickle.NEWOBJ),
        "set": Raw(pickle.EMPTY_SET + pickle.MARK + code(1) + pickle.ADDITEMS),
        "tuple key": Raw(pickle.EMPTY_DICT + code((1, 2)) + code(payload) + pickle.SETITEM),
        "state_dict": {"x": tensor((2,), count=2)},
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_unknown_objects_are_ignored(tmp_path, container):
    content = container(harmless_objects(7), {"0": bytes(8)})
    assert list(read(tmp_path, content)) == ["x"]


SHELL = "touch {}"
PAYLOADS = {
    "reduce": lambda arg: code(Call(Name("os", "system"), (arg,))),
    "posix": lambda arg: code(Call(Name("posix", "system"), (arg,))),
    "subprocess": lambda arg: code(Call(Name("subprocess", "check_output"), (arg,))),
    "eval": lambda arg: code(
        Call(Name("builtins", "eval"), (f"__import__('os').system('{arg}')",))
    ),
    "python 2": lambda arg: code(Call(Name("__builtin__", "eval"), (arg,))),
    "dotted": lambda arg: code(Call(Name("builtins", "eval.__call__"), (arg,))),
    "stack global": lambda arg: (
        code("os") + code("system") + pickle.STACK_GLOBAL + code((arg,)) + pickle.REDUCE
    ),
    "new object": lambda arg: code(Name("subprocess", "Popen")) + code((arg,)) + pickle.NEWOBJ,
    "new object ex": lambda arg: (
        code(Name("subprocess", "Popen")) + code((arg,)) + code({}) + pickle.NEWOBJ_EX
    ),
    "instance": lambda arg: pickle.MARK + code(arg) + b"ios\nsystem\n",
    "object": lambda arg: pickle.MARK + code(Name("os", "system")) + code(arg) + pickle.OBJ,
    "extension": lambda arg: b"\x82\x01" + code((arg,)) + pickle.REDUCE,
    "runpy": lambda arg: code(Call(Name("runpy", "_run_code"), (arg,))),
    "import": lambda arg: code(Call(Name("builtins", "__import__"), ("os",))),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_do_not_run(refused, tmp_path, monkeypatch, payload, nested, container):
    def alarm(*_, **__):
        raise AssertionError("the payload ran")

    for name in ("system", "popen", "posix_spawn", "fork"):
        monkeypatch.setattr(os, name, alarm)
    target = tmp_path / "ran"
    attack = Raw(PAYLOADS[payload](SHELL.format(target)))
    content = harmless_objects(attack) if nested else attack
    message = refused(container(content, {"0": bytes(8)}))
    assert "malicious" in message or "opcode" in message
    assert not target.exists()


def test_calls_of_unknown_functions_do_nothing(refused, tmp_path):
    """No function can be called, not only those known from attacks."""
    target = tmp_path / "ran"
    attack = Call(Name("pathlib", "Path.touch"), (Call(Name("pathlib", "Path"), (str(target),)),))
    built = Raw(code(attack) + code({"x": attack}) + pickle.BUILD)
    refused(torch_zip(built), "pathlib.Path.touch")
    content = {"x": tensor((1,), count=1), "evil": built}
    assert list(read(tmp_path, torch_zip(content, {"0": bytes(4)}))) == ["x"]
    assert not target.exists()


def memo_bomb():
    return b"\x80\x02}" + pickle.LONG_BINPUT + struct.pack("<I", 0xFFFFFFF0) + b"."


def doubling(levels=100):
    """Returns a pickle of nested pairs of the same tuple: 2**levels elements when traversed."""
    return b"".join([b"\x80\x02)", *[b"q\0h\0h\0\x86"] * levels])


PICKLE_BOMBS = {
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62),
    "negative": b"\x80\x02T\xff\xff\xff\xff",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1),
    "memo": memo_bomb(),
    "frame": b"\x80\x04\x95" + b"\xff" * 8,
    "nested lists": b"\x80\x02" + b"](" * 20_000 + b"e" * 20_000 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 40_000 + b".",
    "nested calls": b"\x80\x02ca\nb\n" + b")R" * 20_000 + b".",
    "objects": b"\x80\x02(" + b"}" * 300_000 + b"t.",
    "memos": b"\x80\x04(" + b"]\x94" * 150_000 + b"t.",
    "hashing": doubling() + b"q\1}h\1h\1s.",
    "walking": doubling() + b".",
    "colliding": b"\x80\x02}("
    + b"".join(code(i * ((1 << 61) - 1)) + b"N" for i in range(1 << 68, (1 << 68) + 10_000))
    + b"u.",
    "copying": b"\x80\x02("
    + b"N" * 20_000
    + b"tq\0ccollections\nOrderedDict\nq\1("
    + b"h\1h\0\x85R" * 8_000
    + b"t.",
    "long ids": b"\x80\x02(" + b"N" * 20_000 + b"tq\0(" + b"h\0Q" * 15_000 + b"t.",
    "long names": b"\x80\x04("
    + code("x" * 100_000)
    + b"\x94h\0\x93"
    + b"h\0h\0\x93" * 10_000
    + b"t.",
    "underflow": b"\x80\x02R.",
    "no mark": b"\x80\x02e.",
    "no memo": b"\x80\x02h\7.",
    "not a name": b"\x80\x02K\1K\2\x93.",
    "not text": b"\x80\x02X\2\0\0\0\xff\xfe.",
    "endless name": b"\x80\x02c" + b"a" * 100_000,
    "no end": b"\x80\x02}",
    "odd items": b"\x80\x02}(K\1u.",
    "protocol 0": b"(dp0\nS'x'\nI1\ns.",
    "nothing": b"",
}


@pytest.mark.parametrize("bomb", PICKLE_BOMBS)
def test_pickle_bombs(refused, monkeypatch, bomb):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 50_000)  # For the sake of time.
    refused(torch_zip(PICKLE_BOMBS[bomb]), memory=50e6)


def test_a_pickle_that_is_too_large(refused, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_PICKLE", 1000)
    refused(torch_zip({"x": "y" * 2000}), "exceeds the limit")


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (tensor((25,), count=24), "reaches beyond"),
        (tensor((2,), (24,), count=24), "reaches beyond"),
        (tensor((2,), (1 << 62,), count=24), "reaches beyond"),
        (tensor((2,), (-1,), count=24), "strides"),
        (tensor((2, 2), (1,), count=24), "strides"),
        (tensor((1,), offset=24, count=24), "reaches beyond"),
        (tensor((1,), offset=-1, count=24), "damaged"),
        (tensor((1,), offset=1 << 80, count=24), "damaged"),
        (tensor((-1,), count=24), "sizes that are negative"),
        (tensor((1 << 40, 1 << 40), (0, 0), count=24), "too large for any memory"),
        (tensor((1 << 30, 1 << 10), (0, 0), count=24), "far more memory"),
        (tensor((1 << 80,), (0,), count=24), "sizes that are negative"),
        (tensor((True,), count=24), "sizes that are negative"),
        (tensor((1,) * 70, count=24), "dimensions"),
        (tensor((24,), count=25), "bytes instead of"),
        (tensor((24,), count=24, key="7"), "missing"),
        (tensor((24,), count=24, key="../../etc/passwd"), "missing"),
        (tensor((24,), count=24, kind="ComplexFloatStorage"), "unusual element type"),
        (tensor(None, (1,), count=24), "dimensions"),
        (Call(Name("torch._utils", "_rebuild_sparse_tensor"), (1, 2)), "sparse"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_tensors_are_refused(refused, view, words):
    refused(torch_zip({"x": view}, {"0": STORAGE.tobytes()}), "tensor 'x'", words)


def test_many_expanded_tensors(refused):
    """Each is small enough alone, but all together would take 400 MB."""
    content = {f"x{i}": tensor((1 << 20, 1), (0, 0), count=1) for i in range(100)}
    refused(torch_zip(content, {"0": bytes(4)}), "far more memory", memory=180e6)


def test_too_many_tensors(refused):
    view = code(tensor((1,), count=1))
    items = b"".join(code(f"{i}") + b"h\0" for i in range(20_001))
    pickled = b"\x80\x02" + view + b"q\x000}(" + items + b"u."
    refused(torch_zip(pickled, {"0": bytes(4)}), "more than 20000 tensors")


def test_a_repeated_name(refused):
    pickled = b"\x80\x02}(" + 2 * (code("x") + code(tensor((1,), count=1))) + b"u."
    refused(torch_zip(pickled, {"0": bytes(4)}), "'x' twice")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"x": 1}], "holds one list"),
        ({"epoch": 1, "lr": 0.1}, "(epoch, lr)"),
        ({}, "(none)"),
        (Call(Name("torchvision.models.densenet", "DenseNet"), ()), "model.state_dict()"),
        (tensor((1,), count=1), "holds one Tensor"),
    ],
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_files_without_a_state_dict(refused, content, words, container):
    storages = {"0": bytes(4)} if "Tensor" in words else {}
    refused(container(content, storages), words)


# The attributes of modules, as torch.save pickles them and as TorchScript does.
def module(**attributes):
    return Raw(code(Call(Name("some", "Module"), ())) + code(attributes) + pickle.BUILD)


def whole(**children):
    kinds = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    for name, child in children.items():
        tensors = "_parameters" if isinstance(child, Call) else "_modules"
        kinds[tensors] = kinds[tensors] | {name: child}
    return module(training=False, hooks={"x": tensor((1,), count=24)}, **kinds)


VIEW = tensor((4, 6), count=24)
NESTED = whole(features=whole(conv0=whole(weight=VIEW)), classifier=whole(weight=VIEW, bias=VIEW))
SCRIPT = module(training=True, features=module(conv0=module(weight=VIEW)), fc=module(bias=VIEW))
IN_A_DICT = {"epoch": 1, "best": {"net": NESTED, "optimizer": {"state": {"m": VIEW}}}}
MODULE_NAMES = ["features.conv0.weight", "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("content", "names"),
    [
        (NESTED, MODULE_NAMES),
        ({"model": NESTED, "epoch": 3}, MODULE_NAMES),
        (IN_A_DICT, MODULE_NAMES),
        (SCRIPT, ["features.conv0.weight", "fc.bias"]),
        (({"a.b": VIEW}, {"state": {}}), ["a.b"]),
        (
            {"encoder": {"x": VIEW}, "head": {"y": VIEW}, "opt": {"z": VIEW}},
            ["encoder.x", "head.y"],
        ),
    ],
)
def test_modules_and_nested_checkpoints_have_the_names_of_state_dict(
    tmp_path, container, content, names
):
    found = read(tmp_path, container(content, {"0": STORAGE.tobytes()}))
    assert list(found) == names
    assert all(np.array_equal(array, STORAGE.reshape(4, 6)) for array in found.values())


def test_the_archive_of_a_torchscript_program(tmp_path):
    buffer = io.BytesIO(torch_zip(SCRIPT, {"0": STORAGE.tobytes()}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    assert list(read(tmp_path, buffer.getvalue())) == ["features.conv0.weight", "fc.bias"]


@pytest.mark.parametrize(("name", "said"), [("SiLU", True), ("ReLU", False), ("Sigmoid", False)])
def test_another_activation_of_a_module_is_said(tmp_path, caplog, name, said):
    kind = Name("torch.nn.modules.activation", name)
    activation = Raw(code(Call(kind, ())) + code({"_modules": {}}) + pickle.BUILD)
    parts = {"_parameters": {"weight": VIEW}, "_modules": {"relu0": activation}}
    read(tmp_path, torch_zip(module(**parts), {"0": STORAGE.tobytes()}))
    assert ("with the activations SiLU" in caplog.text) == said


def test_a_module_without_tensors_is_refused(refused):
    refused(torch_zip(module(training=True)), "some.Module", "save model.state_dict()")


def test_an_object_that_contains_itself_is_read_once(tmp_path):
    itself = Raw(b"}q\x05(" + code("x") + code(VIEW) + code("again") + b"h\x05u")
    assert list(read(tmp_path, torch_zip({"model": itself}, {"0": STORAGE.tobytes()}))) == ["x"]


def test_many_ways_to_the_same_objects_take_no_time(refused):
    keys = ["model", "net", "module", "ema", "params"]
    content = code({"x": 1})
    for depth in range(60):
        items = b"".join(code(key) + b"h" + bytes([depth]) for key in keys)
        content = content + b"q" + bytes([depth]) + b"0}(" + items + b"u"
    refused(torch_zip(b"\x80\x02" + content + b"."), "is a state dict")


def numpy_array(array, protocol=2):
    """Returns the code of an array as NumPy pickles it."""
    return Raw(pickle.dumps(array, protocol=protocol)[2:-1])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays_in_a_pickle(tmp_path, dtype, order):
    array = np.arange(200, 212).reshape(3, 4).astype(dtype, order=order)
    content = {"x": tensor((1,), count=24), "head.weight": numpy_array(array)}
    found = read(tmp_path, torch_zip(content, {"0": STORAGE.tobytes()}))
    assert np.array_equal(found["head.weight"], array)
    assert np.array_equal(read(tmp_path, pickle.dumps({"model": {"w": array}}, 4))["w"], array)


def test_subclasses_of_tensors_and_tensors_of_other_devices(tmp_path):
    rebuild, inner = VIEW.callee, VIEW.args
    kinds = {
        "subclass": Call(
            Name("torch._tensor", "_rebuild_from_type_v2"), (rebuild, Name("my", "T"), inner, {})
        ),
        "xla": Call(
            Name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"), (VIEW, 1, "xla:0", True)
        ),
    }
    found = read(tmp_path, torch_zip(kinds, {"0": STORAGE.tobytes()}))
    assert [array.shape for array in found.values()] == [(4, 6), (4, 6)]


@pytest.mark.parametrize("value", [Call(Name("my", "Quantised"), ()), numpy_array(np.array(["x"]))])
def test_a_weight_of_an_unknown_kind_is_refused(refused, value):
    content = {"x": VIEW, "classifier.weight": value}
    refused(torch_zip(content, {"0": STORAGE.tobytes()}), "classifier.weight", "unusual")


def test_the_average_is_taken_with_a_word(tmp_path, caplog):
    view = tensor((1,), count=24, offset=5)
    content = {"model": {"a": VIEW, "n": VIEW}, "model_ema": {"a": view, "n": view}}
    found = read(tmp_path, torch_zip(content, {"0": STORAGE.tobytes()}))
    assert found["a"] == found["n"] == 5
    assert "those of model_ema are taken" in caplog.text


def test_an_average_of_the_parameters_is_completed_by_the_other_tensors(tmp_path, caplog):
    content = {"model": {"a": VIEW, "n": VIEW}, "ema": {"a": tensor((1,), count=24, offset=5)}}
    found = read(tmp_path, torch_zip(content, {"0": STORAGE.tobytes()}))
    assert found["a"] == 5
    assert found["n"].shape == (4, 6)
    assert "ema, completed by model" in caplog.text


def test_big_endian_tensors_of_one_element(tmp_path):
    content = {"n": tensor((), count=1, kind="LongStorage")}
    file = torch_zip(content, {"0": (7).to_bytes(8, "big")}, byteorder=b"big")
    assert read(tmp_path, file)["n"] == 7


def test_paddle_is_refused_by_name(refused):
    content = {"conv.weight": np.zeros(3), "StructuredToParameterName@@": {}}
    refused(pickle.dumps(content, 2), "PaddlePaddle")


def test_names_of_wide_characters_are_charged_before_they_are_kept(refused):
    name = "\U0001f600" + "x" * 500
    joined = b"h\x00h\x00\x93" * 400_000
    pickled = b"\x80\x02" + code(name) + b"q\x00(" + joined + b"l."
    refused(torch_zip(pickled, compression=zipfile.ZIP_DEFLATED), "expands to far more memory")


@pytest.mark.parametrize(
    "content",
    [
        dump({"x": 1}),
        dump(0x1950A86A20F9469CFC6C) + dump(1002),
        MAGIC,
        torch_stream({"x": tensor((24,), count=24)}),
        torch_stream({"x": tensor((24,), count=24)}, {"1": STORAGE.tobytes()}),
        torch_stream({"x": tensor((24,), count=24)}, {"0": STORAGE.tobytes()})[:-1],
        torch_stream({"x": tensor((24,), count=24)}, {"0": b""})[:-8] + b"\xff" * 8,
    ],
)
def test_damaged_streams(refused, content):
    refused(content)
