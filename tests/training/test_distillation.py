"""Distillation: the loss against hand-computed values, a teacher's normalisation, stored logits."""

import pathlib
import struct
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.data.reading import pipeline
from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.tasks.losses import make_loss
from densenet_jax.training import distillation
from densenet_jax.training.errors import ConfigError
from densenet_jax.weights import Preprocessing, WeightsError, write_safetensors


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_loss_is_hintons():
    rng = np.random.default_rng(0)
    logits, guide = rng.normal(size=(2, 4, 3))
    targets = np.eye(3)[[0, 1, 2, 0]]
    known = np.array([True, True, True, False])
    p, q = softmax(guide / 2), softmax(logits / 2)
    own = -np.log(softmax(logits)[np.arange(4), [0, 1, 2, 0]])
    wanted = 0.7 * own + 0.3 * 4 * (p * np.log(p / q)).sum(-1)
    wanted[3] = own[3]  # the labels alone
    loss = distillation.distilling(make_loss("cross_entropy"), 0.3, 2.0)
    arrays = [jnp.asarray(x, jnp.float32) for x in (targets, guide)]
    got = loss(jnp.asarray(logits, jnp.float32), (*arrays, jnp.asarray(known)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


class Mean:
    """A model whose logits are the scaled mean of each channel of its input."""

    num_classes, in_channels, dtype = 3, 3, jnp.float32

    @staticmethod
    def apply(variables, images):
        return variables * images.mean((1, 2))


def test_a_teacher_sees_images_in_its_own_normalisation():
    look = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    weights = types.SimpleNamespace(model=Mean, variables=jnp.float32(2.0), preprocessing=look)
    teacher = distillation.make_teacher(weights, 3, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    images = np.random.default_rng(0).uniform(size=(4, 2, 2, 3))
    seen = (images - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
    step = teacher.beside(
        lambda state, batch: teacher.guide(jnp.asarray(seen, jnp.float32), batch),
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )
    logits, known = step(None, {})
    wanted = 2 * ((images - look.mean) / look.std).mean((1, 2))
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
    assert known.all()
    with pytest.raises(
        ConfigError, match="teacher has 3 classes and 3 channels, but the student has 10"
    ):
        distillation.make_teacher(weights, 10, 3, (0.5,), (0.2,))


@pytest.fixture
def stored(tmp_path):
    logits = np.random.default_rng(0).normal(size=(20, 5))
    path = str(tmp_path / "logits.safetensors")
    distillation.write_logits(path, logits, {"teacher": "somebody"})
    return path, logits


def test_stored_logits_come_with_their_examples(stored):
    path, logits = stored
    rows = distillation.open_logits(path, 20, 5)
    images = np.zeros((20, 4, 4, 3), np.uint8)
    source = Source(Arrays(images, np.arange(20, dtype=np.int32) % 5), tuple("abcde"))
    options = {"batch_size": 8, "image_size": 4, "random_crop": False, "beside": rows}
    reader = pipeline.train_batches(source, **options)
    with iter(reader) as stream:
        batch = next(stream)
    wanted = logits[reader.batches.indices(0)].astype(np.float16)
    np.testing.assert_array_equal(batch["teacher"], wanted.astype(np.float32))
    guide, known = distillation.stored_guide(None, {**batch, "bad": np.arange(8) // 7})
    assert guide is batch["teacher"]
    np.testing.assert_array_equal(known, np.arange(8) < 7)


@pytest.mark.parametrize(("examples", "classes"), [(19, 5), (20, 6)])
def test_stored_logits_of_other_data_are_refused(stored, examples, classes):
    with pytest.raises(ConfigError, match=rf"\[20, 5\] logits, .* {examples} examples of"):
        distillation.open_logits(stored[0], examples, classes)


def test_hostile_files_are_refused_before_anything_is_mapped(stored, tmp_path):
    path = tmp_path / "other.safetensors"
    whole = pathlib.Path(stored[0]).read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="cut short or damaged"):
        distillation.open_logits(str(path), 20, 5)
    path.write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    with pytest.raises(WeightsError, match="exceeds the limit"):
        distillation.open_logits(str(path), 20, 5)
    with pytest.raises(WeightsError, match="no such file"):
        distillation.open_logits(str(tmp_path / "nowhere"), 20, 5)
    for name, dtype in (("weights", np.float32), ("logits", np.int32)):
        write_safetensors(path, {name: np.zeros((20, 5), dtype)})
        with pytest.raises(ConfigError, match="no floating-point tensor 'logits'"):
            distillation.open_logits(str(path), 20, 5)
