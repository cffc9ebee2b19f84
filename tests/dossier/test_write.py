"""The whole dossier of tiny runs with random weights: page, record, folder, remarks."""

import json
import pathlib
import re
import subprocess
import types

import jax
import numpy as np
import pytest

from configs import digits
from densenet_jax.cli import parse
from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import Arrays, DataError, Source
from densenet_jax.dossier import map_check, record, remarks, repeat, robustness, statements, write
from densenet_jax.report import ReportError, figures
from densenet_jax.training import experiment
from tests.report.conftest import random_variables

COUNT = 48
TASKS = ("classification", "multilabel", "regression")


def source(task, split):
    """Digits with made-up labels, of which the first image is in every split."""
    images = np.random.default_rng(len(split)).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
    images[0] = 7
    labels = np.arange(COUNT) % 2
    if task != "classification":
        labels = np.stack([labels, labels[::-1]], axis=1).astype(np.float32)
        labels[::7, 0] = np.nan
    columns = {"parity": np.where(np.arange(COUNT) % 2, "odd", "even").tolist()}
    groups = [f"{split} {i // 2}" for i in range(COUNT)]
    names = ("a <b>", "c")
    return Source(Arrays(images, labels), names, split, task=task, groups=groups, columns=columns)


@pytest.fixture(params=TASKS)
def run(tmp_path, monkeypatch, request):
    """A run of a task: its directory, experiment and variables."""
    task = request.param
    # Each change has its own test, and so has the check of the maps.
    monkeypatch.setattr(robustness, "CHANGES", robustness.CHANGES[:1])
    if task != "classification":
        nothing = {"examples": 0, "stages": [], "shown": []}
        monkeypatch.setattr(map_check, "measure", lambda *_: nothing)
        monkeypatch.setattr(figures, "draw", lambda *_: None)
    monkeypatch.setattr(by_name, "load", lambda name, split, *_, **__: source(task, split))
    config = digits.get_config()
    config.model.update(depth=10, growth_rate=4)
    config.task, config.augment.mixup, config.data.image_size = task, 0.0, 8
    config.eval_batch_size = 24
    if task == "regression":
        config.data.target_mean, config.data.target_std = (0.5, 0.5), (0.5, 0.5)
    setup = experiment.build(config)
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(setup.config.to_json())
    return workdir, setup, jax.device_put(random_variables(setup.model, size=8), jax.devices()[0])


def test_a_dossier(run):
    workdir, setup, variables = run
    folder = workdir / "dossier"
    folder.mkdir()
    (folder / statements.FILE).write_text('ethics = "Approved <i>twice</i>."')
    path = write(
        *(setup, variables, workdir, folder),
        step=5,
        images=20,
        program="densenet-jax",
        command=["dossier", "--checkpoint=5"],
    )
    found = json.loads((folder / "dossier.json").read_text())
    text = path.read_text()
    # The page is complete, self-contained and safe.
    for section in re.findall(r'href="#([\w-]+)"', text):
        assert f'id="{section}"' in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<i>twice" not in text
    assert "a <b>" not in text
    assert "Approved &lt;i&gt;twice" in text
    assert text.count("To be filled in:") == sum("ask" in i for i in statements.checklist()) - 1
    # Every part was measured.
    assert found["task"] == setup.task.name
    assert [row["use"] for row in found["data"]["splits"]][1].startswith("chose the checkpoint and")
    assert found["data"]["shared"][0]["images"] == 1
    assert len(found["robustness"]) == 4
    assert found["robustness"][0]["examples"] == 20
    assert len(found["coverage"]["rows"]) == (4 if setup.task.name == "multilabel" else 2)
    assert (found["ranking"] is not None) == (setup.task.name == "classification")
    assert found["statements"]["ethics"] == "Approved <i>twice</i>."
    sentences = remarks.about(found, {})
    assert any("also chose the checkpoint" in s for s in sentences)
    assert any("share images (1)" in s for s in sentences)
    if setup.task.name == "classification":
        assert [row["part"] for row in found["maps"]["stages"]][-1] == "stem"
        drawn = {path.name for path in (folder / "figures").iterdir()}
        assert {"roc.svg", "roc.pdf", "confusion.svg", "reuse.pdf", "growth.svg"} <= drawn
        assert text.count('alt="map"') == map_check.PICTURES * (1 + len(found["maps"]["stages"]))
    # The folder repeats it: its checksums hold, and its commands are understood.
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    for _, command in found["repeat"]["commands"][:1]:
        name, config, _ = parse(command.split())
        assert (name, config.task) == ("train", setup.task.name)
    assert not (workdir / "predictions.npz").exists()  # the report's own files are untouched


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(ReportError, match="has other files than those of a dossier"):
        write(None, None, tmp_path, tmp_path, step=1, images=1, program="", command=[])
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_another_split_is_named_apart_and_a_missing_one_is_said(tmp_path, monkeypatch):
    def load(name, split, *_, **__):
        if split == "train":
            raise DataError("it is gone", "second line")
        return source("classification", split)

    monkeypatch.setattr(by_name, "load", load)
    config = digits.get_config()
    (tmp_path / "config.json").write_text(config.to_json())
    config.data.eval_split = "external"
    setup = types.SimpleNamespace(config=config, eval_source=load("digits", "external"))
    used, left_out = record._splits(setup, tmp_path)
    assert list(used) == ["chose the checkpoint", "scored here"]
    assert left_out == ["The split that was used for “training” cannot be opened: it is gone"]


def test_the_checksum_of_weights_is_of_every_number():
    variables = {"params": {"a": np.zeros(2, np.float32)}}
    other = {"params": {"a": np.array([0, 1e-9], np.float32)}}
    assert repeat.checksum(variables) == repeat.checksum({"params": {"a": np.zeros(2, "f4")}})
    assert repeat.checksum(variables) != repeat.checksum(other)
    assert repeat.checksum(variables) != repeat.checksum({"params": {"b": np.zeros(2, "f4")}})


def test_overrides_are_flags_that_can_be_parsed(tmp_path):
    stored, given = digits.get_config(), digits.get_config()
    given.data.eval_split, given.data.mean = "train", (0.5,)
    (tmp_path / "config.json").write_text(stored.to_json())
    flags = repeat.overrides(stored, given)
    _, config, _ = parse(["main.py", "dossier", f"--workdir={tmp_path}", *flags])
    assert (config.data.eval_split, tuple(config.data.mean)) == ("train", (0.5,))
    assert pathlib.Path(tmp_path).is_dir()
