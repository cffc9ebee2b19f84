"""Sets of classes that contain the right one with a chosen probability, for every class.

Split conformal prediction with a quantile for each class (Vovk, 2012; Sadinle et al., 2019).  The
guarantee holds if the examples of the calibration and those of use are exchangeable, such as random
draws from the same patients; it says nothing about images from elsewhere.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from densenet_jax.scores.labels import ScoresError


class Conformal(NamedTuple):
    """A calibration of sets.

    Attributes:
      alpha: largest share of the examples of a class whose set may lack it.
      limits: a class is in the set if one minus its probability is at most its limit, [C].  It is
        infinite for a class with too few examples, which is therefore in every set.
      examples: number of examples of each class in the calibration, int [C].
    """

    alpha: float
    limits: np.ndarray
    examples: np.ndarray

    @property
    def too_few(self) -> np.ndarray:
        """Whether a class is in every set, since it had too few examples, bool [C]."""
        return np.isinf(self.limits)

    def sets(self, p: np.ndarray) -> np.ndarray:
        """Returns which classes are in the set of each example, bool [N, C].

        A set may be empty: then no class fits the example.

        Args:
          p: probabilities, [N, C].

        Raises:
          ScoresError: a probability is NaN, or there are not C of them.
        """
        p = _checked(p)
        if p.shape[1] != len(self.limits):
            raise ScoresError(
                f"there are {p.shape[1]} probabilities for {len(self.limits)} limits."
            )
        return 1 - p <= self.limits


def fit(p: np.ndarray, labels: np.ndarray, alpha: float) -> Conformal:
    """Returns the sets that contain the right class in at least a share 1 - alpha of the cases.

    The limit of a class is the k-th smallest of one minus the probability of its n examples, with
    k = ceil((n + 1) (1 - alpha)); with fewer than ceil(1 / alpha) - 1 examples there is none.

    Args:
      p: probabilities of examples that the network was not trained on, [N, C].
      labels: their classes, integers [N].
      alpha: between 0 and 1.

    Raises:
      ScoresError: alpha is not between 0 and 1, a probability is NaN, or a label is not a class.
    """
    if not 0 < alpha < 1:
        raise ScoresError(f"alpha is {alpha}; it must be between 0 and 1, such as 0.1.")
    p, labels = _checked(p), np.asarray(labels)
    classes = p.shape[1]
    if wrong := np.count_nonzero((labels < 0) | (labels >= classes)):
        raise ScoresError(f"{wrong} labels are not between 0 and {classes - 1}, the last class.")
    limits, counts = np.zeros(classes), np.bincount(labels, minlength=classes)
    for i in range(classes):
        limits[i] = limit(1 - p[labels == i, i], alpha)
    return Conformal(alpha, limits, counts)


def limit(strangeness: np.ndarray, alpha: float) -> float:
    """Returns the value that one more example exceeds with a probability of at most alpha.

    Args:
      strangeness: of n examples, [n]: one minus the probability of the class, or an absolute error.
      alpha: between 0 and 1.

    Returns:
      the k-th smallest with k = ceil((n + 1) (1 - alpha)); infinity if that is more than n.
    """
    # A fraction, because 0.9 * 10 in floating point may be above 9.
    k = math.ceil((len(strangeness) + 1) * (1 - Fraction(str(float(alpha)))))
    return float(np.sort(strangeness)[k - 1]) if k <= len(strangeness) else math.inf


def coverage(
    found: Conformal, p: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Returns how often the sets of other examples contain the right class.

    Args:
      found: the calibration.
      p, labels: as of `fit`, of examples that were not calibrated on.
      names: of the classes.

    Returns:
      {"alpha", "mean_size": mean number of classes in a set, "empty": share of empty sets,
      "classes": [{"class", "calibrated_on": number of examples, "in_every_set": whether those were
      too few, "examples", "coverage": share of them whose set contains the class}]}; None for
      shares of no examples.

    Raises:
      ScoresError: as `Conformal.sets`.
    """
    sets, labels = found.sets(p), np.asarray(labels)
    rows = []
    for i, name in enumerate(names):
        own = sets[labels == i, i]
        rows.append(
            {
                "class": name,
                "calibrated_on": int(found.examples[i]),
                "in_every_set": bool(found.too_few[i]),
                "examples": len(own),
                "coverage": float(own.mean()) if len(own) else None,
            }
        )
    sizes = sets.sum(axis=1)
    return {
        "alpha": found.alpha,
        "mean_size": float(sizes.mean()) if len(sizes) else None,
        "empty": float((sizes == 0).mean()) if len(sizes) else None,
        "classes": rows,
    }


def _checked(p: np.ndarray) -> np.ndarray:
    """Returns probabilities as float64 [N, C], in which nothing is NaN."""
    p = np.asarray(p, np.float64)
    if broken := np.count_nonzero(np.isnan(p).any(axis=1)):
        raise ScoresError(
            f"the probabilities of {broken} of {len(p)} examples are NaN; leave these examples out."
        )
    return p
