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
    """

    run: Callable[[np.ndarray], np.ndarray]
    spec: dict[str, Any]


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
    return Engine(kinds[file.suffix](file, max_batch, threads), spec)


Run = Callable[[np.ndarray], np.ndarray]


def _onnx(file: pathlib.Path, max_batch: int, threads: int) -> Run:
    """Loads an ONNX file; see `load`."""
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


def _stablehlo(file: pathlib.Path, max_batch: int, threads: int) -> Run:
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

    return padded
