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
from densenet_jax.models.plan import BlockPlan


class Packed(NamedTuple):
    """The stages of a block for inference, one after another, as `src/evaluate.h` reads them.

    Attributes:
      vectors: each stage's gain and shift, [n].
      panels: each stage's kernel in the order of its products, [rows, width of a panel].
    """

    vectors: jax.Array
    panels: jax.Array


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
        if not layers:
            assert transition is None
            return x
        widths = [kernel.shape[2] for _, kernel in layers[0]]
        growth, width = layers[0][-1][1].shape[3], widths[1] if len(widths) == 2 else 0
        plan = BlockPlan(widths[0], len(layers), growth, width, None)
        return self.evaluate_packed(x, self.pack(layers, transition), plan)

    def evaluate_packed(self, x, packed, plan):
        """Returns a block's features.

        Args:
          x: feature maps [B, H, W, C].
          packed: from `pack`.
          plan: the block's widths, with at least one layer.
        """
        inputs = 2 * (sum(plan.widths) + plan.depth * plan.bottleneck)
        transition = packed.vectors.size > inputs
        numbers = {"inputs": plan.in_features, "growth": plan.growth_rate}
        numbers |= {"width": plan.bottleneck, "transition": int(transition)}

        def run(x, packed):
            size = [n // 2 for n in x.shape[1:3]] if transition else x.shape[1:3]
            results = (array(x.shape[0], *size, plan.out_features),)
            return self._call("BlockEvaluate", (x, *packed), results, **numbers)

        return over_devices(run, (x,), (packed,))[0]

    def pack(self, layers, transition=None):
        """Returns layers, and the transition before them, as `evaluate_packed` takes them."""
        stages = [stage for layer in layers for stage in layer]
        if transition is not None:
            stages.insert(0, transition)
        vectors = [v.astype(jnp.float32) for affine, _ in stages for v in affine]
        kernels = [kernel for _, kernel in stages]
        rows = sum(self._rows(kernel.shape) for kernel in kernels)
        (panels,) = self._call("Pack", kernels, (self._panels(rows),))
        return Packed(jnp.concatenate(vectors), panels)

    def are_packed(self, packed):
        """Returns whether `pack` made this for these products, and on such a processor."""
        expected = self._panels(0)
        return (packed.panels.dtype, packed.panels.shape[1]) == (expected.dtype, expected.shape[1])

    def _panels(self, rows):
        """Returns the type of packed kernels; with bfloat16 a word has two numbers."""
        dtype = jnp.float32 if self.products == "float32" else jnp.uint32
        return array(rows, library.panel_width(self.products), dtype=dtype)

    def _rows(self, shape):
        """Returns the rows of a packed kernel; see `pack` in src/evaluate.h."""
        size, _, inputs, outputs = shape
        panels = -(-outputs // library.panel_width(self.products))
        words = inputs if self.products == "float32" else -(-inputs // 2)
        return panels * words * (16 if size == 3 else 1)

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
