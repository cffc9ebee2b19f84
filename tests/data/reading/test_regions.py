"""Raw images: regions as rectangles of squares, and batches that are cropped on the device."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densenet_jax.data import prepare
from densenet_jax.data.augment import rectangles
from densenet_jax.data.preparing import shards
from densenet_jax.data.reading import decoding, host, pipeline, regions
from densenet_jax.data.sources import by_name, subsets
from densenet_jax.data.sources.source import DataError, RawImage

from ..conftest import encode, picture

SIDE = 32  # of the raw squares
OPTIONS = {"batch_size": 4, "image_size": 24, "seed": 3}
DRAWS = np.random.default_rng(0).random((10, 4))


def cut(images, boxes, size, interpolation="bicubic"):
    found = rectangles.cut(np.asarray(images), boxes, size=size, interpolation=interpolation)
    return np.asarray(found).astype(int)


def squared(image, side=SIDE):
    """Returns an array [H, W, 3] as `prepare --raw` stores it."""
    found = shards.raw_image(encode(image, "PNG"), side)
    return RawImage(found["image"], side, found["height"], found["width"])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set `squares`, prepared with --raw: 12 training and 5 validation images of 2 sizes."""
    root = tmp_path_factory.mktemp("raw")
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count - label * (split == "val")):
                image = picture(60, 40 + 50 * label, seed=10 * label + i)
                (folder / f"{i}.png").write_bytes(encode(image, "PNG"))
    arguments = ["--name=squares", f"--raw={SIDE}", "--workers=1", f"--data-dir={root}"]
    assert prepare.main(["folder", str(root / "images"), *arguments]) == 0
    return root


@pytest.fixture(scope="module")
def train(data_dir):
    return by_name.load("squares", "train", str(data_dir))


@pytest.fixture(scope="module")
def validation(data_dir):
    return by_name.load("squares", "validation", str(data_dir))


@pytest.fixture(scope="module")
def mesh():
    return NamedSharding(Mesh(jax.devices()[:2], "data"), PartitionSpec("data"))


def on_host(reader, count=None):
    with iter(reader) as stream:
        batches = [next(stream) for _ in range(count)] if count else list(stream)
    return batches


# --- boxes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_whole_squares_and_aligned_boxes_are_unchanged(interpolation):
    images = np.random.default_rng(1).integers(0, 256, (2, 12, 12, 3), np.uint8)
    boxes = np.stack([regions.box(regions.WHOLE, 12)] * 2)
    np.testing.assert_array_equal(cut(images, boxes, 12, interpolation), images)
    boxes = np.float32([[2, 3, 8, 8], [4, 0, 8, 8]])
    expected = [images[0, 2:10, 3:11], images[1, 4:12, :8]]
    np.testing.assert_array_equal(cut(images, boxes, 8, interpolation), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_box_between_pixels_shows_its_part_of_a_ramp(interpolation):
    """Enlarging, both filters reproduce straight lines: every pixel is known to the rounding."""
    down, right = np.mgrid[:40, :40]
    image = (20 + 3 * down + 2 * right).astype(np.uint8)[..., None]
    top, left, height, width = 10.25, 7.5, 14.5, 9.75
    y = top + (np.arange(16) + 0.5) * height / 16 - 0.5
    x = left + (np.arange(16) + 0.5) * width / 16 - 0.5
    found = cut([image], np.float32([[top, left, height, width]]), 16, interpolation)
    np.testing.assert_allclose(found[0, ..., 0], 20 + 3 * y[:, None] + 2 * x, atol=0.51)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_device_has_the_filters_of_the_host(interpolation):
    # Without black and white: Pillow clips what overshoots between its two passes.
    image = np.random.default_rng(2).integers(80, 176, (SIDE, SIDE, 3), np.uint8)
    for part in ((0.1, 0.2, 0.35, 0.6), (0.0, 0.5, 1.0, 0.5)):  # enlarged and reduced; an edge
        for size in (12, 24):
            expected = host.resize(image, size, size, interpolation, part).astype(int)
            found = cut([image], regions.box(part, SIDE)[None], size, interpolation)
            assert abs(found[0] - expected).max() <= 1  # Pillow rounds between its two passes


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (121, 120)])
def test_crops_show_what_those_of_the_host_show(height, width):
    """On a smooth picture both agree to 3 levels; a shift by one pixel makes 4 times the mean."""
    image = picture(height, width, seed=4)
    square = squared(image, 64)
    look = {"image_size": 48, "channels": 3}
    crops = (
        lambda i: host.eval_crop(i, crop_fraction=0.8, interpolation="bicubic", **look),
        lambda i: host.train_crop(i, DRAWS, random_crop=True, crop_scale=(0.3, 1), **look),
        lambda i: host.train_crop(i, None, random_crop=False, crop_scale=(1, 1), **look),
        lambda i: host.eval_crop(
            i, crop_fraction=0.8, interpolation="bicubic", fit="squash", **look
        ),
    )
    for crop in crops:
        expected, found = crop(image).astype(int), crop(square).astype(int)
        error = abs(expected - found)
        shifted = min(abs(np.roll(expected, 1, axis) - found).mean() for axis in (0, 1))
        assert error.max() <= 3
        assert error.mean() * 4 < shifted


# --- batches ------------------------------------------------------------------------------------


def test_batches_are_squares_with_boxes_that_the_mesh_cuts_out(train, mesh):
    reader = pipeline.train_batches(train, later_sizes=((1, 16),), **OPTIONS)
    squares = on_host(reader, 2)
    assert squares[0]["image"].shape == (4, SIDE, SIDE, 3)
    assert squares[0]["box"].shape == (4, 4)
    with pipeline.to_mesh(reader, mesh) as stream:
        for square, size in zip(squares, (24, 16), strict=True):
            batch = next(stream)
            assert set(batch) == {"image", "label", "bad"}
            assert batch["image"].dtype == np.uint8
            assert batch["image"].sharding.is_equivalent_to(mesh, 4)
            expected = cut(square["image"], square["box"], size, "bilinear")
            np.testing.assert_array_equal(batch["image"], expected)


def test_batches_depend_on_seed_and_position_alone(train):
    expected = on_host(pipeline.train_batches(train, **OPTIONS), 2)[1]
    (resumed,) = on_host(pipeline.train_batches(train, start=1, **OPTIONS), 1)
    halves = [
        pipeline.train_batches(train, process_index=k, process_count=2, **OPTIONS).batches[1]
        for k in (0, 1)
    ]
    # What a worker process does, without starting one or using its shared memory.
    batches = pipeline.train_batches(train, workers=1, **OPTIONS).batches
    by_worker = pickle.loads(pickle.dumps(dataclasses.replace(batches, shared=False)))[1]
    for key, array in expected.items():
        joined = np.concatenate([half[key] for half in halves])
        for found in (resumed, by_worker, {key: joined}):
            np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_evaluation_shows_each_image_once_as_reports_and_memory_do(validation, mesh):
    look = {"image_size": 24, "crop_fraction": 0.8, "interpolation": "bicubic"}
    reader = pipeline.eval_batches(validation, batch_size=4, **look)
    with pipeline.to_mesh(reader, mesh) as stream:
        batches = [jax.device_get(batch) for batch in stream]
    assert [batch["mask"].sum() for batch in batches] == [4, 1]
    images = np.concatenate([batch["image"] for batch in batches])[:5].astype(int)
    held = pipeline.in_memory(validation, **look)
    assert not held.raw_side
    for number, image in enumerate(images):
        shown = host.eval_crop(validation.examples[number]["image"], channels=3, **look)
        assert abs(image - shown).max() <= 1
        np.testing.assert_array_equal(held.examples.images[number], shown)


def test_a_part_of_the_classes_is_raw_too(train):
    part = subsets.choose(train, ["dog"])
    batch = on_host(pipeline.train_batches(part, **OPTIONS), 1)[0]
    assert part.raw_side == SIDE
    assert batch["box"].shape == (4, 4)
    assert not batch["label"].any()


# --- the data set -------------------------------------------------------------------------------


def test_tfds_reads_what_was_stored(data_dir, train):
    record = tfds.data_source("squares", data_dir=data_dir, split="train")[3]
    image = train.examples[3]["image"]
    np.testing.assert_array_equal(record["image"], decoding.decode(image))
    assert (record["height"], record["width"]) == decoding.dimensions(image)
    assert image.height == 60


def test_a_damaged_record_is_replaced_and_counted(train):
    class Cut:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            example = train.examples[i]
            image = example["image"]
            data = image.data[:-3] if i == 2 else image.data
            return {**example, "image": image._replace(data=data, width=0 if i == 1 else 40)}

    damaged = dataclasses.replace(train, examples=Cut())
    batch = on_host(pipeline.eval_batches(damaged, batch_size=4, image_size=24))[0]
    assert batch["mask"].tolist() == [True, False, False, True]
    with pytest.raises(DataError, match=r"bytes for 32 x 32 pixels of an image of"):
        on_host(pipeline.eval_batches(damaged, batch_size=1, image_size=24, strict=True), 3)


def test_options_that_squares_do_not_have(train, capsys, tmp_path):
    for option, text in (({"fit": "pad"}, "cannot be padded"), ({"exif": True}, "EXIF")):
        for make in (pipeline.train_batches, pipeline.eval_batches):
            with pytest.raises(DataError, match=text):
                make(train, batch_size=4, image_size=24, **option)
        with pytest.raises(DataError, match=text):
            pipeline.in_memory(train, image_size=24, **option)
    with pytest.raises(DataError, match="3 channels instead of 4"):
        on_host(pipeline.train_batches(train, channels=4, **OPTIONS), 1)
    for flags in (["--raw=4"], ["--raw=9999"], ["--raw=32", "--max-size=32"]):
        with pytest.raises(SystemExit):
            prepare.main(["folder", str(tmp_path), "--name=x", *flags])
    assert "not allowed with" in capsys.readouterr().err
