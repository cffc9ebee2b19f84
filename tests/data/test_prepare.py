"""Preparing data sets: from tars in the layout of ILSVRC 2012, from folders, from TFRecord."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from densenet_jax.data import prepare
from densenet_jax.data.preparing import ilsvrc, shards, tfrecord
from densenet_jax.data.reading import decoding
from densenet_jax.data.sources import by_name as sources
from densenet_jax.data.sources.source import DataError

from .conftest import JPEGS, as_tfrecord, encode, picture

CLASSES, VALIDATION = ilsvrc.labels()
PNG = encode(picture(seed=9), "PNG")  # one of ImageNet's JPEGs is a PNG, and some are CMYK


def cmyk():
    out = io.BytesIO()
    Image.fromarray(picture(seed=8)).convert("CMYK").save(out, "JPEG")
    return out.getvalue()


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Returns both tars: 3 training images in each of 3 classes, and 6 validation images."""
    images = [path.read_bytes() for path in JPEGS]
    for split, (size, md5, _) in ilsvrc.TARS.items():
        monkeypatch.setitem(ilsvrc.TARS, split, (size, md5, 0))
    monkeypatch.setattr(ilsvrc, "labels", lambda: (CLASSES, VALIDATION[:6]))
    train, validation = tmp_path / "train.tar", tmp_path / "val.tar"
    with tarfile.open(train, "w") as outer:
        for k, wnid in enumerate(CLASSES[:3]):
            inner_bytes = io.BytesIO()
            with tarfile.open(fileobj=inner_bytes, mode="w") as inner:
                for i, image in enumerate((images[k], PNG, cmyk())):
                    add(inner, f"{wnid}_{i}.JPEG", image)
            add(outer, f"{wnid}.tar", inner_bytes.getvalue())
    with tarfile.open(validation, "w") as tar:
        for k in (3, 0, 1, 2, 5, 4):  # the order in the tar differs from that of the names
            add(tar, f"ILSVRC2012_val_{k + 1:08}.JPEG", encode(picture(40, 60, k)))
    return train, validation


def run(*arguments):
    return prepare.main([str(a) for a in arguments])


def test_imagenet(tars, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)
    train, validation = tars
    arguments = ["imagenet2012", "--skip-hash", "--workers=1", f"--data-dir={tmp_path}"]
    assert run(*arguments, f"--train={train}", f"--val={validation}") == 0
    printed = capsys.readouterr().err
    assert "train: 9 examples of 1,000 classes, from 0 to 3 per class" in printed

    records = tfds.data_source("imagenet2012", data_dir=tmp_path, split="train")
    assert len(records) == 9
    by_name = {str(np.asarray(r["file_name"]).astype(str)): r for r in records}
    assert by_name[f"{CLASSES[1]}_0.JPEG"]["label"] == 1
    np.testing.assert_array_equal(
        by_name[f"{CLASSES[1]}_0.JPEG"]["image"], np.asarray(Image.open(JPEGS[1]).convert("RGB"))
    )
    records = tfds.data_source("imagenet2012", data_dir=tmp_path, split="validation")
    labels = {str(np.asarray(r["file_name"]).astype(str)): r["label"] for r in records}
    for k in range(6):
        assert CLASSES[labels[f"ILSVRC2012_val_{k + 1:08}.JPEG"]] == VALIDATION[k]

    source = sources.load("imagenet2012", "train", str(tmp_path))
    images = [source.examples[i]["image"] for i in range(9)]
    assert all(image[:2] == b"\xff\xd8" for image in images)  # the PNG has become a JPEG
    assert JPEGS[0].read_bytes() in images  # untouched
    assert run(*arguments, f"--train={train}") == 2
    assert "already exists" in capsys.readouterr().err


def test_raw_imagenet_has_a_name_of_its_own(tars, tmp_path, capsys):
    arguments = ["imagenet2012", "--skip-hash", "--workers=1", f"--data-dir={tmp_path}"]
    arguments += [f"--train={tars[0]}", "--raw=16"]
    begun = tmp_path / "imagenet2012_raw16" / "5.1.0.incomplete" / "settings.json"
    begun.parent.mkdir(parents=True)
    begun.write_text('{"max_size": null, "holdout": null}')  # of encoded images
    assert run(*arguments) == 2
    assert "was begun with other settings" in capsys.readouterr().err
    begun.unlink()
    assert run(*arguments) == 0
    source = sources.load("imagenet2012_raw16", "train", str(tmp_path))
    assert (source.raw_side, len(source), source.num_classes) == (16, 9, 1000)
    sizes = [
        (image.height, image.width) for image in (source.examples[i]["image"] for i in range(9))
    ]
    assert sizes.count((24, 32)) == 6  # three times the PNG and the CMYK JPEG


def test_images_of_16_bits_cannot_be_raw(tmp_path, capsys):
    for name in ("cat", "dog"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), 300, np.uint16)).save(folder / f"{i}.png")
    arguments = ["--name=x", "--raw=8", "--workers=1", "--holdout=0.5", f"--data-dir={tmp_path}"]
    assert run("folder", folder.parent, *arguments) == 2
    assert "only images of 8 bits can be stored decoded" in capsys.readouterr().err


def test_the_layout_is_that_of_tfds(tars, tmp_path):
    run("imagenet2012", "--skip-hash", "--workers=1", f"--data-dir={tmp_path}", f"--val={tars[1]}")
    folder = tmp_path / "imagenet2012" / "5.1.0"
    assert sorted(p.name for p in folder.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "imagenet2012-validation.array_record-00000-of-00001",
        "label.labels.txt",
    ]
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    assert info["splits"][0]["shardLengths"] == ["6"]
    assert (folder / "label.labels.txt").read_text().split() == CLASSES


def test_an_interrupted_run_continues(tars, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)
    arguments = ["imagenet2012", "--skip-hash", "--workers=1", f"--data-dir={tmp_path}"]
    arguments.append(f"--train={tars[0]}")
    written, write = [], shards._write_images

    def stop_at_the_second(path, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, *rest)

    monkeypatch.setattr(shards, "_write_images", stop_at_the_second)
    assert run(*arguments) == 130
    assert not (tmp_path / "imagenet2012" / "5.1.0").exists()
    first = written[0].stat().st_mtime_ns
    assert run(*arguments, "--max-size=20") == 2
    assert "was begun with other settings or images" in capsys.readouterr().err
    monkeypatch.setattr(shards, "_write_images", write)
    assert run(*arguments) == 0
    final = tmp_path / "imagenet2012" / "5.1.0" / written[0].name
    assert final.stat().st_mtime_ns == first
    assert len(sources.load("imagenet2012", "train", str(tmp_path))) == 9


def test_tars_are_checked_before_hours_are_spent(tars, tmp_path, capsys, monkeypatch):
    arguments = ["imagenet2012", f"--data-dir={tmp_path}", f"--val={tars[1]}"]
    assert run(*arguments) == 2
    assert "published validation tar has 6,744,924,160: the download is incomplete" in (
        capsys.readouterr().err
    )
    size = tars[1].stat().st_size
    monkeypatch.setitem(ilsvrc.TARS, "validation", (size, "0" * 32, 6))
    assert run(*arguments) == 2
    assert "it is damaged" in capsys.readouterr().err


def test_wrong_files(tars, tmp_path, capsys):
    arguments = ["imagenet2012", "--skip-hash", f"--data-dir={tmp_path}"]
    assert run(*arguments) == 2
    assert "Nothing to do" in capsys.readouterr().err
    assert run(*arguments, f"--train={tmp_path / 'none.tar'}") == 2
    assert "There is no file" in capsys.readouterr().err
    assert run(*arguments, f"--train={tars[1]}") == 2
    assert "Is --train the right file?" in capsys.readouterr().err
    assert run(*arguments, f"--val={tars[0]}") == 2
    assert "Is --val the right file?" in capsys.readouterr().err
    assert run(*arguments, f"--val={JPEGS[0]}") == 2
    assert "not an uncompressed tar" in capsys.readouterr().err


def test_a_tar_that_is_cut_off(tars, tmp_path):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tars[0].read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"cut\.tar is damaged|cut\.tar is not"):
        ilsvrc.train_items(cut, CLASSES)


def test_max_size():
    original = JPEGS[0].read_bytes()
    smaller = shards.standard_image(original, max_size=64)
    height, width = np.asarray(Image.open(io.BytesIO(smaller))).shape[:2]
    assert min(height, width) == 64
    assert len(smaller) < len(original) / 4
    assert shards.standard_image(original, max_size=2000) is original
    tall = encode(picture(300, 30))
    assert shards.standard_image(tall, max_size=64) is tall
    assert shards.standard_image(PNG) is PNG


def test_folder(image_dir, tmp_path):
    (image_dir / "train" / "cat" / "png.png").write_bytes(PNG)
    data_dir = tmp_path / "data"
    assert run("folder", image_dir, "--name=pets", f"--data-dir={data_dir}", "--workers=1") == 0
    train = sources.load("pets", "train", str(data_dir))
    assert (len(train), train.class_names) == (13, ("cat", "dog"))
    assert PNG in [train.examples[i]["image"] for i in range(13)]
    assert len(sources.load("pets", "validation", str(data_dir))) == 4


def test_a_broken_image_is_named(image_dir, tmp_path, capsys):
    bad = image_dir / "train" / "cat" / "bad.png"
    bad.write_bytes(b"nonsense")
    arguments = ["folder", image_dir, "--name=pets", f"--data-dir={tmp_path}", "--workers=1"]
    assert run(*arguments, "--max-size=8") == 2
    assert f"train/cat/bad.png in {bad}: not a readable image" in capsys.readouterr().err


def test_pipes_are_named_and_other_kinds_of_images_are_kept(image_dir, tmp_path, capsys):
    wide = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    np.save(image_dir / "val/cat/wide.npy", wide)
    arguments = ["folder", image_dir, "--name=pets", f"--data-dir={tmp_path}", "--workers=1"]
    assert run(*arguments, "--max-size=10") == 2
    assert "wide.npy: only images of 8 bits can be reduced: leave out" in capsys.readouterr().err
    (image_dir / "val/cat/wide.npy").rename(image_dir / "train/cat/a.npy")
    os.mkfifo(image_dir / "train/cat/pipe.jpg")
    arguments[3] = f"--data-dir={tmp_path}/again"
    assert run(*arguments) == 2
    assert "pipe.jpg: it is not a regular file" in capsys.readouterr().err
    (image_dir / "train/cat/pipe.jpg").unlink()
    arguments[3] = f"--data-dir={tmp_path}/last"
    assert run(*arguments) == 0
    source = sources.load("pets", "train", f"{tmp_path}/last")
    stored = [source.examples[i]["image"] for i in range(len(source))]
    (kept,) = [decoding.decode(image) for image in stored if image[:6] == b"\x93NUMPY"]
    np.testing.assert_array_equal(kept, wide)


def test_shards_by_several_processes(image_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 3_000)
    assert run("folder", image_dir, "--name=pets", f"--data-dir={tmp_path}", "--workers=2") == 0
    assert len(list((tmp_path / "pets" / "1.0.0").glob("pets-train.array_record-*"))) > 1
    assert len(sources.load("pets", "train", str(tmp_path))) == 12


def test_convert(tiny, tmp_path):
    old = as_tfrecord(tiny / "tiny" / "1.0.0", tmp_path / "old" / "tiny" / "1.0.0")
    assert run("convert", old, f"--data-dir={tmp_path / 'new'}") == 0
    converted = sources.load("tiny", "train", str(tmp_path / "new"))
    original = sources.load("tiny", "train", str(tiny))
    assert [converted.examples[i] for i in range(40)] == [original.examples[i] for i in range(40)]


def test_convert_mistakes(tiny, tmp_path, capsys):
    assert run("convert", tmp_path, f"--data-dir={tmp_path}") == 2
    assert "is not a prepared data set" in capsys.readouterr().err
    assert run("convert", tiny / "tiny" / "1.0.0", f"--data-dir={tmp_path}") == 2
    assert "stored as array_record" in capsys.readouterr().err
    old = as_tfrecord(tiny / "tiny" / "1.0.0", tmp_path / "old" / "tiny" / "1.0.0")
    shard = old / "tiny-train.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("convert", old, f"--data-dir={tmp_path / 'new'}") == 2
    assert "is cut off" in capsys.readouterr().err


def test_tfds_says_what_it_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert run("tfds", "mnist", f"--data-dir={tmp_path}") == 2
    assert "pip install -r requirements-prepare.txt" in capsys.readouterr().err


def test_tfds_prepares_array_records(tmp_path, monkeypatch):
    calls = {}

    class Builder:
        data_path = tmp_path / "things" / "1.0.0"

        def download_and_prepare(self):
            calls["prepared"] = True

    monkeypatch.setitem(sys.modules, "tensorflow", object())
    monkeypatch.setattr(
        tfds, "builder", lambda name, **kw: calls.update(kw, name=name) or Builder()
    )
    assert run("tfds", "things", f"--data-dir={tmp_path}") == 0
    assert calls["file_format"] == "array_record"
    assert calls["prepared"]


def test_crc32c():
    # RFC 3720: the CRC32C of 32 zeros is 8A9136AA, which TFRecord rotates and adds a constant to.
    crc = 0x8A9136AA
    assert tfrecord.masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_file_that_is_not_a_tfrecord_is_refused(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(JPEGS[0].read_bytes())
    with pytest.raises(DataError, match="not a TFRecord"):
        list(tfrecord.read(path))


def test_a_folder_without_validation_images_has_no_validation_split(tmp_path, capsys):
    """Its test images must not be stored twice, as validation and as test."""
    for split, colour in (("train", 10), ("test", 200)):
        for name in ("a", "b"):
            path = tmp_path / "in" / split / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(path)
    arguments = ["folder", str(tmp_path / "in"), "--name=mine", "--workers=1"]
    assert run(*arguments, f"--data-dir={tmp_path}") == 0
    assert "has no validation split: evaluate with --config.data.eval_split=test" in (
        " ".join(capsys.readouterr().err.split())
    )
    info = json.loads((tmp_path / "mine" / "1.0.0" / "dataset_info.json").read_text())
    assert sorted(split["name"] for split in info["splits"]) == ["test", "train"]


@pytest.mark.parametrize("flag", ["--max-size=-1", "--workers=0", "--max-size=x"])
def test_numbers_that_mean_nothing_are_refused(flag, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("folder", str(tmp_path), "--name=mine", flag)
    assert ended.value.code == 2
    assert "must be a whole number above 0" in capsys.readouterr().err
