"""Evaluation on related data sets of the same classes, in the layout that TFDS prepares."""

import importlib
import json

import jax
import pytest
import tensorflow_datasets as tfds

from densenet_jax.data.sources import by_name
from densenet_jax.evaluation import splits
from densenet_jax.training import experiment, run_state, run_steps
from densenet_jax.training.errors import ConfigError
from tests.data.conftest import encode, picture, record, write_tfds

NAMES = [f"n{i:08}" for i in range(1000)]
REAL = [(0, 7), (), (3,), (1, 2, 3)]


def real_record(i):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(
        record(encode(picture(24, 24, i)), i, f"ILSVRC2012_val_{i + 1:08}.JPEG")
    )
    feature = example.features.feature
    feature["original_label"].CopyFrom(feature.pop("label"))
    feature["real_label"].int64_list.value.extend(REAL[i])
    return example.SerializeToString()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    images = [(encode(picture(24, 24, i)), i) for i in range(4)]
    write_tfds(
        root, "imagenet2012", {"train": images, "validation": images}, NAMES, version="5.1.0"
    )
    v2 = {"test": images[:3]}
    write_tfds(root, "imagenet_v2/matched-frequency", v2, NAMES, version="3.0.0")
    label = tfds.features.ClassLabel(names=NAMES)
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "original_label": label,
        "real_label": tfds.features.Sequence(label),
        "file_name": tfds.features.Text(),
    }
    records = {"validation": [real_record(i) for i in range(4)]}
    write_tfds(root, "imagenet2012_real", records, NAMES, features)
    return root


@pytest.fixture(scope="module")
def setup(imagenet):
    config = importlib.import_module("configs.densenet121").get_config()
    config.update_from_flattened_dict(
        {
            "data.data_dir": str(imagenet),
            "model.name": "densenet_cifar",
            "model.depth": 10,
            "model.growth_rate": 4,
            "model.dtype": "float32",
            "data.image_size": 14,
            "data.eval_crop": 0.875,
            "mesh.data": 1,
            "eval_batch_size": 3,
        }
    )
    return experiment.build(config.lock())


def test_real_labels_are_read_as_published(imagenet):
    source = by_name.load("imagenet2012_real", "validation", str(imagenet))
    assert source.accepted() == REAL
    assert [source.examples[i]["label"] for i in range(4)] == [0, 1, 2, 3]


def test_imagenet_is_judged_by_all_that_is_prepared(setup):
    state = run_state.initial_state(setup, run_steps.optimizer(setup, 1, 1.0)[0])
    with jax.set_mesh(setup.mesh):
        found = splits.assess(setup, state.variables, crops=5, flip=True)
    own, real, v2 = (one.record for one in found)
    assert [r["examples"] for r in (own, real, v2)] == [4, 4, 3]
    assert (v2["data"], v2["split"]) == ("imagenet_v2/matched-frequency", "test")
    assert real["real_examples"] == 3
    assert "real_top1" not in own
    assert own["loss"] == pytest.approx(real["loss"])
    assert json.dumps([own, real, v2])


@pytest.mark.parametrize("name", ["imagenet2012", "imagenet2012:5.1.0", "imagenet2012_raw256"])
def test_every_form_of_imagenet_has_the_same_relatives(name):
    assert splits.related(name).keys() == {"imagenet2012_real", "imagenet_v2/matched-frequency"}
    assert not splits.related("cifar10_raw256")


def test_five_crops_need_a_margin(setup):
    config = setup.config.copy_and_resolve_references()
    config.data.eval_crop = 1.0
    with pytest.raises(ConfigError, match="--crops=5 needs images with a margin"):
        splits.with_margin(experiment.dataclasses.replace(setup, config=config))


@pytest.mark.parametrize(("size", "crop", "side"), [(224, 0.95, 235), (299, 0.9, 332)])
def test_five_crops_are_cut_from_the_image_that_one_crop_is_cut_from(setup, size, crop, side):
    config = setup.config.copy_and_resolve_references()
    config.data.image_size, config.data.eval_crop = size, crop
    wide = splits.with_margin(experiment.dataclasses.replace(setup, config=config)).config.data
    assert (wide.image_size, wide.eval_crop) == (side, 1.0)
