"""The commands that show results: report, dossier, models, statistics."""

import pathlib

import jax
import ml_collections
from rich.table import Table

from densenet_jax import dossier as dossiers
from densenet_jax import report as reports
from densenet_jax.cli.commands.runs import open_run
from densenet_jax.cli.invocation import program
from densenet_jax.data import statistics as image_statistics
from densenet_jax.data.sources.source import DataError
from densenet_jax.dossier import repeat, statements
from densenet_jax.models import summary
from densenet_jax.report import figures as drawing
from densenet_jax.terminal import Console, lines, say
from densenet_jax.training import settings
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.eval_loop import Evaluated
from densenet_jax.training.rundir import run_weights
from densenet_jax.weights import PUBLISHED
from densenet_jax.weights.published import IMAGENET
from densenet_jax.weights.trained import TRAINED


def report(
    config: ml_collections.ConfigDict | None,
    words: list[str],
    workdir: str | None,
    checkpoint: str,
    figures: str | None = None,
) -> None:
    """Writes the report of a run again, or a page that compares several runs.

    Args:
      config: the run's configuration; None: read from the directory.
      words: directories of runs.
      workdir: one more directory; None: none.
      checkpoint: "best", "latest" or a step, for the report of a single run.
      figures: folder for figures as SVG and PDF; None: none are written.
    """
    folders = [*([workdir] if workdir else []), *words]
    if len(folders) > 1:
        path = reports.write_report(folders)
    else:
        config = config or run_weights.read_config(folders[0])
        path = write_report(config, folders[0], checkpoint)
    say(f"written: {path}")
    if figures:
        paths, left_out = drawing.write(folders, pathlib.Path(figures))
        say(f"written: {len(paths)} files in {figures}", *(f"left out: {why}" for why in left_out))


def write_report(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str,
    evaluated: Evaluated | None = None,
) -> pathlib.Path:
    """Writes report.html and returns its path.

    If checkpoint and data are available, the report includes predictions and what the model has
    learned; otherwise it has curves only, and the reason is printed.

    Args:
      config: the run's configuration.
      workdir: the run's directory.
      checkpoint: "best", "latest" or a step.
      evaluated: the evaluation of this checkpoint, if it was just made; None: evaluate again.
    """
    try:
        setup, variables, step = open_run(config, workdir, checkpoint)
        with jax.set_mesh(setup.mesh):
            reports.examine(setup, variables, workdir, step=step, evaluated=evaluated)
    except (CheckpointError, DataError) as e:
        first, *rest = lines(e)
        say(f"the report shows only curves, because the model cannot be examined: {first}", *rest)
    if jax.process_index() == 0:
        reports.write_report(workdir)
    return pathlib.Path(workdir) / "report.html"


def dossier(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    name: str,
    checkpoint: str,
    images: str,
    output: str | None,
) -> None:
    """Writes the dossier of a run: one page and a folder, see `dossiers.write`.

    Args:
      config: the run's configuration; its evaluation split is scored.
      workdir: the run's directory; None: runs/NAME.
      name: the configuration's name.
      checkpoint: "best", "latest" or a step.
      images: largest number of images whose changed versions are evaluated.
      output: the folder; None: DIR/dossier.

    Raises:
      ConfigError: the number is not one.
      CheckpointError: there is no such checkpoint.
      DataError: the data cannot be read.
    """
    run = pathlib.Path(workdir or f"runs/{name}")
    changed = repeat.overrides(run_weights.read_config(str(run)), config)
    limit = _count(images)
    setup, variables, step = open_run(config, str(run), checkpoint)
    flags = [f"--checkpoint={step}", f"--images={limit}", *changed]
    path = dossiers.write(
        *(setup, variables, run, pathlib.Path(output) if output else run / "dossier"),
        step=step,
        images=limit,
        program=program(),
        command=["dossier", *flags],
    )
    say(
        f"written: {path}",
        f"fill in {path.with_name(statements.FILE)}, then write the dossier again to show it",
    )


def models(config: ml_collections.ConfigDict | None) -> None:
    """Prints the table of model variants."""
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
    for name, accuracy in TRAINED.items():
        say(f"part of this package: {name}, {accuracy}")


def statistics(
    config: ml_collections.ConfigDict, workdir: str | None, name: str, images: str
) -> None:
    """Prints the statistics of the training images, and the flags that normalise them.

    Args:
      config: the configuration, for its data.
      workdir: not used.
      name: the configuration's name; not used.
      images: largest number of images to read.

    Raises:
      ConfigError: the number is not one.
      DataError: the images cannot be read.
    """
    limit = _count(images)
    data, source = config.data, settings.train_source(config)
    found = image_statistics.measure(
        source,
        image_size=data.image_size or IMAGENET.image_size,
        channels=data.channels,
        exif=data.exif,
        images=limit,
    )
    say(*image_statistics.describe(found, source.name).splitlines())


def _count(images: str) -> int:
    """Returns the number of --images.

    Raises:
      ConfigError: it is not one.
    """
    if not images.isdecimal() or not int(images):
        raise ConfigError(f"--images is {images!r}; it must be a whole number of at least 1.")
    return int(images)
