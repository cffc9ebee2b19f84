"""Static quantisation to int8 with ONNX Runtime, and its effect on accuracy."""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.export.bundle import ExportError, need
from densenet_jax.export.onnx import file
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.tasks.task import Task

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
        prepared, quantised = (pathlib.Path(folder) / f"{n}.onnx" for n in ("before", "after"))
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        try:
            quantization.quantize_static(
                str(prepared),
                str(quantised),
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
        atomic_files.write(target, quantised.read_bytes())


def answers(path: pathlib.Path, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the outputs [N, classes] of an ONNX file for batches of images [B, H, W, C]."""
    session = file.session(path)
    outputs = [session.run(None, {file.INPUT: batch})[0] for batch in batches]
    return np.concatenate(outputs)


def compare(
    before: pathlib.Path,
    after: pathlib.Path,
    images: list[np.ndarray],
    labels: np.ndarray | None,
    task: Task,
    outputs: Outputs | None,
) -> dict[str, Any]:
    """Returns metrics, agreement and sizes of a model before and after quantisation.

    Args:
      before, after: the ONNX files.
      images: batches [B, H, W, C] as the models take them.
      labels: of all images, in order, [N] or [N, L]; None if unknown.
      task: what the models were trained for.
      outputs: what the files' outputs mean; None: the files have probabilities or numbers already.

    Returns:
      "images": their number; "bytes": [before, after]; "agreement": a sentence about how far both
      agree; "metrics": {title: [before, after], in words}, without labels {}.
    """
    both = [answers(path, images) for path in (before, after)]
    if outputs is not None:
        both = [np.asarray(outputs(jnp.asarray(found))) for found in both]
    metrics: dict[str, list[str]] = {}
    if labels is not None:
        found = [_metrics(task, values, labels) for values in both]
        metrics = {m.title: [m.show(f) for f in found] for m in task.measured if m.key in found[0]}
    return {
        "images": len(both[0]),
        "agreement": _agreement(task, *both),
        "metrics": metrics,
        "bytes": [path.stat().st_size for path in (before, after)],
    }


def _metrics(task: Task, values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the metrics of probabilities or numbers [N, C]."""
    if task.name == "classification":
        found = task.measure(jnp.asarray(values), jnp.asarray(labels))
        return {key: float(np.mean(hits)) for key, hits in found.items()}
    key = "values" if task.name == "regression" else "probabilities"
    return task.of_split({key: values, "labels": labels})


def _agreement(task: Task, before: np.ndarray, after: np.ndarray) -> str:
    if task.name == "classification":
        share = (before.argmax(1) == after.argmax(1)).mean()
        return f"Both predict the same likeliest class for {share:.2%} of the images."
    difference = abs(before - after).mean()
    what = "numbers" if task.name == "regression" else "probabilities"
    return f"Their {what} differ by {difference:.2g} on average."


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
