"""Many steps in one call: for small networks on fast devices, which wait for Python otherwise.

A dispatch ends at every multiple of its length, and where something is due after a step.  So the
same steps share a dispatch whenever a run was interrupted.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from densenet_jax.tasks.task import Metrics
from densenet_jax.training.state import TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def spans(steps: Iterable[int], length: int, due: Callable[[int], bool]) -> Iterator[range]:
    """Yields the numbers of the steps of each dispatch, in order.

    Args:
      steps: numbers of steps, ascending by one.
      length: the most steps of a dispatch.
      due: whether something must happen after a step, which ends its dispatch.
    """
    first = None
    for step in steps:
        first = step if first is None else first
        if step % length == 0 or due(step):
            yield range(first, step + 1)
            first = None
    if first is not None:
        yield range(first, step + 1)


def many_steps(
    step: Step, pick: Callable[[Any, jax.Array], Any], length: int, nonfinite_limit: int
) -> Step:
    """Returns the function that makes `count` steps of a dispatch in one call.

    The loop takes its count as an argument, which `lax.scan` cannot, so that one program serves
    dispatches of any length: compiled once, and the same bits however the steps are cut.

    Args:
      step: of one batch.
      pick: maps the arrays of `data.resident.windows` and the rows of one batch to the batch.
      length: the most steps of a dispatch.
      nonfinite_limit: bad steps in a row after which no further one is made: the state stays as
        it was before the first of them.

    Returns:
      maps a state, which is donated, and {"arrays", "rows" [length, B], "count"} to the state after
      `count` steps and their metrics, each [length].
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: TrainState, window: dict[str, Any]) -> tuple[TrainState, Metrics]:
        def one(state, rows):
            return step(state, pick(window["arrays"], rows))

        def under_way(carry):
            i, state, _ = carry
            return (i < window["count"]) & (state.nonfinite < nonfinite_limit)

        def advance(carry):
            i, state, metrics = carry
            state, measured = one(state, window["rows"][i])
            return i + 1, state, jax.tree.map(lambda all, x: all.at[i].set(x), metrics, measured)

        _, shapes = jax.eval_shape(one, state, window["rows"][0])
        metrics = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)
        return lax.while_loop(under_way, advance, (0, state, metrics))[1:]

    return run
