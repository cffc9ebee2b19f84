"""DenseNet as it is usually written in Flax Linen, as a reference for speed and memory.

Every layer computes its own statistics, feature maps are concatenated, and gradients come from
automatic differentiation.  The network, its number of parameters and its call are the same as those
of `densenet_jax.create_model` (paper: Huang et al., 2017, section 3).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class DenseNet(nn.Module):
    """DenseNet-BC for ImageNet; attributes as in `densenet_jax.models.densenet.DenseNet`."""

    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    growth_rate: int = 32
    num_classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, 3] to float32 logits [B, num_classes]."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(64, (7, 7), strides=2, padding=3)(x)
        x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, depth in enumerate(self.block_sizes):
            for _ in range(depth):
                y = conv(4 * self.growth_rate, (1, 1))(nn.relu(norm()(x)))
                y = conv(self.growth_rate, (3, 3), padding=1)(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
            if i + 1 < len(self.block_sizes):
                x = conv(x.shape[-1] // 2, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(norm()(x)).astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes)(x)
