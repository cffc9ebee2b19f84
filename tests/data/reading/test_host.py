"""Decoding and cropping: every kind of file, agreement with torchvision's crops, hostile input."""

import io
import resource
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from densenet_jax.data.reading import decoding, host
from densenet_jax.data.reading.decoding import ImageError, KindError

from ..conftest import GOLDEN, JPEGS, encode, picture


def draws(seed=0):
    return np.random.default_rng(seed).random((10, 4))


def mean_error(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_crop_is_torchvisions(interpolation):
    golden = np.load(GOLDEN / "eval_preprocess.npz")
    for path in JPEGS:
        got = host.eval_crop(
            path.read_bytes(),
            image_size=224,
            channels=3,
            crop_fraction=0.875,
            interpolation=interpolation,
        )
        difference = np.abs(got.astype(int) - golden[f"{path.name}/{interpolation}"])
        assert (difference <= 1).mean() >= 0.999


def test_the_fast_decoder_agrees_with_pillow():
    for path in JPEGS:
        data = path.read_bytes()
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert mean_error(decoding.decode(data), expected) < 0.1
        assert decoding.dimensions(data) == expected.shape[:2]


def test_simplejpeg_gives_the_pixels_of_opencv():
    for path in JPEGS:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        expected = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        np.testing.assert_array_equal(decoding.decode(data.tobytes()), expected)


RGB = picture()
GREY = picture(channels=1)


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (encode(RGB, "PNG"), RGB, 0),
        (encode(RGB, "WEBP", lossless=True), RGB, 0),
        (encode(RGB, "JPEG", quality=95), RGB, 4),
        (encode(RGB, "JPEG", quality=95, progressive=True), RGB, 4),
        (encode(GREY, "JPEG", quality=95), np.stack([GREY] * 3, -1), 4),
        (encode(GREY, "PNG"), np.stack([GREY] * 3, -1), 0),
        (encode(np.dstack([RGB, GREY]), "PNG"), RGB, 0),  # alpha is dropped
        (encode(RGB, "BMP"), RGB, 0),
    ],
    ids=["png", "webp", "jpeg", "progressive", "grey", "grey png", "alpha", "bmp"],
)
def test_kinds_of_files(data, expected, tolerance):
    got = host.decode(data)
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert mean_error(got, expected) <= tolerance
    assert host.decode(data, channels=1).shape == (*expected.shape[:2], 1)


def test_cmyk_jpeg():
    out = io.BytesIO()
    Image.fromarray(RGB).convert("CMYK").save(out, "JPEG", quality=95)
    assert decoding.jpeg_header(out.getvalue())[2] == 4
    assert mean_error(host.decode(out.getvalue()), RGB) < 6


def test_palette():
    out = io.BytesIO()
    Image.fromarray(RGB).quantize(256).save(out, "PNG")
    assert mean_error(host.decode(out.getvalue()), RGB) < 12


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = encode(RGB, "JPEG", quality=95, exif=exif)
    assert host.decode(turned).shape == RGB.shape
    assert decoding.dimensions(turned) == RGB.shape[:2]


def test_arrays_pass_through():
    assert host.decode(RGB) is RGB
    np.testing.assert_array_equal(host.decode(GREY), np.stack([GREY] * 3, -1))
    assert host.decode(RGB.astype(np.float64)).dtype == np.float32
    with pytest.raises(ImageError, match="not finite"):
        host.decode(np.full((2, 2, 3), np.nan))
    with pytest.raises(KindError, match="it has 2 channels instead of 3"):
        host.decode(RGB[..., :2])


def test_random_regions_have_the_right_areas_and_shapes():
    regions = [host.random_region(draws(i), 300, 400, (0.2, 0.5)) for i in range(3000)]
    regions = np.array(regions)
    top, left, height, width = regions.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    share = height * width / (300 * 400)
    assert 0.19 < share.min() < 0.21
    assert 0.49 < share.max() < 0.51
    assert abs(share.mean() - 0.35) < 0.01
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35


def test_a_region_of_a_thin_image():
    assert host.random_region(draws(), 10, 1000) == (0, 493, 10, 13)
    assert host.random_resized_crop(np.zeros((1, 700, 3), np.uint8), draws(), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [16, 48, 224])
def test_random_crop_shows_what_pillow_would(size):
    data = JPEGS[0].read_bytes()
    whole = Image.fromarray(host.decode(data))
    for seed in range(5):
        crop = host.random_resized_crop(data, draws(seed), size)
        top, left, h, w = host.random_region(draws(seed), whole.height, whole.width)
        expected = whole.resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)
        )
        assert mean_error(crop, np.asarray(expected)) < 8
    assert host.random_resized_crop(data, draws(), size, channels=1).shape[2] == 1


def test_a_line_is_cropped_without_filling_the_memory():
    line = np.zeros((1, 100_000, 3), np.uint8)
    assert host.center_crop(line, 224, 0.875, "bicubic").shape == (224, 224, 3)


def png_bomb(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def jpeg_bomb(width, height):
    data = bytearray(JPEGS[0].read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("bomb", [png_bomb, jpeg_bomb])
def test_bombs_are_refused_before_decoding(bomb):
    data = bomb(60_000, 60_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for function in (host.decode, decoding.dimensions):
        with pytest.raises(ImageError, match=r"60000 x 60000 pixels|decompression bomb"):
            function(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_header_that_promises_too_much_is_refused():
    with pytest.raises(ImageError, match="12000 x 12000 pixels cannot be in"):
        host.decode(jpeg_bomb(12_000, 12_000))
    plain = encode(np.zeros((3000, 3000, 3), np.uint8), quality=10)
    assert host.decode(plain).shape == (3000, 3000, 3)


def corrupt(data, rng):
    """Returns a file damaged in one of the ways that disks, networks and people cause."""
    data = bytearray(data)
    kind = rng.integers(6)
    if kind == 0:  # flipped bits
        for at in rng.integers(0, len(data), rng.integers(1, 40)):
            data[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(0, len(data)) :]
    elif kind == 2:  # in the headers
        for at in rng.integers(0, min(700, len(data)), 8):
            data[at] = rng.integers(256)
    elif kind == 3:  # zeros, as of a lost block
        at = rng.integers(0, len(data))
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif kind == 4:  # another size
        at = data.find(b"\xff\xc0")
        if at > 0:
            data[at + 5 : at + 9] = rng.integers(0, 256, 4, np.uint8).tobytes()
    else:
        data = bytearray(
            png_bomb(60_000, 60_000) if rng.random() < 0.5 else jpeg_bomb(60_000, 60_000)
        )
    return bytes(data)


def survive(count, seed=0):
    """Decodes damaged files; returns (number refused, seconds, growth of memory in KiB)."""
    rng = np.random.default_rng(seed)
    originals = [path.read_bytes() for path in JPEGS]
    before, start, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), 0
    for i in range(count):
        data = corrupt(originals[i % len(originals)], rng)
        try:
            if i % 2:
                crop = host.random_resized_crop(data, rng.random((10, 4)), 64)
            else:
                crop = host.center_crop(host.decode(data), 64, 0.875, "bilinear")
            assert crop.shape == (64, 64, 3)
        except ImageError:
            refused += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return refused, time.monotonic() - start, grown


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_are_decoded_or_refused():
    refused, _, grown = survive(120)
    assert 30 < refused < 120
    assert grown < 600_000


def test_data_that_are_not_an_image_are_refused():
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"hello", b"\xff\xd8" + b"\xff" * 500):
        for function in (host.decode, decoding.dimensions):
            with pytest.raises(ImageError, match="not a readable image"):
                function(data)


def test_what_evaluation_shows_of_a_wide_image():
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, :20], wide[:, 60:] = 200, 100  # the ends, which a central crop cuts off
    look = {"image_size": 40, "channels": 3, "crop_fraction": 1.0, "interpolation": "bilinear"}
    assert host.eval_crop(wide, **look).max() == 0
    squashed = host.eval_crop(wide, fit="squash", **look)
    expected = Image.fromarray(wide).resize((40, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squashed, expected)
    padded = host.eval_crop(wide, fit="pad", fill=(7.4, 8.0, 9.0), **look)
    assert (padded[:15] == [7, 8, 9]).all()
    assert (padded[25:] == [7, 8, 9]).all()
    whole = Image.fromarray(wide).resize((40, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(padded[15:25], whole)
    tall = host.eval_crop(wide.swapaxes(0, 1), fit="pad", fill=(7.4, 8.0, 9.0), **look)
    np.testing.assert_array_equal(tall, padded.swapaxes(0, 1))
    line = host.eval_crop(np.zeros((1, 5000, 3), np.uint8), fit="pad", **look)
    assert line.shape == (40, 40, 3)


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_training_on_whole_images_shows_what_evaluation_shows(fit):
    image = picture(20, 50, seed=4)
    look = {"image_size": 16, "channels": 3, "fit": fit, "fill": (5.0,)}
    trained = host.train_crop(image, None, random_crop=False, crop_scale=(1.0, 1.0), **look)
    shown = host.eval_crop(image, crop_fraction=0.875, interpolation="bicubic", **look)
    np.testing.assert_array_equal(trained, shown)
