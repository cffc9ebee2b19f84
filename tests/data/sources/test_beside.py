"""A folder with its labels in a table beside the images is refused with the options to use."""

import shlex

import pytest

from densenet_jax.cli.parsing import parse
from densenet_jax.data.sources import by_name, folders
from densenet_jax.data.sources.source import DataError


def make(folder, text, *images, name="train.csv"):
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    (folder / name).write_text(text)


def refused(folder, data_dir=None):
    """Returns the source that the options in the refusal open."""
    with pytest.raises(DataError, match=r"labels of the images in .* seem to be in") as caught:
        folders.image_folder(str(data_dir or folder), "train")
    options = shlex.split(str(caught.value).split("Train with ")[1].split("; or")[0])
    _, config, _ = parse(["main.py", "--config=configs/digits.py", "--workdir=x", *options])
    data = config.data
    columns = by_name.Columns(data.path_column, data.label_columns, group_column=data.group_column)
    return by_name.load(data.name, "train", data.data_dir, columns=columns, task=config.task)


def test_images_in_one_folder(tmp_path):
    names = [f"{i:03}.jpg" for i in range(20)]
    rows = "".join(f"{n},{'cat' if i % 2 else 'dog'}\n" for i, n in enumerate(names))
    make(tmp_path, "image,label\n" + rows, *(f"images/{n}" for n in names))
    assert refused(tmp_path).class_names == ("cat", "dog")
    assert refused(tmp_path, tmp_path / "images").class_names == ("cat", "dog")


def test_folders_of_splits_look_like_classes(tmp_path):
    """APTOS: train_images and test_images would be two classes."""
    images = [f"train_images/{i:012x}.png" for i in range(20)]
    images += [f"test_images/{i:011x}z.png" for i in range(20)]
    rows = "".join(f"{n[13:-4]},{i % 5}\n" for i, n in enumerate(images[:20]))
    make(tmp_path, "id_code,diagnosis\n" + rows, *images)
    make(tmp_path, "id_code\n" + "".join(f"{n[12:-4]}\n" for n in images[20:]), name="test.csv")
    assert refused(tmp_path).class_names == tuple("01234")


def test_several_labels_and_patients(tmp_path):
    names = [f"images_001/images/{i}.png" for i in range(20)]
    rows = "".join(
        f"{n[18:]},{'A|B' if i % 2 else 'No Finding'},{i}\n" for i, n in enumerate(names)
    )
    make(tmp_path, "Image Index,Finding Labels,Patient ID\n" + rows, *names)
    source = refused(tmp_path)
    assert source.task == "multilabel"
    assert source.groups is not None
    (tmp_path / "train.csv").unlink()
    rows = "".join(f"{n},{i % 2},{i % 3 - 1}\n" for i, n in enumerate(names))
    make(tmp_path, "Path,Edema,Lung Opacity\n" + rows)
    assert refused(tmp_path).class_names == ("Edema", "Lung Opacity")


def test_a_table_that_repeats_the_class_folders_is_no_reason(tmp_path):
    images = [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(10)]
    make(tmp_path, "path,label,n\n" + "".join(f"{n},{n[0] > 'c':d},{n}\n" for n in images), *images)
    assert folders.image_folder(str(tmp_path), "train").class_names == ("cat", "dog")
    make(tmp_path, "path,label\n" + "".join(f"{n},{n[:3]}\n" for n in images[:10]))
    make(tmp_path, "when,what\n1,nothing\n2,all\n", name="log.csv")
    make(tmp_path, '"', name="broken.csv")
    assert folders.image_folder(str(tmp_path), "train").class_names == ("cat", "dog")
