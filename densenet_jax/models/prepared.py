"""Variables from which a network infers faster: the weights as its kernels read them."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn


def prepare(model: nn.Module, variables: Mapping[str, Any], batch_size: int = 1) -> dict[str, Any]:
    """Returns variables that `model.apply` takes in place of those given, for inference alone.

    On a CPU the weights of the dense blocks are put into the order in which the kernels multiply
    them, and the norms become gains and shifts: once, instead of in every call, where a single
    image spends a tenth of its time on it (docs/results.md). Where nothing is to be prepared, on
    other devices and for other networks, the variables are returned as they are.

        prepared = densenet_jax.prepare(model, variables)
        logits = jax.jit(model.apply)(prepared, images)

    They take the place of the blocks' parameters, which they do not follow: after a change of the
    parameters prepare them again. A ValueError says so where both are given, and in training.

    Args:
      model: a network of `create_model`.
      variables: its {"params": ..., "batch_stats": ...}.
      batch_size: of the images; it matters only where a mesh splits the batch.
    """
    if not hasattr(model, "prepare"):
        return dict(variables)
    found = jax.jit(lambda v: model.apply(v, batch_size, method="prepare"))(dict(variables))
    if not found:
        return dict(variables)
    rest = {
        collection: {
            name: value for name, value in variables[collection].items() if name not in found
        }
        for collection in ("params", "batch_stats")
    }
    return {
        **variables,
        **rest,
        "prepared": {name: values for name, values in found.items() if values},
    }
