"""Labels of TFDS and Hugging Face for several labels and for regression."""

import sys
import types

import numpy as np
import pytest
from tensorflow_datasets import features as tfds_features
from tensorflow_datasets.proto import tf_example_pb2

from densenet_jax.data.sources import by_name, subsets
from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.tables import Columns

from ..conftest import write_tfds

STATES = ["uncertain", "positive", "negative", "unmentioned"]
NAN = np.nan


def record(**values):
    """Returns a serialised example with an image and lists of numbers."""
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(b"image")
    for key, numbers in values.items():
        feature = example.features.feature[key.replace("__", "/")]
        if all(isinstance(number, int) for number in numbers):
            feature.int64_list.value.extend(numbers)
        else:
            feature.float_list.value.extend(numbers)
    return example.SerializeToString()


def labels(root, name, kinds, records, task="multilabel", **columns):
    """Returns the source of a data set with these features, and all of its labels."""
    kinds = {"image": tfds_features.Image(shape=(None, None, 3)), **kinds}
    write_tfds(root, name, {"train": records}, [], features=kinds)
    source = by_name.load(name, "train", str(root), task=task, columns=Columns(**columns))
    assert source.task == task
    assert source.examples[0]["image"] == b"image"
    return source, subsets.labels(source)


def sequence(names):
    return tfds_features.Sequence(tfds_features.ClassLabel(names=names))


def test_a_list_of_the_labels_that_are_present(tmp_path):
    records = [record(label=[2, 0]), record(label=[]), record(label=[1])]
    source, found = labels(tmp_path, "objects", {"label": sequence(["a", "b", "c"])}, records)
    assert source.class_names == ("a", "b", "c")
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert found.dtype == np.float32
    part = subsets.choose(source, ("c", "a"))
    assert subsets.labels(part).tolist() == [[1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(("uncertain", "u"), [("ignore", NAN), ("zero", 0), ("one", 1)])
def test_chexpert_has_a_state_for_each_label(tmp_path, uncertain, u):
    records = [record(label=[(i + k) % 4 for k in range(14)]) for i in range(3)]
    source, found = labels(
        tmp_path, "chexpert_mine", {"label": sequence(STATES)}, records, uncertain=uncertain
    )
    assert source.class_names[:2] == ("No Finding", "Enlarged Cardiomediastinum")
    np.testing.assert_array_equal(found[0, :4], [u, 1, 0, u])
    np.testing.assert_array_equal(found[1, :4], [1, 0, u, u])


def test_an_example_with_another_number_of_labels_is_refused(tmp_path):
    records = [record(label=[1, 2]), record(label=[1])]
    with pytest.raises(DataError, match="which must be 2 values"):
        labels(tmp_path, "uneven", {"label": sequence(STATES)}, records)


def test_several_features_of_celeb_a(tmp_path):
    attributes = tfds_features.FeaturesDict({"Bald": np.bool_, "Smiling": np.bool_})
    records = [record(attributes__Bald=[0], attributes__Smiling=[1])]
    kinds = {"attributes": attributes}
    source, found = labels(tmp_path, "faces", kinds, records, label_columns=("attributes",))
    assert source.class_names == ("attributes/Bald", "attributes/Smiling")
    assert found.tolist() == [[0, 1]]
    load = {"columns": Columns(label_columns=("attributes/Smiling",)), "task": "multilabel"}
    assert by_name.load("faces", "train", str(tmp_path), **load).num_classes == 1
    with pytest.raises(DataError, match="its task is multilabel"):
        by_name.load(
            "faces", "train", str(tmp_path), columns=Columns(label_columns=("attributes",))
        )


def test_numbers(tmp_path):
    kinds = {
        "label": tfds_features.Scalar(np.float32),
        "size": tfds_features.Tensor(shape=(2,), dtype=np.int64),
    }
    records = [record(label=[30.5], size=[3, 4]), record(label=[1.25], size=[5, 6])]
    source, found = labels(tmp_path, "ages", kinds, records, "regression")
    assert source.class_names == ("label",)
    assert found.tolist() == [[30.5], [1.25]]
    load = {"columns": Columns(label_columns=("label", "size")), "task": "regression"}
    source = by_name.load("ages", "train", str(tmp_path), **load)
    assert source.class_names == ("label", "size 0", "size 1")
    assert source.examples[1]["label"].tolist() == [1.25, 5, 6]
    with pytest.raises(DataError, match="must be 1 values among"):
        by_name.load("ages", "train", str(tmp_path), task="multilabel").examples[0]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_classes_do_not_suit_another_task(tiny, task):
    with pytest.raises(DataError, match=f"is classification, and config.task is {task}"):
        by_name.load("tiny", "train", str(tiny), task=task)
    with pytest.raises(DataError, match="has labels for the task classification"):
        by_name.load("digits", "train", task=task)


class Rows(list):
    features: dict

    def cast_column(self, *_):
        return self


@pytest.fixture
def hub(monkeypatch):
    module = types.ModuleType("datasets")
    module.Image = type("Image", (), {"__init__": lambda self, decode=True: None})
    label = types.SimpleNamespace(names=["a", "b", "c"], dtype="int64")
    kinds = {
        "image": module.Image(),
        "tags": types.SimpleNamespace(feature=label, length=-1),
        "old": [label],
        "age": types.SimpleNamespace(dtype="float32"),
        "Edema": types.SimpleNamespace(dtype="int8"),
        "text": types.SimpleNamespace(dtype="string"),
    }
    image = {"bytes": b"x", "path": None}
    rows = Rows(
        [
            {"image": image, "tags": [0, 2], "old": [1], "age": 3.5, "Edema": 1},
            {"image": image, "tags": [], "old": [], "age": None, "Edema": None},
        ]
    )
    rows.features = kinds
    module.load_dataset = lambda *_, **__: rows
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize(
    ("task", "columns", "names", "expected"),
    [
        ("multilabel", ("tags",), ("a", "b", "c"), [[1, 0, 1], [0, 0, 0]]),
        ("multilabel", ("old",), ("a", "b", "c"), [[0, 1, 0], [0, 0, 0]]),
        ("multilabel", ("Edema",), ("Edema",), [[1], [NAN]]),
        ("regression", ("age",), ("age",), [[3.5], [NAN]]),
        ("regression", ("age", "Edema"), ("age", "Edema"), [[3.5, 1], [NAN, NAN]]),
    ],
)
def test_hugging_face(hub, task, columns, names, expected):
    source = by_name.load("hf:me/x", "train", task=task, columns=Columns(label_columns=columns))
    assert source.class_names == names
    np.testing.assert_array_equal(subsets.labels(source), expected)


def test_hugging_face_mistakes(hub):
    with pytest.raises(DataError, match="several columns for regression: age, Edema"):
        by_name.load("hf:me/x", "train", task="regression")
    for columns, match in (
        (("label",), "'tags' of hf:me/x holds several classes.*set --config.task=multilabel"),
        (("text",), "has the columns image, tags"),
        (("tags", "nothing"), "has the columns image, tags"),
    ):
        with pytest.raises(DataError, match=f"(?i){match}"):
            by_name.load("hf:me/x", "train", columns=Columns(label_columns=columns))
