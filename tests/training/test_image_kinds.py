"""Runs on images of 12 bits, floats and wide ones: what they say, and what predictions repeat."""

import json
import pathlib

import cv2
import numpy as np
import pytest

from densenet_jax.cli import main
from densenet_jax.cli.parsing import parse
from densenet_jax.training import batches, experiment, settings
from densenet_jax.training.rundir import saved_config

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = {
    "data.name": "folder",
    "data.channels": 1,
    "data.eval_split": "val",
    "data.image_size": 8,
    "data.mean": "(0.3,)",
    "data.std": "(0.3,)",
    "model.depth": 10,
    "model.growth_rate": 4,
    "batch_size": 8,
    "eval_batch_size": 8,
    "total_steps": 2,
    "augment.pad": 1,
    "augment.mixup": 0.2,
}


def write(folder, make):
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate(("a", "b")):
            (folder / split / name).mkdir(parents=True)
            for i in range(8):
                image = make(np.random.default_rng((number, label, i)), label)
                path = folder / split / name / str(i)
                if image.dtype == np.float32:
                    np.save(path, image)
                else:
                    cv2.imwrite(f"{path}.png", image)
    return folder


def words(folder, **changes):
    flags = FLAGS | {"data.data_dir": folder} | changes
    flags = [f"--config.{key}={value}" for key, value in flags.items()]
    return [f"--config={ROOT / 'configs/digits.py'}", *flags]


def train(folder, workdir, **changes):
    return main(["main.py", f"--workdir={workdir}", *words(folder, **changes)])


def notes(folder, **changes):
    """Returns what a run would warn of when it starts, and its data configuration."""
    setup = experiment.build(parse(["main.py", *words(folder, **changes)])[1])
    source = settings.train_source(setup.config)
    return batches.notes(setup, source), setup.config.data


def twelve_bits(rng, label):
    return (rng.integers(0, 2048, (12, 12)) + 2047 * label).astype(np.uint16)


def test_twelve_bits(tmp_path, capsys):
    folder = write(tmp_path / "images", twelve_bits)
    (dark,), data = notes(folder)
    assert dark.endswith("pass --config.data.value_range=(0,4095).")
    assert (data.dtype, data.value_range) == ("uint16", ())
    assert train(folder, tmp_path / "run", **{"data.value_range": "(0,4095)"}) == 0
    said = capsys.readouterr()
    assert "WARNING" not in said.out + said.err
    config = json.loads((tmp_path / "run/config.json").read_text())["data"]
    assert (config["dtype"], config["value_range"], config["fit"]) == ("uint16", [0, 4095], "crop")
    # predict sees what evaluation sees.
    assert main(["main.py", "evaluate", f"--workdir={tmp_path}/run"]) == 0
    capsys.readouterr()
    assert main(["main.py", "predict", f"--workdir={tmp_path}/run", "--json", f"{folder}/val"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    losses = [
        -np.log(p["probability"])
        for answer in answers
        for p in answer["predictions"]
        if f"/{p['label']}/" in answer["path"]
    ]
    loss = json.loads((tmp_path / "run/evaluation.json").read_text())["loss"]
    np.testing.assert_allclose(np.mean(losses), loss, rtol=1e-4)


def test_floats_need_a_range_and_policies_need_bytes(tmp_path, capsys):
    def units(rng, label):
        return rng.normal(300 * label, 100, (12, 12, 2)).astype(np.float32)

    folder = write(tmp_path / "images", units)
    look = {"data.channels": 2, "data.mean": "(0.3,0.3)", "data.std": "(0.3,0.3)"}
    assert train(folder, tmp_path / "run", **look) == 2
    assert "data.value_range must say which of their numbers" in capsys.readouterr().err
    look |= {"data.value_range": "(-500,800)", "data.fit": "pad"}
    assert train(folder, tmp_path / "run", **look, **{"augment.policy": "trivialaugment"}) == 2
    assert "policy, which needs images of 3 channels" in capsys.readouterr().err
    found, data = notes(folder, **look)
    assert (found, data.dtype, data.fit) == ([], "float32", "pad")


def test_whole_images_in_training_and_their_centre_in_evaluation(tmp_path):
    def wide(rng, label):
        return rng.integers(0, 256, (8, 24)).astype(np.uint8)

    folder = write(tmp_path / "images", wide)
    (found,), _ = notes(folder)
    assert "pass --config.data.fit=squash" in found
    for changes in ({"data.fit": "squash"}, {"data.fit": "pad"}, {"data.random_crop": True}):
        assert notes(folder, **changes)[0] == []


def test_a_run_from_before_these_keys_cropped_bytes(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": {"image_size": 32, "random_crop": False}}))
    data = saved_config.load(path).data
    assert (data.fit, data.dtype, data.exif) == ("crop", "uint8", False)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ({"data.fit": "stretch"}, "data.fit is 'stretch'; it must be one of crop, squash, pad"),
        ({"data.value_range": "(9,9)"}, "two numbers, the smaller first"),
        ({"data.dtype": "int8"}, "data.dtype is 'int8'; it must be one of uint8, uint16, float32"),
    ],
)
def test_values_that_cannot_be_used(tmp_path, capsys, flag, says):
    assert train(tmp_path, tmp_path / "run", **flag) == 2
    assert says in capsys.readouterr().err
