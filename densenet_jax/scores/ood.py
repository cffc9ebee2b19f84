"""Out-of-distribution scores, which are higher for images that are less like the training data."""

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from densenet_jax.scores import ranking
from densenet_jax.scores.labels import ScoresError


def energy(logits: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """Returns the energy of each example, float64 [N], higher for stranger ones.

    Args:
      logits: [N, C].
      multilabel: whether the outputs are independent labels (Wang et al., 2021: minus the sum of
        their softplus) instead of classes (Liu et al., 2020: minus logsumexp).
    """
    logits = np.asarray(logits, np.float64)
    return -(np.logaddexp(0, logits).sum(axis=1) if multilabel else logsumexp(logits, axis=1))


class Mahalanobis(NamedTuple):
    """Distances of features to the closest class (Lee et al., 2018).

    Attributes:
      means: of the features of each class, in coordinates where the features of a class have unit
        covariance, [C, D].
      root: lower triangular matrix L with L L^T = covariance, [D, D].
    """

    means: np.ndarray
    root: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns the distance of each example to the closest mean, [N, D] -> float64 [N]."""
        return cdist(_whiten(self.root, np.asarray(features, np.float64)), self.means).min(axis=1)


def mahalanobis(features: np.ndarray, labels: np.ndarray) -> Mahalanobis:
    """Returns the distances to the classes of training examples.

    The classes share one covariance, which is shrunk towards a multiple of the identity (Ledoit and
    Wolf, 2004), so that fewer examples than features suffice.

    Args:
      features: pooled features of training examples, [N, D].
      labels: their classes, integers [N].

    Raises:
      ScoresError: a feature is not finite, or all examples of each class are equal.
    """
    from sklearn.covariance import ledoit_wolf  # takes a second

    features = np.asarray(features, np.float64)
    if broken := np.count_nonzero(~np.isfinite(features).all(axis=1)):
        raise ScoresError(f"the features of {broken} of {len(features)} examples are not finite.")
    classes, number = np.unique(labels, return_inverse=True)
    means = np.stack([features[number == i].mean(axis=0) for i in range(len(classes))])
    centered = features - means[number]
    if not centered.any():
        raise ScoresError("all examples of each class have the same features: give more of them.")
    covariance, _ = ledoit_wolf(centered, assume_centered=True)
    # Without this the root may not exist where features are copies of one another.
    covariance += 1e-9 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    root = np.linalg.cholesky(covariance)
    return Mahalanobis(_whiten(root, means), root)


def _whiten(root: np.ndarray, features: np.ndarray) -> np.ndarray:
    return solve_triangular(root, features.T, lower=True).T


def separation(inside: np.ndarray, outside: np.ndarray) -> float:
    """Returns the AUROC: the chance that a strange example has a higher score than a usual one.

    Args:
      inside: scores of examples like the training data, [N].
      outside: scores of others, [M].

    Returns:
      a number from 0 to 1; NaN if there are no examples of one kind.

    Raises:
      ScoresError: a score is NaN.
    """
    scores = np.concatenate([inside, outside])
    strange = np.arange(len(scores)) >= len(inside)
    return float(ranking.by_label(scores, strange)["auroc"][0])
