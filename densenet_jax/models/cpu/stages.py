"""The stages of a bottleneck layer as fused CPU kernels.

XLA:CPU writes a normalised input to memory and reads it again, and measures an output in a separate
pass.  Here a stage normalises its input while it packs it for the product, measures its output
while it is in registers, and computes all its gradients in one pass.  The kernels are C++ code in
the folder `src`; the functions below compute what those of the same names in `block.plain` compute.

Arrays, sums and vector arithmetic are float32.  Products are, too, or their operands are rounded to
bfloat16: `products` is one of `building.PRODUCTS`.
"""

import functools
import types

import jax
import jax.numpy as jnp

from densenet_jax.models.block.devices import over_devices
from densenet_jax.models.block.plain import added
from densenet_jax.models.block.statistics import (
    Moments,
    expected_output,
    moments_of_sums,
    positions,
)
from densenet_jax.models.cpu import library
from densenet_jax.models.cpu.library import array, call


def forward(
    source,
    gain,
    shift,
    kernel,
    *,
    into=None,
    offset=0,
    dropout=None,
    expected=None,
    products="float32",
):
    """See `block.plain.forward`; 1x1 stages make a new array, 3x3 stages write into a buffer."""
    assert dropout is None
    assert (into is None) == (kernel.shape[:2] == (1, 1))
    d = kernel.shape[3]
    pivot = jnp.broadcast_to(jnp.asarray(expected_output(kernel, expected), jnp.float32), d)
    if into is None:

        def run(source, *vectors):
            out = array(*source.shape[:3], d), array(2, d)
            y, sums = call("Forward1x1", (source, *vectors), out, products=products)
            return y, *sums

        y, *sums = over_devices(run, (source,), (gain, shift, kernel, pivot))
        return y, *moments_of_sums(*sums, positions(y), pivot)

    def run(source, into, *vectors):
        out, arrays = (array(*into.shape), array(2, d)), (source, *vectors, into)
        y, sums = call("Forward3x3", arrays, out, {5: 0}, products, offset=offset)
        return y, *sums

    y, *sums = over_devices(run, (source, into), (gain, shift, kernel, pivot))
    return y, *moments_of_sums(*sums, positions(y), pivot)


def backward(
    source,
    gain,
    shift,
    kernel,
    *,
    d_out,
    out,
    correction,
    offset=0,
    d_source=None,
    dropout=None,
    products="float32",
):
    """See `block.plain.backward`; 1x1 stages add to d_source, 3x3 stages return their own."""
    assert dropout is None
    assert (d_source is not None) == (kernel.shape[:2] == (1, 1))
    c, vectors = kernel.shape[2], (gain, shift, kernel, *correction)
    gradients = array(*kernel.shape), array(c), array(c)

    def run(source, d_out, out, *rest):
        *buffer, gain, shift, kernel, constant, slope = rest
        arrays = source, gain, shift, kernel, d_out, out, constant, slope, *buffer
        if buffer:
            results = array(*buffer[0].shape), *gradients
            return call("Backward1x1", arrays, results, {8: 0}, products, offset=offset)
        results = array(*source.shape[:3], c), *gradients
        return call("Backward3x3", arrays, results, None, products, offset=offset)

    maps = (source, d_out, out) if d_source is None else (source, d_out, out, d_source)
    return over_devices(run, maps, vectors)


def evaluate(x, layers, transition=None, products="float32"):
    """Returns a block's features; see `dense_block.evaluate`."""
    assert transition is None
    return evaluate_packed(x, layers, added(layers) // max(len(layers), 1), products)


def evaluate_packed(x, layers, growth, products="float32"):
    """Returns a block's features, from layers whose kernels are packed (`pack`) or not."""

    def run(x, layers):
        results = (array(*x.shape[:3], x.shape[3] + growth * len(layers)),)
        arrays = x, *jax.tree.leaves(layers)
        return call("BlockEvaluate", arrays, results, None, products, growth=growth)

    return over_devices(run, (x,), (layers,))[0]


def pack(layers, products="float32"):
    """Returns layers as `evaluate` takes them, with kernels in the order of their products."""
    kernels = [kernel for layer in layers for _, kernel in layer]
    types = [_panels(kernel.shape, products) for kernel in kernels]
    panels = iter(call("Pack", kernels, types, products=products))
    return [[(affine, next(panels)) for affine, _ in layer] for layer in layers]


def are_packed(layers, products="float32"):
    """Returns whether `pack` made layers for these products, and on such a processor."""
    panels = layers[0][0][1]
    dtype = _panels((1, 1, 1, 1), products).dtype
    return panels.dtype == dtype and panels.shape[-1] == library.panel_width(products)


def _panels(shape, products):
    """Returns the type of a packed kernel; see `pack` in src/evaluate.h."""
    size, _, inputs, outputs = shape
    width = library.panel_width(products)
    points = (16,) if size == 3 else ()
    panels = -(-outputs // width), *points
    if products == "float32":
        return array(*panels, inputs, width)
    return array(*panels, -(-inputs // 2), width, dtype=jnp.uint32)  # two inputs in a word


def block_forward(x, statistics, layers, epsilon, products="float32"):
    """Computes a whole block on one device in one call; returns what `gradient.forward` needs."""
    positions, c = x.shape[:3], x.shape[3] + added(layers)
    results = [array(*positions, c), array(c), array(c)]
    for width in (layer[0][1].shape[3] for layer in layers if len(layer) == 2):
        results += [array(*positions, width), array(width), array(width)]
    arrays = (x, *statistics, *(v for layer in layers for v in _parameters(layer)))
    made = call("BlockForward", arrays, results, None, products, epsilon=epsilon)
    features, mean, var, *rest = made
    bottlenecks = [(y, Moments(*moments)) for y, *moments in _triples(rest)]
    return features, Moments(mean, var), bottlenecks


def block_backward(
    features,
    statistics,
    bottlenecks,
    layers,
    d_features,
    d_statistics,
    epsilon,
    products="float32",
):
    """Returns the gradients of features (of those that no layer made), statistics and layers.

    The transpose of `block_forward`, on one device, in one call.
    """
    c, between = features.shape[3], bottlenecks[0][0].shape if bottlenecks else (1,)
    results = [array(*features.shape), array(c), array(c), array(*between)]
    arrays = [d_features, *d_statistics, features, *statistics]
    for i in reversed(range(len(layers))):
        arrays += _parameters(layers[i])
        if bottlenecks:
            y, moments = bottlenecks[i]
            arrays += [y, *moments]
        results += [array(*v.shape) for v in _parameters(layers[i])]
    found = call("BlockBackward", arrays, results, {0: 0}, products, epsilon=epsilon)
    d_features, mean, var, _, *rest = found
    pairs = (({"scale": scale, "bias": bias}, kernel) for scale, bias, kernel in _triples(rest))
    gradients = [[next(pairs) for _ in layer] for layer in reversed(layers)]
    return d_features, Moments(mean, var), gradients[::-1]


def with_products(products):
    """Returns an object with the functions above, which compute products in a type."""
    functions = forward, backward, block_forward, block_backward
    functions += evaluate, pack, are_packed, evaluate_packed
    bound = {f.__name__: functools.partial(f, products=products) for f in functions}
    return types.SimpleNamespace(**bound)


def _parameters(layer):
    return [v for norm, kernel in layer for v in (norm["scale"], norm["bias"], kernel)]


def _triples(values: list):
    return zip(values[::3], values[1::3], values[2::3], strict=True)
