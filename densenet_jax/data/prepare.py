"""Prepares data sets for training; each is prepared once.

    python -m densenet_jax.data.prepare imagenet2012 --train=TAR --val=TAR [--raw=256]
    python -m densenet_jax.data.prepare cifar10 --download
    python -m densenet_jax.data.prepare folder DIR --name=NAME [--max-size=320] [--raw=256]
    python -m densenet_jax.data.prepare archive URL --md5=HASH --name=NAME
    python -m densenet_jax.data.prepare convert DATA_DIR/NAME/VERSION --data-dir=NEW_DIR
    python -m densenet_jax.data.prepare tfds NAME

`imagenet2012` builds ImageNet from the two tars of ILSVRC 2012. `cifar10`, `cifar100`, `mnist`,
`fashion_mnist` and `svhn` (TFDS's svhn_cropped) are built from the archives that their authors
publish. `folder` builds a data set from a folder of images (DIR/train/CLASS/*, DIR/val/CLASS/*, or
DIR/CLASS/*), and `archive` from a tar or zip with such a folder, a file or a URL. Downloads go on
where they stopped, and their hashes are checked. `convert` converts a data set that TFDS has
prepared as TFRecord to ArrayRecord. All of these can be stopped and started again; finished shards
are kept. `--raw=256` stores decoded squares of 256 x 256 pixels, which take more space and a tenth
of the processor time to read; ImageNet's is then called imagenet2012_raw256. `tfds` downloads and
prepares a data set of TFDS; only this command needs TensorFlow (requirements-prepare.txt). Train on
the result with `--config.data.name=NAME`.
"""

import argparse
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from densenet_jax import terminal
from densenet_jax.data.preparing import archive, building, converting, ilsvrc, published
from densenet_jax.data.preparing.shards import Item
from densenet_jax.data.sources import folders
from densenet_jax.data.sources.files import Files
from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.tfds import MAX_RAW_SIDE

VERSION = "5.1.0"  # of TFDS's imagenet2012, which has the same layout


def imagenet2012(options: argparse.Namespace) -> pathlib.Path:
    """Builds imagenet2012 from the tars of ILSVRC 2012 and returns its folder.

    Args:
      options: of the command `imagenet2012`, see `--help`.

    Raises:
      DataError: a tar is missing, damaged or the wrong file, or the data set cannot be written.
    """
    import tensorflow_datasets as tfds

    tars = {"train": options.train, "validation": options.val}
    tars = {split: path.expanduser() for split, path in tars.items() if path}
    if not tars:
        raise DataError(
            "Nothing to do: pass --train=ILSVRC2012_img_train.tar or --val=..., or both."
        )
    for path in tars.values():
        if not path.is_file():
            raise DataError(f"There is no file {path}; download it from {ilsvrc.URL}.")
    name = f"imagenet2012_raw{options.raw}" if options.raw else "imagenet2012"
    final, folder = building.folders_of(options, name, VERSION)
    if not options.skip_hash:
        for split, path in tars.items():
            ilsvrc.check_size(path, split)
        with building.bar("bytes") as progress:
            for split, path in tars.items():
                task = progress.add_task(f"checking {path.name}", total=path.stat().st_size)
                ilsvrc.check_md5(path, split, functools.partial(progress.advance, task))
    classes, validation_wnids = ilsvrc.labels()
    splits = {}
    for split, path in tars.items():
        building.console.print(f"listing {path.name}")
        if split == "train":
            splits[split] = ilsvrc.train_items(path, classes)
        else:
            splits[split] = ilsvrc.validation_items(path, classes, validation_wnids)
    infos = building.write(folder, name, splits, options, jpeg_only=True)
    if options.raw:
        _write_metadata(folder, classes, infos, VERSION, options.raw)
    else:
        builder = tfds.builder(
            f"imagenet2012:{VERSION}", data_dir=folder / "tfds", file_format="array_record"
        )
        builder.info.set_splits(tfds.core.splits.SplitDict(infos))
        builder.info.write_to_directory(folder)
    building.finish(folder, final)
    building.report(splits, classes)
    for split, items in splits.items():
        expected = ilsvrc.TARS[split][2]
        if len(items) != expected:
            building.console.print(
                f"Note: {split} has {len(items):,} images; that of ILSVRC 2012 has {expected:,}."
            )
    return final


def folder(options: argparse.Namespace) -> pathlib.Path:
    """Builds a data set from a folder of images and returns its folder.

    Args:
      options: of the command `folder`, see `--help`.

    Raises:
      DataError: the folder has no images of classes, or the data set cannot be written.
    """
    final, folder = building.folders_of(options, options.name, "1.0.0")
    base, splits = options.folder.expanduser(), {}
    there = {path.name.lower() for path in base.glob("*/")}
    divided = not there.isdisjoint({"train", "training", "validation", "val", "valid"})
    for split in ("train", "validation", "test"):
        if split == "test" and not (divided and "test" in there):
            continue
        if split == "validation" and divided and there.isdisjoint({"validation", "val", "valid"}):
            building.console.print(
                f"{base} has no validation folder, so the data set has no validation split: "
                "evaluate with --config.data.eval_split=test."
            )
            continue
        source = folders.image_folder(str(base), split, options.holdout)
        files = source.examples
        assert isinstance(files, Files)
        splits[split] = [
            Item(files.path(i), files.paths[i], int(files.labels[i])) for i in range(len(files))
        ]
    infos = building.write(folder, options.name, splits, options, jpeg_only=False)
    _write_metadata(folder, source.class_names, infos, "1.0.0", options.raw)
    building.finish(folder, final)
    building.report(splits, source.class_names)
    return final


def _write_metadata(
    folder: pathlib.Path, classes: Sequence[str], infos: list[Any], version: str, raw: int | None
) -> None:
    """Writes TFDS's description of a data set of images of classes.

    Args:
      folder: of the data set.
      classes: names in label order.
      infos: TFDS's `SplitInfo` of each split.
      version: of the data set.
      raw: side of the squares as which images are stored decoded; None: they are encoded.
    """
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=classes),
        "file_name": tfds.features.Text(),
    }
    if raw:
        square = tfds.features.Tensor(shape=(raw, raw, 3), dtype=np.uint8, encoding="bytes")
        features |= {"image": square}
        features |= {side: tfds.features.Scalar(np.int64) for side in ("height", "width")}
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=infos,
        version=version,
        supervised_keys=("image", "label"),
        check_data=False,  # the check needs TensorFlow
    )


def from_archive(options: argparse.Namespace) -> pathlib.Path:
    """Builds a data set from an archive of a folder of images and returns its folder.

    Args:
      options: of the command `archive`, see `--help`.

    Raises:
      DataError: the archive cannot be had, or see `folder`.
    """
    downloads = options.data_dir.expanduser() / "downloads" / options.name
    with building.bar("bytes") as progress:
        task = progress.add_task("downloading", total=None)
        advance = functools.partial(progress.advance, task)
        digest = options.sha256 or options.md5
        options.folder = archive.unpacked(options.source, digest, downloads, advance)
    return folder(options)


def from_tfds(options: argparse.Namespace) -> pathlib.Path:
    """Downloads a data set of TFDS, prepares it as ArrayRecord, and returns its folder.

    Args:
      options: of the command `tfds`, see `--help`.

    Raises:
      DataError: TensorFlow is not installed, or TFDS cannot prepare the data set.
    """
    try:
        import importlib_resources  # noqa: F401
        import tensorflow  # noqa: F401
    except ImportError as e:
        raise DataError(
            f"Preparing {options.name} needs the package {e.name}; install it, in this environment "
            "or in a separate one: pip install -r requirements-prepare.txt"
        ) from None
    import tensorflow_datasets as tfds

    data_dir = options.data_dir.expanduser()
    try:
        builder = tfds.builder(options.name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except Exception as e:  # builders have errors of their own
        raise DataError(f"TFDS cannot prepare {options.name}: {e}") from e
    return pathlib.Path(builder.data_path)


def _above_0(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number above 0.")
    return int(text)


def _side(text: str) -> int:
    if not text.isdecimal() or not 8 <= int(text) <= MAX_RAW_SIDE:
        raise argparse.ArgumentTypeError(f"{text} must be from 8 to {MAX_RAW_SIDE:,} pixels.")
    return int(text)


def _hash(digits: int) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", text):
            raise argparse.ArgumentTypeError(f"{text} must have {digits} hexadecimal digits.")
        return text

    return checked


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m densenet_jax.data.prepare",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=pathlib.Path,
        default=pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")),
        help="directory of prepared data sets (default: %(default)s)",
    )
    images = argparse.ArgumentParser(add_help=False)
    sizes = images.add_mutually_exclusive_group()
    sizes.add_argument(
        "--max-size",
        type=_above_0,
        help="reduce images whose shorter side has more pixels than this",
    )
    sizes.add_argument(
        "--raw",
        type=_side,
        metavar="SIDE",
        help="store decoded images, squares of this many pixels, which are cropped on the device",
    )
    images.add_argument(
        "--workers",
        type=_above_0,
        default=os.cpu_count(),
        help="number of processes (default: one per core)",
    )
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", required=True, help="name of the data set")
    named.add_argument(
        "--holdout",
        type=float,
        default=0.1,
        help="share of the validation split, for a folder without splits (default: %(default)s)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "imagenet2012", parents=[common, images], help="ImageNet, from the tars of ILSVRC 2012"
    )
    command.add_argument("--train", type=pathlib.Path, help="ILSVRC2012_img_train.tar, 138 GB")
    command.add_argument("--val", type=pathlib.Path, help="ILSVRC2012_img_val.tar, 6.3 GB")
    command.add_argument(
        "--skip-hash", action="store_true", help="do not check the sizes and MD5 of the tars"
    )
    command.set_defaults(run=imagenet2012)
    command = commands.add_parser(
        "folder", parents=[common, images, named], help="a data set from a folder of images"
    )
    command.add_argument("folder", type=pathlib.Path)
    command.set_defaults(run=folder)
    command = commands.add_parser(
        "archive",
        parents=[common, images, named],
        help="a data set from a tar or zip with a folder of images, a file or a URL",
    )
    command.add_argument("source", metavar="URL|FILE")
    digests = command.add_mutually_exclusive_group(required=True)
    digests.add_argument("--md5", type=_hash(32), help="MD5 of the archive, 32 digits")
    digests.add_argument("--sha256", type=_hash(64), help="SHA-256 of the archive, 64 digits")
    command.set_defaults(run=from_archive)
    for name in published.TABLE:
        command = commands.add_parser(
            name,
            parents=[common],
            aliases=["svhn"] if name == "svhn_cropped" else [],
            help="from its authors' archives",
        )
        command.add_argument(
            "--download",
            action="store_true",
            help="download what is not in DATA_DIR/downloads/NAME yet",
        )
        command.set_defaults(run=published.prepare, name=name)
    command = commands.add_parser(
        "convert",
        parents=[common],
        help="a data set that TFDS has prepared as TFRecord, to ArrayRecord",
    )
    command.add_argument("source", type=pathlib.Path, metavar="DATA_DIR/NAME/VERSION")
    command.set_defaults(run=converting.convert)
    command = commands.add_parser(
        "tfds", parents=[common], help="download and prepare one of TFDS's data sets (TensorFlow)"
    )
    command.add_argument("name")
    command.set_defaults(run=from_tfds)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for an error, 130 if interrupted.

    Args:
      arguments: of the command line; None: those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        final = options.run(options)
    except DataError as e:
        terminal.say(*terminal.lines(e), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        building.console.print("Stopped; the same command continues from here.")
        return 130
    building.console.print(f"Finished: {final}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
