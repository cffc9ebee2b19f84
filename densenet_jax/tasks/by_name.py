"""The table of tasks, by name."""

from densenet_jax.tasks.classification import Classification
from densenet_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification,)}


def find_task(name: str, best: str = "") -> Task:
    """Returns a task.

    Args:
      name: a key of `TASKS`.
      best: key of the metric that chooses the best checkpoint; "": the task's own choice.

    Raises:
      ValueError: there is no such task, or it has no such metric.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(TASKS)}.")
    return TASKS[name](best)
