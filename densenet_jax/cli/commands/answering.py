"""The commands that use a trained network: predict and export."""

import sys
from typing import Any, cast

import jax.numpy as jnp
import ml_collections
import numpy as np

from densenet_jax import export as exporting
from densenet_jax.cli.invocation import program
from densenet_jax.cli.weights import variant
from densenet_jax.evaluation import per_example
from densenet_jax.export.bundle import ExportError
from densenet_jax.export.onnx import calibration as calibrating
from densenet_jax.prediction import output as answers
from densenet_jax.prediction import predict as predicting
from densenet_jax.prediction.predict import PredictError
from densenet_jax.report.page import in_bytes
from densenet_jax.scores import conformal
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.terminal import say
from densenet_jax.training.rundir import run_outputs, run_weights


def predict(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    workdir: str | None,
    weights: str | None,
    model: str | None,
    prefix: str | None,
    checkpoint: str,
    cam: str | None,
    format: str,
    top: str | None = None,
    coverage: str | None = None,
) -> int:
    """Prints a model's predictions for images; returns 2 if any image could not be read, else 0.

    Args:
      config: the run's configuration; not used with `weights`.
      words: image files, folders, globs, file:// URLs, or - for standard input.
      workdir: the run's directory; not used with `weights`.
      weights: published weights or a file; None: the run.
      model: the variant that the weights belong to; None: they say it.
      prefix: the module of the file that holds the network; None: the only one.
      checkpoint: "best", "latest" or a step of the run.
      cam: folder for class activation maps; None: none are written.
      format: "table", "json" or "csv".
      top: number of classes for each image, or "all"; None: as the task has it.
      coverage: answer with sets of classes that contain the right one this often.
    """
    model = variant(model, weights)
    if weights:
        loaded = run_weights.load(weights, model, prefix=prefix)
        names = cast(Any, loaded.class_names or run_weights.class_names(weights))
        network, variables, preprocessing = loaded.model, loaded.variables, loaded.preprocessing
        outputs, step = loaded.outputs, None
    else:
        folder = cast(str, workdir)  # the command line has --weights or --workdir
        given = cast(ml_collections.ConfigDict, config)
        network, variables, preprocessing, step = run_weights.read(folder, given, checkpoint)
        names, outputs = run_weights.class_names(folder), run_outputs.read(folder, given, step)
    found = predicting.predict(
        *(network, variables, preprocessing, names, words),
        outputs=outputs,
        top=_count(top),
        conformal=None if coverage is None else sets_of(workdir, names, outputs, step, coverage),
        cam=cam,
    )
    return answers.show(found, format)


def sets_of(
    workdir: str | None,
    names: list[str] | None,
    outputs: Outputs,
    step: int | None,
    coverage: str,
) -> conformal.Conformal:
    """Returns the conformal sets of a run for a wanted coverage, and names classes without one.

    Args:
      workdir: the run's directory; None: there is none.
      names: of its classes, in label order.
      outputs: what its outputs mean.
      step: of the checkpoint; None: the weights are no run.
      coverage: the wanted share, a number between 0 and 1.

    Raises:
      PredictError: the share is not a number, or the run has not been calibrated.
    """
    try:
        alpha = round(1 - float(coverage), 9)
    except ValueError:
        alpha = 0.0
    if not 0 < alpha < 1:
        raise PredictError(f"--coverage={coverage} must be a number between 0 and 1, such as 0.9.")
    if outputs.task != "classification":
        raise PredictError(f"--coverage is for classification; the task is {outputs.task}.")
    kept = None if step is None else per_example.load_logits(cast(str, workdir), step)
    if kept is None:
        raise PredictError(
            "--coverage needs a run that was calibrated at this checkpoint: "
            f"{program()} calibrate --workdir=DIR"
        )
    logits, labels = kept
    found = conformal.fit(np.asarray(outputs(jnp.asarray(logits))), labels, alpha)
    lacking = [str(i) if names is None else names[i] for i in np.flatnonzero(found.too_few)]
    if lacking:
        say(
            f"warning: in every set, because calibration has too few examples of them for a "
            f"coverage of {coverage}: {', '.join(lacking)}",
            file=sys.stderr,
        )
    return found


def _count(top: str | None) -> int | None:
    """Returns the number of classes that --top asks for; None: as the task has it.

    Raises:
      PredictError: it is neither a number above 0 nor `all`.
    """
    if top is None:
        return None
    if top == "all":
        return 10**9
    if not top.isdecimal() or not int(top):
        raise PredictError(f"--top={top} must be a number above 0, or all.")
    return int(top)


def export(
    config: ml_collections.ConfigDict | None,
    workdir: str | None,
    weights: str | None,
    model: str | None,
    prefix: str | None,
    checkpoint: str,
    format: str,
    output: str | None,
    preprocess: bool,
    int8: bool,
    calibration: str | None,
    dynamic: str | None,
    opset: str | None,
) -> None:
    """Writes a model in another format, and prints the paths and sizes of the files.

    Args:
      config: the run's configuration; not used with `weights`.
      workdir: the run's directory; not used with `weights`.
      weights: published weights or a file; None: the run.
      model: the variant that the weights belong to; None: they say it.
      prefix: the module of the file that holds the network; None: the only one.
      checkpoint: "best", "latest" or a step of the run.
      format: "onnx", "stablehlo", "safetensors" or "triton".
      output: the folder or file to write.
      preprocess: whether the exported model includes normalisation and softmax.
      int8: whether to write a quantised version, too.
      calibration: folder of images for `int8`; None: the run's own data.
      dynamic: "size": height and width may have any size; None: only the batch may.
      opset: the version of ONNX's operators; None: the default.

    Raises:
      ExportError: the output or the images for calibration are missing, or the export fails.
    """
    if not output:
        raise ExportError(f"export needs --output=PATH: a folder, as in --output=exports/{format}.")
    if opset is not None and not opset.isdecimal():
        raise ExportError(f"--opset={opset} must be a whole number, as in --opset=13.")
    if int8 and weights and not calibration:
        raise ExportError(
            "--int8 with --weights needs images for calibration: add --calibration=DIR."
        )
    model = variant(model, weights)
    if weights:
        bundle = exporting.of_weights(weights, model=model, prefix=prefix)
    else:
        # The command line has --weights or --workdir.
        bundle = exporting.of_run(cast(str, workdir), checkpoint, config)
    images = None
    if int8 and calibration:
        images = calibrating.of_folder(bundle, calibration)
    elif int8:
        images = calibrating.of_run(bundle, config)
    files = exporting.export(
        *(bundle, format, output),
        preprocess=preprocess,
        int8=images,
        dynamic=dynamic or "",
        opset=None if opset is None else int(opset),
    )
    for path in files:
        say(f"{path}   {in_bytes(path.stat().st_size)}")
