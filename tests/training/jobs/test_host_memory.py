"""Batches that no memory can hold are refused before anything is allocated."""

import importlib

import pytest

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.jobs import host_memory


def configured(**changes):
    config = importlib.import_module("configs.digits").get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"data.image_size": 8, "data.channels": 1, **changes})
    return config


def test_the_limit_is_that_of_the_machine_or_of_the_process(monkeypatch):
    whole = host_memory.limit()
    assert whole > 2**28
    monkeypatch.setattr(host_memory.resource, "getrlimit", lambda _: (2**28, -1))
    assert host_memory.limit() == 2**28


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size"])
def test_a_batch_beyond_the_limit_is_refused_with_the_largest_that_fits(monkeypatch, key):
    monkeypatch.setattr(host_memory, "limit", lambda: 64 * 6 * 1000)
    host_memory.check_batches(configured(**{key: 1000}), "cpu")
    with pytest.raises(ConfigError, match=f"config.{key}=1001 .* at most 1000"):
        host_memory.check_batches(configured(**{key: 1001}), "cpu")
    host_memory.check_batches(configured(**{key: 3000}), "gpu")
