"""The common steps of preparing a data set: folder, shards, progress bar and final report."""

import argparse
import collections
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densenet_jax.data.preparing import shards
from densenet_jax.data.preparing.shards import Item
from densenet_jax.data.sources.source import DataError
from densenet_jax.terminal import Console

console = Console(stderr=True)


def folders_of(
    options: argparse.Namespace, name: str, version: str
) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns (final folder of the data set, folder in which it is built), and creates the latter.

    Args:
      options: of the command; `data_dir` is used.
      name: of the data set, NAME or NAME/CONFIG.
      version: of the data set.

    Raises:
      DataError: the data set exists, or the folder cannot be created.
    """
    final = options.data_dir.expanduser() / name / version
    if (final / "dataset_info.json").exists():
        raise DataError(f"{final} already exists; remove it to build it again.")
    folder = final.with_name(f"{version}.incomplete")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(
            f"{folder} cannot be created: {e.strerror}; choose another --data-dir."
        ) from e
    return final, folder


def _begin(
    folder: pathlib.Path, options: argparse.Namespace, splits: Mapping[str, Sequence[Item]]
) -> None:
    """Raises DataError if earlier shards were written with other settings or images."""
    settings = {key: getattr(options, key, None) for key in ("max_size", "holdout")}
    if options.raw:
        settings["raw"] = options.raw
    digest = hashlib.blake2b(digest_size=16)
    for split, items in splits.items():
        for item in items:
            digest.update(
                f"{split}/{item.name}/{item.label}/{item.size}\n".encode("utf-8", "replace")
            )
    settings |= {split: len(items) for split, items in splits.items()}
    settings["images"] = digest.hexdigest()
    record = folder / "settings.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        raise DataError(
            f"{folder} was begun with other settings or images ({record.read_text()}); use the "
            "same ones to continue, or remove the folder."
        )
    record.write_text(json.dumps(settings))


def write(
    folder: pathlib.Path,
    name: str,
    splits: Mapping[str, Sequence[Item]],
    options: argparse.Namespace,
    *,
    jpeg_only: bool,
) -> list[Any]:
    """Writes the shards of all splits that do not exist yet.

    Args:
      folder: in which the data set is built.
      name: of the data set.
      splits: {name of the split: its images}.
      options: of the command; `max_size`, `raw`, `workers` and, if there is one, `holdout` are
        used.
      jpeg_only: whether to convert images that are not RGB or grey JPEGs to RGB JPEGs.

    Returns:
      TFDS's `SplitInfo` of each split.

    Raises:
      DataError: the disk is too small, an image cannot be read, or shards were written with other
        settings.
    """
    _begin(folder, options, splits)
    sizes = {
        split: len(items) * options.raw**2 * 3
        if options.raw
        else sum(item.size or os.path.getsize(item.path) for item in items)
        for split, items in splits.items()
    }
    written = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    needed, free = sum(sizes.values()) - written, shutil.disk_usage(folder).free
    if needed > free and not options.max_size:
        remedy = "a smaller --raw" if options.raw else "reduce the images with --max-size"
        raise DataError(
            f"{folder} needs {needed / 1e9:.1f} GB more, and its disk has {free / 1e9:.1f} GB "
            f"free; choose another --data-dir, or {remedy}."
        )
    infos = []
    with bar() as progress:
        for split, items in splits.items():
            task = progress.add_task(f"writing {split}", total=len(items))
            lengths, size = shards.write_split(
                folder,
                name,
                split,
                shards.shuffled(items),
                shards.shard_count(items, sizes[split]),
                max_size=options.max_size,
                jpeg_only=jpeg_only,
                raw=options.raw,
                workers=options.workers,
                advance=functools.partial(progress.advance, task),
            )
            infos.append(_split_info(folder, name, split, lengths, size))
    return infos


def write_records(
    folder: pathlib.Path, name: str, split: str, lengths: Sequence[int], records: Iterator[bytes]
) -> Any:
    """Writes the shards of a split from its serialised examples; returns TFDS's `SplitInfo`.

    Args:
      folder: in which the data set is built.
      name: of the data set.
      split: name of the split.
      lengths: number of examples of each shard.
      records: the examples.
    """
    size = 0
    with bar() as progress:
        task = progress.add_task(f"writing {split}", total=sum(lengths))
        for k, length in enumerate(lengths):
            path = folder / f"{name}-{split}.array_record-{k:05d}-of-{len(lengths):05d}"
            shards.write_shard(path, itertools.islice(records, length))
            size += path.stat().st_size
            progress.advance(task, length)
    return _split_info(folder, name, split, lengths, size)


def _split_info(
    folder: pathlib.Path, name: str, split: str, lengths: Sequence[int], size: int
) -> Any:
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core.splits import SplitInfo

    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    return SplitInfo(
        name=split, shard_lengths=list(lengths), num_bytes=size, filename_template=template
    )


def finish(folder: pathlib.Path, final: pathlib.Path) -> None:
    """Removes temporary files and renames the folder of a complete data set to its final name."""
    (folder / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "tfds", ignore_errors=True)
    os.replace(folder, final)


def report(splits: Mapping[str, Sequence[Item]], classes: Sequence[str]) -> None:
    """Prints the number of examples of each split and the smallest, median and largest class."""
    for split, items in splits.items():
        count_of = collections.Counter(item.label for item in items)
        counts = [count_of[label] for label in range(len(classes))]
        smallest, median, largest = min(counts), round(statistics.median(counts)), max(counts)
        console.print(
            f"{split}: {len(items):,} examples of {len(classes):,} classes, from {smallest:,} to "
            f"{largest:,} per class (median {median:,})",
            soft_wrap=True,
        )
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if empty:
            console.print(f"  {len(empty):,} classes have no examples; the first is {empty[0]}")


def bar(unit: str = "examples") -> Progress:
    """Returns a progress bar that shows the number of examples, or for "bytes" the percentage."""
    done = MofNCompleteColumn() if unit == "examples" else TextColumn("{task.percentage:>3.0f} %")
    columns = TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn()
    return Progress(*columns, console=console)
