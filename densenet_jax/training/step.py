"""One training step and one evaluation step: pure functions of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.dynamic_scale import DynamicScale

from densenet_jax.tasks.losses import TrainLoss, Weigh
from densenet_jax.tasks.task import Metrics, Task
from densenet_jax.training import state as states
from densenet_jax.training.groups import ONE_GROUP, Groups, mean_over_groups
from densenet_jax.training.optimizer import global_norm, with_clock
from densenet_jax.training.state import TrainState

Batch = dict[str, jax.Array]
# (key, uint8 images [B, H, W, C], labels [B]) -> normalised images, targets [B, classes]
Preprocess = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

# (normalised images, batch) -> a teacher's logits [B, classes], whether each is used, bool [B]
Guide = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]


def prepared(
    preprocess: Preprocess, guide: Guide | None, weigh: Weigh | None, key: jax.Array, batch: Batch
) -> tuple[jax.Array, Any, jax.Array | None]:
    """Returns a batch's normalised images, the targets for the loss, and weights of the examples.

    Args:
      preprocess: augments and normalises images, and makes their targets.
      guide: a teacher; None if there is none.
      weigh: see `losses.example_weights`; None: all examples weigh the same.
      key: of the random augmentation.
      batch: with "image" uint8 [B, H, W, C], "label" [B], and what the teacher needs.

    Returns:
      images [B, H, W, C]; targets [B, classes], or with a teacher (targets, teacher's logits
      [B, classes], whether each is used, bool [B]); and weights [B] whose mean over the batch is 1
      (or that are all 0), or None. Groups of a batch therefore count as their weights require.
    """
    images, targets = preprocess(key, batch["image"], batch["label"])
    weights = None
    if weigh is not None:
        weights = weigh(targets)
        mean = weights.mean()
        weights = weights / jnp.where(mean > 0, mean, 1)
    return images, targets if guide is None else (targets, *guide(images, batch)), weights


def mean_loss(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Returns the mean of losses [B], weighted by `weights` [B] or, for None, by 1."""
    return losses.mean() if weights is None else (losses * weights).mean()


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    preprocess: Preprocess,
    *,
    task: Task,
    loss: TrainLoss,
    ema_decay: float = 0.0,
    seed: int = 0,
    guide: Guide | None = None,
    weigh: Weigh | None = None,
    groups: Groups = ONE_GROUP,
    nonfinite_limit: int | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the function that maps a state and a batch to the next state and its metrics.

    A step whose loss or gradients are not finite is counted, but leaves parameters, statistics and
    optimiser unchanged.  The state's buffers are donated.

    Args:
      model: the network.
      optimizer: the optimiser.
      schedule: the optimiser's learning rate by step, for the metrics.
      preprocess: augments and normalises images, and makes their targets.
      task: what the network is trained for; its metrics are measured on the training batch.
      loss: maps logits and targets to the losses of the examples, see `losses.make_loss`; with a
        `guide`, the loss of `distillation.distilling`.
      ema_decay: decay of the state's moving averages, if it keeps any.
      seed: of augmentation and dropout.
      guide: the teacher of a student; None if there is none.
      weigh: the weights of the examples, see `losses.example_weights`.
      groups: how a batch is divided into groups that share batch statistics (`groups.plan`).  The
        running statistics move towards the mean over the groups of their means, and of their
        variances.
      nonfinite_limit: after so many non-finite steps in a row, all further steps change nothing.
        The loop learns of such steps a little late, and the diagnosis needs the parameters with
        which they were taken.  None: no limit.

    Returns:
      a function of (state, {"image": uint8 [B, H, W, C], "label": [B], ...}) that returns the next
      state and the metrics, scalars: "loss", the keys of `Task.measure`, "learning_rate",
      "nonfinite" (number of non-finite steps in a row), and "bad_images" if the batch counts them.
    """

    def group_step(shared: Any, examples: Any, number: jax.Array | None) -> Any:
        """Returns the gradients, new running statistics and metrics of a group of examples."""
        (variables, scale), key = shared
        images, targets, weights, labels = examples
        key = group_key(key, number)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            return mean_loss(loss(logits, targets), weights), (logits, updates)

        grad = value_and_grad(loss_fn, scale, has_aux=True)
        (value, (logits, updates)), gradients = grad(variables["params"])
        metrics = {
            "loss": value,
            **{name: jnp.mean(v) for name, v in task.measure(logits, labels).items()},
        }
        return gradients, updates.get("batch_stats", variables["batch_stats"]), metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = keys(seed, state.step)
        images, targets, weights = prepared(preprocess, guide, weigh, augment_key, batch)
        gradients, batch_stats, metrics = mean_over_groups(
            group_step,
            groups,
            ((state.variables, state.loss_scale), dropout_key),
            (images, targets, weights, batch["label"]),
        )
        opt_state = with_clock(state.opt_state, state.step)
        changes, opt_state = optimizer.update(gradients, opt_state, state.params)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(global_norm(gradients))
        scale = next_scale(state.loss_scale, finite)
        if nonfinite_limit is not None:
            finite &= state.nonfinite < nonfinite_limit
        stepped = state.replace(
            params=optax.apply_updates(state.params, changes),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is not None:
            ema = states.moved(state.ema, stepped.variables, state.step, ema_decay)
            stepped = stepped.replace(ema=ema)
        new = jax.tree.map(jnp.where, _gates(finite, state), stepped, state)
        if nonfinite_limit is not None and scale is not None:
            under_way = state.nonfinite < nonfinite_limit
            scale = jax.tree.map(lambda a, b: jnp.where(under_way, a, b), scale, state.loss_scale)
        new = new.replace(loss_scale=scale)
        new = new.replace(step=state.step + 1, nonfinite=jnp.where(finite, 0, state.nonfinite + 1))
        metrics |= {
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "nonfinite": new.nonfinite,
        }
        if "bad" in batch:  # unreadable images, which were replaced by others
            metrics["bad_images"] = jnp.sum(batch["bad"])
        return new, metrics

    return jax.jit(train_step, donate_argnums=0)


def _gates(finite: jax.Array, state: TrainState) -> TrainState:
    """Returns `finite` for every leaf of a state, all of them parts of one array.

    XLA computes what reads one array, and has one shape, in one kernel of a GPU, if it does not
    know that all elements are the same.  Otherwise an update of DenseNet-121 takes 502 kernels.
    """
    largest = max(leaf.size for leaf in jax.tree.leaves(state))
    gate = jax.lax.optimization_barrier(jnp.full(largest, finite))
    return jax.tree.map(lambda leaf: gate[: leaf.size].reshape(leaf.shape), state)


def value_and_grad(
    function: Callable[..., Any], scale: DynamicScale | None, has_aux: bool = False
) -> Callable[[Any], tuple[Any, Any]]:
    """Returns `jax.value_and_grad` of a function, computed of its result times a scale.

    Args:
      function: maps parameters to a loss, or to a loss and anything else.
      scale: of the loss; its result and the gradients are divided by it; None: 1.
      has_aux: whether the function returns anything else.
    """
    if scale is None:
        return jax.value_and_grad(function, has_aux=has_aux)

    def run(params: Any) -> tuple[Any, Any]:
        result = scale.value_and_grad(function, has_aux=has_aux)(params)
        return result.aux, result.grad

    return run


def next_scale(scale: DynamicScale | None, finite: jax.Array) -> DynamicScale | None:
    """Returns the scale of the loss for the next step.

    Flax changes the scale where gradients are computed.  Here these are means over groups, so it
    gets the gradient of x times 1 or NaN instead.

    Args:
      scale: of this step.
      finite: whether its loss and gradients were finite.
    """
    if scale is None:
        return None
    marker = jnp.where(finite, 1.0, jnp.nan)
    return scale.value_and_grad(lambda x: x * marker)(jnp.ones(())).dynamic_scale


def keys(seed: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the random keys of a step's augmentation and dropout.

    They depend on (seed, step) alone, so a resumed run repeats the same random numbers.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment_key, dropout_key


def group_key(key: jax.Array, number: jax.Array | None) -> jax.Array:
    """Returns the random key of a group's dropout; number None: the batch is a single group."""
    return key if number is None else jax.random.fold_in(key, number)
