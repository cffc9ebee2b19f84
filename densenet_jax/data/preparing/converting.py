"""Converts data sets from TFRecord, the default format of TFDS, to ArrayRecord."""

import argparse
import json
import pathlib
import shutil

from densenet_jax.data.preparing import building, shards, tfrecord
from densenet_jax.data.sources.source import DataError


def convert(options: argparse.Namespace) -> pathlib.Path:
    """Copies a data set prepared as TFRecord to a new folder as ArrayRecord.

    Args:
      options: of the command: `source` is the folder DATA_DIR/NAME/VERSION, `data_dir` the new
        DATA_DIR.

    Returns:
      the new folder of the data set.

    Raises:
      DataError: the source is not a data set prepared as TFRecord, lacks a shard or is damaged, or
        the new folder already exists.
    """
    source = options.source.expanduser()
    try:
        info = json.loads((source / "dataset_info.json").read_text())
        name, version = info["name"], info["version"]
        splits = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
    except (OSError, ValueError, KeyError) as e:
        raise DataError(
            f"{source} is not a prepared data set; pass a folder DATA_DIR/NAME/VERSION with a "
            f"readable dataset_info.json ({e})."
        ) from e
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(
            f"{source} is stored as {info['fileFormat']}; only tfrecord can be converted."
        )
    name_and_config = f"{name}/{info['configName']}" if info.get("configName") else name
    final, folder = building.folders_of(options, name_and_config, version)
    with building.bar() as progress:
        for split, lengths in splits.items():
            task = progress.add_task(f"converting {split}", total=sum(lengths))
            for k, length in enumerate(lengths):
                ending = f"{k:05d}-of-{len(lengths):05d}"
                path = folder / f"{name}-{split}.array_record-{ending}"
                if not (path.exists() and shards.count_records(path) == length):
                    records = source / f"{name}-{split}.tfrecord-{ending}"
                    if not records.is_file():
                        raise DataError(
                            f"{source} lacks the shard {records.name}; prepare the data set again."
                        )
                    count = shards.write_shard(path, tfrecord.read(records))
                    if count != length:
                        path.unlink()
                        raise DataError(
                            f"{records} is damaged: it has {count} records instead of {length}. "
                            "Prepare the data set again."
                        )
                progress.advance(task, length)
    for path in source.iterdir():
        if path.is_file() and ".tfrecord-" not in path.name:
            shutil.copyfile(path, folder / path.name)
    info["fileFormat"] = "array_record"
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    building.finish(folder, final)
    return final
