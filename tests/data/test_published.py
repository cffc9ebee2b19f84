"""Data sets from archives in the layout of their authors, from a server on this machine."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from typing import ClassVar

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from densenet_jax.data import prepare
from densenet_jax.data.preparing import download, published
from densenet_jax.data.preparing.download import Remote
from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import DataError

from .conftest import encode, picture

RNG = np.random.default_rng(0)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `cut`: the connection ends after so many bytes, once; `ranges`: or not."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str | None]]
    cut, ranges = 0, True

    def do_GET(self):
        kind, data = type(self), self.files[self.path.rpartition("/")[2]]
        kind.asked.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if kind.ranges else 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        self.wfile.write(rest[: kind.cut] if kind.cut else rest)
        kind.cut = 0

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"files": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        handler.address = f"http://127.0.0.1:{found.server_port}"
        yield handler
        found.shutdown()


def remote(server, name, data, size=True):
    server.files[name] = data
    digest = hashlib.sha256(data).hexdigest()
    return Remote(f"{server.address}/x/{name}", digest, len(data) if size else None)


def run(*arguments):
    return prepare.main([str(a) for a in arguments])


def tar(files, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def cifar(labels):
    """Returns random images [N, 32, 32, 3], labels [N, L], and CIFAR's bytes of them."""
    images = RNG.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return images, np.concatenate([labels.astype(np.uint8), planes], 1).tobytes()


def idx(array):
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.tobytes())


def with_archives(monkeypatch, server, name, files):
    row = published.TABLE[name]
    archives = tuple(remote(server, old.name, files[old.name]) for old in row.archives)
    monkeypatch.setitem(published.TABLE, name, dataclasses.replace(row, archives=archives))


def examples(source):
    return [source.examples[i] for i in range(len(source))]


def images_of(source):
    colour = cv2.IMREAD_UNCHANGED
    arrays = [cv2.imdecode(np.frombuffer(e["image"], np.uint8), colour) for e in examples(source)]
    return np.stack([a[..., ::-1] if a.ndim == 3 else a[..., None] for a in arrays])


CIFAR = {
    "cifar10": (
        "cifar-10-batches-bin",
        [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"],
        {"batches.meta.txt": 10},
    ),
    "cifar100": (
        "cifar-100-binary",
        ["train.bin", "test.bin"],
        {"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
    ),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar(tmp_path, monkeypatch, server, capsys, name):
    folder, files, names = CIFAR[name]
    wanted, members = {"train": [], "test": []}, {}
    for file in files:
        labels = np.stack([RNG.integers(0, count, 4) for count in names.values()], 1)
        images, members[f"{folder}/{file}"] = cifar(labels)
        wanted["test" if "test" in file else "train"].append((images, labels[:, -1]))
    for file, count in names.items():
        members[f"{folder}/{file}"] = "\n".join(f"class{i}" for i in range(count)).encode()
    archive = tar(members)
    row = published.TABLE[name]
    with_archives(monkeypatch, server, name, {row.archives[0].name: archive})
    server.cut = len(archive) // 2
    assert run(name, "--download", f"--data-dir={tmp_path}") == 2
    assert "try again" in capsys.readouterr().err
    assert run(name, "--download", f"--data-dir={tmp_path}") == 0
    assert server.asked == [None, f"bytes={len(archive) // 2}-"]
    for split, parts in wanted.items():
        images, labels = map(np.concatenate, zip(*parts, strict=True))
        source = by_name.load(name, split, str(tmp_path))
        np.testing.assert_array_equal(images_of(source), images)
        assert [e["label"] for e in examples(source)] == labels.tolist()
        assert source.class_names[1] == "class1"


def test_mnist_in_its_own_format_and_svhn_in_matlabs(tmp_path, monkeypatch, server):
    digits, labels = (
        RNG.integers(0, 256, (5, 28, 28), np.uint8),
        np.array([3, 0, 9, 1, 5], np.uint8),
    )
    files = {}
    for part in ("train", "t10k"):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(digits)
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
    with_archives(monkeypatch, server, "fashion_mnist", files)
    assert run("fashion_mnist", "--download", f"--data-dir={tmp_path}") == 0
    source = by_name.load("fashion_mnist", "test", str(tmp_path))
    np.testing.assert_array_equal(images_of(source)[..., 0], digits)
    assert source.class_names[9] == "Ankle boot"
    houses, out = RNG.integers(0, 256, (32, 32, 3, 5), np.uint8), io.BytesIO()
    savemat(out, {"X": houses, "y": np.array([[10], [1], [2], [9], [10]])}, do_compression=True)
    files = dict.fromkeys(("train_32x32.mat", "test_32x32.mat"), out.getvalue())
    with_archives(monkeypatch, server, "svhn_cropped", files)
    assert run("svhn", "--download", f"--data-dir={tmp_path}") == 0
    source = by_name.load("svhn_cropped", "train", str(tmp_path))
    np.testing.assert_array_equal(images_of(source), houses.transpose(3, 0, 1, 2))
    assert [e["label"] for e in examples(source)] == [0, 1, 2, 9, 0]


def test_without_a_download_the_file_is_asked_for(tmp_path, capsys):
    assert run("mnist", f"--data-dir={tmp_path}") == 2
    said = capsys.readouterr().err
    assert "pass --download, or download it yourself from https://storage" in said
    with pytest.raises(DataError, match=r"prepare cifar10 --download"):
        by_name.load("cifar10", "train", str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: dataclasses.replace(r, digest="0" * 64), "another file. Remove it"),
        (lambda r: dataclasses.replace(r, digest="0" * 32), "has the md5"),
        (lambda r: dataclasses.replace(r, size=r.size - 1), "it has more than the"),
        (lambda r: dataclasses.replace(r, size=r.size + 1), "the connection ended after"),
        (
            lambda r: dataclasses.replace(r, url="http://127.0.0.1:9/a"),
            "download it yourself to",
        ),
        (lambda r: dataclasses.replace(r, url="file:///etc/passwd"), "only http and https"),
        (lambda r: dataclasses.replace(r, url=f"{r.url}/%2e%2e"), "names no file"),
    ],
)
def test_what_is_not_the_file(tmp_path, server, change, message):
    wrong = change(remote(server, "a", b"x" * 1000))
    with pytest.raises(DataError, match=message):
        download.fetch(wrong, tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_server_that_sends_everything_again(tmp_path, server):
    found = remote(server, "a", bytes(range(250)) * 9, size=False)
    server.ranges = False
    (tmp_path / "a.part").write_bytes(b"beginning of another file")
    arrived = []
    path = download.fetch(found, tmp_path, arrived.append)
    assert path.read_bytes() == server.files["a"]
    assert sum(arrived) == path.stat().st_size
    damaged = tmp_path / "a"
    damaged.write_bytes(b"")
    with pytest.raises(DataError, match=r"Remove it, and download it again"):
        download.fetch(found, tmp_path)


def test_a_finished_download_that_was_not_renamed(tmp_path, server):
    found = remote(server, "a", b"x" * 1000, size=False)
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    assert download.fetch(found, tmp_path).read_bytes() == server.files["a"]
    assert server.asked == ["bytes=1000-", None]


def test_a_connection_that_breaks_is_no_full_disk(tmp_path, server, monkeypatch):
    def broken(*_, **__):
        raise ConnectionResetError(104, "Connection reset by peer")

    found = remote(server, "a", b"x")
    monkeypatch.setattr(download.urllib.request, "urlopen", broken)
    with pytest.raises(DataError, match=r"reset by peer\); try again, .* download it yourself to"):
        download.fetch(found, tmp_path)


def folders(prefix):
    return {f"{prefix}{c}/{i}.png": encode(picture(8, 8, i), "PNG") for c in "ab" for i in range(9)}


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("make", [zipped, tar, functools.partial(tar, mode="w")])
def test_an_archive_of_folders(tmp_path, server, make):
    found = remote(server, "flowers", make(folders("flowers/jpg/")))
    words = ("archive", found.url, f"--sha256={found.digest}", "--name=flowers")
    assert run(*words, f"--data-dir={tmp_path}", "--holdout=0.3", "--workers=1") == 0
    both = [by_name.load("flowers", split, str(tmp_path)) for split in ("train", "validation")]
    assert sum(map(len, both)) == 18
    assert both[0].class_names == ("a", "b")


@pytest.mark.parametrize("make", [zipped, tar])
def test_an_archive_that_leaves_its_folder(tmp_path, capsys, make):
    path = tmp_path / "evil"
    path.write_bytes(make({"../../out.txt": b"x", **folders("")}))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    target = tmp_path / "deep" / "data"
    words = ("archive", path, f"--md5={digest}", "--name=evil", "--workers=1")
    code = run(*words, f"--data-dir={target}")
    outside = [p for p in tmp_path.rglob("out.txt") if "downloads" not in p.parts]
    assert outside == []
    if make is tar:
        assert code == 2
        assert "cannot be unpacked" in capsys.readouterr().err


# With names: archives hold the time, and the processes of a test run must name a test alike.
@pytest.mark.parametrize(
    "content", [b"no archive", tar({"a.txt": b"x"}), zipped({})], ids=["none", "tar", "zip"]
)
def test_an_archive_of_other_content(tmp_path, capsys, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    for digest in (hashlib.md5(content).hexdigest(), "0" * 32):
        words = ("archive", path, f"--md5={digest}", "--name=x", f"--data-dir={tmp_path}")
        assert run(*words) == 2
        assert str(tmp_path) in capsys.readouterr().err
