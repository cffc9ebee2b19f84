"""Values that come from the labels of the training split, and what follows the names of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.models.variants import create_model
from densenet_jax.tasks.losses import example_weights, make_loss
from densenet_jax.training import settings, targets
from densenet_jax.training import step as steps
from densenet_jax.training.distillation import DIVERGENCES
from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import run_heads
from densenet_jax.weights import Preprocessing, Pretrained
from densenet_jax.weights.adapt import Report

NAN = np.nan


def source(labels, names, task):
    return Source(
        Arrays(np.zeros((len(labels), 2, 2, 1), np.uint8), labels), names, "it", task=task
    )


def test_automatic_weights_of_classes_give_each_the_same_share():
    labels = np.array([0] * 8 + [1] * 2)
    got = targets.automatic_weights(source(labels, ("a", "b"), "classification"), labels)
    assert got == (0.625, 2.5)
    with pytest.raises(ConfigError, match="it lacks examples of c"):
        targets.automatic_weights(source(labels, ("a", "b", "c"), "classification"), labels)


def test_automatic_weights_of_labels_are_the_absent_for_each_present_one():
    labels = np.float32([[1, 0], [0, NAN], [0, 1], [0, NAN]])
    assert targets.automatic_weights(source(labels, ("a", "b"), "multilabel"), labels) == (3, 1)
    labels[:, 1] = NAN
    with pytest.raises(ConfigError, match="lacks either present or absent examples of b"):
        targets.automatic_weights(source(labels, ("a", "b"), "multilabel"), labels)


def test_moments_ignore_what_is_unknown_and_refuse_constants():
    labels = np.float32([[1, 5], [3, NAN], [NAN, 5]])
    ages = source(labels, ("age", "dose"), "regression")
    with pytest.raises(ConfigError, match="dose is 5 for all examples of it, so there is nothing"):
        targets.moments(ages, labels)
    labels[2, 1] = 7
    assert targets.moments(ages, labels) == ((2.0, 6.0), (1.0, 1.0))


@pytest.mark.parametrize("weights", [None, (1.0, 5.0)])
def test_the_weighted_loss_is_that_of_pytorch(weights):
    """torch.nn.CrossEntropyLoss(weight=w) divides by the sum of the weights of the examples."""
    logits = jnp.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])
    onehot = jax.nn.one_hot(jnp.array([0, 1, 1]), 2)
    preprocess = lambda key, images, labels: (images, onehot)  # noqa: E731
    batch = {"image": logits, "label": None}
    weigh = example_weights("classification", weights or ())
    _, found, normalised = steps.prepared(preprocess, None, weigh, None, batch)
    got = steps.mean_loss(make_loss("cross_entropy")(logits, found), normalised)
    each = np.asarray(optax.softmax_cross_entropy(logits, onehot))
    assert float(got) == pytest.approx(np.average(each, weights=weights and [1, 5, 5]), rel=1e-6)


def test_a_batch_without_any_known_label_has_no_loss():
    unknown = jnp.full((4, 2), NAN)
    preprocess = lambda key, images, labels: (images, unknown)  # noqa: E731
    batch = {"image": jnp.ones((4, 2)), "label": None}
    weigh = example_weights("multilabel")
    _, found, weights = steps.prepared(preprocess, None, weigh, None, batch)
    loss = make_loss("binary_cross_entropy", "multilabel")(batch["image"], found)
    assert float(steps.mean_loss(loss, weights)) == 0


@pytest.mark.parametrize("task", DIVERGENCES)
def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn_from_it(task):
    outputs = jnp.array([[2.0, -1.0, 0.0]])
    divergence = DIVERGENCES[task]
    assert float(divergence(outputs, outputs)[0]) == pytest.approx(0, abs=1e-6)
    assert divergence(outputs, outputs + jnp.array([1.0, 0, 0]))[0] > 0.01


def trained(classes):
    model = create_model(
        "densenet121", num_classes=len(classes), block_sizes=(1,), growth_rate=4, stem="cifar"
    )
    variables = {
        "params": {
            "classifier": {
                "kernel": np.arange(6.0).reshape(2, 3).repeat(34, 0),
                "bias": np.arange(3.0),
            }
        }
    }
    return Pretrained(model, variables, Preprocessing(), None, Report(2))


def test_the_classifier_follows_the_names_of_its_classes():
    found = run_heads.fit_names(trained("abc"), ["a", "b", "c"], ("c", "a", "b"), 0)
    assert found.variables["params"]["classifier"]["bias"].tolist() == [2, 0, 1]
    assert found.variables["params"]["classifier"]["kernel"][0].tolist() == [2, 0, 1]
    assert "reordered" in found.notes[0]
    assert not found.report.fresh


def test_other_classes_start_a_fresh_classifier_and_the_same_ones_none():
    same = trained("abc")
    assert run_heads.fit_names(same, ["a", "b", "c"], ("a", "b", "c"), 0) is same
    found = run_heads.fit_names(same, ["a", "b", "c"], ("a", "x", "c"), 0)
    assert "label 1 was 'b' and is 'x'" in found.notes[0]
    assert sorted(found.report.fresh) == ["params/classifier/bias", "params/classifier/kernel"]
    assert found.report.loaded == 0
    assert (found.variables["params"]["classifier"]["kernel"] != 0).any()


def test_frozen_parts_keep_their_statistics():
    from densenet_jax.configs import default

    config = default.get_config()
    config.optimizer.frozen = ("stem", "block1", "head")
    assert settings.build_model(config).freeze_statistics == ("stem", "block1")
    config.model.freeze_statistics = False
    assert settings.build_model(config).freeze_statistics is False
