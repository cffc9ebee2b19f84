"""How many steps may be queued on the device."""

import jax
import numpy as np
import pytest

from densenet_jax.configs import default
from densenet_jax.tasks.by_name import find_task
from densenet_jax.training.rundir.metrics_log import MetricsLog
from densenet_jax.training.rundir.progress import ProgressLine
from densenet_jax.training.rundir.recorder import Recorder


class SlowResult:
    """The result of a step that is computed only when somebody waits for it."""

    def __init__(self):
        self.computed = False

    def is_ready(self):
        return self.computed

    def __array__(self, dtype=None, copy=None):
        self.computed = True
        return np.zeros([], dtype)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_waits_for_three_steps_at_most(tmp_path, monkeypatch, processes):
    """Results are awaited, not only looked at, however slow the steps and rare the records are."""
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    config = default.get_config()
    config.log_every = 10
    task, progress = find_task("classification"), ProgressLine(20)
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        recorder = Recorder(log, progress, config, task, start=0, steps_per_epoch=5)
        losses = []
        for step in range(1, 10):
            losses.append(SlowResult())
            recorder.add(step, {"loss": losses[-1], "nonfinite": np.int32(0)})
            assert [loss.computed for loss in losses] == [n < step - 2 for n in range(step)]
        recorder.flush()
    assert all(loss.computed for loss in losses)
