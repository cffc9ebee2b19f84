"""Measures how much checkpoints slow training: the same steps with and without them, in turn.

  python benchmarks/checkpointing.py [--steps=100] [--every=50] [--rounds=3]

Times the training step of the demo (configs/digits.py) from the second checkpoint on.  Prints the
median times, the share of time that a checkpoint every `--every` steps costs, and the duration of
the call of `save` itself, during which no step is started.
"""

import argparse
import importlib
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from densenet_jax import cli
from densenet_jax.training import batches, experiment, run_state, run_steps, settings
from densenet_jax.training.rundir.checkpoints import Checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="timed steps of a round")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cli.set_up_process()
    config = importlib.import_module("configs.digits").get_config()
    setup = experiment.build(config.lock())
    config = setup.config
    optimizer, schedule = run_steps.optimizer(setup, 10**6, 1000.0)
    step_fn = run_steps.train_step(setup, optimizer, schedule)
    source = settings.train_source(config)
    seconds, blocked = {True: [], False: []}, []
    with jax.set_mesh(setup.mesh):
        state = run_state.initial_state(setup, optimizer)
        with batches.train_batches(setup, source, state) as stream:
            batch = next(iter(stream))  # the same for all steps, so that reading is not measured
            state, _ = step_fn(state, batch)
            jax.block_until_ready(state)
            for _ in range(options.rounds):
                for saving in (True, False):
                    folder = tempfile.mkdtemp(prefix="checkpointing_")
                    with Checkpoints(folder, score=setup.task.best.score) as checkpoints:
                        # The first checkpoint also sets things up, so it is not timed.
                        checkpoints.save(0, state)
                        checkpoints.wait()
                        began = time.perf_counter()
                        for i in range(1, options.steps + 1):
                            state, metrics = step_fn(state, batch)
                            if i % options.every == 0:
                                jax.block_until_ready(metrics)  # as the training loop does
                                if saving:
                                    before = time.perf_counter()
                                    checkpoints.save(i, state)
                                    blocked.append(time.perf_counter() - before)
                        jax.block_until_ready(state)
                        seconds[saving].append(time.perf_counter() - began)
                    shutil.rmtree(folder)
    with_, without = (statistics.median(seconds[saving]) for saving in (True, False))
    print(
        f"{options.steps} steps: {with_:.2f} s with a checkpoint every {options.every}, "
        f"{without:.2f} s without: {with_ / without - 1:+.1%}\n"
        f"a step takes {without / options.steps * 1000:.0f} ms, a call of save "
        f"{statistics.median(blocked) * 1000:.0f} ms (median), {max(blocked) * 1000:.0f} ms (at "
        "most)"
    )


if __name__ == "__main__":
    main()
