"""Fixtures of the tests of weight files."""

import importlib.util
import time
import tracemalloc
from pathlib import Path

import pytest

from densenet_jax import weights

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden_weights():
    """The folder of small checkpoints, each written by its own framework."""
    return GOLDEN / "weights"


@pytest.fixture(scope="session")
def recipe():
    """The module that computes every golden tensor from its name and shape."""
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refused(tmp_path):
    """A function that asserts that a file is refused in bounded memory and time.

    Its arguments are the content of the file and words that the error message must contain. It
    asserts that the message begins with the path of the file, and returns the message.
    """

    def check(content, *words, name="weights.bin", memory=100e6, seconds=5.0):
        path = tmp_path / name
        path.write_bytes(content)
        begin = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(weights.WeightsError) as caught:
                weights.read(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert len(message) < len(str(path)) + 400
        for word in words:
            assert word in message
        # A cause would mean that a reader failed with another exception instead of checking.
        assert caught.value.__cause__ is None
        assert peak < memory
        assert time.monotonic() - begin < seconds
        return message

    return check
