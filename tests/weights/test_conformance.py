"""The command `verify`: the network written out, right and with each of the known faults."""

import functools

import jax
import numpy as np
import pytest

from densenet_jax import cli, weights
from densenet_jax.models.variants import create_model
from densenet_jax.weights import WeightsError, conformance
from densenet_jax.weights.conformance import FAULTS, RIGHT, Rules, stages, summary, verify

SMALL = {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8, "num_classes": 3}


@functools.cache
def network(stem="imagenet"):
    model = create_model("densenet121", stem=stem, **SMALL)
    return model, weights.from_state_dict(model, conformance.state_dict(model))


@pytest.mark.parametrize("stem", ["imagenet", "imagenet_same", "cifar"])
def test_the_network_written_out_is_the_model(stem):
    model, variables = network(stem)
    images = conformance.images(68)
    found = jax.jit(lambda v: stages(model, v, images))(variables)
    np.testing.assert_allclose(
        found["logits"], jax.jit(model.apply)(variables, images), rtol=1e-4, atol=1e-4
    )
    maps = jax.jit(functools.partial(model.apply, method="features"))(variables, images)
    for stage, expected in maps.items():
        np.testing.assert_allclose(found[stage], expected, rtol=1e-3, atol=1e-4)


def test_the_formula_is_what_the_documentation_says():
    """The numbers are fixed: other frameworks make them, too."""
    kernel = conformance.tensor("features.conv0.weight", (64, 3, 7, 7))
    np.testing.assert_allclose(kernel[0, 0, 0, :3], FIRST, rtol=1e-6)
    assert conformance.tensor("classifier.bias", (1000,)).std() == pytest.approx(0.115, abs=0.01)


FIRST = (-0.0780194103717804, 0.08392421156167984, 0.1489304155111313)

# Fault -> the first stage that shows it, for the network above on images of 68 x 68.
SHOWN = dict.fromkeys(FAULTS, "stem") | {
    'the stem pads 3 and 1 on every side, not "same" (TensorFlow)': "",
    "the epsilon of the normalisations is 1e-5": "",
    "a dense layer puts its new maps before the old ones": "block1",
    "the transitions have no ReLU after their normalisation": "transition1",
    "the transitions pool before they normalise": "transition1",
    "the average pooling rounds its size up": "transition1",
    "the last normalisation is missing": "final",
    "the ReLU after the last normalisation is missing": "final",
}


def test_stages_are_in_the_order_of_the_network(monkeypatch):
    model, variables = network()
    images = conformance.images(68)
    answers = summary(stages(model, variables, images, Rules(stem_relu=False)))
    monkeypatch.setattr(conformance, "FAULTS", {})
    verdict = verify(model, variables, images, answers)
    assert verdict.first == "stem"
    assert [*verdict.differences] == ["stem", "block1", "transition1", "block2", "final", "logits"]


@pytest.fixture(scope="module")
def outcomes():
    """{rules: summary}, each computed once; `verify` is given them."""
    return {}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_located_and_named(fault, outcomes, monkeypatch):
    model, variables = network()
    images = conformance.images(68)

    def once(model, variables, images, rules=RIGHT):
        if rules not in outcomes:
            outcomes[rules] = jax.jit(lambda v, x: stages(model, v, x, rules))(variables, images)
        return outcomes[rules]

    monkeypatch.setattr(conformance, "stages", once)
    monkeypatch.setattr(conformance.jax, "jit", lambda function: function)
    answers = summary(once(model, variables, images, FAULTS[fault]))
    verdict = verify(model, variables, images, answers)
    assert verdict.first == SHOWN[fault]
    assert verdict.faults == ((fault,) if SHOWN[fault] else ())


def test_commands_write_and_compare(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(conformance, "FAULTS", {})  # which are tried above
    golden, file = tmp_path / "golden.npz", tmp_path / "a.safetensors"
    model, variables = network()
    weights.write_safetensors(file, weights.to_state_dict(model, variables))
    assert cli.main(["main.py", "verify", str(file), f"--output={golden}"]) == 0
    assert cli.main(["main.py", "verify", str(file), str(golden)]) == 0
    assert "agrees with" in capsys.readouterr().out
    answers = dict(np.load(golden))
    np.savez(golden, logits=answers["logits"] + np.float32([0, 0, 1]))
    assert cli.main(["main.py", "verify", str(file), str(golden)]) == 1
    text = capsys.readouterr().out
    assert "The first stage that differs is logits" in text
    assert "None of the usual faults" in text
    np.savez(golden, other=answers["logits"])
    assert cli.main(["main.py", "verify", str(file), str(golden)]) == 2
    assert cli.main(["main.py", "verify", str(file)]) == 2
    assert cli.main(["main.py", "verify", "formula:rdnet_tiny", f"--output={golden}"]) == 2


def test_nan_is_a_difference_and_other_networks_are_refused():
    model, variables = network()
    images = conformance.images(68)
    answers = {"logits": np.full((2, 3), np.nan, np.float32)}
    assert verify(model, variables, images, answers).first == "logits"
    with pytest.raises(WeightsError, match="hold none of the stages"):
        verify(model, variables, images, {"x": np.ones(3)})
