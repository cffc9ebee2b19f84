"""Building an experiment from a configuration: task, model, mesh and data, checked together.

An `Experiment` is a record.  Three modules of functions work on it: `batches` (its data),
`run_state` (its states and their sharding) and `run_steps` (its compiled steps).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from densenet_jax.data.augment import device
from densenet_jax.data.reading import kinds, regions
from densenet_jax.data.sources.source import Source
from densenet_jax.tasks.task import Task
from densenet_jax.training import checks, distillation, targets
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.groups import ONE_GROUP, Groups, plan, split_mesh
from densenet_jax.training.jobs import host_memory
from densenet_jax.training.rundir import run_heads, run_weights
from densenet_jax.training.settings import (
    build_model,
    eval_source,
    make_mesh,
    make_task,
    preprocessing,
    settle_preprocessing,
)
from densenet_jax.weights import Preprocessing, Pretrained
from densenet_jax.weights.published import IMAGENET


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that training and evaluation need.

    Attributes:
      config: the complete configuration, with the data's number of classes and the preprocessing.
      task: what the network is trained for.
      mesh: the mesh of devices.
      model: the network, with as many outputs as the data have classes.
      eval_source: the evaluation split.
      groups: how a training batch is divided into groups with batch statistics of their own.
      load_weights: returns the weights that the configuration starts from; None if it starts from
        none.
    """

    config: ml_collections.ConfigDict
    task: Task
    mesh: jax.sharding.Mesh
    model: nn.Module
    eval_source: Source
    groups: Groups = ONE_GROUP
    load_weights: Callable[[], Pretrained | None] = lambda: None

    @property
    def weights(self) -> Pretrained | None:
        """The weights that the configuration starts from; read when they are first asked for."""
        return self.load_weights()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the model sees."""
        data = self.config.data
        return data.image_size, data.image_size, data.channels

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """Heights and widths of training images, for equal parts of the run."""
        return tuple(self.config.data.train_sizes) or (self.config.data.image_size,)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the model gets its images."""
        return preprocessing(self.config)

    @functools.cached_property
    def teacher(self) -> distillation.Teacher | None:
        """The model that this one learns from; None if the configuration names none."""
        return _load_teacher(self.config, self.model)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, C] to normalised images of the model's dtype."""
        data, ends = self.config.data, self.preprocessing.ends
        return device.normalize(images, data.mean, data.std, self.model.dtype, ends)


def build(config: ml_collections.ConfigDict, resumes: bool = False) -> Experiment:
    """Returns the experiment that a configuration describes.

    Open values of the configuration are filled in: the preprocessing from the initial weights (or
    ImageNet's), the number of classes from the data.

    Args:
      config: see configs/default.py.
      resumes: whether the run resumes from its own checkpoints.  Then the configuration already
        has its preprocessing, and the initial weights are not read, as they may have been deleted.

    Raises:
      ConfigError, DataError, WeightsError: values that are unknown or do not fit together.
    """
    checks.check(config)
    mesh = make_mesh(config)
    meshes.check_batch_size("batch_size", config.batch_size, mesh)
    meshes.check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    groups = plan(
        config.batch_size,
        mesh.size,
        group_size=config.batch_norm.group_size,
        accumulate=config.optimizer.accumulate,
    )
    mesh = split_mesh(mesh, groups)
    make_task(config)
    build_model(config)  # reports a misspelt name before data and weights are opened
    source = eval_source(config)
    if source.task != config.task:
        raise ConfigError(
            f"The labels of {source.name} are for config.task={source.task!r}, but config.task is "
            f"{config.task!r}; pass --config.task={source.task}, or choose other data."
        )
    if config.model.num_classes not in (None, source.num_classes):
        raise ConfigError(
            f"config.model.num_classes is {config.model.num_classes}, but {config.data.name} has "
            f"{source.num_classes} classes; leave it out to take the data's number."
        )
    config = config.copy_and_resolve_references()
    config.model.num_classes = source.num_classes
    targets.settle(config, source)
    task = make_task(config)
    config.loss = task.loss
    model = build_model(config)
    config.model.dtype = jnp.dtype(model.dtype).name  # of "auto"
    weights = functools.cache(functools.partial(_load_weights, config, model, source.class_names))
    from_weights = None if resumes else weights()
    settle_preprocessing(config, from_weights.preprocessing if from_weights else IMAGENET)
    regions.check(source, config.data.fit, config.data.exif)
    if config.data.dtype is None:
        config.data.dtype = kinds.look(source, config.data.channels, count=1).dtype
    checks.check(config)
    checks.check_dtype(config)
    host_memory.check_batches(config, mesh.devices.flat[0].platform, source.raw_side)
    return Experiment(config, task, mesh, model, source, groups, weights)


def _load_teacher(
    config: ml_collections.ConfigDict, model: nn.Module
) -> distillation.Teacher | None:
    """Returns the teacher that a configuration names; None if it names none."""
    if not config.distill.teacher:
        return None
    weights, data = run_weights.load(config.distill.teacher, dtype=model.dtype), config.data
    own = weights.preprocessing
    if own.ends != preprocessing(config).ends:
        raise ConfigError(
            f"config.distill.teacher takes {own.dtype} from {own.ends[0]:g} to {own.ends[1]:g}, "
            f"but the images are {data.dtype}; use a teacher for the same images."
        )
    return distillation.make_teacher(weights, model.num_classes, data.channels, data.mean, data.std)


def _load_weights(
    config: ml_collections.ConfigDict, model: nn.Module, class_names: Sequence[str]
) -> Pretrained | None:
    """Returns the initial weights of a configuration, adapted to its model; None: random ones."""
    if not config.init_from:
        return None
    found = run_weights.load(
        config.init_from,
        model,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        seed=config.seed,
    )
    trained = run_weights.class_names(config.init_from)
    return (
        found if trained is None else run_heads.fit_names(found, trained, class_names, config.seed)
    )
