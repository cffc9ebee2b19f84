"""No small file takes much memory or time: limits, and the memory that readers share."""

import io
import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from densenet_jax.data.reading import decoding, files, jpeg, limits
from densenet_jax.data.reading.limits import ImageError

from ..conftest import encode, picture

PHOTO = encode(picture(), "JPEG", quality=90)


def refused(data, says, **options):
    before = time.process_time()
    with pytest.raises(ImageError, match=says):
        decoding.decode(data, **options)
    assert time.process_time() - before < 5


def deceiving(height, width):
    """Returns a JPEG with a marker without length, and with a false header in a comment.

    A reader that gives the marker FF01 a length finds 16 x 16 pixels.
    """
    body = PHOTO[2:]
    at = body.index(b"\xff\xc0") + 5
    body = body[:at] + struct.pack(">HH", height, width) + body[at + 4 :]
    start = b"\xff\xd8\xff\x01\xff\xfe\x00\x64" + bytes(98)
    false = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    comment = bytearray(65533)
    offset = 2 + 2 + 0xFFFE - len(start) - 4
    comment[offset : offset + len(false)] = false
    return start + b"\xff\xfe\xff\xff" + bytes(comment) + body


def test_the_size_that_counts_is_the_decoders():
    assert jpeg.header(deceiving(24, 32)) == (24, 32, 3)
    refused(deceiving(20_000, 20_000), "20000 x 20000 pixels are more than the limit")
    refused(deceiving(12_000, 12_000), "12000 x 12000 pixels cannot be in")


def test_fill_bytes_and_thousands_of_segments_are_refused_quickly():
    fill = b"\xff\xd8" + b"\xff" * (10 << 20) + PHOTO[2:]
    refused(fill, "mostly fill bytes", channels=1)
    segments = b"\xff\xd8" + b"\xff\xe0\0\2" * (2 << 20) + PHOTO[2:]
    refused(segments, "damaged before its first scan", channels=1)
    refused(b"\xff\xd8" + b"\xff" * (10 << 20), "mostly fill bytes")


def test_pillow_sees_no_metadata_of_a_jpeg():
    noted = PHOTO[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 20 + PHOTO[2:]
    assert len(jpeg.without_metadata(noted)) <= len(PHOTO)
    for channels in (1, 3):
        np.testing.assert_array_equal(
            decoding.decode(noted, channels), decoding.decode(PHOTO, channels)
        )


def test_scans_of_a_progressive_jpeg_are_limited():
    out = io.BytesIO()
    Image.new("RGB", (3000, 3000), (9, 90, 200)).save(out, "JPEG", progressive=True, quality=30)
    data = out.getvalue()
    assert decoding.decode(data).shape == (3000, 3000, 3)
    scan = data[data.rfind(b"\xff\xda") : -2]
    refused(
        data[:-2] + scan * 1000 + b"\xff\xd9", r"the JPEG has 10\d\d scans, too many for 9,000,000"
    )
    thumbnail = encode(np.zeros((3000, 3000, 3), np.uint8), "JPEG", comment=scan * 100)
    assert decoding.decode(thumbnail).shape == (3000, 3000, 3)  # one scan, whatever a comment says


def deflated_png(side, bits, colours):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = bytes(1 + side * bits * {0: 1, 2: 3, 6: 4}[colours] // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, colours, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("bits", "colours"), [(8, 2), (16, 0)])
def test_a_small_file_may_not_need_much_memory(bits, colours):
    refused(deflated_png(7000, bits, colours), r"7000 x 7000 pixels need \d+ MB|need 980 MB")


def test_a_chunk_may_not_be_longer_than_its_png():
    data = deflated_png(8, 16, 2)
    assert decoding.decode(data).dtype == np.uint16
    at = data.index(b"IDAT") - 4
    refused(data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :], "damaged or cut off")
    refused(data[:-4], "damaged or cut off")
    text = struct.pack(">I", 5) + b"tEXta\0bcd" + bytes(4)
    assert decoding.decode(data[:33] + text + data[33:]).shape == (8, 8, 3)


def test_a_picture_of_one_colour_is_small_and_welcome():
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(out, "WEBP", lossless=True)
    assert decoding.decode(out.getvalue()).shape == (2000, 2000, 3)
    out = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(out, "WEBP", lossless=True, method=0, quality=0)
    refused(out.getvalue(), "9000 x 9000 pixels (cannot be in|need)")


def test_readers_share_memory_and_never_wait_for_themselves(monkeypatch):
    monkeypatch.setattr(limits, "SMALL", 0)
    monkeypatch.setattr(limits, "TOTAL", 1000)
    most, now, lock = [0], [0], threading.Lock()

    def read(needed):
        for _ in range(20):
            with limits.reading():
                limits.check_memory(needed / 2, 10, "a header")
                limits.check_memory(needed, 10, "an image")
                with lock:
                    now[0] += needed
                    most[0] = max(most[0], now[0])
                time.sleep(0.001)
                with lock:
                    now[0] -= needed

    threads = [threading.Thread(target=read, args=(n,)) for n in (300, 400, 500, 600, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert most[0] <= 1000 or most[0] == 5000  # a large one is read alone
    assert limits._used == 0


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**42)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, says in (
        ("pipe", "not a regular file"),
        ("zero", "not a regular"),
        ("huge", "bytes"),
    ):
        with pytest.raises(ImageError, match=says):
            files.read_file(tmp_path / f"{name}.png")
