"""The same networks and weights as `flax.nnx` modules.

There is no second implementation: a `Network` holds the variables as NNX state and applies the
Linen module to them, so both compute the same to the bit.

    model = densenet_jax.nnx.load_pretrained("densenet121.ra_in1k", num_classes=10)
    optimizer = nnx.Optimizer(model, optax.sgd(0.01), wrt=nnx.Param)
    model.train()
"""

import os
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.nnx.bridge import variables as bridge

from densenet_jax import load_pretrained as load_linen
from densenet_jax.models import variants


class Network(nnx.Module):
    """A DenseNet or RDNet as an NNX module.

    Parameters are `nnx.Param`, running statistics `nnx.BatchStat`; the modules have the names of
    the Linen module (`conv0`, `denseblock1`, ...). A new network is in evaluation mode.

    Attributes:
      model: the Linen module without its classifier.
      classifier: `nnx.Linear`, which may be replaced by any module of features [B, C]; None: the
        network returns pooled features.
      rngs: has a stream `dropout`, which training draws from; None: nothing is dropped.
    """

    def __init__(self, model: linen.Module, variables: Any, *, rngs: nnx.Rngs | None = None):
        """Makes a module of a Linen module and its variables.

        Args:
          model: a `DenseNet` or an `RDNet`.
          variables: {"params": ..., "batch_stats": ...} of it; RDNet has no "batch_stats".
          rngs: see above.
        """
        self.model: Any = model.clone(num_classes=0)
        self.rngs = rngs
        self.use_running_average = self.deterministic = True  # what train() and eval() set
        # NumPy arrays would be written in place, and the caller's variables would change.
        variables = jax.tree.map(jnp.asarray, dict(variables))
        params = dict(variables["params"])
        head = params.pop("classifier", None)
        self.classifier = None if head is None else _linear(head, cast(Any, model))
        body = {**variables, "params": params}
        attributes = bridge.linen_vars_to_nnx_attrs(body)
        self.parts = tuple(attributes)
        for name, value in attributes.items():
            setattr(self, name, nnx.data(value))

    def __call__(self, images: jax.Array, train: bool | None = None) -> jax.Array:
        """Returns logits [B, num_classes], or pooled features [B, C] without a classifier.

        After `train()`, normalises with the batch's statistics, moves the running ones, and drops.

        Args:
          images: [B, H, W, in_channels], normalised.
          train: the mode of this call, as for the Linen module; None: that of `train()`, `eval()`.
        """
        pooled = self._apply(images, train=train)
        return pooled if self.classifier is None else self.classifier(pooled)

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns every block's output [B, H, W, C]; `final`: the last one, which is pooled."""
        return self._apply(images, "features")

    def variables(self) -> dict[str, Any]:
        """Returns the variables of the Linen module; with the classifier, if it is linear."""
        found = bridge.nnx_attrs_to_linen_vars({name: getattr(self, name) for name in self.parts})
        if isinstance(self.classifier, nnx.Linear):
            linear: Any = self.classifier
            head = {"kernel": linear.kernel[...], "bias": linear.bias[...]}
            found["params"] = {**found["params"], "classifier": head}
        return found

    def _apply(
        self, images: jax.Array, method: str | None = None, train: bool | None = None
    ) -> Any:
        variables = bridge.nnx_attrs_to_linen_vars({n: getattr(self, n) for n in self.parts})
        fixed, deterministic = (
            (self.use_running_average, self.deterministic) if train is None else (not train,) * 2
        )
        if fixed:
            return self.model.apply(variables, images, method=method)
        keys = {} if self.rngs is None or deterministic else {"dropout": self.rngs.dropout()}
        found, updates = self.model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=keys, method=method
        )
        leaves, _ = jax.tree_util.tree_flatten_with_path(updates.get("batch_stats", {}))
        for (first, *path), value in leaves:
            node = getattr(self, first.key)
            for key in path:
                node = node[key.key]
            node[...] = value
        return found


def create_model(name: str, /, *, rngs: nnx.Rngs, **overrides: Any) -> Network:
    """Returns a new network; see `densenet_jax.create_model`.

    Args:
      name: of the variant.
      rngs: `nnx.Rngs(0)`; initialises the parameters, and is kept for dropout.
      **overrides: fields of the module.

    Raises:
      ValueError: an unknown model or field.
    """
    model = variants.create_model(name, **overrides)
    images = jnp.zeros((1, 64, 64, cast(Any, model).in_channels))
    return Network(model, jax.jit(model.init)(rngs.params(), images), rngs=rngs)


def load_pretrained(
    source: str | os.PathLike[str], *args: Any, rngs: nnx.Rngs | None = None, **options: Any
) -> Network:
    """Returns a network with weights; see `densenet_jax.load_pretrained`.

    Args:
      source: a published name, a hub repository, a file, a folder, or the directory of a run.
      *args: as for `densenet_jax.load_pretrained`.
      rngs: for dropout; None: nothing is dropped.
      **options: as for `densenet_jax.load_pretrained`.

    Raises:
      WeightsError, ValueError: as `densenet_jax.load_pretrained`.
    """
    model, variables = load_linen(source, *args, **options)
    return Network(model, variables, rngs=rngs)


def _linear(head: Any, model: Any) -> nnx.Linear:
    """Returns the classifier with the parameters {"kernel" [C, classes], "bias" [classes]}."""
    kernel, bias = (jnp.asarray(head[name]) for name in ("kernel", "bias"))
    dtype = jnp.promote_types(model.dtype, jnp.float32)
    linear: Any = nnx.Linear(*kernel.shape, dtype=dtype, param_dtype=kernel.dtype, rngs=nnx.Rngs(0))
    linear.kernel[...], linear.bias[...] = kernel, bias
    return linear
