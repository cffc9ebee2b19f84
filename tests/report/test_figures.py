"""Figures for papers: which are drawn, from what, and what is said of those that are not."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from densenet_jax.cli.table import COMMANDS
from densenet_jax.report import ReportError, estimates, figures


def names(paths):
    return sorted(path.name for path in paths)


def test_of_a_classification(workdir, tmp_path):
    folder = tmp_path / "figures"
    paths, left_out = figures.write([workdir], folder)
    drawn = ["confusion", "curve-loss", "curve-top1", "growth", "reuse"]
    assert names(paths) == sorted(f"{n}.{kind}" for n in drawn for kind in ("svg", "pdf"))
    assert left_out == ["roc: <b>run: there are no answers of the split; run evaluate first."]
    for path in paths:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")  # names with < and & are escaped
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_roc_of_classes_is_from_the_evaluation(workdir):
    p = np.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1
    stored = {"probabilities": p, "label": np.array([0, 1, 2, 1])}
    np.savez(workdir / "evaluation.npz", class_names=np.array(["a$b$", "b", "c"]), **stored)
    run = figures.run_files.read(workdir)
    figure = figures._roc([run])
    assert [axes.get_title() for axes in figure.axes] == ["a$b$", "b", "c"]
    labels = [axes.get_legend().get_texts()[0].get_text() for axes in figure.axes]
    assert labels == ["AUROC 0.833", "AUROC 0.750", "AUROC 1.000"]
    other = dataclasses.replace(run, path=workdir.parent, name="other")
    assert figures._roc([run, other]).startswith("other: there are no answers")


def test_several_runs_of_labels_share_their_figures(workdir, labels, tmp_path):
    config = json.loads((workdir / "config.json").read_text()) | {"task": "multilabel"}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        estimates.save(labels, tmp_path / name)
    paths, left_out = figures.write([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert names(paths) == ["roc.pdf", "roc.svg"]
    assert [line.partition(":")[0] for line in left_out] == ["reuse-a", "reuse-b", "growth"]


def test_a_folder_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"--figures=.*file cannot be written"):
        figures.write([workdir], tmp_path / "file")
    assert "figures" in COMMANDS["report"].flags
