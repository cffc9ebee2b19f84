"""The size of a variant: its parameters and multiply-adds, both counted."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.extend import core

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.variants import VARIANTS

# Multiply-adds of each variant at its image size, stored because `count` takes seconds; a test
# compares them with it.
MULTIPLY_ADDS = {
    "densenet121": 2_834_161_664,
    "densenet161": 7_727_907_072,
    "densenet169": 3_359_843_328,
    "densenet201": 4_291_365_888,
    "densenet264": 5_751_653_376,
    "densenet264d": 13_470_266_880,
    "densenetblur121d": 3_073_802_240,
    "rdnet_tiny": 5_032_673_424,
    "rdnet_small": 8_706_216_840,
    "rdnet_base": 15_358_159_296,
    "rdnet_large": 34_675_293_792,
    "densenet_40_12": 264_812_928,
    "densenet_100_12": 1_769_516_448,
    "densenet_100_24": 6_889_347_744,
    "densenet_bc_100_12": 287_929_692,
    "densenet_bc_190_40": 9_301_945_740,
    "densenet_bc_250_24": 5_418_785_724,
}


class Size(NamedTuple):
    """Numbers that a training adjusts (no running statistics), and multiply-adds per image."""

    parameters: int
    multiply_adds: int


def count(model: nn.Module, image_size: int) -> Size:
    """Counts a model's parameters, and the multiply-adds of its convolutions and matrix products.

    A transition is counted as it is defined, convolution before pooling.  (The model pools first
    where it can, which gives the same result with a quarter of the work.)
    """
    if isinstance(model, DenseNet):
        # With dropout after its convolution a transition keeps the order of the definition.
        # Products inside fused kernels could not be counted.
        model = model.clone(freeze_statistics=True, dropout_rate=0.5, implementation="plain")
    images = jax.ShapeDtypeStruct((1, image_size, image_size, model.in_channels), model.dtype)

    def init(images):  # runs the network once, and traces faster than init and apply
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init(keys, images, train=True)

    program, variables = jax.make_jaxpr(init, return_shape=True)(images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Size(parameters, _multiply_adds(program.jaxpr))


def table() -> Iterator[tuple[str, int, Size]]:
    """Yields each variant's name, the image size that its numbers belong to, and its size."""
    for name, variant in VARIANTS.items():
        yield name, variant.image_size, Size(variant.parameters, MULTIPLY_ADDS[name])


def _multiply_adds(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        output = _array(equation.outvars[0])
        name, inner = equation.primitive.name, _inner(equation)
        if name == "conv_general_dilated":
            kernel = _array(equation.invars[1])
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += output.size * kernel.size // features
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = _array(equation.invars[0])
            total += output.size * math.prod(left.shape[axis] for axis in contracted)
        elif name == "cond":  # one branch for each platform; only some spell convolutions out
            total += max(map(_multiply_adds, inner))
        else:
            total += equation.params.get("length", 1) * sum(map(_multiply_adds, inner))
    return total


def _array(variable: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of a variable of a program."""
    return variable.aval


def _inner(equation: Any) -> list[core.Jaxpr]:
    """Returns the programs that an equation calls."""
    values = [
        value
        for parameter in equation.params.values()
        for value in (parameter if isinstance(parameter, (list, tuple)) else [parameter])
    ]
    closed = [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in values]
    return [value for value in closed if isinstance(value, core.Jaxpr)]
