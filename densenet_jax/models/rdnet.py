"""RDNet ("DenseNets Reloaded", Kim, Heo, Han, 2024): dense connections and newer components.

Layer norm instead of batch norm, inverted bottlenecks around a 7x7 depthwise convolution, a gate
over the channels, layer scale and drop path.  A transition between every two blocks keeps half of
the features; only some of them halve the resolution.  Images are [B, H, W, C].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densenet_jax.models.block.plain import dropout
from densenet_jax.models.block.statistics import at_least_float32
from densenet_jax.models.depthwise import Depthwise
from densenet_jax.models.inputs import check_images
from densenet_jax.models.layers import he_normal

PATCH = 4  # pixels of the stem's patches


def multiple_of_8(features: float) -> int:
    """Rounds down to a multiple of 8, as all widths of the published networks are."""
    return int(features / 8) * 8


class DenseLayer(nn.Module):
    """Depthwise 7x7, layer norm, expand, GELU, project, gate, scale, drop path: adds features.

    Attributes:
      growth_rate: features that the layer adds.
      expansion: width between the two 1x1 convolutions, in input features.
      gated: multiply each channel with a gate computed from the mean of all (effective
        squeeze-excitation: one 1x1 convolution, hard sigmoid).
      layer_scale: initial value of the learnt factor per channel.
      types: `dtype` and `param_dtype`.
    """

    growth_rate: int
    expansion: float
    gated: bool
    layer_scale: float
    epsilon: float
    types: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: float, drop: float) -> jax.Array:
        """Maps x [B, H, W, C] to new features [B, H, W, growth_rate].

        Args:
          x: the block's features so far.
          drop_path: probability, per image, that the layer adds zeros (the others are scaled).
          drop: probability to zero each new value.
        """
        width = multiple_of_8(x.shape[-1] * self.expansion)
        y = Depthwise(7, **self.types, name="depthwise")(x)
        y = layer_norm(self.epsilon, self.types, "norm")(y)
        y = jax.nn.gelu(conv(width, 1, self.types, "expand")(y), approximate=False)
        y = conv(self.growth_rate, 1, self.types, "project")(y)
        if self.gated:
            mean = y.astype(at_least_float32(y.dtype)).mean((1, 2), keepdims=True).astype(y.dtype)
            y *= hard_sigmoid(conv(self.growth_rate, 1, self.types, "gate")(mean))
        initial = nn.initializers.constant(self.layer_scale)
        scale = self.param("gamma", initial, (self.growth_rate,), self.types["param_dtype"])
        y *= scale.astype(y.dtype)
        if drop_path:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_path, (len(y), 1, 1, 1))
            y = jnp.where(keep, y / (1 - drop_path), 0).astype(y.dtype)
        return dropout(y, drop, self.make_rng("dropout") if drop else None)


class Stage(nn.Module):
    """A transition (but for the first block) and a dense block of `depth` layers.

    Attributes:
      out_features: width of the transition; None: no transition.
      stride: of the transition's convolution: 2 halves the resolution.
      layer_args: see `DenseLayer`.
    """

    depth: int
    out_features: int | None
    stride: int
    layer_args: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, drop_paths: list[float], drop: float) -> jax.Array:
        types = self.layer_args["types"]
        if self.out_features is not None:
            x = layer_norm(self.layer_args["epsilon"], types, "norm")(x)
            x = conv(self.out_features, self.stride, types, "conv")(x)
        for i in range(self.depth):
            y = DenseLayer(**self.layer_args, name=f"layer{i}")(x, drop_paths[i], drop)
            x = jnp.concatenate([x, y], axis=-1)
        return x


class RDNet(nn.Module):
    """RDNet.

    Attributes:
      num_classes: width of the classifier; 0: the model returns pooled, normalised features.
      block_sizes: number of layers of each dense block.
      growth_rates: features that a layer adds, one for each block.
      halving: indices (from 0) of the blocks before which the resolution halves.
      gated_from: index of the first block whose layers have a gate.
      stem_features: features of each 4x4 patch.
      in_channels: channels of the images.
      bottleneck_width: width inside a layer, in its input features.
      compression: share of the features that a transition keeps.
      layer_scale: initial value of the layer scale.
      drop_path_rate: of the last layer; lower for earlier ones, in proportion to their position.
      dropout_rate: probability to drop each value that a layer adds.
      norm_epsilon: added to variances.
      dtype: type of the computation; norms, pooling and classifier have at least float32.
      param_dtype: type of the parameters.
    """

    num_classes: int = 1000
    block_sizes: tuple[int, ...] = (3,) * 7
    growth_rates: tuple[int, ...] = (64, 104, 128, 128, 128, 128, 224)
    halving: tuple[int, ...] = (1, 2, 6)
    gated_from: int = 2
    stem_features: int = 64
    in_channels: int = 3
    bottleneck_width: float = 4.0
    compression: float = 0.5
    layer_scale: float = 1e-6
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        if len(self.growth_rates) != len(self.block_sizes):
            raise ValueError(
                f"growth_rates has {len(self.growth_rates)} numbers and block_sizes "
                f"{len(self.block_sizes)}; each block takes one of both."
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        head_types = {**types, "dtype": at_least_float32(self.dtype)}
        self.stem_conv = conv(self.stem_features, PATCH, types)
        self.stem_norm = layer_norm(self.norm_epsilon, types)
        features, stages = self.stem_features, []
        for i, (depth, growth) in enumerate(zip(self.block_sizes, self.growth_rates, strict=True)):
            layer_args = {
                "growth_rate": growth,
                "expansion": self.bottleneck_width,
                "gated": i >= self.gated_from,
                "layer_scale": self.layer_scale,
                "epsilon": self.norm_epsilon,
                "types": types,
            }
            compressed = multiple_of_8(features * self.compression) if i else None
            stride = 2 if i in self.halving else 1
            stages.append(Stage(depth, compressed, stride, layer_args, name=f"stage{i}"))
            features = (compressed or features) + depth * growth
        self.stages = stages
        self.head_norm = layer_norm(self.norm_epsilon, head_types)
        if self.num_classes:
            self.classifier = nn.Dense(
                self.num_classes,
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
                **head_types,
            )

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [B, num_classes], or pooled features [B, C] if num_classes is 0.

        Args:
          images: [B, H, W, in_channels], normalised.
          train: apply drop path and dropout (key `dropout`).
        """
        final = self.features(images, train)["final"]
        pooled = self.head_norm(final.astype(at_least_float32(final.dtype)).mean((1, 2)))
        return self.classifier(pooled) if self.num_classes else pooled

    def features(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Returns every block's output [B, H, W, C]; `final`: the last one, which is pooled."""
        check_images(images, self.in_channels, PATCH * 2 ** len(self.halving))
        x = self.stem_norm(self.stem_conv(images.astype(self.dtype)))
        rates = self.drop_paths() if train else [0.0] * sum(self.block_sizes)
        outputs, first = {}, 0
        for i, (stage, depth) in enumerate(zip(self.stages, self.block_sizes, strict=True)):
            drop = self.dropout_rate if train else 0.0
            x = stage(x, rates[first : first + depth], drop)
            outputs[f"block{i + 1}"] = x
            first += depth
        return {**outputs, "final": x}

    def drop_paths(self) -> list[float]:
        """Returns each layer's drop path rate, growing linearly from 0 at the first."""
        last = max(sum(self.block_sizes) - 1, 1)
        return [self.drop_path_rate * i / last for i in range(sum(self.block_sizes))]


@jax.custom_jvp
def hard_sigmoid(x: jax.Array) -> jax.Array:
    """min(max(x + 3, 0), 6) / 6, with PyTorch's derivative."""
    return jnp.clip(x + 3, 0, 6) / 6


@hard_sigmoid.defjvp
def _hard_sigmoid_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    # PyTorch's slope is 1 / 6 rounded to float32 whatever the type: 3e-8 from it in float64.
    slope = jnp.asarray(np.float32(1 / 6), x.dtype)
    return hard_sigmoid(x), jnp.where(jnp.abs(x) < 3, slope * tangent, 0)


def conv(features: int, size: int, types: dict, name: str | None = None) -> nn.Conv:
    """A convolution with bias of disjoint size x size patches, or of single pixels."""
    kernel = (size, size)
    return nn.Conv(features, kernel, kernel, "VALID", kernel_init=he_normal, name=name, **types)


def layer_norm(epsilon: float, types: dict, name: str | None = None) -> nn.LayerNorm:
    """Normalises the channels of each position; two passes: E[x^2] - E[x]^2 would lose digits."""
    return nn.LayerNorm(epsilon, use_fast_variance=False, name=name, **types)
