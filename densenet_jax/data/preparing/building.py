"""What every way to prepare a data set has in common: its folder, shards, progress, last words."""

import argparse
import collections
import json
import os
import pathlib
import shutil
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densenet_jax.data.preparing import shards
from densenet_jax.data.preparing.shards import Item
from densenet_jax.data.sources.source import DataError

console = Console(stderr=True, highlight=False)


def folders_of(
    options: argparse.Namespace, name: str, version: str
) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns where the data set will be, and where it is until it is finished."""
    final = options.data_dir.expanduser() / name / version
    if (final / "dataset_info.json").exists():
        raise DataError(f"{final} exists already; remove it to build it again.")
    folder = final.with_name(f"{version}.incomplete")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{folder} cannot be made: {e.strerror}; choose another --data-dir.") from e
    return final, folder


def _begin(folder: pathlib.Path, options: argparse.Namespace) -> None:
    """Makes sure that shards written earlier were written with the same settings."""
    settings = {key: getattr(options, key, None) for key in ("max_size", "holdout")}
    record = folder / "settings.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        raise DataError(
            f"{folder} was begun with the settings {record.read_text()}; go on with the same, or "
            "remove it."
        )
    record.write_text(json.dumps(settings))


def write(
    folder: pathlib.Path,
    name: str,
    splits: dict[str, Sequence[Item]],
    options: argparse.Namespace,
    *,
    jpeg_only: bool,
) -> list:
    """Writes the shards of all splits; returns TFDS's description of them."""
    _begin(folder, options)
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core.splits import SplitInfo

    sizes = {
        split: sum(item.size or os.path.getsize(item.path) for item in items)
        for split, items in splits.items()
    }
    there = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    needed, free = sum(sizes.values()) - there, shutil.disk_usage(folder).free
    if needed > free and not options.max_size:
        raise DataError(
            f"{folder} needs {needed / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB free; "
            "choose another --data-dir, or a --max-size."
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
                workers=options.workers,
                advance=lambda n, task=task: progress.advance(task, n),
            )
            template = naming.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
            )
            infos.append(
                SplitInfo(
                    name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
                )
            )
    return infos


def finish(folder: pathlib.Path, final: pathlib.Path) -> None:
    (folder / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "tfds", ignore_errors=True)
    os.replace(folder, final)


def report(splits: dict[str, Sequence[Item]], classes: Sequence[str]) -> None:
    """Prints how many examples each split and its classes have."""
    for split, items in splits.items():
        counts = collections.Counter(item.label for item in items)
        counts = [counts[label] for label in range(len(classes))]
        smallest, median, largest = min(counts), round(statistics.median(counts)), max(counts)
        console.print(
            f"{split}: {len(items):,} examples of {len(classes):,} classes, from {smallest:,} to "
            f"{largest:,} of each, the median {median:,}",
            soft_wrap=True,
        )
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if empty:
            console.print(f"  classes without any: {len(empty):,}, the first is {empty[0]}")


def bar(unit: str = "examples") -> Progress:
    done = MofNCompleteColumn() if unit == "examples" else TextColumn("{task.percentage:>3.0f} %")
    columns = TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn()
    return Progress(*columns, console=console)
