"""What the commands do, once the command line is understood."""

import json
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
from rich.console import Console
from rich.table import Table

from densenet_jax import export as exporting
from densenet_jax import report as reports
from densenet_jax.benchmark import table as benchmark_table
from densenet_jax.benchmark.measure import benchmark as measure
from densenet_jax.cli.invocation import program
from densenet_jax.data.sources.source import DataError
from densenet_jax.evaluation import splits, tables
from densenet_jax.export.bundle import ExportError
from densenet_jax.export.onnx import calibration as calibrating
from densenet_jax.models import summary
from densenet_jax.prediction import output as answers
from densenet_jax.prediction import predict as predicting
from densenet_jax.prediction.predict import PredictError
from densenet_jax.report import ReportError
from densenet_jax.report.analysis import finite
from densenet_jax.report.page import in_bytes
from densenet_jax.training import experiment, settings, teacher_logits
from densenet_jax.training import mesh as meshes
from densenet_jax.training import sweep as sweeps
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.loop import train_and_evaluate
from densenet_jax.training.rundir import run_weights
from densenet_jax.weights import PUBLISHED, WeightsError

# Shown without a traceback: the user can mend them.
USER_ERRORS = (
    ConfigError,
    DataError,
    CheckpointError,
    WeightsError,
    PredictError,
    ReportError,
    ExportError,
)


def train(
    config: ml_collections.ConfigDict, workdir: str | None, name: str, sweep: str | None = None
) -> None:
    """Trains, and says where everything is and what to type next."""
    workdir = workdir or (f"runs/{name}-sweep" if sweep else f"runs/{name}")
    if sweep:
        sweeps.sweep(config, workdir, sweep, lambda folder: [reports.LiveReport(folder)])
        return
    result = train_and_evaluate(config, workdir, [reports.LiveReport(workdir)])
    config = run_weights.read_config(workdir)
    write_report(config, workdir, "best", result["best"])
    longer = f"total_epochs={2 * config.total_epochs:g}"
    if config.total_steps is not None:
        longer = f"total_steps={2 * config.total_steps}"
    print(
        f"\n{settings.make_task(config).describe(result)} "
        f"after {result['step']} steps ({result['seconds']:.0f} s)\n"
        f"  metrics      {workdir}/metrics.jsonl\n"
        f"  checkpoints  {workdir}/checkpoints (best: step {result['best_step']})\n"
        f"  report       {workdir}/report.html\n"
        f"next:\n"
        f"  {program()} evaluate --workdir={workdir}\n"
        f"  {program()} --workdir={workdir} --config.{longer}    # goes on"
    )


def logits(
    config: ml_collections.ConfigDict | None,
    workdir: str | None,
    name: str,
    weights: str | None,
    output: str | None,
) -> None:
    """Writes what a teacher says about the training split, for config.distill.logits."""
    source = weights or workdir
    if not source or not output or config is None:
        raise ConfigError(
            "logits needs a configuration, --config=FILE, for its data; a teacher, "
            "--weights=SOURCE or --workdir=DIR; and --output=FILE."
        )
    check_output(output)
    count = teacher_logits.write(config, source, output)
    of = f"{count} examples of {config.data.name}/{config.data.train_split}"
    print(f"written: {output}, the logits of {source} for {of}")


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    checkpoint: str,
    crops: str,
    flip: bool,
) -> None:
    """Evaluates a run's checkpoint, or, without a directory, the weights of `init_from`."""
    if config.init_from and not workdir:
        # The weights themselves, and not into the directory of a run.
        workdir, checkpoint = f"runs/{name}-init_from", ""
    workdir = workdir or f"runs/{name}"
    folder = pathlib.Path(workdir)
    if checkpoint and not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir} is not the directory of a run: it has no checkpoints.")
    began = time.monotonic()
    if checkpoint:
        setup, variables, step = open_run(config, workdir, checkpoint)
        of = f"step {step}"
    else:
        setup, step, of = experiment.build(config), None, config.init_from
        variables = setup.weights.variables
    variables = meshes.on_every_device(variables, setup.mesh)
    with jax.set_mesh(setup.mesh):
        own, *others = splits.assess(setup, variables, crops=int(crops), flip=flip)
    data = setup.config.data
    images = {key: data[key] for key in ("image_size", "interpolation", "eval_crop")}
    record = {"of": of, "step": step, **images, **own, "others": others}
    record["seconds"] = time.monotonic() - began
    path = folder / "evaluation.json"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(record), indent=2) + "\n", encoding="utf-8")
    tables.show(record, setup.task)
    print(f"{setup.task.describe(own)} on {own['examples']} examples   (written to {path})")


def open_run(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str
) -> tuple[experiment.Experiment, dict[str, Any], int]:
    """Returns the experiment of a run, the variables of a checkpoint of it, and its step."""
    with config.unlocked():
        config.init_from = ""  # the checkpoint has what came of it
    setup = experiment.build(config)
    _, variables, _, step = run_weights.read(workdir, setup.config, checkpoint)
    return setup, variables, step


def predict(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    workdir: str | None,
    weights: str | None,
    checkpoint: str,
    cam: str | None,
    format: str,
) -> int:
    """Prints what a model says about images; returns 2 if any could not be read."""
    if weights:
        found, names = run_weights.load(weights), None
        model, variables, preprocessing = found.model, found.variables, found.preprocessing
    else:
        model, variables, preprocessing, _ = run_weights.read(workdir, config, checkpoint)
        names = run_weights.class_names(workdir)
    found = predicting.predict(model, variables, preprocessing, names, words, cam=cam)
    return answers.show(found, format)


def export(
    config: ml_collections.ConfigDict | None,
    workdir: str | None,
    weights: str | None,
    checkpoint: str,
    format: str,
    output: str | None,
    preprocess: bool,
    int8: bool,
    calibration: str | None,
) -> None:
    """Writes a model in another format, and says which files are where."""
    if not output:
        raise ExportError(f"export needs --output=PATH: a folder, as in --output=exports/{format}.")
    if int8 and weights and not calibration:
        raise ExportError("int8 needs images to calibrate with: --calibration=DIR.")
    if weights:
        bundle = exporting.of_weights(weights)
    else:
        bundle = exporting.of_run(workdir, checkpoint, config)
    images = None
    if int8 and calibration:
        images = calibrating.of_folder(bundle, calibration)
    elif int8:
        images = calibrating.of_run(bundle, config)
    files = exporting.export(bundle, format, output, preprocess=preprocess, int8=images)
    for path in files:
        print(f"{path}   {in_bytes(path.stat().st_size)}")


def report(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    workdir: str | None,
    checkpoint: str,
) -> None:
    """Writes the page of a run again, or one that compares several."""
    folders = [*([workdir] if workdir else []), *words]
    if len(folders) > 1:
        path = reports.write_report(folders)
    else:
        config = config or run_weights.read_config(folders[0])
        path = write_report(config, folders[0], checkpoint)
    print(f"written: {path}")


def write_report(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str,
    evaluated: Evaluated | None = None,
) -> pathlib.Path:
    """Writes report.html; with what the model learned, where checkpoint and data are at hand."""
    try:
        setup, variables, step = open_run(config, workdir, checkpoint)
        with jax.set_mesh(setup.mesh):
            reports.examine(setup, variables, workdir, step=step, evaluated=evaluated)
    except (CheckpointError, DataError) as e:
        print(f"the report has curves only: {e}")
    if jax.process_index() == 0:
        reports.write_report(workdir)
    return pathlib.Path(workdir) / "report.html"


def benchmark(
    config: ml_collections.ConfigDict, workdir: str | None, name: str, output: str | None
) -> None:
    """Measures a configuration on this machine, prints the figures, and writes them to a file."""
    if output:
        check_output(output)
    found = measure(config)
    benchmark_table.show(found)
    if output:
        pathlib.Path(output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def check_output(path: str) -> None:
    """Raises ConfigError if a file cannot be written, before the work that it is to hold."""
    folder = pathlib.Path(path).resolve().parent
    if pathlib.Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"--output={path} cannot be written: name a file in a folder that exists."
        )


def models(config: ml_collections.ConfigDict | None) -> None:
    """Prints the table of variants."""
    table = Table("model", "parameters", "GMAC", "at", "published weights (top-1, %)", box=None)
    for name, image_size, size in summary.table():
        weights = ", ".join(
            f"{key.partition('.')[2]} {row.accuracy.top1:g}"
            for key, row in PUBLISHED.items()
            if key.partition(".")[0] == name
        )
        table.add_row(
            name,
            f"{size.parameters:,}",
            f"{size.multiply_adds / 1e9:.2f}",
            str(image_size),
            weights or "-",
        )
    for column in table.columns[1:4]:
        column.justify = "right"
    Console().print(table)
