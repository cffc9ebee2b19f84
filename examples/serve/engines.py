"""Exported models as functions of uint8 images: ONNX Runtime, or JAX for StableHLO."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np


class EngineError(ValueError):
    """The file cannot be served; what to do about it."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model that is served.

    Attributes:
      run: uint8 images [B, H, W, C], B up to the largest batch, to probabilities [B, classes].
      spec: the file beside the model, see `densenet_jax.export`.
    """

    run: Callable[[np.ndarray], np.ndarray]
    spec: dict[str, Any]


def load(path: str, max_batch: int, threads: int = 0) -> Engine:
    """Returns the engine of an exported file.

    Args:
      path: a .onnx or .stablehlo file with its .json beside it.
      max_batch: most images of a call.
      threads: of ONNX Runtime; 0: as many as there are cores.

    Raises:
      EngineError: it is missing, of another format, or takes no pixels.
    """
    file = pathlib.Path(path)
    kinds = {".onnx": _onnx, ".stablehlo": _stablehlo}
    if file.suffix not in kinds:
        raise EngineError(f"{path}: this server runs {' and '.join(kinds)} files.")
    # model.int8.onnx has the spec of model.onnx.
    spec_file = file.with_name(file.name.partition(".")[0] + ".json")
    for needed in (file, spec_file):
        if not needed.is_file():
            raise EngineError(f"{needed}: there is no such file; `main.py export` writes both.")
    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    if not spec.get("preprocess") or not spec["class_names"]:
        raise EngineError(f"{path}: it takes no pixels; export a classifier with --preprocess.")
    return Engine(kinds[file.suffix](file, max_batch, threads), spec)


def _onnx(file: pathlib.Path, max_batch: int, threads: int) -> Callable:
    try:
        import onnxruntime
    except ImportError:
        raise EngineError('onnxruntime is missing: pip install "densenet-jax[serve]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(file), options, providers=onnxruntime.get_available_providers()
    )
    return lambda images: session.run(None, {"images": images})[0]


def _stablehlo(file: pathlib.Path, max_batch: int, threads: int) -> Callable:
    import jax
    import jax.export

    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    run = jax.jit(exported.call)
    # A program a size: powers of two, filled with blanks, compiled before the first request.
    sizes = [2**i for i in range((max_batch - 1).bit_length() + 1)]
    for size in sizes:
        run(np.zeros((size, *exported.in_avals[0].shape[1:]), np.uint8)).block_until_ready()

    def padded(images: np.ndarray) -> np.ndarray:
        size = next(s for s in sizes if s >= len(images))
        blanks = [(0, size - len(images)), *[(0, 0)] * (images.ndim - 1)]
        return np.asarray(run(np.pad(images, blanks)))[: len(images)]

    return padded
