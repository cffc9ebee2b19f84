"""Variables of Flax in a training's state, in each format that Flax's users write."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.core import freeze
from flax.traverse_util import flatten_dict, unflatten_dict

from densenet_jax import weights

KERNEL, MEAN = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
VARIABLES = {"params": {"fc": {"kernel": KERNEL}}, "batch_stats": {"bn": {"mean": MEAN}}}
NAMES = {"params/fc/kernel", "batch_stats/bn/mean"}
STATE = {
    **VARIABLES,
    "opt_state": {"0": {"mu": {"fc": {"kernel": KERNEL}}, "count": np.int32(3)}},
}
FORMATS = {
    "pickle": pickle.dumps,
    "frozen": lambda tree: pickle.dumps(freeze(tree)),
    "jax": lambda tree: pickle.dumps(
        unflatten_dict({name: jnp.asarray(x) for name, x in flatten_dict(tree).items()})
    ),
    "msgpack": serialization.msgpack_serialize,
}


def read(tmp_path, content):
    path = tmp_path / "weights"
    path.write_bytes(content)
    return {name.replace(".", "/"): x for name, x in weights.read(path).items()}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    ("tree", "prefix"), [(VARIABLES, ""), (STATE, ""), ({"state": STATE}, "state/")]
)
def test_the_variables_are_taken_out_of_a_state(tmp_path, caplog, write, tree, prefix):
    found = read(tmp_path, write(tree))
    prefix = prefix if write is FORMATS["msgpack"] else ""  # of pickles, the state alone is read
    assert found.keys() == {prefix + name for name in NAMES}
    assert np.array_equal(found[f"{prefix}params/fc/kernel"], KERNEL)
    said = "2 tensors of an optimiser are left out" in caplog.text
    assert said == (write is FORMATS["msgpack"] and tree is not VARIABLES)


def test_networks_without_statistics(tmp_path):
    content = {"params": VARIABLES["params"], "opt_state": STATE["opt_state"]}
    assert read(tmp_path, serialization.msgpack_serialize(content)).keys() == {"params/fc/kernel"}


def test_flat_names(tmp_path, caplog):
    np.savez(tmp_path / "w.npz", **flatten_dict(STATE, sep="."))
    assert weights.read(tmp_path / "w.npz").keys() == {name.replace("/", ".") for name in NAMES}
    assert "2 tensors" in caplog.text


@pytest.mark.parametrize("key", ["ema_params", "params_ema", "averaged_params"])
def test_the_average_is_taken_in_the_place_of_the_parameters(tmp_path, caplog, key):
    content = {**STATE, key: {"fc": {"kernel": 2 * KERNEL}}}
    found = read(tmp_path, serialization.msgpack_serialize(content))
    assert found.keys() == NAMES
    assert np.array_equal(found["params/fc/kernel"], 2 * KERNEL)
    assert f"{key} is taken" in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        {"ema_params": {"fc": {"bias": MEAN}}},  # of other tensors
        {"ema_params": VARIABLES["params"], "swa_params": VARIABLES["params"]},  # two
        {"head": {"optics": MEAN}},
    ],
)
def test_other_tensors_stay(tmp_path, more):
    found = read(tmp_path, serialization.msgpack_serialize({**VARIABLES, **more}))
    assert found.keys() == NAMES | flatten_dict(more, sep="/").keys()


def test_without_statistics_nothing_is_taken_for_a_state(tmp_path):
    content = {"params": VARIABLES["params"], "optimizer": {"m": KERNEL}}
    found = read(tmp_path, serialization.msgpack_serialize(content))
    assert found.keys() == {"params/fc/kernel", "optimizer/m"}
