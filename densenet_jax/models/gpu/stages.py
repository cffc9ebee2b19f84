"""The stages of a bottleneck layer as fused kernels for NVIDIA GPUs, written in Pallas.

`Stages` has the functions of `models.block.plain`.  This module needs `jax.experimental.pallas`,
and is imported only if there is a GPU, or if its kernels are asked for.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax import lax

from densenet_jax.models.block import plain
from densenet_jax.models.block.devices import over_devices
from densenet_jax.models.block.statistics import Moments, merged
from densenet_jax.models.gpu import (
    backward,
    backward_pooled,
    backward_stem,
    forward,
    stem,
    tiles,
    weights,
)

KERNELS = (
    *("1x1 forward", "3x3 forward", "1x1 backward", "3x3 backward"),
    *("1x1 pooled forward", "1x1 pooled backward", "7x7 pooled forward", "7x7 pooled backward"),
)
WITHOUT = " without "


class Stages(NamedTuple):
    """The functions of `stages`, for 1x1 stages into a new array and 3x3 stages into a buffer.

    Attributes:
      interpret: run the kernels as plain JAX, on any device.
      replaced: those of `KERNELS` that plain JAX replaces.
    """

    interpret: bool = False
    replaced: frozenset[str] = frozenset()

    @classmethod
    def of(cls, implementation: str) -> "Stages":
        """Returns the stages of "gpu" or "interpreted", or of what `without` returned."""
        name, _, replaced = implementation.partition(WITHOUT)
        return cls(name == "interpreted", frozenset(filter(None, replaced.split(", "))))

    def without(self, kernels: Iterable[str]) -> str:
        """Returns the implementation's name, with the kernels that plain JAX is to replace."""
        name = "interpreted" if self.interpret else "gpu"
        return name + WITHOUT + ", ".join(sorted(kernels)) if kernels else name

    def forward(
        self,
        source,
        gain,
        shift,
        kernel,
        *,
        into=None,
        offset=0,
        dropout=None,
        expected=None,
        pool=False,
        room=0,
        measure=True,
    ):
        """See `plain.forward`; a new array's further channels have any values.

        Args:
          measure: False: the moments are left out.
        """
        assert dropout is None
        assert (into is None) == (kernel.shape[:2] == (1, 1))
        if self._is_replaced("forward", kernel, pool):
            options = {"into": into, "offset": offset, "pool": pool, "room": room}
            kernel, options["expected"] = weights.unpacked(kernel), expected
            return plain.forward(source, gain, shift, kernel, **options)
        options = {"measure": measure, "interpret": self.interpret}
        if into is None:

            def run(source, gain, shift, kernel, expected):
                image = source.shape[1:3] if pool else None
                y, *moments = forward.conv1x1(
                    *(_matrix(source), gain, shift, kernel),
                    **{"expected": expected, "image": image, "room": room, **options},
                )
                return y.reshape(-1, *_halved(source.shape[1:3], pool), y.shape[1]), *moments

            return over_devices(run, (source,), (gain, shift, kernel, expected), join=_merged)

        def run(source, into, gain, shift, kernel):
            return forward.conv3x3(
                *(_matrix(source), gain, shift, kernel, _matrix(into)),
                **{"image": source.shape[1:3], "offset": offset, **options},
            )

        return over_devices(run, (source, into), (gain, shift, kernel), join=_merged)

    def _is_replaced(self, direction, kernel, pool=False):
        """Returns whether plain JAX takes the place of the kernel for a stage."""
        kind = " pooled" if pool else ""
        name = f"{kernel.shape[0]}x{kernel.shape[1]}{kind} {direction}"
        return name in self.replaced or (pool and kernel.shape[3] > backward_pooled.WIDEST)

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
        pool=False,
    ):
        assert dropout is None
        assert (d_source is not None) == (kernel.shape[:2] == (1, 1) and not pool)
        if self._is_replaced("backward", kernel, pool):
            gradients = {"d_out": d_out, "out": out, "correction": correction, "offset": offset}
            gradients |= {"d_source": d_source, "pool": pool}
            return plain.backward(source, gain, shift, weights.unpacked(kernel), **gradients)
        if d_source is not None:
            reader = gain, shift, kernel, {"d_out": d_out, "out": out, "correction": correction}
            within = 0, kernel.shape[2]
            d_source, (found,) = self.backward_together(source, [reader], d_source, within)
            return d_source, *found

        def run(source, d_out, out, gain, shift, kernel, a, b):
            if pool:
                dx, d_w, *vectors = backward_pooled.conv1x1(
                    *(_matrix(source), gain, shift, kernel[0, 0]),
                    *(_matrix(d_out), _matrix(out), (a, b)),
                    image=source.shape[1:3],
                    interpret=self.interpret,
                )
                return dx, d_w[None, None], *vectors
            return backward.conv3x3(
                *(_matrix(source), gain, shift, kernel, _matrix(d_out), _matrix(out), (a, b)),
                image=source.shape[1:3],
                offset=offset,
                interpret=self.interpret,
            )

        return over_devices(run, (source, d_out, out), (gain, shift, kernel, *correction))

    def packed(self, layers, dtype):
        """Returns the kernels of each layer as the stages read them, made in one GPU kernel."""
        found = iter(weights.pack([w for layer in layers for _, w in layer], dtype))
        return [[next(found) for _ in layer] for layer in layers]

    def together(self, width: int) -> int:
        """Returns how many layers of this width `backward_together` is to be called for."""
        return 1 if "1x1 backward" in self.replaced else tiles.together(width)

    def backward_together(self, source, readers, d_source, within):
        """See `plain.backward_together`; d_source is read and written once for all readers."""
        if "1x1 backward" in self.replaced:
            readers = [(*norm, weights.unpacked(w), step) for *norm, w, step in readers]
            return plain.backward_together(source, readers, d_source, within=within)

        def run(source, d_source, *arrays):
            maps, others = arrays[: 2 * m], arrays[2 * m :]
            layers = [
                backward.Reader(gain, shift, kernel, *map(_matrix, maps[i::m]), a, b)
                for i, (gain, shift, kernel, (a, b)) in enumerate(others)
            ]
            dx, sums = backward.conv1x1(
                *(_matrix(source), layers, _matrix(d_source)),
                within=within,
                interpret=self.interpret,
            )
            return dx, [(d_w[None, None], *vectors) for d_w, *vectors in sums]

        m = len(readers)
        steps = [step for *_, step in readers]
        assert not any(step.get("dropout") for step in steps)
        maps = [step["d_out"] for step in steps] + [step["out"] for step in steps]
        others = [(*vectors, step["correction"]) for *vectors, step in readers]
        return over_devices(run, (source, d_source, *maps), tuple(others))

    def widened(self, x, layers):
        """Returns `plain.widened`, but what the layers will add is not set to 0 before."""

        def run(x):
            room = lax.empty((*x.shape[:3], x.shape[3] + plain.added(layers)), x.dtype)
            return (plain.write_channels(room, x, 0),)

        (features,) = over_devices(run, (x,), ())
        return features

    def stem(self, x, gain, shift, kernel, *, room=0):
        """See `plain.stem`; the further channels have any values."""
        if self._is_replaced("forward", kernel, pool=True):
            return plain.stem(x, gain, shift, kernel, room=room)

        def run(x, *arrays):
            return (stem.stem(x, *arrays, room=room, interpret=self.interpret),)

        (features,) = over_devices(run, (x,), (gain, shift, kernel))
        return features

    def stem_gradient(self, x, y, gain, shift, where, d_out, correction):
        """See `plain.stem_gradient`."""
        if "7x7 pooled backward" in self.replaced:
            return plain.stem_gradient(x, y, gain, shift, where, d_out, correction)

        def run(x, y, where, d_out, gain, shift, *correction):
            options = {"interpret": self.interpret}
            return (backward_stem.stem(x, y, gain, shift, where, d_out, correction, **options),)

        maps, vectors = (x, y, where, d_out), (gain, shift, *correction)
        (d_kernel,) = over_devices(run, maps, vectors, returns_maps=False)
        return d_kernel

    def evaluate(self, x, layers, transition=None):
        """Returns the features of a block with fixed statistics; see `dense_block.evaluate`."""
        if transition is None:
            features, c = self.widened(x, layers), x.shape[3]
        else:
            normalisation, kernel = transition
            c, room = kernel.shape[3], plain.added(layers)
            if kernel.shape[:2] == (7, 7):
                features = self.stem(x, *normalisation, kernel, room=room)
            else:
                options = {"pool": True, "room": room, "measure": False}
                features, *_ = self.forward(x, *normalisation, kernel, **options)
        kernels = self.packed(layers, x.dtype)
        for ((first, _), (second, _)), (kernel1, kernel2) in zip(layers, kernels, strict=True):
            between, *_ = self.forward(features, *first, kernel1, measure=False)
            options = {"into": features, "offset": c, "measure": False}
            features, *_ = self.forward(between, *second, kernel2, **options)
            c += kernel2.shape[3]
        return features


def _merged(moments: list[jax.Array], axes: tuple[str, ...]) -> list[jax.Array]:
    """Returns the moments of the whole batch from those of every device's part."""
    return [*merged(Moments(*lax.all_gather(moments, axes)))] if moments else []


def _halved(image: tuple[int, int], pool: bool) -> tuple[int, int]:
    return (image[0] // 2, image[1] // 2) if pool else image


def _matrix(x: jax.Array) -> jax.Array:
    """Returns x [B, H, W, C] as [positions, C]."""
    return x.reshape(-1, x.shape[-1])
