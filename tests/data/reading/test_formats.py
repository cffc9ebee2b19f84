"""Formats beyond 8-bit pictures: 16 bits, floats, many channels, DICOM, EXIF."""

import io
import struct
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from densenet_jax.data.reading import decoding, host, tiff
from densenet_jax.data.reading.limits import ImageError, KindError

from ..conftest import encode, picture

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 65536, (24, 32, 3)).astype(np.uint16)
EVAL = {"image_size": 16, "crop_fraction": 0.875, "interpolation": "bicubic"}


def png(array):
    ordered = array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]]
    return cv2.imencode(".png", ordered)[1].tobytes()


def tif(array, **options):
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_png_of_16_bits_keeps_every_bit():
    np.testing.assert_array_equal(decoding.decode(png(WIDE)), WIDE)
    grey = decoding.decode(png(WIDE[..., 0]), channels=1)
    np.testing.assert_array_equal(grey, WIDE[..., :1])
    np.testing.assert_array_equal(decoding.decode(png(WIDE[..., 0])), np.repeat(grey, 3, -1))
    alpha = np.dstack([WIDE, WIDE[..., 0]])
    np.testing.assert_array_equal(decoding.decode(png(alpha), channels=4), alpha)
    np.testing.assert_array_equal(decoding.decode(png(alpha)), WIDE)
    luma = WIDE.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(decoding.decode(png(WIDE), channels=1)[..., 0] - luma).max() <= 3


def test_rgba_is_four_channels_if_asked_for():
    rgba = RNG.integers(0, 256, (24, 32, 4)).astype(np.uint8)
    np.testing.assert_array_equal(decoding.decode(encode(rgba, "PNG"), channels=4), rgba)
    shown = host.eval_crop(encode(rgba, "PNG"), channels=4, **EVAL | {"image_size": 21})
    # A transparent pixel keeps its colours: the fourth channel is a channel like the others.
    alone = host.eval_crop(encode(rgba[..., :3], "PNG"), channels=3, **EVAL | {"image_size": 21})
    np.testing.assert_array_equal(shown[..., :3], alone)
    with pytest.raises(KindError, match="it has 3 channels instead of 4"):
        decoding.decode(encode(rgba[..., :3], "PNG"), channels=4)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_by_pillow_and_opencv(mode, compression):
    channels = len(Image.new("RGBA" if mode == "RGBA" else "L", (1, 1)).getbands())
    channels = 3 if mode == "RGB" else channels
    dtype = {"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
    array = RNG.integers(0, 250, (24, 32, channels)).astype(dtype)
    data = encode(array.squeeze(), "TIFF", compression=compression)
    got = decoding.decode(data, channels)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, array)
    assert decoding.dimensions(data) == (24, 32)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}]
)
def test_tiff_of_many_bands(dtype, options):
    array = RNG.integers(0, 120, (24, 32, 13)).astype(dtype)
    kept = array if dtype.startswith("u") else array.astype(np.float32)
    options = {"photometric": "minisblack", **options}
    got = decoding.decode(tif(array, planarconfig="contig", **options), channels=13)
    np.testing.assert_array_equal(got, kept)
    planes = tif(np.moveaxis(array, 2, 0), planarconfig="separate", **options)
    np.testing.assert_array_equal(decoding.decode(planes, channels=13), kept)
    assert got.dtype == kept.dtype


def test_tiff_whose_zero_is_white():
    data = tif(WIDE[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(decoding.decode(data, channels=1), 65535 - WIDE[..., :1])


def test_the_first_page_of_a_tiff_is_used_and_said_to_be(caplog, monkeypatch):
    monkeypatch.setattr(tiff, "_noted", False)
    pages = [Image.fromarray(picture(seed=i)) for i in range(3)]
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    for _ in range(2):
        np.testing.assert_array_equal(decoding.decode(out.getvalue()), picture())
    assert [r.message for r in caplog.records] == [
        "A TIFF has several pages: the first page of each file is used."
    ]


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int16", "float16", "float32", ">f8"])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_npy(dtype, channels):
    array = RNG.integers(0, 200, (5, 7, channels)).astype(dtype)
    wanted = array if array.dtype.kind == "u" else array.astype(np.float32)
    for stored in (array, np.asfortranarray(array)):
        got = decoding.decode(npy(stored), channels)
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype.isnative
    assert decoding.dimensions(npy(array)) == (5, 7)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy(np.array([{}])), "it must be"),
        (npy(np.zeros(5)), "it must be"),
        (npy(np.zeros((2, 2, 2000), np.uint8)), "2,000 channels are more than 1,024"),
        (npy(np.zeros((9, 9, 3)))[:-1], "promises 243 numbers and has 242"),
        (npy(np.full((2, 2, 3), np.inf)), "not finite"),
        (b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535, "header of the NumPy file is damaged"),
        (b"\x93NUMPY\1\0\4\0{1:2", "header of the NumPy file is damaged"),
        (b"\x93NUMPY", "header of the NumPy file is damaged"),
    ],
)
def test_npy_that_is_refused(data, says):
    with pytest.raises(ImageError, match=says):
        decoding.decode(data)


def entries(*tags, tail=bytes(100)):
    """Returns a TIFF file with these tags, (number, type, count, value) each."""
    table = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + bytes(4) + tail


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (entries((256, 3, 1, 60000), (257, 3, 1, 60000)), "more than the limit"),
        (entries((256, 3, 1, 8), (257, 3, 1, 8), (277, 3, 1, 5000)), "5000 samples of 1 bits"),
        (
            entries((256, 3, 1, 8), (257, 3, 1, 8), (322, 4, 1, 60000), (323, 4, 1, 60000)),
            "tiles of",
        ),
        (entries(*((1000 + i, 7, 90, 8) for i in range(20))), "longer than the file"),
        (entries((256, 3, 1, 8)), "8 x 0 pixels"),
        (
            entries((256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 0, 0), (322, 3, 0, 0)),
            "cannot identify",
        ),
        (b"II*\0\x08\0\0\0\xff\xff", "65,535 tags"),
        (b"II*\0\xff\xff\xff\xff", "TIFF is damaged"),
    ],
)
def test_tiff_that_is_refused(data, says):
    with pytest.raises(ImageError, match=says):
        decoding.decode(data)


def test_bits_that_no_decoder_knows(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    tags = (256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 17), (277, 3, 1, 1)
    with pytest.raises(ImageError, match=r'1 samples of 17 bits needs tifffile: pip install "dens'):
        decoding.decode(entries(*tags))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_turns_photographs_upright_if_asked_to(kind, orientation):
    shown = picture(24, 32, seed=3)
    # What a camera stores is what `exif_transpose` turns back.
    stored = Image.fromarray(shown)
    stored.getexif()[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)
    stored = ImageOps.exif_transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    data = encode(np.asarray(stored), kind, exif=exif, **options)
    got = decoding.decode(data, exif=True)
    assert got.shape == shown.shape
    assert np.abs(got.astype(int) - shown).mean() < (3 if kind == "JPEG" else 0.01)
    assert decoding.decode(data).shape == np.asarray(stored).shape
    draws = np.tile([1.0, 0.5, 0.0, 0.0], (10, 1))
    crop = host.random_resized_crop(data, draws, 12, (1.0, 1.0), exif=True)
    expected = host.random_resized_crop(shown, draws, 12, (1.0, 1.0))
    assert np.abs(crop.astype(int) - expected).mean() < 6


def test_dicom():
    pydicom = pytest.importorskip("pydicom")
    stored = RNG.integers(0, 4096, (24, 32)).astype(np.uint16)

    def dicom(**tags):
        file = pydicom.Dataset()
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        file.Rows, file.Columns, file.SamplesPerPixel = 24, 32, 1
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
        file.PixelRepresentation, file.PhotometricInterpretation = 0, "MONOCHROME2"
        file.PixelData = stored.tobytes()
        for key, value in tags.items():
            setattr(file, key, value)
        out = io.BytesIO()
        pydicom.dcmwrite(out, file, enforce_file_format=True)
        return out.getvalue()

    whole = decoding.decode(dicom(), channels=1)[..., 0]
    np.testing.assert_array_equal(whole, np.round(stored / 4095 * 65535))
    np.testing.assert_array_equal(
        decoding.decode(dicom(PhotometricInterpretation="MONOCHROME1"), channels=1)[..., 0],
        np.round((1 - stored / 4095) * 65535),
    )
    # A window of 400 about 40 in Hounsfield units shows -160 (black) to 239 (white).
    window = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -1024}
    units = stored.astype(float) - 1024
    np.testing.assert_array_equal(
        decoding.decode(dicom(**window), channels=1)[..., 0],
        np.round(((units + 160) / 399).clip(0, 1) * 65535),
    )
    assert decoding.dimensions(dicom()) == (24, 32)
    with pytest.raises(ImageError, match="65535 x 65535 pixels"):
        decoding.decode(dicom(Rows=65535, Columns=65535))
    with pytest.raises(ImageError, match="DICOM file is damaged"):
        decoding.decode(dicom()[:600])


def test_dicom_without_pydicom(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r'needs pydicom: pip install "densenet-jax\[dicom\]"'):
        decoding.decode(bytes(128) + b"DICM" + bytes(100))


def test_crops_keep_type_and_channels():
    for channels in (1, 2, 3, 5, 13):
        for dtype in ("uint8", "uint16", "float32"):
            image = RNG.integers(0, 256, (40, 56, channels)).astype(dtype)
            crop = host.eval_crop(image, channels=channels, dtype=dtype, **EVAL)
            assert (crop.shape, crop.dtype) == ((16, 16, channels), np.dtype(dtype))
            alone = host.eval_crop(image[..., :1], channels=1, dtype=dtype, **EVAL)
            np.testing.assert_allclose(crop[..., :1], alone, atol=1)
            draws = np.random.default_rng(1).random((10, 4))
            out = np.empty((8, 8, channels), dtype)
            some = host.random_resized_crop(image, draws, 8, channels=channels, out=out)
            alone = host.random_resized_crop(image[..., :1], draws, 8, channels=1)
            assert some.dtype == np.dtype(dtype)
            np.testing.assert_allclose(some[..., :1], alone, atol=1)


def test_sixteen_bits_are_resized_as_exactly_as_eight():
    eight = picture(60, 80, seed=2)
    wide = host.eval_crop(eight.astype(np.uint16) * 257, channels=3, dtype="uint16", **EVAL)
    narrow = host.eval_crop(eight, channels=3, **EVAL)
    assert np.abs(wide / 257 - narrow).max() <= 1.01  # Pillow rounds 8 bits after each direction


def test_images_of_another_type_are_refused_or_narrowed(caplog, monkeypatch):
    monkeypatch.setattr(host, "_warned", False)
    with pytest.raises(KindError, match="it has uint16 pixels instead of uint8"):
        host.eval_crop(png(WIDE), channels=3, **EVAL)
    with pytest.raises(KindError, match="it has uint8 pixels instead of uint16"):
        host.eval_crop(encode(picture(), "PNG"), channels=3, dtype="uint16", **EVAL)
    narrow = host.eval_crop(png(WIDE), channels=3, narrow=True, **EVAL)
    upper = host.eval_crop((WIDE >> 8).astype(np.uint8), channels=3, **EVAL)
    np.testing.assert_array_equal(narrow, upper)
    assert not caplog.records
    host.eval_crop(png(WIDE // 16), channels=3, narrow=True, **EVAL)
    assert "a sixteenth of their range or less" in caplog.text
