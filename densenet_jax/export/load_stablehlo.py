"""Runs an exported DenseNet; needs JAX alone: pip install jax flatbuffers.

python load_stablehlo.py model.stablehlo images.npy    # prints the first classes of each image
"""

import pathlib
import sys

import jax
import jax.export
import numpy as np


def load(path):
    """Returns the model: a jitted function of images, any number of them, on this platform."""
    return jax.jit(jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call)


if __name__ == "__main__":
    scores = load(sys.argv[1])(np.load(sys.argv[2]))
    print(np.argsort(-np.asarray(scores), axis=-1)[:, :5])
