"""Golden files with random damage are either read or refused, in bounded memory.

The damage is applied to the structure, not to the tensors. In archives, it is also applied to the
pickle with a correct checksum, because the checksum would otherwise detect it. State dicts with
edited names and shapes are loaded or refused. For a longer run, also on files of your own:

    FUZZ_EXAMPLES=100000 FUZZ_FILES="a.pth b.msgpack" pytest tests/weights/test_fuzz.py
"""

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densenet_jax import create_model, weights
from tests.random_variables import random_variables
from tests.weights.readers.test_hdf5 import shards
from tests.weights.readers.test_mindspore import entry
from tests.weights.readers.test_torch import module, whole
from tests.weights.test_files import parts
from tests.weights.torch_writer import tensor, torch_stream, torch_zip

# Small files of kinds that the golden files lack.
VIEW = tensor((4, 6), count=24)
STORAGE = {"0": np.arange(24, dtype="<f4").tobytes()}
WHOLE = {"_modules": {"module": whole(conv0=whole(weight=VIEW), relu=module(inplace=True))}}
ARRAYS = {"a": np.ones((3, 4), np.float32), "b": np.arange(5, dtype=np.float16)}


def chunks():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for i, options in enumerate([{"compression": "gzip", "shuffle": True}, {}]):
            group = file.create_group(f"layers/dense_{i}/vars")
            group.attrs["name"] = f"layer{i}"
            options = options or {"compression": "lzf", "fletcher32": True}
            group.create_dataset("0", data=np.ones((6, 40), "f4"), chunks=(4, 16), **options)
    return buffer.getvalue()


def newest():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        for i in range(20):
            file[f"layers/{i}/vars/0"] = np.ones(i, "f4")
            file.attrs[f"attribute {i}"] = "x" * i
    return buffer.getvalue()


MADE = {
    "whole.pth": torch_zip({"epoch": 1, "model": module(**WHOLE)}, STORAGE),
    "whole_legacy.pth": torch_stream(module(**WHOLE), STORAGE),
    "script.pth": torch_zip(module(training=True, fc=module(weight=VIEW)), STORAGE),
    "nested.pth": torch_zip({"x": ({"state_dict_ema": {"a.b": VIEW}}, [1])}, STORAGE),
    "chunks.h5": chunks(),
    "newest.h5": newest(),
    "flax.msgpack": serialization.msgpack_serialize({"params": ARRAYS, "batch_stats": ARRAYS}),
    "training.ckpt": b"".join(
        entry(name, array.shape, "Float32", array.astype("<f4").tobytes())
        for name, array in {**ARRAYS, "moment1.a": ARRAYS["a"], "global_step": ARRAYS["b"]}.items()
    ),
}
GOLDEN = (
    *("half.safetensors", "bfloat16.safetensors", "mindcv.ckpt", "keras_applications.keras"),
    *("keras_applications.weights.h5", "keras_legacy.h5", "torchvision_legacy_names.pth"),
    *("torchvision_zip.pth", "trainer_wrapped.pth.tar", "variants_zip.pth"),
    *("variants_legacy.pth", "variants_trainer.pth", "expected.npz"),
)
YOURS = tuple(map(os.path.abspath, os.environ.get("FUZZ_FILES", "").split()))
NAMES = (*GOLDEN, *MADE, *YOURS)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
MEMORY = 2 * (
    64 << 20
)  # What a small file may expand to, and the same again for the data it is read from.

NUMBERS = st.sampled_from([0, 1, 255, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
PLACES = st.integers(0, 1 << 30)
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
    st.tuples(st.just("byte"), PLACES, st.integers(0, 255)),
    st.tuples(st.just("number"), PLACES, NUMBERS, st.sampled_from([2, 4, 8])),
    st.tuples(st.just("point"), PLACES, PLACES),
    st.tuples(st.just("cut"), PLACES),
    st.tuples(st.just("delete"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("copy"), PLACES, PLACES, st.integers(1, 64)),
)


def structure(content, arrays):
    """Returns the offsets of the bytes that do not belong to a large tensor."""
    free = np.ones(len(content), bool)
    for array in arrays.values():
        if array.nbytes >= 64 and (at := content.find(array.tobytes())) >= 0:
            free[at : at + array.nbytes] = False
    return np.flatnonzero(free)


def damaged(content, places, damage):
    content = bytearray(content)
    for kind, place, *values in damage:
        at = int(places[place % len(places)])
        match kind:
            case "flip" if at < len(content):
                content[at] ^= 1 << values[0]
            case "byte":
                content[at : at + 1] = bytes(values[:1])
            case "number":
                number, size = values
                content[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
            case "point":  # a plausible address or length
                content[at : at + 8] = int(places[values[0] % len(places)]).to_bytes(8, "little")
            case "cut":
                del content[at:]
            case "delete":
                del content[at : at + values[0]]
            case "copy":
                begin = int(places[values[0] % len(places)])
                content[at:at] = content[begin : begin + values[1]]
    return bytes(content)


@pytest.fixture(scope="module")
def subjects(golden_weights, tmp_path_factory):
    """A function that maps a file name to its content and the offsets of its structure."""
    known = {}

    def subject(name):
        if name not in known:
            path = golden_weights / name  # an absolute path stays as it is
            if name in MADE:
                path = tmp_path_factory.mktemp("made") / name
                path.write_bytes(MADE[name])
            content = path.read_bytes()
            known[name] = content, structure(content, weights.read(path))
        return known[name]

    return subject


def is_pickle_in_zip(name):
    content = MADE.get(name) or (Path(__file__).parents[1] / "golden/weights" / name).read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    return any("data.pkl" in item for item in zipfile.ZipFile(io.BytesIO(content)).namelist())


def survives(path, content, index=None):
    """Asserts that a file is read or refused; `index` lists it among others and is read instead."""
    path.write_bytes(content)
    refusal = None
    tracemalloc.start()
    try:
        weights.read(index or path)
    except weights.WeightsError as error:
        refusal = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY + 16 * len(content)
    if refusal:
        # A damaged index may name another file.
        assert str(refusal).startswith(f"{path.parent}/" if index else f"{path}: ")
        assert refusal.__cause__ is None


fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES < 1000,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(subjects, tmp_path, name):
    content, places = subjects(name)

    @fuzzed
    @given(st.lists(DAMAGE, min_size=1, max_size=6))
    def run(damage):
        survives(tmp_path / "weights.bin", damaged(content, places, damage))

    run()


@pytest.mark.parametrize("name", list(filter(is_pickle_in_zip, NAMES)))
def test_damaged_pickles_with_right_checksums(subjects, tmp_path, name):
    content, _ = subjects(name)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {item: archive.read(item) for item in archive.namelist()}
    (pickled,) = [item for item in members if item.endswith("data.pkl")]
    places = np.arange(len(members[pickled]))

    @fuzzed
    @given(st.lists(DAMAGE, min_size=1, max_size=6))
    def run(damage):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for item, data in members.items():
                broken = damaged(data, places, damage) if item == pickled else data
                archive.writestr(item, broken)
        survives(tmp_path / "weights.bin", buffer.getvalue())

    run()


@pytest.mark.parametrize("write", [parts, shards])
def test_damaged_files_of_several(tmp_path, write):
    index = write(tmp_path)
    contents = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}

    @fuzzed
    @given(st.sampled_from(list(contents)), st.lists(DAMAGE, min_size=1, max_size=6))
    def run(path, damage):
        places = np.arange(len(contents[path]))
        survives(path, damaged(contents[path], places, damage), index)
        path.write_bytes(contents[path])

    run()


TEXTS = st.sampled_from(
    (
        *("module.", "model.", "ema.", "0.0.", "features.", "norm5.", "classifier.", "fc.", "x"),
        *("/", ".", "_", "running_var", "weight", "denseblock1.denselayer1.", "é", "opt_state/"),
    )
)
EDITS = st.one_of(
    st.tuples(st.just("prefix"), TEXTS),
    st.tuples(st.just("drop"), PLACES),
    st.tuples(st.just("insert"), PLACES, TEXTS, st.integers(0, 40)),
    st.tuples(st.just("cut"), PLACES, st.integers(0, 40)),
    st.tuples(st.just("copy"), PLACES, TEXTS),
    st.tuples(st.just("shape"), PLACES, st.sampled_from([(), (0,), (1,), (3, 5), (2, 2, 2, 2, 2)])),
    st.tuples(st.just("type"), PLACES, st.sampled_from(["f2", "f8", "i1", "i8", "?"])),
)


def edited(tensors, edits):
    tensors = dict(tensors)
    for kind, *values in edits:
        if kind == "prefix":
            tensors = {values[0] + name: x for name, x in tensors.items()}
        elif tensors:
            name = sorted(tensors)[values[0] % len(tensors)]
            match kind:
                case "drop":
                    del tensors[name]
                case "insert":
                    at = values[2] % (len(name) + 1)
                    tensors[name[:at] + values[1] + name[at:]] = tensors.pop(name)
                case "cut":
                    tensors[name[: values[1]] or "x"] = tensors.pop(name)
                case "copy":
                    tensors[values[1] + name] = tensors[name]
                case "shape":
                    tensors[name] = np.zeros(values[1], np.float32)
                case "type":
                    tensors[name] = tensors[name].astype(values[1])
    return tensors


@pytest.mark.parametrize("convention", ["torch", "keras", "densenet_jax"])
def test_edited_names_and_shapes(tmp_path, convention):
    fields = {"block_sizes": (1,), "growth_rate": 2, "stem_features": 4, "num_classes": 3}
    model = create_model("densenet121", **fields)
    theirs = weights.to_state_dict(model, random_variables(model), convention)

    @settings(fuzzed, max_examples=max(8, EXAMPLES // 10))
    @given(st.lists(EDITS, min_size=1, max_size=6), st.sampled_from([None, 0, 3, 7]))
    def run(edits, num_classes):
        tensors, path = edited(theirs, edits), tmp_path / "w.safetensors"
        weights.write_safetensors(path, tensors)
        refusal = None
        try:
            loaded = weights.load(path, num_classes=num_classes)
        except weights.WeightsError as error:
            refusal = error
        if refusal:
            assert str(refusal).startswith(f"{path}: ")
            return
        assert num_classes in (None, loaded.model.num_classes)
        assert loaded.report.loaded + len(loaded.report.dropped) <= len(tensors)

    run()
