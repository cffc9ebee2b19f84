"""Measures a configuration on this machine: speed, memory, and how close it is to the limit."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from densenet_jax.benchmark import limits
from densenet_jax.data.reading.stream import Batch
from densenet_jax.models.block import implementations
from densenet_jax.tasks.task import Metrics
from densenet_jax.training import batches, experiment, run_state, run_steps, settings
from densenet_jax.training.jobs import host_memory
from densenet_jax.training.rundir.data_wait import DataWait
from densenet_jax.training.state import TrainState


def benchmark(config: ml_collections.ConfigDict, seconds: float = 5.0) -> dict[str, Any]:
    """Measures training and inference of a configuration with its own data.

    The step and inference are measured on one batch that stays on the devices; the loop and the
    input pipeline are measured with the data.  Programs are compiled without the compilation cache
    of earlier runs.

    Args:
      config: see configs/default.py.
      seconds: how long the loop and the input pipeline each run.

    Returns:
      A dict with the keys
      "model", "image_size", "batch_size", "dtype", "devices" (a list of device kinds);
      "compile_seconds": {"step", "inference"};
      "images_per_second": {"step", "loop", "input_pipeline", "inference"}, over all devices of
      this process;
      "share_of_limit": {"step", "inference"}, from 0 to 1;
      "gpu_kernels": what the trial of the GPU kernels found, see `implementations.trials`;
      "data_wait": the share of the loop's time in which steps waited for data;
      "machine": {"cores", "load" (programs that ran or waited for a core on average in the last
      minute before; None: unknown), "change" (of the rates, from before to after the measurements,
      relative to the higher one)}, which tell whether it was busy;
      "memory", in bytes: {"temporaries", "arguments"} of the compiled step on one device,
      "device_peak" (None if the device does not report it) and "host_peak";
      "limits": {"flops_per_second", "bytes_per_second", "images_per_second"}, see
      `benchmark.limits`.

    Raises:
      ConfigError, DataError: the configuration is invalid, or its data cannot be read.
    """
    setup = experiment.build(config)
    config, data = setup.config, setup.config.data
    source = batches.in_memory(setup, settings.train_source(config), train=True)
    run_steps.check_training(setup, source)
    total = settings.total_steps(config, len(source))
    epoch = len(source) / config.batch_size
    optimizer, schedule = run_steps.optimizer(setup, total, epoch)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # Windows has none
    before = limits.measure_rates(setup.model.dtype)
    with jax.set_mesh(setup.mesh), _compiling_anew():
        state = run_state.initial_state(setup, optimizer)
        reader = batches.reader(setup, source, state)
        with batches.train_batches(setup, source, state) as stream:
            batch = next(stream)
            masked = {**batch, "mask": jnp.ones_like(batch["label"], bool)}
            # A copy, because the training step donates the state's own arrays.
            variables = jax.tree.map(jnp.copy, state.variables)
            infer = _compile(run_steps.eval_step(setup), variables, masked)
            step = _compile(run_steps.train_step(setup, optimizer, schedule), state, batch)
            inference = limits.seconds(lambda: infer.program(variables, masked))
            train = _Training(step.program, state)
            training = limits.seconds(lambda: train(batch))
            loop, data_wait = _rate(train, stream, seconds)
    with iter(reader) as stream:
        pipeline, _ = _rate(lambda batch: None, stream, seconds)
    after = limits.measure_rates(setup.model.dtype)
    rates = limits.Rates(*map(max, zip(before, after, strict=True)))
    speeds = {
        "step": config.batch_size / training,
        "loop": config.batch_size * loop,
        "input_pipeline": config.batch_size / jax.process_count() * pipeline,
        "inference": config.batch_size / inference,
    }
    # On a CPU, one device already uses all cores.
    devices = 1 if jax.default_backend() == "cpu" else setup.mesh.size
    work = dict(zip(("inference", "step"), limits.work(setup.model, data.image_size), strict=True))
    best = {part: devices * limits.images_per_second(work[part], rates) for part in work}
    memory: Any = step.program.memory_analysis()
    device = setup.mesh.devices.flat[0].memory_stats() or {}
    return {
        "model": config.model.name,
        "image_size": data.image_size,
        "batch_size": config.batch_size,
        "dtype": config.model.dtype,
        "devices": [d.device_kind for d in setup.mesh.devices.flat],
        "compile_seconds": {"step": step.seconds, "inference": infer.seconds},
        "images_per_second": speeds,
        "share_of_limit": {part: speeds[part] / best[part] for part in best},
        "gpu_kernels": implementations.trials(),
        "data_wait": data_wait,
        "machine": {
            "cores": os.cpu_count() or 1,
            "load": load,
            "change": max(1 - min(pair) / max(pair) for pair in zip(before, after, strict=True)),
        },
        "memory": {
            "temporaries": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "device_peak": device.get("peak_bytes_in_use"),
            "host_peak": host_memory.peak(),
        },
        "limits": {
            "flops_per_second": rates.flops,
            "bytes_per_second": rates.bytes,
            "images_per_second": best,
        },
    }


class _Compiled(NamedTuple):
    """A compiled program and the seconds that tracing and compiling took."""

    program: jax.stages.Compiled
    seconds: float


class _Training:
    """Training steps in sequence: each starts from the state that the previous one returned."""

    def __init__(self, step: Callable[..., tuple[TrainState, Metrics]], state: TrainState):
        self._step, self._state = step, state

    def __call__(self, batch: Batch) -> Metrics:
        """Runs a step on a batch and returns its metrics."""
        self._state, metrics = self._step(self._state, batch)
        return metrics


def _compile(function: Any, *args: Any) -> _Compiled:
    """Compiles a jitted function for the shapes of its arguments."""
    began = time.perf_counter()
    return _Compiled(function.lower(*args).compile(), time.perf_counter() - began)


@contextmanager
def _compiling_anew() -> Iterator[None]:
    """Turns the persistent compilation cache off, so that compile times are measured in full."""
    stored = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", stored)


def _rate(
    consume: Callable[[Batch], Metrics | None], batches: Iterator[Batch], seconds: float
) -> tuple[float, float]:
    """Returns the batches consumed per second, and the share of time spent waiting for data.

    The first batches are not timed, because they were read ahead before the clock starts.

    Args:
      consume: starts a training step and returns its metrics, or returns None.
      batches: the stream to consume.
      seconds: how long to measure.
    """
    for _ in range(4):
        jax.block_until_ready(consume(next(batches)))
    count, wait, began = 0, DataWait(), time.perf_counter()
    for batch in wait.timed(batches):
        result = consume(batch)
        if result is not None:
            wait.started(result["loss"])
        count += 1
        if count % 4 == 0:  # a few steps may be in flight, as in training
            jax.block_until_ready(result)
        if count >= 3 and time.perf_counter() - began >= seconds:
            break
    jax.block_until_ready(result)
    elapsed = time.perf_counter() - began
    return count / elapsed, wait.take() / elapsed
