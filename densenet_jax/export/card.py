"""The model card beside an export: what it is, how to use it, how good it is, how long it loads."""

import importlib.metadata
import pathlib
from typing import Any

import jinja2

from densenet_jax.export.bundle import Bundle
from densenet_jax.models import summary

TEMPLATE = pathlib.Path(__file__).parent / "card.md"


def render(bundle: Bundle, format: str, **facts: Any) -> str:
    """Returns the card of an export as Markdown, with the front matter of the Hugging Face hub.

    Args:
      format: a key of `formats.FORMATS`.
      **facts: for the template: `file`, `preprocess`, `output`, `difference`, `int8`, ...
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
    return template.render(
        **{**defaults, **facts},
        bundle=bundle,
        format=format,
        size=summary.count(bundle.model, bundle.preprocessing.image_size),
        versions={name: importlib.metadata.version(name) for name in ("jax", "flax")},
        given=bundle.preprocessing,
    )
