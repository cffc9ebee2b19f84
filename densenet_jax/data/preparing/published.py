"""Small data sets from the archives that their authors publish: CIFAR, MNIST, Fashion-MNIST, SVHN.

Only binary archives are read; CIFAR's archives for Python hold pickled objects, which can run code.
The result has the names, features and versions of TFDS.
"""

import argparse
import dataclasses
import functools
import gzip
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from densenet_jax.data.preparing import building, shards
from densenet_jax.data.preparing.download import Remote, check, fetch
from densenet_jax.data.sources.source import DataError

Features = dict[str, np.ndarray]  # "image": uint8 [N, H, W, C]; numbers [N] by name: "label", ...
Splits = dict[str, Features]
Names = dict[str, list[str]]  # of the classes, by the name of the feature
SHARD = 25_000  # examples


@dataclasses.dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
      archives: its files.
      read: from the paths of these files to the splits, and the names of the classes.
      ids: whether its examples have a name, `train_00001`.
    """

    archives: tuple[Remote, ...]
    read: Callable[[Sequence[pathlib.Path]], tuple[Splits, Names]]
    ids: bool = True


def prepare(options: argparse.Namespace) -> pathlib.Path:
    """Builds a data set of `TABLE` and returns its folder.

    Args:
      options: of the command; `name`, `data_dir` and `download` are used.

    Raises:
      DataError: an archive is missing, damaged or not as its authors published it, or the data set
        cannot be written.
    """
    import tensorflow_datasets as tfds

    row, data_dir = TABLE[options.name], options.data_dir.expanduser()
    builder = tfds.builder(options.name, data_dir=data_dir, file_format="array_record")
    final, folder = building.folders_of(options, options.name, str(builder.version))
    splits, names = row.read(
        _archives(row, data_dir / "downloads" / options.name, options.download)
    )
    infos = []
    for split, features in splits.items():
        records = _records(features, f"{split}_" if row.ids else "")
        count = len(features["image"])
        sizes = [min(SHARD, count - first) for first in range(0, count, SHARD)]
        infos.append(building.write_records(folder, options.name, split, sizes, records))
    for feature, listed in names.items():
        builder.info.features[feature].names = listed
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.write_to_directory(folder)
    building.finish(folder, final)
    for split, features in splits.items():
        building.console.print(f"{split}: {len(features['image']):,} examples")
    return final


def _archives(row: Published, folder: pathlib.Path, download: bool) -> list[pathlib.Path]:
    """Returns the paths of the archives, which are downloaded if that was asked for."""
    if not download:
        for remote in row.archives:
            if not (folder / remote.name).is_file():
                raise DataError(
                    f"There is no file {folder / remote.name}; pass --download, or download it "
                    f"yourself from {remote.url}."
                )
            check(folder / remote.name, remote)
        return [folder / remote.name for remote in row.archives]
    with building.bar("bytes") as progress:
        paths = []
        for remote in row.archives:
            task = progress.add_task(f"downloading {remote.name}", total=remote.size)
            paths.append(fetch(remote, folder, functools.partial(progress.advance, task)))
    return paths


def _records(features: Features, prefix: str) -> Iterator[bytes]:
    """Yields the serialised examples of a split, in the order of the archive."""
    numbers = {name: values for name, values in features.items() if name != "image"}
    for i, image in enumerate(features["image"]):
        # OpenCV stores channels as BGR.
        done, encoded = cv2.imencode(".png", image[..., ::-1])
        assert done
        values: dict[str, bytes | int] = {name: int(of[i]) for name, of in numbers.items()}
        if prefix:
            values["id"] = f"{prefix}{i + 1:05d}".encode()
        yield shards.record({"image": encoded.tobytes(), **values})


def _cifar(
    paths: Sequence[pathlib.Path], files: Mapping[str, Sequence[str]], names: Mapping[str, str]
) -> tuple[Splits, Names]:
    """Reads CIFAR's binary form: for each image its labels, a byte each, and 3 x 32 x 32 bytes.

    Args:
      paths: of the archive.
      files: {split: names of its files}.
      names: {label, in the order of the bytes: the file with the names of its classes}.
    """
    with tarfile.open(paths[0]) as tar:
        members = {pathlib.PurePosixPath(m.name).name: m for m in tar if m.isfile()}

        def read(name: str) -> bytes:
            if name not in members:
                raise DataError(f"{paths[0]} has no file {name}; it is another archive.")
            file = tar.extractfile(members[name])
            assert file is not None
            return file.read()

        listed = {label: read(name).decode().split() for label, name in names.items()}
        splits = {}
        for split, parts in files.items():
            joined = np.frombuffer(b"".join(map(read, parts)), np.uint8)
            rows = joined.reshape(-1, len(names) + 3072)
            images = rows[:, len(names) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits[split] = {"image": images, **{n: rows[:, i] for i, n in enumerate(names)}}
    return splits, listed


def _idx(path: pathlib.Path) -> np.ndarray:
    """Returns the bytes of a file of MNIST's format, [N] or [N, H, W]."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">i4", dimensions, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if not dimensions or values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path} is not in MNIST's format.")
    return values.reshape(shape)


def _mnist(paths: Sequence[pathlib.Path], names: Sequence[str]) -> tuple[Splits, Names]:
    """Reads the images and labels of `train` and `test`, four files."""
    arrays = [_idx(path) for path in paths]
    splits = {
        split: {"image": arrays[i][..., None], "label": arrays[i + 1]}
        for split, i in (("train", 0), ("test", 2))
    }
    return splits, {"label": list(names)}


def _svhn(paths: Sequence[pathlib.Path]) -> tuple[Splits, Names]:
    """Reads SVHN's cropped digits, MATLAB files, in which the digit 0 has the label 10."""
    from scipy.io import loadmat

    splits = {}
    for split, path in zip(("train", "test"), paths, strict=True):
        arrays = loadmat(path, variable_names=("X", "y"))
        images, labels = arrays["X"].transpose(3, 0, 1, 2), arrays["y"].ravel() % 10
        splits[split] = {"image": images, "label": labels}
    return splits, {"label": [str(digit) for digit in range(10)]}


FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_STANFORD = "http://ufldl.stanford.edu/housenumbers"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

# Sizes and SHA-256 are those that TFDS checks.
TABLE = {
    "cifar10": Published(
        (
            Remote(
                f"{_TORONTO}/cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                170_052_171,
            ),
        ),
        functools.partial(
            _cifar,
            files={
                "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
                "test": ["test_batch.bin"],
            },
            names={"label": "batches.meta.txt"},
        ),
    ),
    "cifar100": Published(
        (
            Remote(
                f"{_TORONTO}/cifar-100-binary.tar.gz",
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                168_513_733,
            ),
        ),
        functools.partial(
            _cifar,
            files={"train": ["train.bin"], "test": ["test.bin"]},
            names={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        ),
    ),
    "mnist": Published(
        (
            Remote(
                f"{_MNIST}/train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                9_912_422,
            ),
            Remote(
                f"{_MNIST}/train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                28_881,
            ),
            Remote(
                f"{_MNIST}/t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                1_648_877,
            ),
            Remote(
                f"{_MNIST}/t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                4_542,
            ),
        ),
        functools.partial(_mnist, names=[str(digit) for digit in range(10)]),
        ids=False,
    ),
    "fashion_mnist": Published(
        (
            Remote(
                f"{_ZALANDO}/train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                26_421_880,
            ),
            Remote(
                f"{_ZALANDO}/train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                29_515,
            ),
            Remote(
                f"{_ZALANDO}/t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                4_422_102,
            ),
            Remote(
                f"{_ZALANDO}/t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                5_148,
            ),
        ),
        functools.partial(_mnist, names=FASHION),
        ids=False,
    ),
    "svhn_cropped": Published(
        (
            Remote(
                f"{_STANFORD}/train_32x32.mat",
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                182_040_794,
            ),
            Remote(
                f"{_STANFORD}/test_32x32.mat",
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                64_275_384,
            ),
        ),
        _svhn,
    ),
}
