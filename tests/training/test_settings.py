"""The data that a configuration describes: every option reaches its source."""

import pytest

from densenet_jax.configs import default
from densenet_jax.training import settings


@pytest.fixture
def config(tmp_path):
    rows = ["image,a,b,patient,part"]
    for i in range(40):
        (tmp_path / f"{i}.jpg").touch()
        part = ("train", "val")[i >= 30]
        rows.append(f"{i}.jpg,{i % 2},{'' if i % 4 else -1},p{i // 2},{part}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    config = default.get_config()
    config.task = "multilabel"
    config.data.update(name="table", data_dir=str(tmp_path / "t.csv"), path_column="image")
    config.data.update(label_columns=("a", "b"), uncertain="one", group_column="patient")
    return config


def test_the_columns_and_the_splits_of_a_table(config):
    config.data.split_column = "part"
    train, validation = settings.train_source(config), settings.eval_source(config)
    assert (len(train), len(validation)) == (30, 10)
    assert train.class_names == ("a", "b")
    assert train.examples.labels[:, 1].tolist() == [1] * 30
    assert train.groups[29] == "p14"


def test_the_folds_of_a_table(config):
    config.data.folds = 4
    found = []
    for fold in range(4):
        config.data.fold = fold
        found += settings.eval_source(config).examples.paths
    assert sorted(found) == sorted(f"{i}.jpg" for i in range(40))


def test_the_groups_of_a_folder(tmp_path):
    for i in range(40):
        path = tmp_path / "ab"[i % 2] / f"p{i // 4}_{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    config = default.get_config()
    config.data.update(name="folder", data_dir=str(tmp_path), group=r"(p\d+)_", holdout=0.3)
    train, validation = settings.train_source(config), settings.eval_source(config)
    assert set(train.groups) | set(validation.groups) == {f"p{i}" for i in range(10)}
    assert not set(train.groups) & set(validation.groups)
