"""The table of tasks, by name."""

from collections.abc import Sequence

from densenet_jax.tasks.classification import Classification
from densenet_jax.tasks.multilabel import Multilabel
from densenet_jax.tasks.regression import Regression
from densenet_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Multilabel, Regression)
}


def find_task(
    name: str,
    best: str = "",
    loss: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Task:
    """Returns a task.

    Args:
      name: a key of `TASKS`.
      best: key of the metric that chooses the best checkpoint; "": the task's own choice.
      loss: key of `losses.LOSSES`; "": the task's own.
      mean, std: of the targets of regression, one value for each output.

    Raises:
      ValueError: there is no such task, it has no such metric, or the loss does not fit it.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(TASKS)}.")
    return TASKS[name](best, loss, mean, std)
