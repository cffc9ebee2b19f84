"""ONNX files: their input is images [B, H, W, C] for any B; outputs are compared with JAX's."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import onnx

from densenet_jax.export import stablehlo
from densenet_jax.export.bundle import Bundle, ExportError, need
from densenet_jax.export.onnx import networks
from densenet_jax.export.onnx.graph import Graph
from densenet_jax.export.onnx.opsets import OPSET

INPUT = "images"
METADATA = "densenet_jax"  # the metadata key that holds `Bundle.spec` as JSON
TOLERANCE = 1e-4  # largest difference of outputs, relative to the largest output above 1
ACTIVATIONS = {"softmax": "Softmax", "sigmoid": "Sigmoid", "identity": "Identity"}
MAX_BYTES = 2**31 - 1  # of a protobuf message


def output_name(bundle: Bundle, preprocess: bool) -> str:
    """Returns the name of the output: "features", "logits", "probabilities" or "values"."""
    if not bundle.model.num_classes:
        return "features"
    return bundle.outputs.noun if preprocess else "logits"


def to_onnx(
    bundle: Bundle, preprocess: bool = False, *, dynamic_size: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """Returns an ONNX model with the input `images` and the output that `output_name` names.

    Args:
      bundle: the model; without a classifier, the output is its pooled features.
      preprocess: the model maps pixels to probabilities or numbers; False: it maps normalised
        float32 images to logits.
      dynamic_size: height and width of the images may have any size; False: those of the bundle.
      opset: the version of the operators, see `opsets`.

    Raises:
      ExportError: the weights are larger than an ONNX file can be.
    """
    graph, given = Graph(opset), bundle.preprocessing
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(bundle.variables))
    if size > MAX_BYTES - 2**26:
        raise ExportError(
            f"The weights have {size:,} bytes, but an ONNX file holds at most 2 GB; export as "
            "StableHLO or safetensors."
        )
    x = graph.channels_first(INPUT)
    if preprocess:
        x = graph.add("Cast", "pixels", x, to=onnx.TensorProto.FLOAT)
        low, high = given.ends
        gain = 1 / ((high - low) * np.asarray(given.std, np.float64))
        shift = -(np.asarray(given.mean, np.float64) + low / (high - low)) / given.std
        gain, shift = (v.reshape(-1, 1, 1) for v in (gain, shift))
        x = graph.add("Mul", "scaled", x, graph.constant("preprocessing/gain", gain))
        x = graph.add("Add", "normalized", x, graph.constant("preprocessing/shift", shift))
    x = networks.build(graph, bundle.model, bundle.variables, x)
    output = output_name(bundle, preprocess)
    last = "Identity"
    if preprocess and bundle.model.num_classes:
        last, means = ACTIVATIONS[bundle.outputs.activation], bundle.outputs
        for operator, name in (("Mul", "scale"), ("Add", "shift")):
            if value := getattr(means, name):
                constant = graph.constant(f"outputs/{name}", np.asarray(value, np.float64))
                x = graph.add(operator, f"outputs/{name}d", x, constant)
    graph.add(last, output, x)
    width = bundle.model.num_classes or _width(bundle)
    shape = [*(("height", "width") if dynamic_size else bundle.image_shape[:2])]
    shape = ["batch", *shape, bundle.image_shape[2]]
    return graph.model(
        {INPUT: (given.dtype if preprocess else "float32", shape)},
        {output: (np.float32, ["batch", width])},
        {METADATA: json.dumps(bundle.spec())},
    )


def session(path: str | pathlib.Path, threads: int = 0) -> Any:
    """Opens an ONNX file in ONNX Runtime on the CPU; returns the `onnxruntime.InferenceSession`.

    Args:
      path: of the file.
      threads: number of threads of a call; 0: one for each core.

    Raises:
      ExportError: ONNX Runtime is not installed.
    """
    runtime = need("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def difference(
    bundle: Bundle, path: str | pathlib.Path, preprocess: bool, *, dynamic_size: bool = False
) -> float:
    """Returns the largest absolute difference between a file's outputs and JAX's, on random images.

    Args:
      bundle: the model that the file was made from.
      path: of the ONNX file.
      preprocess, dynamic_size: see `to_onnx`; a file for any size is compared at two.

    Raises:
      ExportError: the difference exceeds `TOLERANCE` or is NaN.
    """
    height, width, channels = bundle.image_shape
    shapes = [(height, width, channels)]
    if dynamic_size:
        shapes.append((height + 1, width + 34, channels))  # odd, and not square
    return max(_difference(bundle, path, preprocess, shape) for shape in shapes)


def _difference(
    bundle: Bundle, path: str | pathlib.Path, preprocess: bool, shape: tuple[int, int, int]
) -> float:
    """Returns the difference for images [H, W, C]; see `difference`."""
    run, dtype = stablehlo.program(bundle, preprocess)
    low, high = bundle.preprocessing.ends
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape)) / 255
    images = (low + (high - low) * pixels if preprocess else pixels * 4 - 2).astype(dtype)
    expected = np.asarray(jax.jit(run)(images))
    (found,) = session(path).run(None, {INPUT: images})
    worst, scale = float(abs(found - expected).max()), max(1.0, float(abs(expected).max()))
    if not worst <= TOLERANCE * scale:  # so that NaN is refused as well
        raise ExportError(
            f"{path}: ONNX Runtime's outputs differ from JAX's by {worst:.2g} (the largest output "
            f"is {scale:.2g}); please report this with the model's configuration."
        )
    return worst


def _width(bundle: Bundle) -> int:
    """Returns the number of pooled features; traces shapes only, without computing."""
    images = jax.ShapeDtypeStruct((1, *bundle.image_shape), np.float32)
    return jax.eval_shape(bundle.model.apply, bundle.variables, images).shape[1]
