"""Loads exported models as functions of images: ONNX Runtime, or JAX for StableHLO."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np


class EngineError(ValueError):
    """The file cannot be served; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """A loaded model.

    Attributes:
      run: maps images [B, H, W, C], of the type that the spec says, to probabilities [B, classes];
        B is at most `max_batch`.
      spec: the content of the JSON file next to the model, {"model", "preprocessing", "channels",
        "class_names", "format", "preprocess", "output"}.
      cam: maps an image uint8 [H, W, C] to (probabilities [classes], the class activation map of
        the likeliest class, [h, w] from 0 to 1); None if the network has no linear classifier on
        average-pooled features, or is not a float32 ONNX file.
    """

    run: Callable[[np.ndarray], np.ndarray]
    spec: dict[str, Any]
    cam: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None


def load(path: str, max_batch: int, threads: int = 0) -> Engine:
    """Loads an exported model.

    Args:
      path: a .onnx or .stablehlo file with its .json file in the same folder.
      max_batch: largest number of images in a call.
      threads: number of threads of ONNX Runtime; 0: one for each core.

    Raises:
      EngineError: a file is missing, has another format, or was exported without --preprocess.
    """
    file = pathlib.Path(path)
    kinds = {".onnx": _onnx, ".stablehlo": _stablehlo}
    if file.suffix not in kinds:
        raise EngineError(f"{path}: this server only runs {' and '.join(kinds)} files.")
    # model.int8.onnx shares the spec of model.onnx.
    spec_file = file.with_name(file.name.partition(".")[0] + ".json")
    for needed in (file, spec_file):
        if not needed.is_file():
            raise EngineError(
                f"{needed}: there is no such file; `main.py export` writes the model and its .json."
            )
    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    if not spec.get("preprocess") or not spec["class_names"]:
        raise EngineError(
            f"{path}: the model does not map pixels to classes; export a classifier with "
            "--preprocess."
        )
    return kinds[file.suffix](file, spec, max_batch, threads)


def _onnx(file: pathlib.Path, spec: dict[str, Any], max_batch: int, threads: int) -> Engine:
    """Loads an ONNX file; see `load`."""
    try:
        import onnxruntime
    except ImportError:
        raise EngineError('onnxruntime is missing: pip install "densenet-jax[serve]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = _with_features(file)
    session = onnxruntime.InferenceSession(
        opened[0] if opened else str(file),
        options,
        providers=onnxruntime.get_available_providers(),
    )
    output = session.get_outputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run([output], {"images": images})[0]

    if opened is None:
        return Engine(run, spec)
    _, features, kernel = opened

    def cam(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (scores,), (maps,) = session.run([output, features], {"images": image[None]})
        heat = np.tensordot(kernel[:, scores.argmax()], maps, 1).clip(0)
        return scores, heat / max(heat.max(), np.finfo(np.float32).tiny)

    return Engine(run, spec, cam)


def _with_features(file: pathlib.Path) -> tuple[bytes, str, np.ndarray] | None:
    """Returns an ONNX model whose pooled feature maps are an output, too.

    Returns:
      the model; the name of that output, [B, F, h, w]; and the classifier's kernel, [F, classes].
      None if the package onnx is missing, or the classifier is not linear in the pooled maps.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        return None
    model = onnx.load(str(file))
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {c.name: c for c in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        pool = made_by.get(node.input[0])
        while pool is not None and pool.op_type == "Flatten":
            pool = made_by.get(pool.input[0])
        if pool is not None and pool.op_type == "GlobalAveragePool":
            features, kernel = pool.input[0], numpy_helper.to_array(constants[node.input[1]])
            model.graph.output.append(onnx.ValueInfoProto(name=features))
            return model.SerializeToString(), features, kernel
    return None


def _stablehlo(file: pathlib.Path, spec: dict[str, Any], max_batch: int, threads: int) -> Engine:
    """Loads a StableHLO file and compiles it for all batch sizes; see `load`."""
    import jax
    import jax.export

    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    run = jax.jit(exported.call)
    # A program for each power of two, compiled before the first request.  Batches of other sizes
    # are padded with blank images.
    sizes = [2**i for i in range((max_batch - 1).bit_length() + 1)]
    taken = exported.in_avals[0]
    for size in sizes:
        run(np.zeros((size, *taken.shape[1:]), taken.dtype)).block_until_ready()

    def padded(images: np.ndarray) -> np.ndarray:
        size = next(s for s in sizes if s >= len(images))
        blanks = [(0, size - len(images)), *[(0, 0)] * (images.ndim - 1)]
        return np.asarray(run(np.pad(images, blanks)))[: len(images)]

    return Engine(padded, spec)
