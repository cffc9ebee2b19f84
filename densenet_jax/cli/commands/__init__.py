"""The commands: one function each, called with the parsed options (see `table.Command`)."""

from densenet_jax.cli.commands.answering import export, predict
from densenet_jax.cli.commands.evaluating import calibrate, embed, evaluate
from densenet_jax.cli.commands.showing import dossier, models, report, statistics
from densenet_jax.cli.commands.starting import completion, init
from densenet_jax.cli.commands.training import benchmark, find_lr, logits, train
from densenet_jax.cli.verifying import verify
from densenet_jax.cli.weights import weights
from densenet_jax.data.sources.source import DataError
from densenet_jax.export.bundle import ExportError
from densenet_jax.prediction.predict import PredictError
from densenet_jax.report import ReportError
from densenet_jax.scores.labels import ScoresError
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.weights import WeightsError

__all__ = [
    "USER_ERRORS",
    "benchmark",
    "calibrate",
    "completion",
    "dossier",
    "embed",
    "evaluate",
    "export",
    "find_lr",
    "init",
    "logits",
    "models",
    "predict",
    "report",
    "statistics",
    "train",
    "verify",
    "weights",
]

# Errors that the user can correct; they are shown without a traceback.
USER_ERRORS = (
    ConfigError,
    DataError,
    CheckpointError,
    WeightsError,
    PredictError,
    ReportError,
    ExportError,
    ScoresError,
)
