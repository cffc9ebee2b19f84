"""Golden files with random damage are either read or refused, in bounded memory.

The damage is applied to the structure, not to the tensors. In archives, it is also applied to the
pickle with a correct checksum, because the checksum would otherwise detect it. For a longer run:

    FUZZ_EXAMPLES=100000 pytest tests/weights/test_fuzz.py
"""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densenet_jax import weights

NAMES = (
    *("half.safetensors", "bfloat16.safetensors", "mindcv.ckpt", "keras_applications.keras"),
    *("keras_applications.weights.h5", "keras_legacy.h5", "torchvision_legacy_names.pth"),
    *("torchvision_zip.pth", "trainer_wrapped.pth.tar", "variants_zip.pth"),
    *("variants_legacy.pth", "variants_trainer.pth", "expected.npz"),
)
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
def subjects(golden_weights):
    """A function that maps a file name to its content and the offsets of its structure."""
    known = {}

    def subject(name):
        if name not in known:
            content = (golden_weights / name).read_bytes()
            arrays = weights.read(golden_weights / name)
            known[name] = content, structure(content, arrays)
        return known[name]

    return subject


def survives(path, content):
    path.write_bytes(content)
    refusal = None
    tracemalloc.start()
    try:
        weights.read(path)
    except weights.WeightsError as error:
        refusal = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY + 16 * len(content)
    if refusal:
        assert str(refusal).startswith(f"{path}: ")
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


@pytest.mark.parametrize("name", [name for name in NAMES if "zip" in name or "trainer" in name])
def test_damaged_pickles_with_right_checksums(golden_weights, tmp_path, name):
    with zipfile.ZipFile(golden_weights / name) as archive:
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
