"""Names for the variables in Keras's files, the same for every version's layout.

A name is `layer/variable`, as in `conv2_block1_0_bn/gamma`. Keras 2 allowed slashes in a layer's
name, Keras 3 turned them into underscores, and so does this module: `conv1/conv` is `conv1_conv`.
"""

import re
from collections.abc import Iterator

import numpy as np

from densenet_jax.weights.hdf5_files import Dataset, Group, Hdf5
from densenet_jax.weights.source import MAX_TENSORS, Source
from densenet_jax.weights.zip_files import Member

WEIGHTS_MEMBER = "model.weights.h5"

# Keras 3 numbers a layer's variables; layer class in the file -> their names, by their number.
_VARIABLES = {
    "batch_normalization": {4: ("gamma", "beta", "moving_mean", "moving_variance")},
    "conv2d": {1: ("kernel",), 2: ("kernel", "bias")},
    "dense": {1: ("kernel",), 2: ("kernel", "bias")},
}
_NO_WEIGHTS = re.compile(r"(optimizer|optimizer_weights|seed_generator.*)$")


def read_keras_zip(entries: dict[str, Member]) -> dict[str, np.ndarray]:
    """Returns the variables of a `.keras` archive, of which `entries` are the members."""
    return read_keras_hdf5(entries[WEIGHTS_MEMBER].open())


def read_keras_hdf5(source: Source) -> dict[str, np.ndarray]:
    """Returns the variables of an `.h5` file of Keras 2 or 3 by `layer/variable`."""
    file = Hdf5(source)
    arrays: dict[str, np.ndarray] = {}
    for groups, path, dataset in _datasets(file.root, (), ()):
        if any(_NO_WEIGHTS.match(part) for part in path):
            continue
        name = _name(file, groups, path)
        if name in arrays:
            raise source.fail("two variables have this name; give each layer its own", name)
        if len(arrays) == MAX_TENSORS:
            raise source.fail(f"it holds more than {MAX_TENSORS} tensors")
        arrays[name] = dataset.read(name)
    return arrays


def _datasets(
    group: Group, groups: tuple[Group, ...], path: tuple[str, ...]
) -> Iterator[tuple[tuple[Group, ...], tuple[str, ...], Dataset]]:
    """Yields every dataset with its path and the groups on it, the root's included."""
    groups = (*groups, group)
    for name, member in group.members.items():
        if isinstance(member, Group):
            yield from _datasets(member, groups, (*path, name))
        else:
            yield groups, (*path, name), member


def _name(file: Hdf5, groups: tuple[Group, ...], path: tuple[str, ...]) -> str:
    containers = ("layers", "model_weights")
    if path[-2:-1] == ("vars",):  # Keras 3: .../batch_normalization_7/vars/2
        layer = "_".join(part for part in path[:-2] if part not in containers)
        if named := groups[-1].attributes.get("name"):
            layer = file.text(named)
        kind = re.sub(r"_\d+$", "", path[-3]) if len(path) > 2 else ""
        names = _VARIABLES.get(kind, {}).get(len(groups[-1].members), ())
        index = int(path[-1]) if path[-1] in ("0", "1", "2", "3") else len(names)
        variable = names[index] if index < len(names) else path[-1]
    else:  # Keras 2: the group of a layer has `weight_names`, which are paths below it.
        below = [i for i, group in enumerate(groups) if "weight_names" in group.attributes]
        begin = below[0] if below and len(path) - below[0] > 1 else 0
        *parts, variable = path[begin:]
        layer = "_".join(part for part in parts if part not in containers)
    layer = layer.replace("/", "_")
    variable = re.sub(r":\d+$", "", variable)
    return f"{layer}/{variable}" if layer else variable
