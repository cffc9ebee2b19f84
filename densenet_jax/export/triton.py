"""A model repository for Triton Inference Server, which KServe can serve as well."""

import json
import pathlib

from densenet_jax import atomic_files
from densenet_jax.export.bundle import Bundle
from densenet_jax.export.onnx import file

MAX_BATCH = 64
QUEUE_MICROSECONDS = 2000  # a request waits at most this long for others to share its batch

_CONFIG = """\
name: {name}
backend: "onnxruntime"
max_batch_size: {max_batch}
input [
  {{
    name: "{input}"
    data_type: {input_type}
    dims: [ {height}, {width}, {channels} ]
  }}
]
output [
  {{
    name: "{output}"
    data_type: TYPE_FP32
    dims: [ {classes} ]{labels}
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {queue}
}}
"""
LABELS = "labels.txt"
_TYPES = {"uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "float32": "TYPE_FP32"}


def write(folder: pathlib.Path, name: str, bundle: Bundle, preprocess: bool, width: int) -> None:
    """Writes `config.pbtxt` and `labels.txt` next to a model's `1/model.onnx`.

    Args:
      folder: the model's folder in the repository.
      name: of the model; Triton requires the folder to have the same name.
      bundle: the model.
      preprocess: whether it takes pixels instead of normalised images.
      width: number of outputs for each image.
    """
    height, image_width, channels = bundle.image_shape
    labels = bool(bundle.class_names)
    text = _CONFIG.format(
        name=json.dumps(name),
        max_batch=MAX_BATCH,
        input=file.INPUT,
        input_type=_TYPES[bundle.preprocessing.dtype if preprocess else "float32"],
        height=height,
        width=image_width,
        channels=channels,
        output=file.output_name(bundle, preprocess),
        classes=width,
        labels=f'\n    label_filename: "{LABELS}"' if labels else "",
        queue=QUEUE_MICROSECONDS,
    )
    atomic_files.write(folder / "config.pbtxt", text)
    if labels:
        # One line for each class: a line break inside a name would shift all following labels.
        lines = [" ".join(label.split()) for label in bundle.class_names]
        atomic_files.write(folder / LABELS, "\n".join(lines) + "\n")
