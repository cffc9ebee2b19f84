"""A classifier is the file's own, or new because another number of classes was asked for."""

import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.models.variants import create_model
from tests.random_variables import random_variables

FIELDS = {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8}
CLASSES = 5
FRESH = ("params/classifier/bias", "params/classifier/kernel")


@pytest.fixture(scope="module")
def tensors():
    model = create_model("densenet121", **FIELDS, num_classes=CLASSES)
    return weights.to_state_dict(model, random_variables(model))


@pytest.fixture
def load(tmp_path, tensors):
    """A function that loads the body with the tensors of a head in place of its own."""

    def loads(head, **options):
        body = {name: x for name, x in tensors.items() if not name.startswith("classifier")}
        path = tmp_path / "weights.safetensors"
        weights.write_safetensors(path, {**body, **head})
        return weights.load(path, "densenet121", **FIELDS, **options)

    return loads


def linear(name, features, classes=CLASSES, seed=0):
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=(classes, features)), rng.normal(size=classes)
    return {f"{name}.weight": np.float32(kernel), f"{name}.bias": np.float32(bias)}


@pytest.fixture(scope="module")
def features(tensors):
    return tensors["classifier.weight"].shape[1]


def head_of(loaded):
    return loaded.variables["params"]["classifier"]


@pytest.mark.parametrize(
    "name",
    ["classifier", "fc", "head", "classifier.0", "classifier.1", "class_layers.out", "last_linear"],
)
@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_one_linear_layer_is_the_head_whatever_it_is_called(load, features, name, num_classes):
    head = linear(name, features)
    loaded = load(head, num_classes=num_classes)
    assert loaded.model.num_classes == CLASSES
    assert np.array_equal(head_of(loaded)["kernel"].T, head[f"{name}.weight"])
    assert np.array_equal(head_of(loaded)["bias"], head[f"{name}.bias"])
    assert loaded.report.fresh == ()
    assert loaded.report.head == ("" if name == "classifier" else name)


def test_another_number_of_classes_gives_a_new_head(load, features):
    loaded = load(linear("fc", features), num_classes=3)
    assert loaded.report.fresh == FRESH
    assert loaded.report.dropped == ("fc.bias", "fc.weight")
    assert head_of(loaded)["kernel"].shape == (features, 3)


@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_a_head_without_bias_has_a_bias_of_zero(load, features, num_classes):
    kernel = linear("classifier", features)["classifier.weight"]
    loaded = load({"classifier.weight": kernel}, num_classes=num_classes)
    assert np.array_equal(head_of(loaded)["kernel"].T, kernel)
    assert not head_of(loaded)["bias"].any()
    assert "zero: params/classifier/bias" in str(loaded.report)
    assert loaded.report.fresh == ()


def test_a_convolution_of_one_pixel_is_a_linear_layer(load, features):
    head = linear("fc", features)
    loaded = load({**head, "fc.weight": head["fc.weight"][:, :, None, None]})
    assert np.array_equal(head_of(loaded)["kernel"].T, head["fc.weight"])


def test_a_file_without_a_head(load):
    assert load({}).model.num_classes == 0
    assert load({}, num_classes=2).report.fresh == FRESH


def ones(*shape):
    return np.ones(shape, np.float32)


HEADS = {
    "a bias alone": lambda n: {"classifier.bias": ones(CLASSES)},
    "another width": lambda n: linear("classifier", n + 1),
    "a bias of another length": lambda n: {"fc.weight": ones(CLASSES, n), "fc.bias": ones(2)},
    "a convolution of nine pixels": lambda n: {"fc.weight": ones(CLASSES, n, 3, 3)},
    "two layers": lambda n: {**linear("fc.0", n, 16), **linear("fc.2", 16)},
    "two heads": lambda n: {**linear("a", n), **linear("b", n, 3)},
    "a normalisation before it": lambda n: {
        **linear("fc", n), "bn.weight": ones(n), "bn.running_mean": ones(n),
    },
    "weight normalisation": lambda n: {
        "fc.weight_g": ones(CLASSES, 1), "fc.weight_v": ones(CLASSES, n), "fc.bias": ones(CLASSES),
    },
    "a scale": lambda n: {**linear("classifier", n), "classifier.weight_scale": ones(CLASSES)},
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_is_not_understood_is_refused_or_replaced_on_request(load, features, kind):
    head = HEADS[kind](features)
    for num_classes in (None, CLASSES):
        with pytest.raises(weights.WeightsError, match=r"classifier of the weights cannot be used"):
            load(head, num_classes=num_classes)
    assert load(head, num_classes=7).report.fresh == FRESH
    assert load(head, num_classes=0).model.num_classes == 0


def test_the_strict_conversion_refuses_it_too(tensors, features):
    model = create_model("densenet121", **FIELDS, num_classes=CLASSES)
    with pytest.raises(weights.MismatchError, match=r"fc\.0\.bias"):
        weights.from_state_dict(model, {**tensors, **linear("fc.0", features)})
    headless = {name: x for name, x in tensors.items() if not name.startswith("classifier")}
    with pytest.raises(weights.MismatchError, match="Missing in the weights: classifier"):
        weights.from_state_dict(model, headless)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_operating_points_beside_weights_are_the_thresholds(tmp_path, tensors, prefix):
    """TorchXRayVision's buffer: the probability from which on a label counts; NaN: unknown."""
    points = {f"{prefix}op_threshs": np.float32([0.1, np.nan, 0.03, 0.5, 0.9])}
    path = tmp_path / "xrv.npz"
    np.savez(path, **{f"{prefix}{name}": x for name, x in tensors.items()}, **points)
    outputs = weights.load(path, "densenet121", **FIELDS).outputs
    assert (outputs.task, outputs.activation) == ("multilabel", "sigmoid")
    np.testing.assert_allclose(outputs.thresholds, [0.1, 0.5, 0.03, 0.5, 0.9], rtol=1e-6)
    assert weights.load(path, "densenet121", **FIELDS, num_classes=3).outputs.thresholds == ()


def test_operating_points_of_other_labels(tmp_path, tensors):
    path = tmp_path / "xrv.npz"
    np.savez(path, **tensors, op_threshs=np.float32([0.1, 0.2]))
    with pytest.raises(
        weights.WeightsError, match=r"thresholds for 2 labels and a classifier for 5"
    ):
        weights.load(path, "densenet121", **FIELDS)
