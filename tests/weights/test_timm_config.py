"""Configurations beside weights: what is not understood is refused by name, and nothing is huge."""

import dataclasses
import json

import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet
from densenet_jax.models.variants import create_model
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.weights import ranges, timm_config
from tests.random_variables import random_variables

FIELDS = {"block_sizes": (1, 1, 1, 1), "growth_rate": 4, "stem_features": 8}
ARGUMENTS = {"block_config": [1, 1, 1, 1], "growth_rate": 4}
IMAGES = {"input_size": [3, 64, 64], "crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    model = create_model("densenet121", **FIELDS, num_classes=3)
    state_dict = weights.to_state_dict(model, random_variables(model))
    weights.write_safetensors(folder / "model.safetensors", state_dict)
    return folder


@pytest.fixture
def load(folder):
    """A function that loads the weights with a configuration that differs in some values."""

    def loads(arguments=(), images=(), **others):
        config = {
            "architecture": "densenet121",
            "num_classes": 3,
            "model_args": {**ARGUMENTS, **dict(arguments)},
            "pretrained_cfg": {**IMAGES, **dict(images)},
            **others,
        }
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return weights.load(folder)

    return loads


def test_the_configuration_itself_is_fine(load):
    assert load().model == create_model("densenet121", **FIELDS, num_classes=3)


@pytest.mark.parametrize(
    ("mode", "fit"), [("center", "crop"), ("squash", "squash"), ("border", "pad")]
)
def test_how_a_rectangle_becomes_a_square(load, mode, fit):
    found = load(images={"crop_mode": mode, "crop_pct": 1.0}).preprocessing
    assert found.fit == fit
    written = timm_config.to_config(load().model, found)
    assert written["pretrained_cfg"]["crop_mode"] == mode


HUGE = 10**18
WRONG_ARGUMENTS = [
    *({"block_config": value} for value in ([20_000, 1, 1, 1], [-1], [], "6,12", [[1]], [1] * 99)),
    *({"block_config": value} for value in ([200, 200, 200], [10**400], 3, [1.5], [None])),
    *({"growth_rate": value} for value in (0, -4, HUGE, "4", 4.5, float("nan"), True, {"a": 1})),
    *({"growth_rate": value} for value in ([4], [4, 4, 4, 4, 4])),
    *({"bn_size": value} for value in (-1, HUGE)),
    *({"in_chans": value} for value in (0, 10**9)),
    *({"num_classes": value} for value in (-1, 10**12)),
    *({"drop_path_rate": value} for value in (float("nan"), 1.5, "__import__('os')")),
    *({"act_layer": "tanh"}, {"global_pool": "fast"}, {"norm_layer": "groupnorm"}),
    *({"aa_layer": "blurpool"}, {"stem_type": "deep"}, {"something": 1}),
]
WRONG_IMAGES = [
    *({"input_size": value} for value in ([3, 224, 448], [3, 0, 0], [3, 10**9, 10**9], [], "a")),
    *({"crop_pct": value} for value in (0, -1, 1e-9, float("nan"), float("inf"), 1.5, "1")),
    *({"mean": value} for value in ([], [0.5] * 5, "abc", [float("nan")] * 3, [0.0] * 50_000)),
    *({"std": value} for value in ([0, 0, 0], [float("inf")] * 3, [-1.0] * 3)),
    *({"interpolation": value} for value in ("nearest", "lanczos", "random", 3)),
    *({"crop_mode": value} for value in ("random", 3)),
    *({"crop_mode": value, "crop_pct": 0.9} for value in ("squash", "border")),
    {"license": {"a": 1}},
]


@pytest.mark.parametrize(
    "options",
    [
        *({"arguments": wrong} for wrong in WRONG_ARGUMENTS),
        *({"images": wrong} for wrong in WRONG_IMAGES),
        *({"architecture": name} for name in ("../../etc/passwd", ["x"], "\x1b[31m", "resnet50")),
        *({"model_args": value} for value in ([1], "x")),
        *({"pretrained_cfg": value} for value in (None, [1])),
    ],
    ids=lambda options: str(options)[:60],
)
def test_what_is_not_understood_is_refused_by_the_file_s_name(load, options):
    with pytest.raises(weights.WeightsError, match=r"config\.json: it cannot be used") as error:
        load(**options)
    assert len(str(error.value)) < 500
    assert "\x1b" not in str(error.value)


OWN = {
    *{"block_sizes": (4096,) * 4, "growth_rate": 16_000_000, "stem_features": 0}.items(),
    *{"compression": 1e7, "norm_epsilon": "x", "dtype": "object", "parent": "x"}.items(),
    *{"stem": "../x", "implementation": "fast", "freeze_statistics": 2, "halving": -1}.items(),
}


@pytest.mark.parametrize(("field", "value"), sorted(OWN, key=str))
def test_our_own_fields_have_the_same_ranges(load, field, value):
    fields = {**FIELDS, field: value}
    with pytest.raises(weights.WeightsError, match=field):
        load(densenet_jax={"model": "densenet121", "fields": fields})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_config": [120, 1, 1, 1]}, "block_sizes"),
        ({"growth_rate": 4000}, "growth_rate is 4000, but no tensor"),
    ],
)
def test_no_network_is_larger_than_its_weights(load, arguments, message, monkeypatch):
    def traced(*_):
        raise AssertionError("a model was built before its size was checked")

    monkeypatch.setattr("densenet_jax.weights.names.shapes", traced)
    with pytest.raises(weights.WeightsError, match=f"do not belong together.*{message}"):
        load(arguments)


def test_every_field_of_a_network_has_a_range():
    how = {"parent", "name", "dtype", "param_dtype"}
    fields = {*DenseNet.__dataclass_fields__, *RDNet.__dataclass_fields__} - how
    assert fields <= ranges.NUMBERS.keys() | ranges.WORDS.keys()


@pytest.mark.parametrize("name", ["densenet121", "densenet264d", "rdnet_large", "densenet_40_12"])
def test_what_is_written_can_be_read(tmp_path, name):
    model = create_model(name, num_classes=7, in_channels=1)
    config = timm_config.to_config(model, weights.Preprocessing().for_channels(1), licence="mit")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = timm_config.read_config(str(tmp_path))
    assert found is not None
    assert create_model(found.model, **found.fields) == model
    assert found.preprocessing.mean == pytest.approx((np.mean([0.485, 0.456, 0.406]),))


OUTPUTS = Outputs("multilabel", "sigmoid", scale=(0.5,), thresholds=(0.1, 0.2, 0.3))


def exported(folder, **changes):
    """Writes the configuration of an export of ours, changed, and loads the weights beside it."""
    model = create_model("densenet121", **FIELDS, num_classes=3)
    images = weights.Preprocessing(64, fit="pad", dtype="uint16", value_range=(0.0, 4095.0))
    config = timm_config.to_config(model, images, ("a", "b", "c"), None, OUTPUTS)
    config["densenet_jax"] |= changes.pop("own", {})
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return weights.load(folder), images


def test_an_export_keeps_what_its_outputs_mean_and_how_images_are_read(folder):
    found, images = exported(folder)
    assert found.outputs == OUTPUTS
    assert found.class_names == ("a", "b", "c")
    wanted = dataclasses.replace(images, crop_fraction=1.0)  # of a whole image
    assert found.preprocessing == wanted
    fresh = weights.load(folder, num_classes=5)
    assert fresh.outputs == Outputs()
    assert fresh.class_names is None


@pytest.mark.parametrize(
    "changes",
    [
        {"own": {"outputs": {"task": "multilabel", "activation": "sigmoid", "scale": [1, 2]}}},
        {"own": {"outputs": {"task": "x", "activation": "sigmoid"}}},
        {"own": {"outputs": {"task": "multilabel", "activation": "sigmoid", "scale": ["1"]}}},
        {"own": {"images": {"dtype": "uint7", "value_range": [], "exif": False}}},
        {"own": {"images": {"dtype": "uint8", "value_range": [2, 1], "exif": False}}},
        {"label_names": ["a", 2, "c"]},
        {"label_names": ["a"]},
    ],
)
def test_an_export_that_was_changed_is_refused(folder, changes):
    with pytest.raises(weights.WeightsError, match=r"config.json: it cannot be used"):
        exported(folder, **changes)


@pytest.mark.parametrize(
    "images",
    [
        *({"dtype": "object"}, {"value_range": [1, 0]}, {"value_range": [0]}, {"exif": 3}, [1]),
        *({"value_range": [0, float("inf")]}, {"value_range": [0, float("nan")]}, {"fit": "pad"}),
    ],
)
def test_our_own_fields_of_images_are_checked(load, images):
    whole = {"dtype": "uint8", "value_range": [], "exif": False}
    images = {**whole, **images} if isinstance(images, dict) else images
    own = {"model": "densenet121", "fields": FIELDS, "images": images}
    with pytest.raises(weights.WeightsError, match=r"config\.json: it cannot be used"):
        load(densenet_jax=own)
