"""Early stopping: a count of evaluations that a resumed run continues."""

import numpy as np
import pytest

from densenet_jax.tasks.by_name import find_task
from densenet_jax.training.rundir.early_stopping import EarlyStopping

TOP1 = find_task("classification").best
LOSS = find_task("classification", "loss").best


@pytest.mark.parametrize(
    ("metric", "values", "over"),
    [
        (TOP1, [0.1, 0.2, 0.2, 0.19], [0, 0, 0, 1]),  # an equal one is not better
        (TOP1, [0.1, 0.05, 0.2, 0.1], [0, 0, 0, 0]),
        (LOSS, [1.0, 0.9, 0.95, np.nan], [0, 0, 0, 1]),  # NaN never is
        (LOSS, [np.nan, np.nan, 0.5, 0.4], [0, 1, 0, 0]),
    ],
)
def test_the_run_is_over_after_two_evaluations_without_a_better_one(metric, values, over):
    count = EarlyStopping(2, metric)
    records = [{metric.key: value} for value in values]
    found = []
    for record in records:
        count.add(record)
        found.append(count.over)
    assert found == [bool(o) for o in over]
    resumed = EarlyStopping(2, metric)
    resumed.recount(records)
    assert resumed.over == count.over


def test_without_a_limit_it_is_never_over():
    count = EarlyStopping(0, TOP1)
    count.recount([{"top1": 0.5}] + [{"top1": 0.1}] * 100)
    assert not count.over
