"""Modules that own parameters: kernels, and batch normalisation with its running statistics."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from densenet_jax.models.activation import norm_act
from densenet_jax.models.block.statistics import Moments, affine, at_least_float32, positions


def he_normal(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws a kernel [height, width, C, D] of variance 2 / (height * width * C) (He et al., 2015).

    The numbers are those of `nn.initializers.variance_scaling(2.0, "fan_in", "normal")`, but the
    first of a power of two: programs that draw arrays of few sizes compile faster.
    """
    size = math.prod(shape)
    drawn = jax.random.normal(key, (1 << (size - 1).bit_length(),), dtype)[:size]
    return drawn.reshape(shape) * jnp.sqrt(jnp.asarray(2 / math.prod(shape[:-1]), dtype))


class Kernel(nn.Module):
    """The kernel [k, k, in, out] of a convolution without bias."""

    shape: tuple[int, int, int, int]
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", he_normal, self.shape, self.param_dtype)


class BatchNorm(nn.Module):
    """Batch normalisation followed by the activation; it is given the moments of its input.

    Running statistics are kept as PyTorch keeps them: r <- (1 - momentum) r + momentum * batch,
    with the unbiased variance.

    Attributes:
      features: number of channels C.
      epsilon: added to variances.
      momentum: weight of the batch in the running statistics.
      activation: name in `activation.ACTIVATIONS`.
      param_dtype: type of scale and bias; running statistics have at least float32.
    """

    features: int
    epsilon: float
    momentum: float
    activation: str = "relu"
    param_dtype: Any = jnp.float32

    def setup(self):
        shape, stat_dtype = (self.features,), at_least_float32(self.param_dtype)
        self.scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        self.bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, stat_dtype)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, stat_dtype)

    def params(self) -> dict[str, jax.Array]:
        """Returns {"scale": [C], "bias": [C]}."""
        return {"scale": self.scale, "bias": self.bias}

    def affine(self, batch: Moments | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns (gain [C], shift [C]) for a batch's moments; None: for the running statistics."""
        statistics = Moments(self.mean.value, self.var.value) if batch is None else batch
        return affine(self.params(), statistics, self.epsilon)

    def __call__(
        self, x: jax.Array, batch: Moments | None, function: Callable[..., jax.Array] = norm_act
    ) -> jax.Array:
        """Returns f(BN(x)) for the activation f.

        Args:
          x: feature maps [B, H, W, C].
          batch: their moments; None: the running statistics normalise.
          function: maps x, gain, shift and the activation's name to f(x * gain + shift), or to
            more (see `pooling`).
        """
        if batch is not None:
            self.update(batch, positions(x))
        return function(x, *self.affine(batch), self.activation)

    def update(self, batch: Moments, count: int) -> None:
        """Moves the running statistics towards those of a batch with `count` values a channel.

        Raises:
          ValueError: there is one value a channel.
          flax.errors.ModifyScopeVariableError: `apply` was called without
            mutable=["batch_stats"].
        """
        if self.is_initializing():
            return
        if count == 1:
            raise ValueError(
                "batch normalisation has one value per channel to train on (one example whose "
                "feature maps have one position), so its variance is 0 and its output does not "
                "depend on the image; use more examples per group (a larger batch_size, a smaller "
                "optimizer.accumulate), larger images, or freeze_statistics."
            )
        unbiased = batch.var * (count / (count - 1))
        for variable, value in ((self.mean, batch.mean), (self.var, unbiased)):
            value = lax.stop_gradient(value)
            variable.value += self.momentum * (value - variable.value)
