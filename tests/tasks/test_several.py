"""Several labels and numbers: what is unknown has no loss, and every known one weighs the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.losses import example_weights, make_loss
from densenet_jax.tasks.outputs import Outputs

NAN = np.nan
LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.3, 4.0, -2.0], [1.0, 1.0, 1.0]])
TARGETS = jnp.array([[1.0, NAN, 0.0], [NAN, NAN, 1.0], [NAN, NAN, NAN]])


def sigmoid_loss(logit, target):
    return np.log1p(np.exp(-logit if target else logit))


def test_the_loss_of_an_example_is_the_mean_over_its_known_labels():
    got = make_loss("binary_cross_entropy", "multilabel")(LOGITS, TARGETS)
    first = (sigmoid_loss(2.0, 1) + sigmoid_loss(0.5, 0)) / 2
    np.testing.assert_allclose(got, [first, sigmoid_loss(-2.0, 1), 0], rtol=1e-6)


def test_known_labels_weigh_the_same_in_a_mean_over_examples():
    losses = make_loss("binary_cross_entropy", "multilabel")(LOGITS, TARGETS)
    weights = example_weights("multilabel")(TARGETS)
    assert weights.tolist() == [2, 1, 0]
    each = [sigmoid_loss(2.0, 1), sigmoid_loss(0.5, 0), sigmoid_loss(-2.0, 1)]
    assert float((losses * weights).sum() / weights.sum()) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("name", ["binary_cross_entropy", "focal"])
def test_unknown_labels_have_no_gradient(name):
    loss = make_loss(name, "multilabel", positive_weights=(3.0, 3.0, 3.0), smoothing=0.1)
    gradient = jax.grad(lambda x: loss(x, TARGETS).sum())(LOGITS)
    known = ~np.isnan(TARGETS)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()
    assert np.isfinite(gradient).all()


def test_positive_weights_smoothing_and_thresholds_of_labels():
    loss = make_loss("binary_cross_entropy", "multilabel", positive_weights=(3.0, 1.0))
    got = loss(jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 0.0]]))
    assert float(got[0]) == pytest.approx((3 * sigmoid_loss(1, 1) + sigmoid_loss(1, 0)) / 2)
    smooth = make_loss("binary_cross_entropy", "multilabel", smoothing=0.2)
    got = smooth(jnp.array([[1.0]]), jnp.array([[1.0]]))
    assert float(got[0]) == pytest.approx(0.9 * sigmoid_loss(1, 1) + 0.1 * sigmoid_loss(1, 0))
    mixed = make_loss("binary_cross_entropy", "multilabel", threshold=0.2)
    got = mixed(jnp.array([[1.0, 1.0]]), jnp.array([[0.3, NAN]]))
    assert float(got[0]) == pytest.approx(sigmoid_loss(1, 1))


def test_the_focal_loss_of_the_paper():
    p = 1 / (1 + np.exp(-2.0))
    got = make_loss("focal", "multilabel")(jnp.array([[2.0, 2.0]]), jnp.array([[1.0, 0.0]]))
    expected = -((1 - p) ** 2 * np.log(p) + p**2 * np.log(1 - p)) / 2
    assert float(got[0]) == pytest.approx(expected, rel=1e-5)
    q = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()
    got = make_loss("focal")(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]]))
    assert float(got[0]) == pytest.approx(-((1 - q[1]) ** 2) * np.log(q[1]), rel=1e-5)


def test_class_weights_are_the_weighted_mean_of_pytorch():
    weigh = example_weights("classification", (1.0, 5.0))
    assert weigh(jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).tolist() == [1, 5, 3]
    assert example_weights("classification") is None


def test_losses_that_do_not_fit_a_task_are_refused():
    with pytest.raises(ValueError, match="must be one of binary_cross_entropy, focal"):
        make_loss("cross_entropy", "multilabel")
    with pytest.raises(ValueError, match="does not fit the task regression"):
        find_task("regression", loss="focal")


def split(seed=0, examples=60):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (examples, 4)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.2] = NAN
    labels[:, 3] = np.where(np.isnan(labels[:, 3]), NAN, 0)  # no positives
    logits = (np.nan_to_num(labels) + rng.normal(size=labels.shape)).round(1)
    return logits.astype(np.float32), labels


def test_metrics_of_a_split_leave_out_what_is_undefined_and_name_it():
    logits, labels = split()
    task = find_task("multilabel")
    answers = task.answers(jnp.asarray(logits), jnp.asarray(labels), jnp.ones(len(labels), bool))
    metrics = task.of_split({key: np.asarray(value) for key, value in answers.items()})
    areas, precisions = [], []
    for column, scores in zip(labels.T[:3], logits.T, strict=False):
        known = ~np.isnan(column)
        areas.append(roc_auc_score(column[known], scores[known]))
        precisions.append(average_precision_score(column[known], scores[known]))
    assert metrics["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert metrics["average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)

    found = {"logits": logits, "label": labels, "loss": np.ones(len(labels), np.float32)}
    found["finite"] = np.ones(len(labels), bool)
    record = task.summary(found, "abcd", Outputs("multilabel", "sigmoid", thresholds=(0.9,) * 4))
    assert record["undefined"] == ["d"]
    assert record["auroc"] == pytest.approx(metrics["auroc"], abs=1e-6)
    assert record["intervals"]["auroc"][0] < record["auroc"] < record["intervals"]["auroc"][1]
    row, last = record["classes"][0], record["classes"][3]
    called = 1 / (1 + np.exp(-logits[:, 0])) >= 0.9
    assert row["tp"] == int((called & (labels[:, 0] == 1)).sum())
    assert row["sensitivity"] == pytest.approx(row["tp"] / row["positives"])
    assert (last["positives"], last["auroc"], last["sensitivity"]) == (0, None, None)
    broken = task.summary({**found, "finite": np.arange(60) > 0}, "abcd")
    assert (broken["nonfinite"], broken["auroc"], broken["loss"]) == (1, None, None)


def test_regression_learns_standardised_targets_and_answers_in_units():
    task = find_task("regression", mean=(50.0, -1.0), std=(10.0, 2.0))
    labels = jnp.array([[60.0, NAN], [40.0, 1.0]])
    targets = task.targets(labels, 2)
    np.testing.assert_allclose(targets, [[1, NAN], [-1, 1]])
    answers = task.answers(jnp.nan_to_num(targets), labels, jnp.ones(2, bool))
    np.testing.assert_allclose(answers["values"], [[60, -1], [40, 1]])
    assert task.of_split(jax.device_get(answers))["mae"] == 0
    loss = make_loss("huber", "regression")(jnp.array([[3.0, 9.0]]), targets[:1])
    assert float(loss[0]) == pytest.approx(1.5)  # |3 - 1| - 1/2; the unknown number has no loss


@pytest.mark.parametrize(
    ("task", "loss", "probabilities"),
    [
        ("classification", "", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        ("classification", "binary_cross_entropy", lambda x: 1 / (1 + np.exp(-x))),
        ("multilabel", "", lambda x: 1 / (1 + np.exp(-x))),
        ("regression", "", lambda x: x),
    ],
)
def test_views_are_averaged_as_answers_not_as_logits(task, loss, probabilities):
    task = find_task(task, loss=loss)
    views = np.random.default_rng(0).normal(size=(3, 2, 4)) * 3
    wanted = np.mean([probabilities(view) for view in views], axis=0)
    got = task.outputs(task.combine_views(jnp.asarray(views, jnp.float32)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_outputs_are_scaled_and_shifted_before_the_activation():
    outputs = Outputs("multilabel", "sigmoid", scale=(0.5, 2.0), shift=(1.0, 0.0))
    got = outputs(jnp.array([2.0, -1.0], jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 1 / (1 + np.exp([-2.0, 2.0])), rtol=1e-6)
    assert outputs.spec() == {
        "task": "multilabel",
        "activation": "sigmoid",
        "scale": [0.5, 2.0],
        "shift": [1.0, 0.0],
    }
