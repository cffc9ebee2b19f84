"""Names for the variables in Keras's files, the same for every version's layout.

A name is `layer/variable`, as in `conv2_block1_0_bn/gamma`. Keras 2 allowed slashes in a layer's
name, Keras 3 turned them into underscores, and so does this module: `conv1/conv` is `conv1_conv`.
"""

import re
from collections.abc import Iterator

import numpy as np

from densenet_jax.weights.readers.bounded_file import MAX_TENSORS, BoundedFile
from densenet_jax.weights.readers.hdf5 import Dataset, Group, Hdf5
from densenet_jax.weights.readers.zip_archive import Member

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


def read_keras_hdf5(file: BoundedFile) -> dict[str, np.ndarray]:
    """Returns the variables of an `.h5` file of Keras 2 or 3 by `layer/variable`."""
    hdf5 = Hdf5(file)
    arrays: dict[str, np.ndarray] = {}
    for groups, path, dataset in _datasets(hdf5.root, (), ()):
        if any(_NO_WEIGHTS.match(part) for part in path):
            continue
        name = _name(hdf5, groups, path)
        if name in arrays:
            raise file.fail("two variables have this name; give each layer its own", name)
        if len(arrays) == MAX_TENSORS:
            raise file.fail(f"it holds more than {MAX_TENSORS} tensors")
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


def _name(hdf5: Hdf5, groups: tuple[Group, ...], path: tuple[str, ...]) -> str:
    is_keras_3 = path[-2:-1] == ("vars",)
    layer, variable = _name_3(hdf5, groups[-1], path) if is_keras_3 else _name_2(groups, path)
    layer = layer.replace("/", "_")
    variable = re.sub(r":\d+$", "", variable)
    return f"{layer}/{variable}" if layer else variable


def _name_3(hdf5: Hdf5, group: Group, path: tuple[str, ...]) -> tuple[str, str]:
    """Names a variable by the layer's name that its group bears: .../dense_7/vars/1."""
    layer = _joined(path[:-2])
    if named := group.attributes.get("name"):
        layer = hdf5.text(named)
    kind = re.sub(r"_\d+$", "", path[-3]) if len(path) > 2 else ""
    names = _VARIABLES.get(kind, {}).get(len(group.members), ())
    index = int(path[-1]) if path[-1] in ("0", "1", "2", "3") else len(names)
    return layer, names[index] if index < len(names) else path[-1]


def _name_2(groups: tuple[Group, ...], path: tuple[str, ...]) -> tuple[str, str]:
    """Names a variable by its path below the layer's group, the one that has `weight_names`."""
    layers = [i for i, group in enumerate(groups) if "weight_names" in group.attributes]
    begin = layers[0] if layers and len(path) - layers[0] > 1 else 0
    layer, below = _joined(path[:begin]), _joined(path[begin:-1])
    # In `sequential/fc/kernel` of the group `fc`, Keras 3 put the model's name before the layer's;
    # otherwise the group may be that of a whole model, whose layers' names are below.
    return layer if begin and f"_{below}".endswith(f"_{layer}") else below, path[-1]


def _joined(path: tuple[str, ...]) -> str:
    return "_".join(part for part in path if part not in ("layers", "model_weights"))
