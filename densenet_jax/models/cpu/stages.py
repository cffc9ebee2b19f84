"""The stages of a bottleneck layer as fused CPU kernels.

XLA:CPU writes a normalised input to memory and reads it again, and measures an output in a separate
pass.  Here a stage normalises its input while it packs it for the product, measures its output
while it is in registers, and computes all its gradients in one pass.  The kernels are C++ code in
the folder `src`; `Stages` has functions that compute what those of the same names in `block.plain`
compute.
"""

from typing import NamedTuple

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


class Stages(NamedTuple):
    """The functions of stages and of whole blocks.

    Arrays, sums and vector arithmetic are float32.

    Attributes:
      products: type to which the operands of products are rounded, one of `building.PRODUCTS`.
    """

    products: str = "float32"

    def _call(self, function, arrays, results, aliases=None, **numbers):
        return call(function, arrays, results, aliases, self.products, **numbers)

    def forward(
        self, source, gain, shift, kernel, *, into=None, offset=0, dropout=None, expected=None
    ):
        """See `block.plain.forward`; 1x1 stages make an array, 3x3 stages write into a buffer."""
        assert dropout is None
        assert (into is None) == (kernel.shape[:2] == (1, 1))
        d = kernel.shape[3]
        pivot = jnp.broadcast_to(jnp.asarray(expected_output(kernel, expected), jnp.float32), d)
        if into is None:

            def run(source, *vectors):
                out = array(*source.shape[:3], d), array(2, d)
                y, sums = self._call("Forward1x1", (source, *vectors), out)
                return y, *sums

            y, *sums = over_devices(run, (source,), (gain, shift, kernel, pivot))
            return y, *moments_of_sums(*sums, positions(y), pivot)

        def run(source, into, *vectors):
            out, arrays = (array(*into.shape), array(2, d)), (source, *vectors, into)
            y, sums = self._call("Forward3x3", arrays, out, {5: 0}, offset=offset)
            return y, *sums

        y, *sums = over_devices(run, (source, into), (gain, shift, kernel, pivot))
        return y, *moments_of_sums(*sums, positions(y), pivot)

    def backward(
        self,
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
                return self._call("Backward1x1", arrays, results, {8: 0}, offset=offset)
            results = array(*source.shape[:3], c), *gradients
            return self._call("Backward3x3", arrays, results, offset=offset)

        maps = (source, d_out, out) if d_source is None else (source, d_out, out, d_source)
        return over_devices(run, maps, vectors)

    def evaluate(self, x, layers, transition=None):
        """Returns a block's features; see `dense_block.evaluate`."""
        growth = added(layers) // max(len(layers), 1)
        return self.evaluate_packed(x, layers, growth, transition)

    def evaluate_packed(self, x, layers, growth, transition=None):
        """Returns a block's features, from layers whose kernels are packed (`pack`) or not.

        Args:
          x: feature maps [B, H, W, C].
          layers: at least one, each a list of ((gain, shift), kernel) pairs.
          growth: feature maps that a layer adds.
          transition: the ((gain, shift), kernel) of a transition before the block, or None.
        """

        def run(x, layers, transition):
            size = x.shape[1:3] if transition is None else [n // 2 for n in x.shape[1:3]]
            read = layers[0][0][0][0].shape[0]  # by the first layer
            results = (array(x.shape[0], *size, read + growth * len(layers)),)
            arrays = x, *jax.tree.leaves((transition, layers))
            numbers = {"growth": growth, "transition": int(transition is not None)}
            return self._call("BlockEvaluate", arrays, results, **numbers)

        return over_devices(run, (x,), (layers, transition))[0]

    def pack(self, layers):
        """Returns layers as `evaluate` takes them, with kernels in the order of their products."""
        kernels = [kernel for layer in layers for _, kernel in layer]
        panels = iter(self._call("Pack", kernels, [self._panels(w.shape) for w in kernels]))
        return [[(affine, next(panels)) for affine, _ in layer] for layer in layers]

    def are_packed(self, layers):
        """Returns whether `pack` made layers for these products, and on such a processor."""
        panels, expected = layers[0][0][1], self._panels((1, 1, 1, 1))
        return panels.dtype == expected.dtype and panels.shape[-1] == expected.shape[-1]

    def _panels(self, shape):
        """Returns the type of a packed kernel; see `pack` in src/evaluate.h."""
        size, _, inputs, outputs = shape
        width = library.panel_width(self.products)
        points = (16,) if size == 3 else ()
        panels = -(-outputs // width), *points
        if self.products == "float32":
            return array(*panels, inputs, width)
        return array(*panels, -(-inputs // 2), width, dtype=jnp.uint32)  # two inputs in a word

    def block_forward(self, x, statistics, layers, epsilon):
        """Computes a block on one device in one call; returns what `gradient.forward` needs."""
        positions, c = x.shape[:3], x.shape[3] + added(layers)
        results = [array(*positions, c), array(c), array(c)]
        for width in (layer[0][1].shape[3] for layer in layers if len(layer) == 2):
            results += [array(*positions, width), array(width), array(width)]
        arrays = (x, *statistics, *(v for layer in layers for v in _parameters(layer)))
        made = self._call("BlockForward", arrays, results, epsilon=epsilon)
        features, mean, var, *rest = made
        bottlenecks = [(y, Moments(*moments)) for y, *moments in _triples(rest)]
        return features, Moments(mean, var), bottlenecks

    def block_backward(
        self, features, statistics, bottlenecks, layers, d_features, d_statistics, epsilon
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
        found = self._call("BlockBackward", arrays, results, {0: 0}, epsilon=epsilon)
        d_features, mean, var, _, *rest = found
        pairs = (({"scale": scale, "bias": bias}, kernel) for scale, bias, kernel in _triples(rest))
        gradients = [[next(pairs) for _ in layer] for layer in reversed(layers)]
        return d_features, Moments(mean, var), gradients[::-1]


def _parameters(layer):
    return [v for norm, kernel in layer for v in (norm["scale"], norm["bias"], kernel)]


def _triples(values: list):
    return zip(values[::3], values[1::3], values[2::3], strict=True)
