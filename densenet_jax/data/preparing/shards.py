"""ArrayRecord shards in the layout of TensorFlow Datasets, written in parallel and resumable.

    DATA_DIR/NAME/VERSION/NAME-SPLIT.array_record-00000-of-00008

A shard is written under another name and renamed when it is complete, so a shard that exists is
finished; and the folder is called VERSION.incomplete until the metadata are written.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from densenet_jax.data.reading import worker_lifetime
from densenet_jax.data.reading.decoding import FORMATS, ImageError, jpeg_header
from densenet_jax.data.sources.source import DataError

SHARD_BYTES = 128 * 2**20  # a shard's size to aim at
QUALITY = 90  # of JPEGs that are made smaller


@dataclasses.dataclass(frozen=True)
class Item:
    """An image to be stored: `size` bytes at `offset` of a file; None: all of it."""

    path: str
    name: str
    label: int
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.size is None else self.size)


def shuffled(items: Iterable[Item]) -> list[Item]:
    """Returns items in the order of a hash of their names, so that slices of a split are fair."""
    return sorted(items, key=lambda item: hashlib.blake2b(item.name.encode()).digest())


def shard_count(items: Sequence[Item], total_bytes: int) -> int:
    """Returns the number of shards of about `SHARD_BYTES`."""
    return max(1, min(len(items), round(total_bytes / SHARD_BYTES)))


def write_split(
    folder: pathlib.Path,
    dataset: str,
    split: str,
    items: Sequence[Item],
    shards: int,
    *,
    max_size: int | None = None,
    jpeg_only: bool = False,
    workers: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[int], int]:
    """Writes the shards of a split that do not exist yet.

    Args:
      items: in the order of the split.
      max_size: limit of the shorter side in pixels; larger images are resized.
      jpeg_only: turn images that are not RGB or grey JPEGs into RGB JPEGs.
      workers: processes.
      advance: called with the number of examples of every finished shard.

    Returns:
      the number of examples of every shard, and the bytes of them all.
    """
    paths = [
        folder / f"{dataset}-{split}.array_record-{k:05d}-of-{shards:05d}" for k in range(shards)
    ]
    edges = [k * len(items) // shards for k in range(shards + 1)]
    parts = [items[edges[k] : edges[k + 1]] for k in range(shards)]
    todo = []
    for path, part in zip(paths, parts, strict=True):
        if path.exists() and count_records(path) == len(part):
            advance(len(part))
        else:
            todo.append((path, part))
    if workers == 1 or len(todo) == 1:
        for path, part in todo:
            advance(_write_images(path, part, max_size, jpeg_only))
    elif todo:
        # Not forked: ArrayRecord's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            workers, context, initializer=worker_lifetime.end_with_parent
        ) as pool:
            jobs = [pool.submit(_write_images, p, part, max_size, jpeg_only) for p, part in todo]
            try:
                for job in concurrent.futures.as_completed(jobs):
                    advance(job.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()  # its shard is begun anew the next time
                raise
    return [len(part) for part in parts], sum(path.stat().st_size for path in paths)


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> int:
    """Writes one shard of serialised examples, which appears when complete; returns its length."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f"writing-{path.name}")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    count = 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    os.replace(temporary, path)
    return count


def count_records(path: pathlib.Path) -> int | None:
    """Returns the number of records in a shard; None if it is broken."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except RuntimeError:
        return None


def example_record(image: bytes, label: int, name: str) -> bytes:
    """Returns a serialised tf.train.Example with TFDS's features image, label and file_name."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    example.features.feature["file_name"].bytes_list.value.append(name.encode())
    return example.SerializeToString(deterministic=True)


def standard_image(image: bytes, max_size: int | None = None, jpeg_only: bool = False) -> bytes:
    """Returns an image to be stored: the very bytes wherever they need no change.

    Raises:
      ImageError: it must be changed, and cannot be decoded.
    """
    header = jpeg_header(image)
    plain = header is not None and header[2] in (1, 3)
    if plain and not (max_size and min(header[:2]) > max_size):
        return image
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            shorter = min(picture.size)
            shrink = bool(max_size) and shorter > max_size
            if not shrink and (plain or not jpeg_only):
                return image
            scale = max_size / shorter if shrink else 1
            width, height = (max(1, round(side * scale)) for side in picture.size)
            if shrink and plain:
                picture.draft("RGB", (2 * width, 2 * height))  # a cheap first reduction
            mode = "L" if picture.mode == "L" else "RGB"
            resized = picture.convert(mode).resize((width, height), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            # Colours at half resolution make a photograph decode in two thirds of the time.
            quality, subsampling = (QUALITY, "4:2:0") if shrink else (100, "4:4:4")
            resized.save(out, "JPEG", quality=quality, subsampling=subsampling)
            return out.getvalue()
    except Exception as e:
        raise ImageError(f"not a readable image: {e}") from e


def _write_images(
    path: pathlib.Path, items: Sequence[Item], max_size: int | None, jpeg_only: bool
) -> int:
    def records():
        for item in items:
            try:
                image = standard_image(item.read(), max_size, jpeg_only)
            except (ImageError, OSError) as e:
                raise DataError(
                    f"{item.name} in {item.path}: {e}. Check or remove that file."
                ) from e
            yield example_record(image, item.label, item.name)

    return write_shard(path, records())
