"""Export of trained models: StableHLO, ONNX, safetensors, Triton, the Hugging Face hub."""

from densenet_jax.export.bundle import Bundle, ExportError, make, of_run, of_weights
from densenet_jax.export.formats import FORMATS, export
from densenet_jax.export.hub import push_to_hub
from densenet_jax.export.onnx.calibration import Calibration

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
