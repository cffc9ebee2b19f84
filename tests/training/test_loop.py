"""Whole runs on the digits, with and without interruptions; small, but with every part."""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densenet_jax
from densenet_jax import cli
from densenet_jax.report import predictions
from densenet_jax.tasks.by_name import find_task
from densenet_jax.training import batches, experiment, loop, run_steps
from densenet_jax.training import mesh as meshes
from densenet_jax.training.errors import CheckpointError, ConfigError
from densenet_jax.training.nonfinite import NonFiniteError
from densenet_jax.training.rundir import metrics_log, run_weights
from densenet_jax.training.rundir import workdir as workdirs
from densenet_jax.training.rundir.checkpoints import Checkpoints
from densenet_jax.training.rundir.recorder import Recorder
from densenet_jax.training.trainer import Interrupted
from densenet_jax.weights import WeightsError

CLOCK = ("seconds", "images_per_second", "data_wait")
STEPS = 9

open_checkpoints = functools.partial(Checkpoints, score=find_task("classification").best.score)


def small_config(**changes):
    config = importlib.import_module("configs.digits").get_config()
    config.update_from_flattened_dict(
        {
            "model.depth": 10,
            "model.growth_rate": 4,
            "data.image_size": 8,
            "model.dropout_rate": 0.1,
            "ema_decay": 0.5,
            "mesh.data": 1,
            "batch_size": 32,
            "total_steps": STEPS,
            "eval_every_epochs": 0.1,  # every 4.5 steps
            "checkpoint_every_steps": 2,
            **changes,
        }
    )
    return config.lock()


def records(workdir: pathlib.Path) -> list[dict]:
    return [
        {k: v for k, v in r.items() if k not in CLOCK}
        for r in metrics_log.read(workdir / "metrics.jsonl")
    ]


def params(workdir: pathlib.Path, config) -> list[np.ndarray]:
    config = experiment.build(config).config
    return jax.tree.leaves(jax.device_get(run_weights.read(workdir, config, "latest")[1]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    result = loop.train_and_evaluate(small_config(), workdir)
    return workdir, result


def test_files_of_a_run(undisturbed):
    workdir, result = undisturbed
    assert json.loads((workdir / "config.json").read_text())["total_steps"] == STEPS
    lines = records(workdir)
    assert [r["step"] for r in lines if r["split"] == "train"] == list(range(1, STEPS + 1))
    assert [r["step"] for r in lines if r["split"] == "eval"] == [5, STEPS]
    assert {"epoch", "loss", "top1", "top5", "learning_rate"} <= set(lines[0])
    assert all(0 <= r["top1"] <= r["top5"] <= 1 for r in lines)
    assert lines[-1]["examples"] == 360
    assert result["top1"] == lines[-1]["top1"]
    assert result["best_step"] in (5, STEPS)


def test_stopped_and_resumed_to_the_bit(undisturbed, tmp_path, monkeypatch):
    original = Recorder.add

    def signal_at_three(self, step, *rest):
        original(self, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "add", signal_at_three)
    with pytest.raises(Interrupted, match="after step 3"):
        loop.train_and_evaluate(small_config(), tmp_path)
    monkeypatch.undo()
    loop.train_and_evaluate(small_config(), tmp_path)
    compare(tmp_path, undisturbed[0])


def test_stopped_amid_an_evaluation_and_resumed_to_the_bit(undisturbed, tmp_path, monkeypatch):
    original = run_steps.evaluate

    def with_signal(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(run_steps, "evaluate", with_signal)
    with pytest.raises(Interrupted, match="after step 5; the state is saved"):
        loop.train_and_evaluate(small_config(), tmp_path)
    monkeypatch.undo()
    result = loop.train_and_evaluate(small_config(), tmp_path)
    assert result["best_step"] == undisturbed[1]["best_step"]  # its scores are with it
    compare(tmp_path, undisturbed[0])


def test_a_run_whose_states_cannot_be_saved_does_not_claim_that_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"reached step 2, but .* could not be saved"):
        loop.train_and_evaluate(small_config(total_steps=2), tmp_path)


def test_crashed_and_resumed_to_the_bit(undisturbed, tmp_path, monkeypatch):
    original = Recorder.add

    def crash_at_eight(self, step, *rest):
        original(self, step, *rest)
        if step == 8:
            self.flush()
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 8, "torn')
            raise RuntimeError("power cut")

    monkeypatch.setattr(Recorder, "add", crash_at_eight)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train_and_evaluate(small_config(), tmp_path)
    monkeypatch.undo()
    loop.train_and_evaluate(small_config(), tmp_path)
    compare(tmp_path, undisturbed[0])


def compare(workdir, expected):
    assert records(workdir) == records(expected)
    config = small_config()
    for a, b in zip(params(workdir, config), params(expected, config), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_starts_and_ends_at_once(undisturbed):
    workdir, result = undisturbed
    before = (workdir / "metrics.jsonl").read_text()
    again = loop.train_and_evaluate(small_config(), workdir)
    assert again["top1"] == result["top1"]
    assert again["best"] is None  # nothing was evaluated
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_resumed_run_does_not_need_the_weights_it_started_from(undisturbed, tmp_path):
    gone = str(tmp_path / "densenet121-gone.pth")
    config = small_config(init_from=gone, **{"data.mean": None, "data.std": None})
    with pytest.raises(WeightsError, match="no such file"):
        loop.train_and_evaluate(config, tmp_path / "fresh")
    resumed = shutil.copytree(undisturbed[0], tmp_path / "resumed")
    result = loop.train_and_evaluate(config, resumed)
    assert result["top1"] == undisturbed[1]["top1"]
    stored = json.loads((resumed / "config.json").read_text())
    assert (stored["data"]["mean"], stored["init_from"]) == ([0.3], gone)  # not ImageNet's
    shutil.rmtree(resumed / "checkpoints" / str(STEPS))
    shutil.rmtree(resumed / "checkpoints" / "8")
    for left in (resumed / "checkpoints").glob("[0-9]*"):
        (left / "SHA256SUMS").unlink()  # none is sound any more: the weights are asked for
    with pytest.raises(WeightsError, match="no such file"):
        loop.train_and_evaluate(config, resumed)


def test_a_configuration_from_before_durations_had_units(undisturbed, tmp_path):
    stored = json.loads((undisturbed[0] / "config.json").read_text())
    del stored["optimizer"]["warmup"], stored["ema_decay"], stored["distill"]
    stored["optimizer"]["warmup_epochs"] = 2.5
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = run_weights.read_config(tmp_path)
    assert (config.optimizer.warmup, config.ema_decay) == ("2.5 epochs", 0.0)


def test_evaluate_command_repeats_the_runs_last_evaluation(undisturbed, capsys):
    workdir, _ = undisturbed
    assert cli.main(["main.py", "evaluate", f"--workdir={workdir}", "--checkpoint=latest"]) == 0
    written = json.loads((workdir / "evaluation.json").read_text())
    last = records(workdir)[-1]
    assert (written["top1"], written["examples"]) == (last["top1"], 360)
    assert written["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert "360 examples" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["4711", "newest"])
def test_evaluate_names_the_checkpoints_there_are(undisturbed, capsys, which):
    code = cli.main(["main.py", "evaluate", f"--workdir={undisturbed[0]}", f"--checkpoint={which}"])
    assert code == 2
    assert f"no checkpoint '{which}'" in capsys.readouterr().err


def test_the_configuration_says_what_auto_stands_for():
    assert experiment.build(small_config(**{"model.dtype": "auto"})).config.model.dtype == "float32"


def test_a_checkpoint_of_another_model_is_refused(undisturbed):
    other = experiment.build(small_config(**{"model.growth_rate": 5})).config
    with pytest.raises(CheckpointError, match="is of another model"):
        run_weights.read(undisturbed[0], other)


def test_a_run_is_a_source_of_weights(undisturbed):
    model, variables = densenet_jax.load_pretrained(str(undisturbed[0]))
    assert model.num_classes == 10
    expected = params(undisturbed[0], small_config())
    best = undisturbed[1]["best_step"]
    same = all(map(np.array_equal, jax.tree.leaves(variables), expected))
    assert same == (best == STEPS)


def test_the_latest_and_the_best_checkpoint_are_kept(undisturbed):
    with open_checkpoints(undisturbed[0], read_only=True) as checkpoints:
        steps = sorted(int(p.name) for p in checkpoints.path.iterdir() if p.name.isdigit())
        best = checkpoints.resolve("best")
    assert steps[-2:] == [8, STEPS]
    assert set(steps) == {8, STEPS, best}


def test_averages_are_the_runs_result(undisturbed):
    last = records(undisturbed[0])[-1]
    assert {"raw_top1", "raw_top5", "raw_loss"} <= set(last)
    assert last["loss"] != last["raw_loss"]  # and evaluate repeats `loss`, see above
    assert undisturbed[1]["top1"] == last["top1"]


def test_the_best_evaluation_is_that_of_the_best_checkpoint(undisturbed):
    """Also with averages: the report takes it instead of evaluating once more."""
    workdir, result = undisturbed
    setup = experiment.build(small_config())
    model, variables, _, step = run_weights.read(workdir, setup.config, "best")
    assert result["best"].step == result["best_step"] == step
    names = setup.eval_source.class_names
    given = predictions.merge(result["best"].answers, names)
    split = batches.eval_batches(setup)
    variables = meshes.on_every_device(variables, setup.mesh)
    found = predictions.collect(model, variables, setup.normalize, split, names, task=setup.task)
    np.testing.assert_array_equal(given.labels, found.labels)
    np.testing.assert_allclose(given.probabilities, found.probabilities, rtol=1e-4)
    np.testing.assert_allclose(given.own, found.own, rtol=1e-4)
    assert given.correct.mean() == pytest.approx(result["best"].metrics["top1"])


def test_a_second_run_in_the_directory_is_refused(tmp_path):
    with (
        workdirs.locked(tmp_path),
        pytest.raises(ConfigError, match=f"in use by another run .*process {os.getpid()}"),
    ):
        loop.train_and_evaluate(small_config(), tmp_path)


def test_the_environment_of_every_start_is_kept(undisturbed):
    starts = json.loads((undisturbed[0] / "environment.json").read_text())
    assert starts[0]["versions"]["jax"] == jax.__version__
    assert len(starts[0]["devices"]) == 8


def test_numbers_that_stay_bad_stop_the_run_with_a_report(tmp_path):
    config = small_config(
        **{"optimizer.learning_rate": 1e30, "optimizer.warmup": "0 steps", "nonfinite_limit": 3}
    )
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        loop.train_and_evaluate(config, tmp_path)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["first"].startswith("feature maps")
    assert len(report["examples"]) == 32
    counts = [r["nonfinite"] for r in records(tmp_path)]
    assert counts[:2] == [0, 1]  # the first step is fine, and its update ruins the next
    assert report["step"] == counts.index(3) + 1
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_numbers_that_go_wrong_roll_the_run_back_to_other_data(tmp_path, monkeypatch):
    poisoned = []
    make = batches.train_batches
    prepare = run_steps.preprocess

    @contextlib.contextmanager
    def poison(setup, source, state):
        """Marks two batches of the first order of the data."""
        order, start = int(state.order), int(state.step)  # the first step donates the state

        def poisoned_batches():
            for step, batch in enumerate(stream, start + 1):
                if order == 0 and step in (6, 7):
                    poisoned.append(step)
                    batch = {**batch, "label": batch["label"].at[0].set(-1)}
                yield batch

        with make(setup, source, state) as stream:
            yield poisoned_batches()

    def preprocess(setup, key, images, labels):
        images, targets = prepare(setup, key, images, labels)
        return jnp.where(jnp.any(labels < 0), jnp.nan, images), targets

    monkeypatch.setattr(batches, "train_batches", poison)
    monkeypatch.setattr(run_steps, "preprocess", preprocess)
    config = small_config(nonfinite_limit=2, nonfinite_rollbacks=1)
    loop.train_and_evaluate(config, tmp_path)
    assert poisoned == [6, 7]
    lines = [r for r in records(tmp_path) if r["split"] == "train"]
    assert [r["step"] for r in lines] == list(range(1, STEPS + 1))
    assert not any(r["nonfinite"] for r in lines)
