"""Several training steps in one call, for small networks whose steps are faster than Python.

A dispatch (one such call) ends at every multiple of its maximal length, and at every step after
which an evaluation or a checkpoint is due.  So an interrupted and resumed run groups the same steps
as an uninterrupted one.
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
    """Yields the range of step numbers of each dispatch, in order.

    Args:
      steps: the numbers of all steps, each one more than the one before.
      length: the largest number of steps in a dispatch.
      due: maps a step's number to whether something must happen after it (an evaluation, a
        checkpoint), so that its dispatch ends there.
    """
    first: int | None = None
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
    """Returns the function that takes all steps of a dispatch in one call.

    The number of steps is an argument of the compiled loop, which `lax.scan` does not allow.  So
    one program serves dispatches of every length: it is compiled once, and the results are
    bit-identical however the steps are grouped.

    Args:
      step: maps a state and a batch to the next state and its metrics.
      pick: maps the "arrays" of `data.reading.resident.windows` and the row numbers of one batch
        [B] to the batch, as `resident.pick`.
      length: the largest number of steps in a dispatch.
      nonfinite_limit: number of non-finite steps in a row after which the rest of the dispatch is
        skipped; the parameters are then still those before the first of these steps.

    Returns:
      a function of a state, which is donated, and a window {"arrays": {name: [examples, ...]},
      "rows": int32 [length, B], "count": int}.  It returns the state after `count` steps, and their
      metrics {name: [length]}; entries from `count` on are 0.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: TrainState, window: dict[str, Any]) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
            return step(state, pick(window["arrays"], rows))

        def under_way(carry: Any) -> jax.Array:
            i, state, _ = carry
            return (i < window["count"]) & (state.nonfinite < nonfinite_limit)

        def advance(carry: Any) -> Any:
            i, state, metrics = carry
            state, measured = one(state, window["rows"][i])
            return i + 1, state, jax.tree.map(lambda all, x: all.at[i].set(x), metrics, measured)

        _, shapes = jax.eval_shape(one, state, window["rows"][0])
        metrics = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)
        return lax.while_loop(under_way, advance, (0, state, metrics))[1:]

    return run
