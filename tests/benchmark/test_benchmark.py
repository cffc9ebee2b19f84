"""The benchmark command: all results are present, and limits follow from the network."""

import functools
import json

import jax.numpy as jnp
import pytest

from densenet_jax import cli
from densenet_jax.benchmark import limits, measure, table
from densenet_jax.cli.commands import training
from densenet_jax.models.variants import create_model


def test_all_results_are_present(tmp_path, capsys, monkeypatch):
    timed, brief = limits.seconds, functools.partial(measure.benchmark, seconds=0.1)
    monkeypatch.setattr(limits, "seconds", lambda run, _=0, **how: timed(run, 0.1, **how))
    monkeypatch.setattr(training, "measure", brief)
    output = tmp_path / "figures.json"
    words = [
        *("--config=configs/digits.py", f"--output={output}", "--config.batch_size=16"),
        *("--config.model.depth=10", "--config.model.growth_rate=4", "--config.mesh.data=1"),
    ]
    assert cli.main(["main.py", "benchmark", *words]) == 0
    found = json.loads(output.read_text())
    parts = {"step", "loop", "input_pipeline", "inference"}
    assert found["images_per_second"].keys() == parts
    assert all(value > 0 for value in found["images_per_second"].values())
    assert all(value > 0 for value in found["share_of_limit"].values())
    assert 0 <= found["data_wait"] <= 1
    assert found["machine"]["change"] >= 0
    assert found["memory"]["temporaries"] > 0
    out = capsys.readouterr().out
    assert "of the limit" in out
    assert "batch 16" in out


def test_what_the_trial_of_the_gpu_kernels_found_is_shown():
    trial = {"faults": {"3x3 forward": "a reason"}, "seconds": {"gpu": 0.001, "plain": 0.0025}}
    assert table.gpu_kernels("bfloat16", trial) == (
        "fused kernels (bfloat16): the gradient of a small block takes 1.00 ms, plain 2.50 ms; "
        "plain JAX replaces 3x3 forward: a reason"
    )


def test_work_of_densenet121():
    """For an image at 224x224: 2.83 GMAC; 41 MB forward and 89 MB backward, counted by hand."""
    model = create_model("densenet121", dtype=jnp.bfloat16)
    inference, training = limits.work(model, 224)
    assert inference.flops == pytest.approx(2 * 2.83e9, rel=2e-3)
    assert training.flops == 3 * inference.flops
    # An H200 copies 4.3 TB/s, so the limits are 105,000 and 33,000 images/s.
    assert 4.3e12 / inference.bytes == pytest.approx(105e3, rel=0.02)
    assert 4.3e12 / training.bytes == pytest.approx(33e3, rel=0.02)


def test_limit_is_the_slower_of_arithmetic_and_memory():
    rates = limits.Rates(flops=100.0, bytes=10.0)
    assert limits.images_per_second(limits.Work(200.0, 10.0), rates) == 0.5
    assert limits.images_per_second(limits.Work(100.0, 40.0), rates) == 0.25


def figures(wait=0.0, pipeline=300.0, share=0.5, **machine):
    return {
        "images_per_second": {"step": 100.0, "input_pipeline": pipeline},
        "data_wait": wait,
        "share_of_limit": {"step": share, "inference": 0.5},
        "machine": {"cores": 2, "load": 0.3, "change": 0.01} | machine,
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figures(pipeline=3e4), "alone delivers 300 times the images that the step takes"),
        (figures(), "alone delivers 3 times the images that the step takes; in the training loop"),
        (figures(0.4, 50.0), "waited for images 40.0% of the time: it is too slow (the input"),
        (figures(0.4), "share this machine's cores (the input pipeline alone delivers 3 times"),
    ],
)
def test_the_input_pipeline_in_words(found, words):
    assert words in table.pipeline(found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figures(load=5.2), "5.2 programs ran or waited for one of 2 cores"),
        (figures(change=0.3), "rates changed by 30% during"),
        (figures(share=1.2), "more than 100 % of the limit (training step, batch on"),
    ],
)
def test_a_busy_machine_is_named(found, words):
    (note,) = table.busy(found)
    assert words in note
    assert table.busy(figures()) == table.busy(figures(load=None)) == []
