"""A file is complete or as it was before, and an error names it."""

import errno
import os

import pytest

from densenet_jax import atomic_files


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    atomic_files.write(path, "é")
    atomic_files.write(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_files.write(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_files, "flush", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        atomic_files.write(path, "new")
    assert (caught.value.filename, caught.value.errno) == (str(path), errno.ENOSPC)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    def write_half():
        with atomic_files.replacing(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert os.listdir(tmp_path) == []


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with atomic_files.replacing(path) as later:
        later.write(b"later")
        atomic_files.write(path, "earlier, and longer")
        assert path.read_text() == "earlier, and longer"
    assert path.read_text() == "later"
    assert os.listdir(tmp_path) == ["file"]
