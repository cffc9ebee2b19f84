"""Variables for tests, without the seconds that compiling an initialisation takes."""

import numpy as np
from flax import traverse_util

from densenet_jax.weights import names


def random_variables(model, seed=0):
    """Returns a model's variables: kernels of He's size, all else between 0.5 and 1.5."""
    rng, flat = np.random.default_rng(seed), {}
    for path, target in names.shapes(model).items():
        if path.endswith("/kernel"):
            scale = np.sqrt(2 / np.prod(target.shape[:-1]))
            flat[path] = scale * rng.standard_normal(target.shape)
        else:
            flat[path] = rng.uniform(0.5, 1.5, target.shape)
        flat[path] = flat[path].astype(target.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")
