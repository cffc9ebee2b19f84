"""Takes the variables out of the state of a Flax training, which has those of an optimiser, too."""

import logging
import re

import numpy as np

from densenet_jax.weights.readers.state_dicts import NO_WEIGHTS

# What is beside the parameters; networks without statistics have only the second.
_BESIDE = tuple(re.compile(rf"(|.*[./]){key}([./])") for key in ("batch_stats", "opt_state"))
_AVERAGE = re.compile(r"(^|_)(ema|avg|averaged?|swa|polyak)(_|$)")

logger = logging.getLogger(__name__)


def variables(path: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file without those of an optimiser, if it is the state of a training.

    That is a file with `params` and beside them `batch_stats` or `opt_state`. An average of the
    parameters beside them (`ema_params`) takes their place, as in the checkpoints of PyTorch's
    trainers. Other files are returned as they are.

    Args:
      path: of the file, for messages.
      arrays: {name: array}, with names such as `state/params/conv0/kernel`.
    """
    found = ({m.groups() for m in map(pattern.match, arrays) if m} for pattern in _BESIDE)
    roots = next(filter(None, found), set())
    if len(roots) != 1:
        return arrays
    ((root, separator),) = roots
    groups: dict[str, dict[str, str]] = {}  # {part of the state: {rest: name}}
    for name in arrays:
        if name.startswith(root):
            key, _, rest = name.removeprefix(root).partition(separator)
            groups.setdefault(key, {})[rest] = name
    params = groups.get("params")
    if not params:
        return arrays
    averages = [k for k, x in groups.items() if _AVERAGE.search(k) and x.keys() == params.keys()]
    taken = {
        name: name
        for name in arrays
        if not NO_WEIGHTS.search(name.removeprefix(root).partition(separator)[0])
    }
    if left_out := len(arrays) - len(taken):
        logger.warning("%s: %d tensors of an optimiser are left out.", path, left_out)
    if len(averages) == 1:
        for rest, name in params.items():
            taken[name] = groups[averages[0]][rest]
            taken.pop(taken[name], None)
        logger.warning("%s: %s is taken in the place of params.", path, averages[0])
    return {name: arrays[source] for name, source in taken.items()}
