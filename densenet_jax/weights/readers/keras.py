"""A reader for Keras's files, which gives variables the same names for every version of Keras.

A name is `layer/variable`, as in `conv2_block1_0_bn/gamma`. Keras 2 allowed slashes in the name of
a layer and Keras 3 replaces them by underscores. This module does the same: `conv1/conv` becomes
`conv1_conv`.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from densenet_jax.weights.readers.bounded_file import MAX_NAME, MAX_TENSORS, BoundedFile, shown
from densenet_jax.weights.readers.hdf5 import Dataset, Group, Hdf5
from densenet_jax.weights.readers.zip_archive import Member

WEIGHTS_MEMBER = "model.weights.h5"

# Keras 3 numbers the variables of a layer: {layer class in the file: {number of variables:
# (name of variable 0, ...)}}.
_VARIABLES: dict[str, dict[int, tuple[str, ...]]] = {
    "batch_normalization": {4: ("gamma", "beta", "moving_mean", "moving_variance")},
    "conv2d": {1: ("kernel",), 2: ("kernel", "bias")},
    "dense": {1: ("kernel",), 2: ("kernel", "bias")},
}
_NO_WEIGHTS = re.compile(r"(optimizer|optimizer_weights|seed_generator.*)$")


def read_keras_zip(entries: dict[str, Member]) -> dict[str, np.ndarray]:
    """Returns {"layer/variable": array} of a `.keras` archive with the members `entries`."""
    return read_keras_hdf5(entries[WEIGHTS_MEMBER].open())


def read_keras_hdf5(*files: BoundedFile) -> dict[str, np.ndarray]:
    """Returns {"layer/variable": array} of an `.h5` file of Keras 2 or 3, or of all its shards."""
    found = [
        (hdf5, *member)
        for hdf5 in map(Hdf5, files)
        for member in _datasets(hdf5.root, (), ())
        if not any(_NO_WEIGHTS.match(part) for part in member[1])
    ]
    counts = Counter(path[:-1] for _, _, path, _ in found)  # a layer may be in two shards
    arrays: dict[str, np.ndarray] = {}
    for hdf5, groups, path, dataset in found:
        name = _name(hdf5, groups, path, counts[path[:-1]])
        if len(name) > MAX_NAME:
            raise hdf5.file.fail(f"a tensor's name is too long: {shown(name)}")
        hdf5.file.charge(4 * len(name))
        if name in arrays:
            raise hdf5.file.fail(
                "two variables have this name; give every layer a name of its own", name
            )
        if len(arrays) == MAX_TENSORS:
            raise hdf5.file.fail(
                f"it holds more than {MAX_TENSORS} tensors; save the weights alone"
            )
        arrays[name] = dataset.read(name)
    return arrays


def _datasets(
    group: Group, groups: tuple[Group, ...], path: tuple[str, ...]
) -> Iterator[tuple[tuple[Group, ...], tuple[str, ...], Dataset]]:
    """Yields (groups, path, dataset) of every dataset at and below `group`.

    `groups` are the groups from the root to the dataset, both ends of the chain included; `path`
    holds the names below the root.
    """
    groups = (*groups, group)
    for name, member in group.members.items():
        if isinstance(member, Group):
            yield from _datasets(member, groups, (*path, name))
        else:
            yield groups, (*path, name), member


def _name(hdf5: Hdf5, groups: tuple[Group, ...], path: tuple[str, ...], count: int) -> str:
    """Returns the name `layer/variable` of the dataset at `path`, one of `count` in its group."""
    is_keras_3 = path[-2:-1] == ("vars",)
    layer, variable = (
        _keras_3_name(hdf5, groups[-1], path, count) if is_keras_3 else _keras_2_name(groups, path)
    )
    layer = layer.replace("/", "_")
    variable = re.sub(r":\d+$", "", variable)
    return f"{layer}/{variable}" if layer else variable


def _keras_3_name(hdf5: Hdf5, group: Group, path: tuple[str, ...], count: int) -> tuple[str, str]:
    """Returns (layer, variable) of a path in Keras 3's layout, such as `layers/dense_7/vars/1`.

    The attribute `name` of the group `vars`, here `group`, holds the name of the layer.
    """
    layer = _joined(path[:-2])
    if named := group.attributes.get("name"):
        layer = hdf5.text(named)
    kind = re.sub(r"_\d+$", "", path[-3]) if len(path) > 2 else ""
    names = _VARIABLES.get(kind, {}).get(count, ())
    index = int(path[-1]) if path[-1] in ("0", "1", "2", "3") else len(names)
    return layer, names[index] if index < len(names) else path[-1]


def _keras_2_name(groups: tuple[Group, ...], path: tuple[str, ...]) -> tuple[str, str]:
    """Returns (layer, variable) of a path in Keras 2's layout, such as `fc/fc/kernel:0`.

    The group of a layer is the first one on the path that has the attribute `weight_names`. Below
    it, the path usually repeats the name of the layer.
    """
    layers = [i for i, group in enumerate(groups) if "weight_names" in group.attributes]
    begin = layers[0] if layers and len(path) - layers[0] > 1 else 0
    layer, below = _joined(path[:begin]), _joined(path[begin:-1])
    # Keras 3 writes `sequential/fc/kernel` into the group `fc`, with the name of the model before
    # that of the layer. If the path below does not end in the name of the group, the group may
    # belong to a whole nested model, and the path below names the layer.
    return layer if begin and f"_{below}".endswith(f"_{layer}") else below, path[-1]


def _joined(path: tuple[str, ...]) -> str:
    """Returns the name of a layer: the groups on its path, without those that Keras adds."""
    return "_".join(part for part in path if part not in ("layers", "model_weights"))
