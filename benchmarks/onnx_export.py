"""Every variant as ONNX: how far ONNX Runtime's logits are from JAX's, same top-5, nodes, size.

  python benchmarks/onnx_export.py [MODEL...]
  python benchmarks/onnx_export.py --time=a.onnx,b.onnx --images=4    # CPU ms an image

Weights are random, of the size that training keeps them; images are the variant's own size.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from densenet_jax import create_model, export, list_models
from densenet_jax.export.onnx import file
from densenet_jax.models.variants import VARIANTS
from densenet_jax.weights import Preprocessing
from tests.random_variables import random_variables

ROUNDS = 10


def verify(name: str) -> dict:
    """Returns the figures of one variant."""
    model = create_model(name)
    given = Preprocessing(VARIANTS[name].image_size)
    bundle = export.make(model, random_variables(model), given)
    images = np.random.default_rng(0).normal(size=(3, *bundle.image_shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        graph = file.to_onnx(bundle)
        path.write_bytes(graph.SerializeToString())
        session = file.session(path)
        parts = images[:1], images[1:]  # one file, batches of any size
        found = np.concatenate([session.run(None, {file.INPUT: x})[0] for x in parts])
        size = path.stat().st_size
    expected = np.asarray(jax.jit(bundle.model.apply)(bundle.variables, images))
    tops = [np.argsort(-scores, axis=1)[:, :5] for scores in (found, expected)]
    return {
        "model": name,
        "difference": float(abs(found - expected).max()),
        "largest_logit": float(abs(expected).max()),
        "same_top5": bool((tops[0] == tops[1]).all()),
        "nodes": len(graph.graph.node),
        "megabytes": round(size / 1e6, 1),
    }


def compare(paths: list[str], count: int) -> dict[str, list[float]]:
    """Returns median and least CPU milliseconds an image of several files, run in turn.

    On one thread and in CPU time, so that other programs on the machine disturb little.
    """
    sessions = [file.session(path, threads=1) for path in paths]
    seconds = [[] for _ in paths]
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for session, times in zip(sessions, seconds, strict=True):
            given = session.get_inputs()[0]
            shape = [count, *given.shape[1:]]
            images = rng.normal(size=shape).astype(np.float32)
            began = time.process_time()
            session.run(None, {given.name: images})
            times.append(time.process_time() - began)
    return {
        path: [round(f(times) * 1000 / count, 2) for f in (np.median, min)]
        for path, times in zip(paths, seconds, strict=True)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="variants; none: all")
    parser.add_argument("--time", help="ONNX files to time instead, separated by commas")
    parser.add_argument("--images", type=int, default=4, help="in a batch, with --time")
    args = parser.parse_args()
    if args.time:
        print(json.dumps(compare(args.time.split(","), args.images)))
        sys.exit()
    for model_name in args.models or list_models():
        print(json.dumps(verify(model_name)), flush=True)
