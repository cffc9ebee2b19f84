"""The whole dossier of tiny runs with random weights: page, record, folder, remarks."""

import json
import pathlib
import re
import subprocess

import jax
import numpy as np
import pytest

from configs import digits
from densenet_jax.cli import parse
from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import Arrays, Source
from densenet_jax.dossier import map_check, remarks, repeat, robustness, statements, write
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
    record = json.loads((folder / "dossier.json").read_text())
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
    assert record["task"] == setup.task.name
    assert [row["use"] for row in record["data"]["splits"]][1].startswith(
        "chose the checkpoint and"
    )
    assert record["data"]["shared"][0]["images"] == 1
    assert len(record["robustness"]) == 4
    assert record["robustness"][0]["examples"] == 20
    assert len(record["coverage"]["rows"]) == (4 if setup.task.name == "multilabel" else 2)
    assert (record["ranking"] is not None) == (setup.task.name == "classification")
    assert record["statements"]["ethics"] == "Approved <i>twice</i>."
    sentences = remarks.about(record, {})
    assert any("also chose the checkpoint" in s for s in sentences)
    assert any("share images (1)" in s for s in sentences)
    if setup.task.name == "classification":
        assert [row["part"] for row in record["maps"]["stages"]][-1] == "stem"
        assert text.count('alt="map"') == map_check.PICTURES * (1 + len(record["maps"]["stages"]))
    # The folder repeats it: its checksums hold, and its commands are understood.
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    for _, command in record["repeat"]["commands"][:1]:
        name, config, _ = parse(command.split())
        assert (name, config.task) == ("train", setup.task.name)
    assert not (workdir / "predictions.npz").exists()  # the report's own files are untouched


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
