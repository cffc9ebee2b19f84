"""Invalid and malicious zip archives, the container of PyTorch's, Keras's and NumPy's files."""

import struct
import zipfile
import zlib

import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.weights.readers import zip_archive
from tests.weights.torch_writer import tensor, torch_zip
from tests.weights.zip_writer import npy, npz


def patched(data, signature, offset, form, *values):
    """Returns an archive with fields of its first record of a kind replaced."""
    data = bytearray(data)
    struct.pack_into(form, data, data.index(signature) + offset, *values)
    return bytes(data)


GOOD = npz({"x.npy": npy(np.arange(4.0))})
DIRECTORY, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD[:-1], "end of the archive"),
        (GOOD[:60], "end of the archive"),
        (patched(GOOD, DIRECTORY, 0, "<L", 0), "table of contents"),
        (patched(GOOD, DIRECTORY, 8, "<H", 1), "encrypted"),
        (patched(GOOD, DIRECTORY, 10, "<H", 14), "unsupported method"),
        (patched(GOOD, DIRECTORY, 16, "<L", 1234), "damaged"),
        (patched(GOOD, DIRECTORY, 20, "<LL", 1 << 30, 1 << 30), "table of contents"),
        (patched(GOOD, DIRECTORY, 20, "<L", 1), "unsupported method"),
        (patched(GOOD, DIRECTORY, 24, "<L", 0xFFFFFFFF), "table of contents"),
        (patched(GOOD, DIRECTORY, 28, "<H", 60_000), "table of contents"),
        (patched(GOOD, DIRECTORY, 42, "<L", 1 << 30), "cut short"),
        (patched(GOOD, DIRECTORY, 42, "<L", 3), "not where"),
        (patched(GOOD, LOCAL, 26, "<HH", 60_000, 60_000), "table of contents"),
        (patched(GOOD, END, 12, "<L", 1 << 31), "too large or damaged"),
        (patched(GOOD, END, 16, "<L", 1 << 31), "too large or damaged"),
        (npz({}), "zip archive"),
        (npz({"readme.txt": b"", "x.npy": b""}), "zip archive"),
        (npz({"../../x.npy": npy(np.ones(1))}), "illegal name"),
        (npz({"/etc/x.npy": npy(np.ones(1))}), "illegal name"),
        (npz({"x.npy": b""}), "not an array"),
        (npz({"a/data.pkl": b"", "b/data.pkl": b""}), "zip archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_archives_are_refused(refused, content, words):
    refused(content, words)


@pytest.mark.parametrize("size", [1 << 30, 100_000])
def test_deflated_members_that_lie_about_their_size(refused, size):
    """A bomb of 200 MB in 200 KB, which claims to expand to 1 GB or to 100 KB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk = bytes(1 << 20)
    packed = b"".join(deflate.compress(chunk) for _ in range(200)) + deflate.flush()
    content = npz({"x.npy": packed})
    content = patched(content, DIRECTORY, 10, "<H", 8)
    content = patched(content, DIRECTORY, 24, "<L", size)
    refused(content, "memory" if size > 200_000 else "damaged", memory=5e6)


def test_members_that_share_bytes(refused):
    """Zip bombs expand the same bytes many times."""
    good = npz({"a.npy": npy(np.ones(64)), "b.npy": npy(np.ones(64))})
    second = good.index(DIRECTORY, good.index(DIRECTORY) + 4)
    content = bytearray(good)
    struct.pack_into("<L", content, second + 42, 0)
    refused(bytes(content), "overlaps")


def test_repeated_members(refused):
    content = npz({"x.npy": npy(np.ones(1)), "y.npy": npy(np.zeros(1))})
    refused(content.replace(b"y.npy", b"x.npy"), "repeated")


def test_a_table_of_contents_that_is_too_large(refused, monkeypatch):
    monkeypatch.setattr(zip_archive, "MAX_DIRECTORY", 1000)
    refused(npz({f"{i}.npy": b"" for i in range(100)}), "too large")


def test_archives_beyond_four_gigabytes_are_understood(tmp_path):
    """Their sizes are in extra fields; `force_zip64` writes these for small members, too."""
    path = tmp_path / "large.npz"
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(np.arange(4.0)))
    data = path.read_bytes()
    begin = data.index(DIRECTORY)
    size = len(npy(np.arange(4.0)))
    entry = bytearray(data[begin : begin + 46 + len("x.npy")])
    struct.pack_into("<LL", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, 20)
    entry += struct.pack("<HHQQ", 1, 16, size, size)
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, begin + len(entry), 1)
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:begin] + entry + record + locator + end)
    np.testing.assert_array_equal(weights.read(path)["x"], np.arange(4.0))


@pytest.mark.parametrize("cut", range(1, 400, 13))
def test_truncated_archives(refused, cut):
    archive = torch_zip({"x": tensor((24,), count=24)}, {"0": bytes(96)})
    refused(archive[:-cut])
