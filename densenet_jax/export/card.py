"""The model card written next to an export: contents, usage, results, format stability."""

import importlib.metadata
import pathlib
from typing import Any

import jinja2

from densenet_jax.export.bundle import Bundle
from densenet_jax.models import summary
from densenet_jax.tasks.by_name import find_task

TEMPLATE = pathlib.Path(__file__).parent / "card.md"


def render(bundle: Bundle, format: str, **facts: Any) -> str:
    """Returns the model card of an export: Markdown with the front matter of the Hugging Face hub.

    Args:
      bundle: the exported model.
      format: a key of `formats.FORMATS`.
      **facts: variables of the template card.md.  For all formats: `spec` (name of the JSON file).
        For formats other than safetensors: `file`, `output` (name of the output), `width` (size of
        the output), `preprocess` (whether the input is pixels), `smallest` (height and width from
        which on images may have any size; 0: they have one size).  ONNX and Triton: `opset`,
        `ir_version`, `difference` (largest difference from JAX), `int8` (see
        `onnx.int8.compare`).  StableHLO: `platforms`, `convention`.  Triton: `max_batch`,
        `queue_ms`.  safetensors: `source` (for `load_pretrained`), `timm` (model name for timm, or
        "").
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    defaults = {"preprocess": False, "output": "", "difference": None, "int8": None, "file": ""}
    height, width, channels = bundle.image_shape
    sides = ("height", "width") if facts.get("smallest") else (height, width)
    return template.render(
        **{**defaults, "smallest": 0, **facts},
        shape=" x ".join(map(str, ("batch", *sides, channels))),
        bundle=bundle,
        several=find_task(bundle.outputs.task).several,
        format=format,
        size=summary.count(bundle.model, bundle.preprocessing.image_size),
        versions={name: importlib.metadata.version(name) for name in ("jax", "flax")},
        given=bundle.preprocessing,
    )
