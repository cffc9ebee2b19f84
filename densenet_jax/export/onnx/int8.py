"""Static quantisation to int8 by ONNX Runtime, and accuracy before and after."""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from densenet_jax.export.bundle import ExportError, need
from densenet_jax.export.onnx import file

# Where the arithmetic is.  What lies between (norms, concatenation) stays in float32: one scale for
# all channels of a concatenation, of layers far apart, would cost accuracy and save little time.
OPERATORS = ["Conv", "MatMul", "Gemm"]


def quantize(source: pathlib.Path, target: pathlib.Path, batches: Iterable[np.ndarray]) -> None:
    """Writes an int8 version of an ONNX file.

    Weights have a scale for each output channel, activations one for each tensor, from the
    smallest and largest values seen on the calibration images.  Weights use 7 of their 8 bits:
    processors without VNNI would saturate when they add products of full ones.

    Args:
      source: the file, of float32.
      target: the file to write.
      batches: calibration images [B, H, W, C] as the model takes them.

    Raises:
      ExportError: there are no images, or ONNX Runtime is missing.
    """
    need("onnxruntime", "onnx")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches, self.count = iter(batches), 0

        def get_next(self):
            batch = next(self.batches, None)
            self.count += 0 if batch is None else len(batch)
            return None if batch is None else {file.INPUT: batch}

    images = Images()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        try:
            quantization.quantize_static(
                str(prepared),
                str(target),
                images,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except ValueError as e:
            if images.count:
                raise
            raise ExportError("There are no images to calibrate int8 with.") from e


def answers(path: pathlib.Path, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the outputs [N, classes] of an ONNX file for images."""
    session = file.session(path)
    outputs = [session.run(None, {file.INPUT: batch})[0] for batch in batches]
    return np.concatenate(outputs)


def compare(
    before: pathlib.Path, after: pathlib.Path, images: list[np.ndarray], labels: np.ndarray | None
) -> dict[str, Any]:
    """Returns top-1 and top-5 of both files (with labels), agreement, and sizes in bytes.

    Args:
      images: batches as the models take them.
      labels: of all of them, in order; None: unknown.
    """
    both = [answers(path, images) for path in (before, after)]
    result: dict[str, Any] = {
        "images": len(both[0]),
        "agreement": float((both[0].argmax(1) == both[1].argmax(1)).mean()),
        "bytes": [path.stat().st_size for path in (before, after)],
    }
    if labels is not None:
        for top in (1, 5):
            hits = [(np.argsort(-s, axis=1)[:, :top] == labels[:, None]).any(1) for s in both]
            result[f"top{top}"] = [float(h.mean()) for h in hits]
    return result


@contextlib.contextmanager
def _quiet():
    """Keeps ONNX Runtime's advice on preparing models, which is followed, from the screen."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
