"""Any values in any keys end in an experiment or in a clear message, never in a traceback."""

import importlib

from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from densenet_jax.cli import commands
from densenet_jax.training import experiment, run_state, run_steps, settings
from tests.fuzzing import fuzz


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = config.get_type(key)
    return found


def digits() -> ConfigDict:
    return importlib.import_module("configs.digits").get_config().lock()


INTEGERS = st.one_of(st.integers(-3, 40), st.sampled_from([-(2**31), 2**31, 2**63, 10**30]))
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-30, 1e30]))
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["digits", "train", "test", "/", "/dev/null", "../..", "float32", "rdnet_tiny"]
    ),
)
BY_TYPE = {
    int: INTEGERS,
    float: FLOATS,
    str: TEXTS,
    bool: st.booleans(),
    object: st.one_of(INTEGERS, st.lists(INTEGERS, max_size=5).map(tuple), TEXTS),
    tuple: st.lists(st.one_of(INTEGERS, FLOATS), max_size=5).map(tuple),
}
TYPES = leaves(digits())


@st.composite
def changes(draw) -> dict[str, object]:
    keys = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=3, unique=True))
    return {key: draw(BY_TYPE[TYPES[key]]) for key in keys}


@given(changes())
@fuzz(300)
def test_any_configuration(values):
    config = digits()
    for key, value in values.items():
        config.update_from_flattened_dict({key: value})
    try:
        setup = experiment.build(config)
        optimizer, _ = run_steps.optimizer(setup, settings.total_steps(setup.config, 1437), 22.5)
        if any(key.startswith(("model.", "data.", "optimizer.")) for key in values):
            run_state.abstract_state(setup, optimizer)
    except commands.USER_ERRORS:
        pass  # a clear message; anything else fails
