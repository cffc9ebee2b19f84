"""Runs an exported DenseNet.  Needs only JAX: pip install jax flatbuffers

python load_stablehlo.py model.stablehlo images.npy    # prints each image's five likeliest classes
"""

import pathlib
import sys

import jax
import jax.export
import numpy as np


def load(path: str) -> jax.stages.Wrapped:
    """Returns the model as a jitted function: images [B, H, W, C], any B, to outputs [B, N]."""
    return jax.jit(jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call)


if __name__ == "__main__":
    scores = load(sys.argv[1])(np.load(sys.argv[2]))
    print(np.argsort(-np.asarray(scores), axis=-1)[:, :5])
