"""A step whose numbers went wrong, looked at: where the first value that is not finite arises."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_jax.tasks.losses import Loss
from densenet_jax.training.groups import ONE_GROUP, Groups, mean_over_groups
from densenet_jax.training.state import TrainState
from densenet_jax.training.step import Batch, Guide, Preprocess, group_key, keys, prepared

REPORT = "nonfinite.json"  # in the run's directory


class NonFiniteError(Exception):
    """Loss or gradients were not finite in too many steps in a row."""


def diagnose(
    model: nn.Module,
    preprocess: Preprocess,
    state: TrainState,
    batch: Batch,
    *,
    loss: Loss,
    guide: Guide | None = None,
    seed: int = 0,
    groups: Groups = ONE_GROUP,
) -> dict[str, Any]:
    """Repeats a step and returns what its tensors look like, in the order they are computed.

    Args:
      state: parameters as they were at that step, and the number of the step before it.
      batch: the step's batch.
      loss, guide, seed, groups: the step's.

    Returns:
      {"first": the first tensor with a value that is not finite, or None,
       "tensors": {name: {"finite": share of finite values, "norm": L2 norm of those}}}; both are
      means over the groups.
    """

    @jax.jit
    def look(state: TrainState, batch: Batch) -> dict[str, Any]:
        augment_key, dropout_key = keys(seed, state.step)
        examples = prepared(preprocess, guide, augment_key, batch)
        return mean_over_groups(look_at_group, groups, (state.variables, dropout_key), examples)

    def look_at_group(shared, examples, number: jax.Array | None) -> dict[str, Any]:
        variables, key = shared
        images, targets = examples
        key = group_key(key, number)

        def apply(params, **kwargs):
            return model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
                **kwargs,
            )[0]

        def loss_fn(params):
            return loss(apply(params), targets).mean()

        params = variables["params"]
        value, gradients = jax.value_and_grad(loss_fn)(params)
        tensors = [("images", images), *_named("parameter", params)]
        tensors += _named("feature maps", apply(params, method="features"))
        tensors += [("logits", apply(params)), ("loss", value)]
        tensors += _named("gradient", gradients)
        return {name: _summary(x) for name, x in tensors}

    # jit sorts the keys of its result: the order of computation is kept by the numbers.
    found = jax.device_get(look(state, batch))
    tensors = {
        name: {"finite": float(s["finite"]), "norm": float(s["norm"])} for name, s in found.items()
    }
    order = ("images", "parameter", "feature maps", "logits", "loss", "gradient")
    names = sorted(tensors, key=lambda name: [name.startswith(o) for o in order].index(True))
    first = next((name for name in names if tensors[name]["finite"] < 1), None)
    return {"first": first, "tensors": {name: tensors[name] for name in names}}


def write_report(
    path: pathlib.Path, step: int, examples: Sequence[int], found: dict[str, Any]
) -> None:
    """Writes what was found."""
    report = {"step": step, "first": found["first"], "examples": [int(i) for i in examples]}
    text = json.dumps({**report, "tensors": found["tensors"]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _named(kind: str, tree: Any) -> list[tuple[str, jax.Array]]:
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
