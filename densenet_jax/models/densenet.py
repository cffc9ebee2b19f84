"""DenseNet (Huang, Liu, van der Maaten, Weinberger, 2017) as Flax Linen modules.

The modules own parameters and running statistics, under the names of the PyTorch reference; the
arithmetic of a block is in the folder `block`.  Images are [B, H, W, C].
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.models.activation import find_activation, norm_act
from densenet_jax.models.block import dense_block, implementations
from densenet_jax.models.block import stem as block_stem
from densenet_jax.models.block.plain import convolve, dropout
from densenet_jax.models.block.statistics import Moments, at_least_float32, moments, positions
from densenet_jax.models.inputs import check_images, check_name
from densenet_jax.models.layers import BatchNorm, Kernel
from densenet_jax.models.plan import BlockPlan, per_block
from densenet_jax.models.pooling import average_pool, find_global_pool, norm_act_average_pool
from densenet_jax.models.stem import find_stem
from densenet_jax.models.tpu.transitions import pooled_convolution


class DenseLayer(nn.Module):
    """BN-ReLU-conv 1x1 and BN-ReLU-conv 3x3; without a bottleneck only the latter.

    Attributes:
      in_features: feature maps that the layer reads.
      growth_rate: feature maps that it returns.
      bottleneck: width of the 1x1 convolution; 0: none.
      norm_args: fields of `layers.BatchNorm`.
    """

    in_features: int
    growth_rate: int
    bottleneck: int
    norm_args: dict[str, Any]

    def setup(self):
        width, param_dtype = self.bottleneck, self.norm_args["param_dtype"]
        self.norm1 = BatchNorm(self.in_features, **self.norm_args)
        if width == 0:
            self.conv1 = Kernel((3, 3, self.in_features, self.growth_rate), param_dtype)
            return
        self.conv1 = Kernel((1, 1, self.in_features, width), param_dtype)
        self.norm2 = BatchNorm(width, **self.norm_args)
        self.conv2 = Kernel((3, 3, width, self.growth_rate), param_dtype)

    def pairs(self) -> list[tuple[BatchNorm, Kernel]]:
        first = (self.norm1, self.conv1)
        return [first, (self.norm2, self.conv2)] if self.bottleneck else [first]

    def params(self) -> list:
        """Returns [({"scale": [C], "bias": [C]}, kernel [k, k, C, D]), ...], one a convolution."""
        return [(norm.params(), kernel()) for norm, kernel in self.pairs()]

    def frozen(self) -> list:
        """Returns [((gain [C], shift [C]), kernel), ...], normalised by the running statistics."""
        return [(norm.affine(), kernel()) for norm, kernel in self.pairs()]

    def update(self, batch: list[Moments], count: int) -> None:
        for (norm, _), statistics in zip(self.pairs(), batch, strict=True):
            norm.update(statistics, count)


class DenseBlock(nn.Module):
    """Dense layers, each reading the feature maps of all before it.

    Attributes:
      plan: the block's widths.
      norm_args: fields of `layers.BatchNorm`.
      implementation: see `block.implementations`.
      dtype: of the network.
    """

    plan: BlockPlan
    norm_args: dict[str, Any]
    implementation: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        args = (self.plan.growth_rate, self.plan.bottleneck, self.norm_args)
        for i, width in enumerate(self.plan.widths, start=1):
            setattr(self, f"denselayer{i}", DenseLayer(width, *args))

    def layers(self) -> list[DenseLayer]:
        return [getattr(self, f"denselayer{i + 1}") for i in range(len(self.plan.widths))]

    def pairs(self, train: bool) -> list:
        """Returns the layers as `dense_block.train` or `dense_block.evaluate` takes them."""
        return [layer.params() if train else layer.frozen() for layer in self.layers()]

    def joins(self, x: jax.Array, transition: tuple, train: bool, dropped: float) -> str | None:
        """Returns how the block takes a transition on x: `dense_block.joins_transition`."""
        if self.is_prepared:
            return None
        how = self.implementation, self.norm_args["activation"]
        pairs = self.pairs(train)
        return dense_block.joins_transition(x, transition, pairs, train, dropped, *how)

    @property
    def is_prepared(self) -> bool:
        """Whether the variables are those of `prepare`, with the transition before the block."""
        return self.has_variable("prepared", "block")

    def prepare(self, batch_size: int, dtype: Any, transition: tuple | None) -> Any:
        """Returns the block for inference, or None: see `dense_block.prepare`."""
        x = jax.ShapeDtypeStruct((batch_size, 1, 1, self.plan.in_features), dtype)
        how = self.implementation, self.norm_args["activation"], self.dtype
        return dense_block.prepare(x, self.pairs(train=False), *how, transition)

    def __call__(
        self,
        x: jax.Array,
        batch: Moments | None,
        train: bool = False,
        dropout_rate: float = 0.0,
        drop_path: tuple[float, ...] = (),
        transition: tuple | None = None,
    ) -> tuple[jax.Array, Moments | None]:
        """Returns the block's features, and their moments if it trains.

        Args:
          x: feature maps [B, H, W, C].
          batch: moments of x, which normalise in the transition if there is one.
          train: whether the batch's statistics normalise in the block.
          dropout_rate, drop_path: see `dense_block.train`.
          transition: `Transition.pair` of what x goes through before the block; None: nothing.
        """
        if self.is_prepared:
            if train or self.has_variable("params", "denselayer1"):
                raise ValueError(
                    "The variables are prepared for inference; to train, or after a change of the "
                    "parameters, begin with the variables that were given to `prepare`."
                )
            prepared: Any = self.get_variable("prepared", "block")
            how = self.implementation, self.dtype
            return dense_block.evaluate_prepared(x, prepared, self.plan, *how), None
        layers = self.layers()
        options = {
            "dropout_rate": dropout_rate,
            "drop_path": drop_path,
            "key": self.make_rng("dropout") if dropout_rate or drop_path else None,
            "implementation": self.implementation,
            "activation": self.norm_args["activation"],
            "dtype": self.dtype,
        }
        pairs = self.pairs(train)
        if not train:
            return dense_block.evaluate(x, pairs, transition=transition, **options), None
        x, batch, inner = dense_block.train(
            x,
            moments(x) if transition is None or batch is None else batch,
            pairs,
            transition=transition,
            epsilon=self.norm_args["epsilon"],
            **options,
        )
        for i, (layer, width) in enumerate(zip(layers, self.plan.widths, strict=True)):
            layer.update([batch.prefix(width), *inner[i : i + 1]], positions(x))
        return x, batch


class Transition(nn.Module):
    """BN-ReLU-conv 1x1 and 2x2 average pooling, between two blocks."""

    in_features: int
    out_features: int
    norm_args: dict[str, Any]
    implementation: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        self.norm = BatchNorm(self.in_features, **self.norm_args)
        shape = (1, 1, self.in_features, self.out_features)
        self.conv = Kernel(shape, self.norm_args["param_dtype"])

    def pair(self, batch: Moments | None) -> tuple:
        """Returns (norm, kernel) as `DenseLayer.params` does, or for None as its `frozen` does."""
        return self.norm.affine() if batch is None else self.norm.params(), self.conv()

    def update(self, batch: Moments | None, count: int) -> None:
        if batch is not None:
            self.norm.update(batch, count)

    def __call__(self, x: jax.Array, batch: Moments | None, dropout_rate: float = 0.0) -> jax.Array:
        if dropout_rate:
            x = convolve(self.norm(x, batch), self.conv())
            return average_pool(dropout(x, dropout_rate, self.make_rng("dropout")))
        if implementations.for_tpu(self.implementation, x):
            pooled = functools.partial(pooled_convolution, kernel=self.conv())
            return self.norm(x, batch, pooled)
        # Pooling and a 1x1 convolution commute: pooled first, the convolution has a quarter to do.
        how = self.implementation, x, self.norm_args["activation"], self.dtype
        pool = implementations.around_blocks(norm_act_average_pool, *how)
        return convolve(self.norm(x, batch, pool), self.conv())


class DenseNet(nn.Module):
    """DenseNet, DenseNet-B, -C and -BC.

    Attributes:
      num_classes: width of the classifier; 0: the model returns pooled features.
      block_sizes: number of layers of each dense block.
      growth_rate: feature maps that a layer adds (k in the paper); a tuple: of each block.
      stem: "imagenet" (7x7 convolution of stride 2, BN, ReLU, 3x3 max pooling of stride 2),
        "deep" (three 3x3 convolutions instead), "deep_blur" (the same, blurred where it halves),
        "imagenet_same" (the same as "imagenet" with TensorFlow's padding, as KerasHub has it),
        "cifar" (one 3x3 convolution) or "cifar_half" (the same with stride 2); see `stem`.
      stem_features: feature maps that the stem makes.
      in_channels: channels of the images.
      bottleneck_width: width of the 1x1 convolutions in growth rates; 0: layers without bottleneck.
      compression: share of the feature maps that a transition keeps (theta in the paper).
      dropout_rate: probability to drop after every convolution but the first.
      drop_path_rate: probability, per image, that the last layer adds zeros (stochastic depth);
        for earlier layers it is lower, in proportion to their position.
      norm_epsilon: added to variances.
      norm_momentum: weight of the batch in the running statistics (PyTorch's convention).
      freeze_statistics: also in training, normalise with the running statistics and leave them as
        they are (for fine-tuning on little data or with small batches): True, or the names of the
        parts that do, as in `parts`: "stem", "block1", ..., "norm".
      activation: "relu", "silu", "gelu" or "leaky_relu", after every norm; see `activation`.
      global_pool: what becomes of the last feature maps: "avg" (mean over positions), "max",
        "avgmax" (the mean of both) or "catavgmax" (both, 2 C features), as timm names them.
      implementation: "auto" (the fastest that runs here), "reference", "plain", "gpu", "cpu",
        "cpu_bfloat16" or "tpu"; see `block.implementations`.
      dtype: type of the computation; statistics, pooling and classifier have at least float32.
        Where the CPU kernels compute the blocks, float32 takes the place of 16-bit types, but in
        products on processors that multiply in bfloat16.
      param_dtype: type of the parameters.
    """

    num_classes: int = 1000
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    growth_rate: int | tuple[int, ...] = 32
    stem: str = "imagenet"
    stem_features: int = 64
    in_channels: int = 3
    bottleneck_width: int = 4
    compression: float = 0.5
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.1
    freeze_statistics: bool | tuple[str, ...] = False
    activation: str = "relu"
    global_pool: str = "avg"
    implementation: str = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def plan(self) -> list[BlockPlan]:
        """Returns the widths of every dense block and of the transition after it.

        Raises:
          ValueError: `growth_rate` has neither one number nor one for each block.
        """
        features, blocks = self.stem_features, []
        growth_rates = per_block(self.growth_rate, len(self.block_sizes), "growth_rate")
        for depth, growth in zip(self.block_sizes, growth_rates, strict=True):
            block = BlockPlan(features, depth, growth, self.bottleneck_width * growth, None)
            features = int(block.out_features * self.compression)
            blocks.append(block._replace(kept=features))
        return [*blocks[:-1], blocks[-1]._replace(kept=None)]

    def setup(self):
        find_activation(self.activation)
        find_global_pool(self.global_pool)
        if not isinstance(self.freeze_statistics, bool):
            for part in self.freeze_statistics:
                check_name("part in freeze_statistics", part, self.norm_parts)
        implementations.check_implementation(self.implementation)
        norm_args = {
            "epsilon": self.norm_epsilon,
            "momentum": self.norm_momentum,
            "activation": self.activation,
            "param_dtype": self.param_dtype,
        }
        stem, features = find_stem(self.stem), self.in_channels
        for i, (size, _, share) in enumerate(stem.convolutions):
            out_features = int(self.stem_features * share)
            shape = (size, size, features, out_features)
            setattr(self, f"conv{i}", Kernel(shape, self.param_dtype))
            if stem.norm:
                setattr(self, f"norm{i}", BatchNorm(out_features, **norm_args))
            features = out_features
        blocks = self.plan()
        for i, block in enumerate(blocks, start=1):
            args = (norm_args, self.implementation, self.dtype)
            setattr(self, f"denseblock{i}", DenseBlock(block, *args))
            if block.kept is not None:
                transition = Transition(block.out_features, block.kept, *args)
                setattr(self, f"transition{i}", transition)
        self.norm_final = BatchNorm(blocks[-1].out_features, **norm_args)
        if self.num_classes:
            self.classifier = nn.Dense(
                self.num_classes,
                dtype=at_least_float32(self.dtype),
                param_dtype=self.param_dtype,
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            )

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [B, num_classes], or pooled features [B, C] if num_classes is 0.

        Args:
          images: [B, H, W, in_channels], normalised.
          train: normalise with the batch's statistics and update the running ones (collection
            `batch_stats`), unless `freeze_statistics`; apply dropout (key `dropout`).
        """
        pooled = find_global_pool(self.global_pool)(self.features(images, train)["final"])
        return self.classifier(pooled) if self.num_classes else pooled

    def prepare(self, batch_size: int = 1) -> dict[str, dict]:
        """Returns {module: its prepared variables}, see `prepared.prepare`.

        A block has its layers and the transition before it, which then has none.
        """
        dtype = implementations.computed_type(
            self.dtype, self.implementation, batch_size, self.activation
        )
        found: dict[str, dict] = {}
        for i in range(1, len(self.block_sizes) + 1):
            before = getattr(self, f"transition{i - 1}").pair(None) if i > 1 else None
            block = getattr(self, f"denseblock{i}").prepare(batch_size, dtype, before)
            if block is not None:
                found[f"denseblock{i}"] = {"block": block}
                found |= {f"transition{i - 1}": {}} if i > 1 else {}
        return found

    def features(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Returns every block's output [B, H, W, C]; `final`: the last one after BN and ReLU."""
        # The stem rounds sizes up, each transition rounds them down.
        smallest = (2 ** (len(self.block_sizes) - 1) - 1) * find_stem(self.stem).reduction + 1
        check_images(images, self.in_channels, smallest)
        dropout_rate = self.dropout_rate if train else 0.0
        live = {part: train and not self._keeps_statistics(part) for part in self.norm_parts}
        dtype = implementations.computed_type(
            self.dtype, self.implementation, images.shape[0], self.activation
        )
        x, stages, before = images.astype(dtype), {}, None
        batch, drop_paths = None, self.drop_paths() if train else [()] * len(self.block_sizes)
        stem = None
        if find_stem(self.stem).is_one_stage:
            before = self.norm0.affine(), self.conv0()
            dropped = max(dropout_rate, *drop_paths[0], 0.0)
            stem = self.denseblock1.joins(x, before, live["block1"], dropped)
        if stem is None or live["stem"] or live["block1"]:
            x, before = self._stem(x, live["stem"], stem), None
        for i in range(1, len(self.block_sizes) + 1):
            block, training, pair = getattr(self, f"denseblock{i}"), live[f"block{i}"], before
            if i > 1 and not block.is_prepared:
                transition = getattr(self, f"transition{i - 1}")
                pair = transition.pair(batch)
                dropped = max(dropout_rate, *drop_paths[i - 1], 0.0)
                alike = (batch is not None) == training
                if alike and block.joins(x, pair, training, dropped):
                    transition.update(batch, positions(x))
                else:
                    x, pair = transition(x, batch, dropout_rate), None
            x, batch = block(x, batch, training, dropout_rate, drop_paths[i - 1], pair)
            stages[f"block{i}"] = x.astype(self.dtype)
        if not live["norm"]:
            batch = None
        elif batch is None:  # the last block keeps its statistics, the norm after it does not
            batch = moments(x)
        return {**stages, "final": self.norm_final(x, batch)}

    @property
    def norm_parts(self) -> list[str]:
        """The parts of the network that have norms, see `parts`."""
        return ["stem", *(f"block{i + 1}" for i in range(len(self.block_sizes))), "norm"]

    def _keeps_statistics(self, part: str) -> bool:
        """Returns whether a part normalises with its running statistics in training, too."""
        frozen = self.freeze_statistics
        return frozen if isinstance(frozen, bool) else part in frozen

    def drop_paths(self) -> list[tuple[float, ...]]:
        """Returns each block's rates of drop path, growing linearly from 0 at the first layer."""
        last, rates, first = max(sum(self.block_sizes) - 1, 1), [], 0
        for depth in self.block_sizes:
            layers = range(first, first + depth)
            rates.append(tuple(self.drop_path_rate * i / last for i in layers))
            first += depth
        return rates if self.drop_path_rate else [()] * len(self.block_sizes)

    def _stem(self, x: jax.Array, batch_statistics: bool, kernels: str | None) -> jax.Array:
        """Returns the stem of x; kernels: the implementation that has kernels for it, or None."""
        if kernels is not None and batch_statistics:
            norm, count = self.norm0, x.shape[0] * math.prod((n + 1) // 2 for n in x.shape[1:3])
            x, found = block_stem.train(x, self.conv0(), norm.params(), norm.epsilon, kernels)
            norm.update(found, count)
            return x
        stem = find_stem(self.stem)
        for i, (_, stride, _) in enumerate(stem.convolutions):
            convolution = implementations.around_blocks(
                stem.convolve, self.implementation, x, dtype=self.dtype
            )
            x, batch = convolution(x, getattr(self, f"conv{i}")(), stride)
            if stem.norm:
                last = i + 1 == len(stem.convolutions)
                function = stem.pool if last and stem.pool is not None else norm_act
                function = implementations.around_blocks(
                    function, self.implementation, x, self.activation, self.dtype
                )
                batch = batch if batch_statistics else None
                x = getattr(self, f"norm{i}")(x, batch, function)
        return x
