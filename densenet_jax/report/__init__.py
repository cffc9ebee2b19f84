"""The report of a run: a self-contained HTML page, and the analyses that it shows."""

from densenet_jax.report.activation_maps import cam, grad_cam, occlusion
from densenet_jax.report.analysis import examine
from densenet_jax.report.feature_reuse import ablate, reuse
from densenet_jax.report.live import LiveReport
from densenet_jax.report.page import write_report
from densenet_jax.report.pictures import overlay
from densenet_jax.report.predictions import Predictions, collect
from densenet_jax.report.run_files import ReportError

__all__ = [
    "LiveReport",
    "Predictions",
    "ReportError",
    "ablate",
    "cam",
    "collect",
    "examine",
    "grad_cam",
    "occlusion",
    "overlay",
    "reuse",
    "write_report",
]
