"""Every example counts once; the sums are small enough to check by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_jax.evaluation import scores
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.losses import make_loss

TASK = find_task("classification")

LOGITS = np.array([[2.0, 0, 1], [0, 3, 1], [0, 1, 2], [5, 0, 0], [0, 0, 9]], np.float32)
LABELS = np.array([0, 1, 1, 2, 0], np.int32)


def batches(mask=(True, True, True, True, False, False), size=2):
    """Returns batches of two; the fifth example is unreadable, the sixth is padding."""
    images = np.concatenate([np.arange(5), [0]]).astype(np.uint8)
    labels = np.concatenate([LABELS, [0]])
    for i in range(0, 6, size):
        part = slice(i, i + size)
        yield {"image": images[part], "label": labels[part], "mask": np.array(mask[part])}


@pytest.fixture(scope="module")
def found():
    predict = lambda v, images: jnp.asarray(LOGITS)[images]  # noqa: E731
    return scores.collect(scores.scorer(TASK, make_loss("cross_entropy"), predict), None, batches())


def test_masked_examples_do_not_count(found):
    assert found["index"].tolist() == [0, 1, 2, 3]
    assert found["predicted"].tolist() == [0, 1, 2, 0]
    assert found["top1"].tolist() == [True, True, False, False]
    chances = np.exp(LOGITS[:4]) / np.exp(LOGITS[:4]).sum(1, keepdims=True)
    np.testing.assert_allclose(found["logits"], LOGITS[:4])
    np.testing.assert_allclose(found["loss"], -np.log(chances[range(4), LABELS[:4]]), rtol=1e-5)


def test_summary_and_classes(found):
    logits = np.pad(found["logits"], [(0, 0), (0, 1)])
    got = TASK.summary({**found, "logits": logits}, ("a", "b", "c", "d"))
    assert (got["top1"], got["top5"], got["examples"]) == (0.5, 1.0, 4)
    assert [(c["class"], c["examples"], c["top1"]) for c in got["classes"]] == [
        ("a", 1, 1.0),
        ("b", 2, 0.5),
        ("c", 1, 0.0),
        ("d", 0, None),
    ]


def test_any_accepted_label_is_right_and_none_does_not_count(found):
    got = TASK.accepted(found, [(0,), (), (1, 2), (1,)])
    assert got == {"real_top1": pytest.approx(2 / 3), "real_examples": 3}


def test_rare_classes_count_as_much_as_others():
    """Nine of ten examples are of one class, which is all that this network ever answers."""
    scores = {
        "label": np.array([0] * 9 + [1]),
        "predicted": np.zeros(10, int),
        "logits": np.tile(np.float32([3, 0, 0]), (10, 1)),
        "loss": np.zeros(10, np.float32),
        "finite": np.ones(10, bool),
        "top1": np.array([True] * 9 + [False]),
        "top5": np.ones(10, bool),
    }
    got = TASK.summary(scores, ("healthy", "rare", "absent"))
    assert got["top1"] == pytest.approx(0.9)
    assert got["balanced_accuracy"] == pytest.approx(0.5)
    assert got["f1"] == pytest.approx((18 / 19 + 0) / 2)
    assert [row["recall"] for row in got["classes"]] == [1.0, 0.0, None]
    broken = TASK.summary({**scores, "finite": np.arange(10) > 2}, ("healthy", "rare", "absent"))
    assert broken["nonfinite"] == 3
    assert broken["top1"] is broken["balanced_accuracy"] is broken["loss"] is None
