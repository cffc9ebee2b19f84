"""Trained models for elsewhere: StableHLO, ONNX, safetensors, Triton, the Hugging Face hub."""

from densenet_jax.export.bundle import Bundle, ExportError, make, of_run, of_weights
from densenet_jax.export.calibration import Calibration
from densenet_jax.export.formats import FORMATS, export
from densenet_jax.export.hub import push_to_hub

__all__ = [
    "FORMATS",
    "Bundle",
    "Calibration",
    "ExportError",
    "export",
    "make",
    "of_run",
    "of_weights",
    "push_to_hub",
]
