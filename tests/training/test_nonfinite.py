"""The diagnosis of a non-finite step uses the step's own loss, including its teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densenet_jax import create_model
from densenet_jax.tasks.classification import Classification
from densenet_jax.tasks.losses import make_loss
from densenet_jax.training import distillation, nonfinite
from densenet_jax.training.state import initial_state
from densenet_jax.training.step import make_train_step

MODEL = create_model("densenet_cifar", depth=10, growth_rate=4, num_classes=3)
LABELS = jnp.array([0, 1, 2, 0])
BATCH = {
    "image": jax.random.normal(jax.random.key(0), (4, 8, 8, 3)),
    "label": LABELS,
    "teacher": jnp.full((4, 3), 5.0).at[:, 0].set(-5.0),
    "bad": jnp.zeros(4, jnp.int32),
}
BINARY = make_loss("binary_cross_entropy", smoothing=0.1)


def preprocess(_, images, labels):
    return images, jax.nn.one_hot(labels, 3)


@pytest.mark.parametrize(
    ("loss", "guide"),
    [(BINARY, None), (distillation.distilling(BINARY, 0.5, 2.0), distillation.stored_guide)],
    ids=["binary cross entropy", "a student's"],
)
def test_the_loss_is_the_steps(loss, guide):
    optimizer = optax.sgd(0.1)
    state = initial_state(MODEL, optimizer, 0, (8, 8, 3))
    options = {"loss": loss, "guide": guide}
    found = nonfinite.diagnose(MODEL, preprocess, state, BATCH, **options)
    step = make_train_step(
        MODEL, optimizer, lambda _: 0.1, preprocess, task=Classification(), **options
    )
    _, metrics = step(state, BATCH)
    np.testing.assert_allclose(found["tensors"]["loss"]["norm"], metrics["loss"], rtol=1e-5)


def test_a_loss_that_overflows_is_named():
    state = initial_state(MODEL, optax.sgd(0.1), 0, (8, 8, 3))
    found = nonfinite.diagnose(
        MODEL, preprocess, state, BATCH, loss=lambda logits, _: jnp.exp(logits[:, 0] + 1e4)
    )
    assert found["first"] == "loss"
