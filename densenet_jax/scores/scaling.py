"""Temperature and Platt scaling: scale logits so that probabilities are calibrated.

Fit on one split and measure on another, because the result looks too good on the split of the fit.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from densenet_jax.scores.calibration import calibration
from densenet_jax.scores.labels import ScoresError, columns, known

MAX_SCALE = 100.0  # and at least 1 / MAX_SCALE
MAX_BIAS = 1000.0


class Scaling(NamedTuple):
    """A change of logits that `__call__` applies.

    Attributes:
      scale: one divided by the temperature: [] for classes, [L] for labels.  It is MAX_SCALE where
        the logits separate the examples without an error, since no scale is best then.
      bias: added after that, of the same shape.
      fitted: bool, of the same shape; False for a label without examples of both kinds, which keeps
        its logits.
    """

    scale: np.ndarray
    bias: np.ndarray
    fitted: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Returns the calibrated logits, float64 [N, C] or [N, L]."""
        return np.asarray(logits, np.float64) * self.scale + self.bias


def of_classes(logits: np.ndarray, labels: np.ndarray) -> Scaling:
    """Returns the temperature with the lowest cross-entropy (Guo et al., 2017).

    Args:
      logits: [N, C].
      labels: integers [N].

    Raises:
      ScoresError: there are no examples, or a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    _check_finite(logits)
    if not len(logits):
        raise ScoresError("a temperature needs examples, and there are none.")
    scale = _best_scale(class_loss, logits, labels)
    return Scaling(np.array(scale), np.array(0.0), np.array(True))


def of_labels(logits: np.ndarray, targets: np.ndarray, bias: bool = False) -> Scaling:
    """Returns for each label the scale, and the bias, with the lowest binary cross-entropy.

    Args:
      logits: [N, L].
      targets: [N, L]: 0, 1 or NaN (unknown).
      bias: whether to fit a bias as well (Platt, 1999), which corrects a share of positives that
        differs between training and use.

    Raises:
      ScoresError: the shapes differ, a logit is not finite, or a target is not 0, 1 or NaN.
    """
    logits, targets = columns(logits, targets)
    count = logits.shape[1]
    found = Scaling(np.ones(count), np.zeros(count), np.zeros(count, bool))
    for i in range(count):
        _, own, positive = known(logits[:, i], targets[:, i])
        _check_finite(own)
        if positive.all() or not positive.any():
            continue
        found.fitted[i] = True
        if bias:
            found.scale[i], found.bias[i] = _best_scale_and_bias(own, positive)
        else:
            found.scale[i] = _best_scale(label_loss, own, positive)
    return found


def reliability_of_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns {"loss": cross-entropy, "ece": see `calibration.calibration`}.

    Args:
      logits: [N, C], as they are or scaled.
      labels: integers [N].
    """
    logits = np.asarray(logits, np.float64)
    confidence = np.exp(log_softmax(logits, axis=1).max(axis=1))
    error = calibration(confidence, logits.argmax(axis=1) == labels)[1]
    return {"loss": class_loss(logits, labels), "ece": error}


def reliability_of_labels(logits: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {"loss": binary cross-entropy, "ece": of the label's probability, [L]}.

    Args:
      logits: [N, L], as they are or scaled.
      targets: [N, L]: 0, 1 or NaN (unknown).

    Returns:
      NaN for a label without known examples.

    Raises:
      ScoresError: as `of_labels`.
    """
    logits, targets = columns(logits, targets)
    found = np.full((2, logits.shape[1]), np.nan)
    for i in range(logits.shape[1]):
        _, own, positive = known(logits[:, i], targets[:, i])
        if len(own):
            found[:, i] = label_loss(own, positive), calibration(expit(own), positive)[1]
    return {"loss": found[0], "ece": found[1]}


def class_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross-entropy of logits [N, C] and integers [N]."""
    return -float(np.take_along_axis(log_softmax(logits, axis=1), labels[:, None], axis=1).mean())


def label_loss(logits: np.ndarray, positive: np.ndarray) -> float:
    """Returns the mean binary cross-entropy of logits [N] and targets, bool [N]."""
    return float(np.logaddexp(0, np.where(positive, -logits, logits)).mean())


def _best_scale(
    loss: Callable[[np.ndarray, np.ndarray], float], logits: np.ndarray, targets: np.ndarray
) -> float:
    """Returns the scale with the lowest loss, which is a convex function of the scale."""
    limit = np.log(MAX_SCALE)
    best = minimize_scalar(
        lambda x: loss(logits * np.exp(x), targets),
        bounds=(-limit, limit),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(best.x))


def _best_scale_and_bias(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Returns the scale and the bias with the lowest loss, [2]."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = logits * x[0] + x[1]
        error = expit(scaled) - positive
        return label_loss(scaled, positive), np.array([(error * logits).mean(), error.mean()])

    bounds = [(1 / MAX_SCALE, MAX_SCALE), (-MAX_BIAS, MAX_BIAS)]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500}
    return minimize(loss, (1, 0), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _check_finite(logits: np.ndarray) -> None:
    if broken := np.count_nonzero(~np.isfinite(logits)):
        raise ScoresError(f"{broken} logits are not finite; leave their examples out.")
