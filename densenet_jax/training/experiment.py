"""A configuration made real: model, data, optimiser, steps and mesh, checked against each other."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import optax
from flax import linen as nn

from densenet_jax.data.augment import device
from densenet_jax.data.reading import pipeline, resident
from densenet_jax.data.sources.source import Source
from densenet_jax.tasks import classification
from densenet_jax.training import checks, dispatch, distillation
from densenet_jax.training import mesh as meshes
from densenet_jax.training import state as states
from densenet_jax.training import step as steps
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.groups import ONE_GROUP, Groups, plan, split_mesh
from densenet_jax.training.schedules import Units
from densenet_jax.training.settings import (
    build_model,
    eval_source,
    load_teacher,
    load_weights,
    make_loss,
    make_mesh,
    make_optimizer,
    make_schedule,
    settle_preprocessing,
    total_steps,
)
from densenet_jax.training.state import TrainState
from densenet_jax.weights import Pretrained
from densenet_jax.weights.published import IMAGENET


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What `train_and_evaluate` and `evaluate` work with.

    Attributes:
      config: settled: with the data's number of classes and the weights' preprocessing.
      groups: how a training batch is cut up.
      load_weights: returns those that the configuration starts from; None: it starts from none.
    """

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    model: nn.Module
    eval_source: Source
    groups: Groups = ONE_GROUP
    load_weights: Callable[[], Pretrained | None] = lambda: None

    @property
    def weights(self) -> Pretrained | None:
        """Those that the configuration starts from; read when they are first asked for."""
        return self.load_weights()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        data = self.config.data
        return data.image_size, data.image_size, data.channels

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """Heights and widths of training images, for equal parts of the run."""
        return tuple(self.config.data.train_sizes) or (self.config.data.image_size,)

    def _host_args(self, batch_size: int) -> dict[str, Any]:
        data = self.config.data
        return {
            "batch_size": batch_size,
            "image_size": data.image_size,
            "channels": data.channels,
            "workers": data.workers,
            "strict": data.strict,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    def normalize(self, images: jax.Array) -> jax.Array:
        """Maps uint8 images [B, H, W, C] to what the model takes."""
        data = self.config.data
        return device.normalize(images, data.mean, data.std, self.model.dtype)

    def eval_batches(self):
        """Returns one pass over the evaluation split, on the mesh."""
        data = self.config.data
        batches = pipeline.eval_batches(
            self.eval_source,
            crop_fraction=data.eval_crop,
            interpolation=data.interpolation,
            **self._host_args(self.config.eval_batch_size),
        )
        return pipeline.to_mesh(batches, meshes.batch_sharding(self.mesh))

    def eval_step(self):
        return meshes.eval_step_on(self.mesh, steps.make_eval_step(self.model, self.normalize))

    def optimizer(self, total_steps: int, steps_per_epoch: float):
        """Returns the optimiser and its schedule."""
        units = Units(total_steps, steps_per_epoch, self.config.batch_size)
        schedule = make_schedule(self.config, units)
        return make_optimizer(self.config, schedule), schedule

    def preprocess(
        self, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Maps uint8 images and labels to augmented, normalised images and their targets."""
        images, targets = device.augment(
            key, images, labels, num_classes=self.model.num_classes, **self.config.augment
        )
        return self.normalize(images), targets

    def in_memory(self, source: Source, *, train: bool) -> Source:
        """Returns a split decoded and held in memory, if the configuration says so."""
        data = self.config.data
        if not data.in_memory:
            return source
        held = pipeline.in_memory(
            source,
            image_size=self.train_sizes[0] if train else data.image_size,
            channels=data.channels,
            crop_fraction=None if train else data.eval_crop,
            interpolation=data.interpolation,
            strict=data.strict,
        )
        if train and self.config.steps_per_dispatch > 1 and not resident.fits(held):
            raise ConfigError(
                f"config.steps_per_dispatch is {self.config.steps_per_dispatch}, for which the "
                f"training images must fit on the device; these need more than "
                f"{resident.DEVICE_BYTES // 2**20} MiB. Set it to 1."
            )
        return held

    def train_step(self, optimizer: optax.GradientTransformation, schedule: optax.Schedule):
        step = steps.make_train_step(
            self.model,
            optimizer,
            schedule,
            self.preprocess,
            ema_decay=self.config.ema_decay,
            **self.step_options,
        )
        return self.beside_teacher(
            meshes.train_step_on(self.mesh, step, self.state_sharding(optimizer))
        )

    @property
    def step_options(self) -> dict[str, Any]:
        """What a training step does, and what looks at one again must do likewise."""
        teacher, distill = self.teacher, self.config.distill
        guide = teacher.guide if teacher else distillation.stored_guide if distill.logits else None
        return {
            "loss": make_loss(self.config),
            "seed": self.config.seed,
            "guide": guide,
            "groups": self.groups,
        }

    def beside_teacher(self, step: Callable) -> Callable:
        """Returns a function of state and batch that gets the teacher, if there is one, too."""
        if self.teacher is None:
            return step
        return self.teacher.beside(step, meshes.replicated(self.mesh))

    def state_sharding(self, optimizer: optax.GradientTransformation) -> Any:
        """Returns where the arrays of the state live."""
        if self.mesh.shape["model"] == 1:
            return meshes.replicated(self.mesh)
        state = self.abstract_state(optimizer)
        return meshes.state_sharding(self.mesh, state, self.config.mesh.split_from)

    @functools.cached_property
    def teacher(self) -> distillation.Teacher | None:
        """The model that this one learns from, if the configuration names one."""
        return load_teacher(self.config, self.model)

    def check_training(self, source: Source) -> None:
        """Raises what would else be raised once the run's directory has been made."""
        self.stored_logits(source)
        teacher = self.teacher
        for size in self.train_sizes if teacher else self.config.data.train_sizes:
            images = jax.ShapeDtypeStruct((1, size, size, self.config.data.channels), "float32")
            for model in (self.model, teacher and teacher.model):
                try:
                    if model:
                        jax.eval_shape(model.init, jax.random.key(0), images)
                except ValueError as e:
                    raise ConfigError(f"For training images of {size} pixels: {e}") from None

    def stored_logits(self, source: Source) -> distillation.StoredLogits | None:
        """Returns the teacher's logits of the training split, if the configuration has them."""
        path = self.config.distill.logits
        if not path:
            return None
        return distillation.open_logits(path, len(source), source.num_classes)

    def many_steps(self, step: dispatch.Step) -> dispatch.Step:
        """Returns the function that makes the steps of a window of `train_windows`."""
        config, sharding = self.config, meshes.batch_sharding(self.mesh)
        pick = functools.partial(resident.pick, sharding=sharding)
        return dispatch.many_steps(step, pick, config.steps_per_dispatch, config.nonfinite_limit)

    def reader(self, source: Source, state: TrainState) -> pipeline.Reader:
        """Returns the endless stream of training batches from a state on, on the host."""
        data = self.config.data
        total, sizes = total_steps(self.config, len(source)), self.train_sizes
        later = [(round(total * i / len(sizes)), size) for i, size in enumerate(sizes)][1:]
        options = self._host_args(self.config.batch_size) | {"image_size": sizes[0]}
        return pipeline.train_batches(
            source,
            random_crop=data.random_crop,
            crop_scale=data.crop_scale,
            seed=(self.config.seed + int(state.order)) % 2**32,
            start=int(state.step),
            later_sizes=tuple(later),
            beside=self.stored_logits(source),
            **options,
        )

    def train_batches(self, source: Source, state: TrainState):
        """Returns the same stream on the mesh."""
        return pipeline.to_mesh(self.reader(source, state), meshes.batch_sharding(self.mesh))

    def train_windows(self, source: Source, state: TrainState, spans: Iterable[range]):
        """Returns the same stream as windows of the steps of each dispatch, `spans`."""
        return resident.windows(
            self.reader(source, state).batches,
            ((span[0] - 1, span[-1]) for span in spans),  # step s takes batch s - 1
            self.config.steps_per_dispatch,
            meshes.batch_sharding(self.mesh),
        )

    def initial_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        """Returns the state before the first step, made where it will live."""
        sharding = self.state_sharding(optimizer)
        if self.weights is None:
            return jax.jit(self._fresh(optimizer), out_shardings=sharding)()
        ema = self.config.ema_decay > 0
        start = functools.partial(states.from_variables, optimizer=optimizer, ema=ema)
        weights = jax.device_get(self.weights.variables)  # the same in every process
        return jax.jit(start, out_shardings=sharding)(weights)

    def abstract_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        """Returns the shapes and types of the state; nothing is computed.

        Raises:
          ConfigError: the model cannot take the images.
        """
        try:
            return jax.eval_shape(self._fresh(optimizer))
        except ValueError as e:
            raise ConfigError(str(e)) from None

    def restore_target(self, optimizer: optax.GradientTransformation) -> TrainState:
        """Returns shapes, types and shardings of the state, for a checkpoint to be read into."""
        state, sharding = self.abstract_state(optimizer), self.state_sharding(optimizer)
        if isinstance(sharding, jax.sharding.Sharding):
            sharding = jax.tree.map(lambda _: sharding, state)
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, sharding
        )

    def _fresh(self, optimizer: optax.GradientTransformation):
        ema = self.config.ema_decay > 0
        return functools.partial(
            states.initial_state, self.model, optimizer, self.config.seed, self.image_shape, ema
        )

    def evaluate(
        self, eval_step, state: TrainState, before_batch: Callable[[], None] = lambda: None
    ) -> classification.Evaluated:
        """Returns a state's metrics on the evaluation split, and its answers.

        Where the run keeps averages they are what counts; `raw_loss`, `raw_top1` and `raw_top5`
        are of the variables that train.

        Args:
          before_batch: may raise, to end the evaluation early.
        """
        answers = []

        def step(state: TrainState, batch):
            before_batch()
            sums, found = eval_step(state.result, batch)
            answers.append(found)
            if state.ema is None:
                return sums
            raw, _ = eval_step(state.variables, batch)
            return sums | {f"raw_{name}": raw[name] for name in ("loss", "top1", "top5")}

        with self.eval_batches() as batches:
            metrics = classification.evaluate(step, state, batches)
        return classification.Evaluated(int(state.step), metrics, answers)


def build(config: ml_collections.ConfigDict, resumes: bool = False) -> Experiment:
    """Returns the experiment that a configuration describes.

    What the configuration leaves open is settled: the preprocessing, by the weights it starts from;
    the number of classes, by the data.

    Args:
      resumes: the run has its checkpoints, and the configuration its preprocessing: the weights
        that it once started from are not needed, and need not be there any more.

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
    build_model(config)  # a misspelt name is told before data and weights are opened
    source = eval_source(config)
    if config.model.num_classes not in (None, source.num_classes):
        raise ConfigError(
            f"config.model.num_classes is {config.model.num_classes}, but {config.data.name} has "
            f"{source.num_classes} classes; leave it out to take the data's number."
        )
    config = config.copy_and_resolve_references()
    config.model.num_classes = source.num_classes
    model = build_model(config)
    weights = functools.cache(functools.partial(load_weights, config, model))
    from_weights = None if resumes else weights()
    settle_preprocessing(config, from_weights.preprocessing if from_weights else IMAGENET)
    checks.check(config)
    return Experiment(config, mesh, model, source, groups, weights)
