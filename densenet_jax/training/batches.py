"""Batches of an experiment's splits, on the host and on the mesh."""

from collections.abc import Iterable
from typing import Any, cast

import jax

from densenet_jax.data.reading import kinds, pipeline, resident
from densenet_jax.data.reading.batches import TrainBatches
from densenet_jax.data.reading.stream import Stream
from densenet_jax.data.sources import subsets
from densenet_jax.data.sources.source import Source
from densenet_jax.training import distillation
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.settings import total_steps
from densenet_jax.training.state import TrainState


def _host_options(setup: Experiment, batch_size: int) -> dict[str, Any]:
    """Returns the arguments that training and evaluation batches of this process share."""
    data = setup.config.data
    return {
        **_look(setup),
        "batch_size": batch_size,
        "image_size": data.image_size,
        "workers": data.workers,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _look(setup: Experiment) -> dict[str, Any]:
    """Returns the arguments that say what becomes of each image, in training and evaluation."""
    data, reading = setup.config.data, setup.preprocessing.reading
    own = {key: reading[key] for key in ("fit", "fill", "dtype", "exif")}
    return {"channels": data.channels, "strict": data.strict, **own}


def notes(setup: Experiment, source: Source) -> list[str]:
    """Returns warnings about the images of a run, to be printed when it starts.

    Args:
      setup: the experiment.
      source: the training split, before it is held in memory.

    Raises:
      DataError: an image has another number of channels.
    """
    data = setup.config.data
    whole = not data.random_crop and data.fit == "crop"
    if data.dtype == "uint8" and not whole:
        return []
    kind, found = kinds.look(source, data.channels, data.exif), []
    if kind.note and not data.value_range:
        found.append(kind.note)
    if whole and (data.eval_crop < 1 or not kind.square):
        found.append(
            "WARNING: training shows whole images (data.random_crop=False), but evaluation and "
            "predictions only their centre: pass --config.data.fit=squash to show all of them, "
            "distorted, or --config.data.fit=pad with bands beside them."
        )
    return found


def in_memory(setup: Experiment, source: Source, *, train: bool) -> Source:
    """Returns a split decoded and held in memory, if the configuration says so.

    Args:
      setup: the experiment.
      source: one of its splits.
      train: whether it is the training split.

    Raises:
      ConfigError: config.steps_per_dispatch needs the images on the device, but they do not fit.
    """
    data = setup.config.data
    if not data.in_memory:
        return source
    held = pipeline.in_memory(
        source,
        image_size=setup.train_sizes[0] if train else data.image_size,
        crop_fraction=None if train else data.eval_crop,
        interpolation=data.interpolation,
        **_look(setup),
    )
    if train and setup.config.steps_per_dispatch > 1 and not resident.fits(held):
        raise ConfigError(
            f"config.steps_per_dispatch is {setup.config.steps_per_dispatch}, for which the "
            f"training images must fit on the device, but they need more than "
            f"{resident.DEVICE_BYTES // 2**20} MiB. Set it to 1."
        )
    return held


def eval_batches(setup: Experiment, source: Source | None = None) -> Stream:
    """Returns one pass over a split, as batches on the mesh.

    Args:
      setup: the experiment.
      source: the split; None: the evaluation split.

    Yields:
      {"image": [B, H, W, C], "label": int32 [B], "mask": bool [B], "bad": int32 [B]}, see
      `pipeline.eval_batches`.
    """
    data, source = setup.config.data, setup.eval_source if source is None else source
    size = eval_batch_size(setup.config.eval_batch_size, len(source), setup.mesh.size)
    batches = pipeline.eval_batches(
        source,
        crop_fraction=data.eval_crop,
        interpolation=data.interpolation,
        **_host_options(setup, size),
    )
    return pipeline.to_mesh(batches, meshes.batch_sharding(setup.mesh))


def eval_batch_size(most: int, examples: int, devices: int) -> int:
    """Returns the size of evaluation batches: `most`, halved as long as one batch holds a split.

    A batch is filled with blank images, so 30 images would take as long as 256.  Sizes are halved,
    not fitted, so that splits of similar sizes share a compiled program.

    Args:
      most: config.eval_batch_size, a multiple of the number of devices; so is the result.
      examples: of the split.
      devices: their number.
    """
    while most % (2 * devices) == 0 and most // 2 >= examples:
        most //= 2
    return most


def stored_logits(setup: Experiment, source: Source) -> distillation.StoredLogits | None:
    """Returns the file of a teacher's logits of the training split.

    Args:
      setup: the experiment.
      source: the training split.

    Returns:
      the opened file; None if config.distill.logits is not set.

    Raises:
      ConfigError, WeightsError: the file is not one of logits, or is of other data.
    """
    path = setup.config.distill.logits
    if not path:
        return None
    return distillation.open_logits(path, len(source), source.num_classes)


def reader(setup: Experiment, source: Source, state: TrainState) -> pipeline.Reader:
    """Returns the endless training batches that follow a state, on the host.

    Args:
      setup: the experiment.
      source: the training split.
      state: the state, whose step and order determine the position in the data.
    """
    config, data = setup.config, setup.config.data
    total, sizes = total_steps(config, len(source)), setup.train_sizes
    later = [(round(total * i / len(sizes)), size) for i, size in enumerate(sizes)][1:]
    options = _host_options(setup, config.batch_size) | {"image_size": sizes[0]}
    return pipeline.train_batches(
        source,
        random_crop=data.random_crop,
        crop_scale=data.crop_scale,
        seed=(config.seed + int(state.order)) % 2**32,
        start=int(state.step),
        later_sizes=tuple(later),
        beside=stored_logits(setup, source),
        pools=subsets.pools(source) if data.balanced else (),
        **options,
    )


def train_batches(setup: Experiment, source: Source, state: TrainState) -> Stream:
    """Returns the endless training batches that follow a state, on the mesh.

    Args:
      setup: the experiment.
      source: the training split.
      state: the state, whose step and order determine the position in the data.
    """
    return pipeline.to_mesh(reader(setup, source, state), meshes.batch_sharding(setup.mesh))


def train_windows(
    setup: Experiment, source: Source, state: TrainState, spans: Iterable[range]
) -> Stream:
    """Returns the training batches that follow a state, as a window for each dispatch.

    Args:
      setup: the experiment.
      source: the training split, held in memory.
      state: the state to go on from.
      spans: the numbers of the steps of each dispatch, see `dispatch.spans`.

    Returns:
      an iterator over {"arrays", "rows", "count"}, see `resident.windows`.
    """
    return resident.windows(
        cast(TrainBatches, reader(setup, source, state).batches),
        ((span[0] - 1, span[-1]) for span in spans),  # step s takes batch s - 1
        setup.config.steps_per_dispatch,
        meshes.batch_sharding(setup.mesh),
    )
