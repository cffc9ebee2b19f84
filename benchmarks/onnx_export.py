"""Checks the ONNX export of all variants: difference from JAX, same top-5, nodes, file size.

  python benchmarks/onnx_export.py [MODEL...]
  python benchmarks/onnx_export.py --time=a.onnx,b.onnx --images=4    # CPU milliseconds per image

Weights are random, with magnitudes as in trained networks; images have the variant's own size.
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
    """Exports a variant and compares ONNX Runtime with JAX on random images.

    Returns:
      {"model", "difference" (largest, of logits), "largest_logit", "same_top5", "nodes",
      "megabytes"}.
    """
    model = create_model(name)
    given = Preprocessing(VARIANTS[name].image_size)
    bundle = export.make(model, random_variables(model), given)
    images = np.random.default_rng(0).normal(size=(3, *bundle.image_shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        graph = file.to_onnx(bundle)
        path.write_bytes(graph.SerializeToString())
        session = file.session(path)
        parts = images[:1], images[1:]  # a file takes batches of any size
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
    """Returns {path: [median, shortest]} CPU milliseconds per image of files that run in turn.

    Uses one thread and CPU time, so that other programs on the machine have little influence.

    Args:
      paths: of the ONNX files.
      count: images in a batch.
    """
    sessions = [file.session(path, threads=1) for path in paths]
    seconds: list[list[float]] = [[] for _ in paths]
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
    parser.add_argument("models", nargs="*", help="variants; default: all")
    parser.add_argument("--time", help="time these ONNX files instead, separated by commas")
    parser.add_argument("--images", type=int, default=4, help="batch size for --time")
    args = parser.parse_args()
    if args.time:
        print(json.dumps(compare(args.time.split(","), args.images)))
        sys.exit()
    for model_name in args.models or list_models():
        print(json.dumps(verify(model_name)), flush=True)
