"""The diagnosis of a non-finite step: the tensor in which the first non-finite value appears."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.tasks.losses import TrainLoss, Weigh
from densenet_jax.training.groups import ONE_GROUP, Groups, mean_over_groups
from densenet_jax.training.state import TrainState
from densenet_jax.training.step import (
    Batch,
    Guide,
    Preprocess,
    group_key,
    keys,
    mean_loss,
    prepared,
    value_and_grad,
)

REPORT = "nonfinite.json"  # in the run's directory


class NonFiniteError(Exception):
    """Loss or gradients were not finite in too many steps in a row."""


def diagnose(
    model: nn.Module,
    preprocess: Preprocess,
    state: TrainState,
    batch: Batch,
    *,
    loss: TrainLoss,
    guide: Guide | None = None,
    weigh: Weigh | None = None,
    seed: int = 0,
    groups: Groups = ONE_GROUP,
) -> dict[str, Any]:
    """Repeats a step and describes its tensors, in the order in which they are computed.

    Args:
      model: the network.
      preprocess: augments and normalises images, as in the step (see `step.Preprocess`).
      state: the parameters with which the step was taken; `state.step` is one less than its number.
      batch: the step's batch, with "image" uint8 [B, H, W, C] and "label" [B].
      loss: the step's loss.
      guide: the step's teacher, if it had one (see `step.Guide`).
      weigh: the step's weights of examples, if it had any.
      seed: the run's seed.
      groups: how the batch is divided.

    Returns:
      {"first": name of the first tensor with a non-finite value, or None,
       "tensors": {name: {"finite": share of finite values, "norm": L2 norm of the finite values}}};
      both numbers are means over the groups.
    """

    @jax.jit
    def look(state: TrainState, batch: Batch) -> dict[str, Any]:
        augment_key, dropout_key = keys(seed, state.step)
        examples = prepared(preprocess, guide, weigh, augment_key, batch)
        shared = (state.variables, state.loss_scale), dropout_key
        return mean_over_groups(look_at_group, groups, shared, examples)

    def look_at_group(shared: Any, examples: Any, number: jax.Array | None) -> dict[str, Any]:
        (variables, scale), key = shared
        images, targets, weights = examples
        key = group_key(key, number)

        def apply(params: Any, **kwargs: Any) -> Any:
            return model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
                **kwargs,
            )[0]

        def loss_fn(params: Any) -> jax.Array:
            return mean_loss(loss(apply(params), targets), weights)

        params = variables["params"]
        value, gradients = value_and_grad(loss_fn, scale)(params)
        tensors = [("images", images), *_named("parameter", params)]
        tensors += _named("feature maps", apply(params, method="features"))
        tensors += [("logits", apply(params)), ("loss", value)]
        tensors += _named("gradient", gradients)
        return {name: _summary(x) for name, x in tensors}

    # jit sorts the keys of its result by name, so the order of computation is restored below.
    found = jax.device_get(look(state, batch))
    tensors = {
        name: {"finite": float(s["finite"]), "norm": float(s["norm"])} for name, s in found.items()
    }
    order = ("images", "parameter", "feature maps", "logits", "loss", "gradient")
    names = sorted(tensors, key=lambda name: [name.startswith(o) for o in order].index(True))
    first = next((name for name in names if tensors[name]["finite"] < 1), None)
    return {"first": first, "tensors": {name: tensors[name] for name in names}}


def write_report(
    path: pathlib.Path, step: int, examples: Iterable[int], found: dict[str, Any]
) -> None:
    """Writes the report of a non-finite step.

    Args:
      path: the file, nonfinite.json.
      step: the step's number.
      examples: numbers of the batch's examples in the training split.
      found: as `diagnose` returns it.
    """
    report = {"step": step, "first": found["first"], "examples": [int(i) for i in examples]}
    text = json.dumps({**report, "tensors": found["tensors"]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _named(kind: str, tree: Any) -> list[tuple[str, jax.Array]]:
    """Returns (name, array) of every leaf: ("parameter stem/conv/kernel", ...)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        (f"{kind} {'/'.join(str(getattr(p, 'key', p)) for p in path)}", leaf)
        for path, leaf in leaves
    ]


def _summary(x: jax.Array) -> dict[str, jax.Array]:
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    return {
        "finite": finite.mean(),
        "norm": jnp.sqrt(jnp.sum(jnp.square(jnp.where(finite, x, 0)))),
    }
