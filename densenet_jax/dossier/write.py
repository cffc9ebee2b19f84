"""Writes the folder of a dossier: its page, its record, and the files needed to repeat them."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import markupsafe

from densenet_jax import atomic_files
from densenet_jax.dossier import record as records
from densenet_jax.dossier import remarks, repeat, statements
from densenet_jax.report import figures, page, run_files
from densenet_jax.report.analysis import FILE as INSIGHT
from densenet_jax.report.analysis import finite
from densenet_jax.report.predictions import Predictions
from densenet_jax.report.run_files import ReportError
from densenet_jax.training.experiment import Experiment
from densenet_jax.training.rundir import bounded_files, checksums

TEMPLATES = pathlib.Path(__file__).parent / "page"
PAGE_NAME, RECORD_NAME = "index.html", "dossier.json"


def write(
    setup: Experiment,
    variables: Any,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    *,
    step: int,
    images: int,
    program: str,
    command: Sequence[str],
) -> pathlib.Path:
    """Measures a run and writes its dossier; returns the path of the page.

    The folder gets index.html, dossier.json (the numbers), statements.toml (what people fill in;
    kept if it exists), predictions.npz, insight.json, for classes evaluation.npz, figures/, copies
    of the run's configuration, classes, environment and calibration, versions.txt, and SHA256SUMS.

    Args:
      setup: the experiment of the run, whose evaluation split is scored.
      variables: of the checkpoint.
      workdir: the run's directory.
      folder: of the dossier.
      step: of the checkpoint.
      images: largest number of images whose changed versions are evaluated.
      program, command: see `repeat.describe`.

    Raises:
      ReportError: the folder cannot be written or has other files, or statements.toml is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / statements.FILE).is_file():
            raise ReportError(
                f"{folder} has other files than those of a dossier; choose a new folder with "
                "--output=DIR."
            )
        said = statements.read(folder)  # before the long part
        found, answers = records.measure(
            setup, variables, workdir, folder, step=step, images=images
        )
        found["repeat"] = repeat.describe(workdir, folder, program, command, variables)
        insight = bounded_files.read_json(folder / INSIGHT)
        run = dataclasses.replace(run_files.read(workdir), predictions=answers, insight=insight)
        kept = {**finite(found), "statements": said}
        kept["maps"] = {k: v for k, v in kept["maps"].items() if k != "shown"}  # pictures
        atomic_files.write(folder / RECORD_NAME, json.dumps(kept, indent=1) + "\n")
        atomic_files.write(folder / PAGE_NAME, render(run, found, said))
        # The path, for evaluation.npz, is that of the split that is scored.
        figures.draw([dataclasses.replace(run, path=folder)], folder / "figures")
        checksums.seal(folder)
    except OSError as e:
        raise ReportError(f"The dossier {folder} cannot be written: {e.strerror}.") from None
    return folder / PAGE_NAME


def render(run: run_files.Run, record: dict[str, Any], said: dict[str, str]) -> str:
    """Returns the page as HTML.

    Args:
      run: with the answers that are scored.
      record: see `record.measure`, and "repeat".
      said: the statements, see `statements.read`.
    """
    variables = page.variables([run])
    style = (TEMPLATES / "dossier.css").read_text(encoding="utf-8")
    variables["style"] += markupsafe.Markup(style)
    variables["headline"] = headline(run, variables)
    items = statements.checklist()
    return (
        page.environment(TEMPLATES, page.PAGE)
        .get_template("dossier.html")
        .render(
            **variables,
            dossier=record,
            items=items,
            said=said,
            open_items=sum(not said.get(i["key"]) for i in items if "ask" in i),
            remarks=remarks.about(record, variables["predictions"]),
        )
    )


def headline(run: run_files.Run, variables: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the numbers at the top of the page; the first is of the split that is scored.

    Args:
      run: with the answers that are scored.
      variables: of the report's page.
    """
    rows = [row for row in variables["headline"] if not row[0].startswith("best ")]
    found, scores = run.predictions, variables["predictions"]
    if isinstance(found, Predictions) and scores["accuracy"] is not None:
        shown = page.percent(scores["accuracy"], 2, scores["accuracy_interval"])
        value, _, interval = shown.partition(" ")
        rows.insert(0, (run.task.measured[0].title, value, f"{interval} on {found.data}"))
    return rows
