"""The classifier of a run that another run starts from: it follows the names of the classes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import traverse_util

from densenet_jax.training.rundir import run_classes
from densenet_jax.weights import Pretrained
from densenet_jax.weights.adapt import HEAD, initialise


def fit_names(
    found: Pretrained, trained: Sequence[str], names: Sequence[str], seed: int
) -> Pretrained:
    """Returns weights whose classifier fits the names of the classes, with a note of any change.

    A label is a number, and its meaning is the name at this place.  The same names in another order
    reorder the classifier; other names start a fresh one.

    Args:
      found: the weights, adapted to the number of classes.
      trained: names of the classes that the weights were trained with, in label order.
      names: of the data, in label order.
      seed: for the initialisation of a fresh classifier.
    """
    flat = traverse_util.flatten_dict(found.variables, sep="/")
    paths = [path for path in flat if path.startswith(HEAD)]
    apart = run_classes.difference(trained, names)
    if not apart or not paths or set(paths) <= set(found.report.fresh):
        return found
    if sorted(trained) == sorted(names) and len(set(names)) == len(names):
        order = [list(trained).index(name) for name in names]
        flat |= {path: np.asarray(flat[path])[..., order] for path in paths}
        note = "its classes come in another order here, and its classifier was reordered to match"
        report = found.report
    else:
        flat |= initialise(found.model, paths, seed)
        note = f"its classes have other names ({apart}), so the classifier starts afresh"
        report = dataclasses.replace(
            found.report,
            loaded=found.report.loaded - len(paths),
            fresh=(*found.report.fresh, *paths),
        )
    variables = traverse_util.unflatten_dict(flat, sep="/")
    notes = (*found.notes, note)
    return dataclasses.replace(found, variables=variables, report=report, notes=notes)
