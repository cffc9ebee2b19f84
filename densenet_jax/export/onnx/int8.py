"""Static quantisation to int8 with ONNX Runtime, and its effect on accuracy."""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from densenet_jax.export.bundle import ExportError, need
from densenet_jax.export.onnx import file

# These operators do nearly all of the arithmetic.  The others (norms, concatenations) stay in
# float32: a concatenation joins channels of layers far apart, and a common scale for all of them
# would cost accuracy and save little time.
OPERATORS = ["Conv", "MatMul", "Gemm"]


def quantize(source: pathlib.Path, target: pathlib.Path, batches: Iterable[np.ndarray]) -> None:
    """Writes an int8 version of an ONNX file.

    Weights are quantised with a scale for each output channel, activations with one for each
    tensor, from the smallest and largest values seen on the calibration images.  Weights use 7 of
    their 8 bits, because processors without VNNI would saturate when they add products of 8-bit
    weights.

    Args:
      source: the float32 file.
      target: the file to write.
      batches: calibration images [B, H, W, C] as the model takes them.

    Raises:
      ExportError: there are no images, or ONNX Runtime is not installed.
    """
    need("onnxruntime", "onnx")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches, self.count = iter(batches), 0

        def get_next(self) -> dict[str, np.ndarray] | None:
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
            raise ExportError(
                "There are no images to calibrate int8 with; give a folder of images with "
                "--calibration."
            ) from e


def answers(path: pathlib.Path, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the outputs [N, classes] of an ONNX file for batches of images [B, H, W, C]."""
    session = file.session(path)
    outputs = [session.run(None, {file.INPUT: batch})[0] for batch in batches]
    return np.concatenate(outputs)


def compare(
    before: pathlib.Path, after: pathlib.Path, images: list[np.ndarray], labels: np.ndarray | None
) -> dict[str, Any]:
    """Returns accuracy, agreement and sizes of a model before and after quantisation.

    Args:
      before, after: the ONNX files.
      images: batches [B, H, W, C] as the models take them.
      labels: of all images, in order, [N]; None if unknown.

    Returns:
      "images": their number; "agreement": the share of images with the same likeliest class;
      "bytes": [before, after]; with labels also "top1" and "top5": [before, after], from 0 to 1.
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
def _quiet() -> Iterator[None]:
    """Hides ONNX Runtime's advice to prepare the model first, which `quantize` already follows."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
