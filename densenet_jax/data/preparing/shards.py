"""ArrayRecord shards in the layout of TensorFlow Datasets, written in parallel and resumable.

    DATA_DIR/NAME/VERSION/NAME-SPLIT.array_record-00000-of-00008

A shard is written under a temporary name and renamed when it is complete, so that an existing shard
is complete. The folder is called VERSION.incomplete until the metadata are written.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from PIL import Image

from densenet_jax.data.reading import decoding, host, limits, pillow, worker_lifetime
from densenet_jax.data.reading.decoding import jpeg_header
from densenet_jax.data.reading.files import read_file
from densenet_jax.data.reading.limits import ImageError
from densenet_jax.data.sources.source import DataError

SHARD_BYTES = 128 * 2**20  # approximate size of a shard
QUALITY = 90  # JPEG quality of images whose size is reduced


@dataclasses.dataclass(frozen=True)
class Item:
    """An image to be stored.

    Attributes:
      path: of the file that contains the image.
      name: of the image.
      label: number of its class.
      offset: position of the encoded image in the file in bytes.
      size: of the encoded image in bytes; None: it is the whole file.
    """

    path: str
    name: str
    label: int
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Returns the encoded image."""
        if self.size is None:
            return read_file(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def shuffled(items: Iterable[Item]) -> list[Item]:
    """Returns items in the order of a hash of their names.

    A slice of a split such as `train[:10%]` then contains images of all classes.
    """
    return sorted(items, key=lambda item: hashlib.blake2b(item.name.encode()).digest())


def shard_count(items: Sequence[Item], total_bytes: int) -> int:
    """Returns the number of shards of about `SHARD_BYTES` each, at least one image in each."""
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
    raw: int | None = None,
    workers: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[int], int]:
    """Writes the shards of a split that do not exist yet.

    Args:
      folder: in which the shards are written.
      dataset: name of the data set.
      split: name of the split.
      items: the images in the order of the split.
      shards: number of shards.
      max_size: limit of the shorter side in pixels, to which larger images are reduced; None: none.
      jpeg_only: whether to convert images that are not RGB or grey JPEGs to RGB JPEGs.
      raw: side of the squares as which images are stored decoded, see `raw_image`; None: encoded.
      workers: number of processes.
      advance: called with the number of examples of each finished shard.

    Returns:
      ([number of examples of each shard], total size of all shards in bytes).

    Raises:
      DataError: an image cannot be read.
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
            advance(_write_images(path, part, max_size, jpeg_only, raw))
    elif todo:
        # Spawned, because ArrayRecord's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            workers, context, initializer=worker_lifetime.end_with_parent
        ) as pool:
            jobs = [
                pool.submit(_write_images, p, part, max_size, jpeg_only, raw) for p, part in todo
            ]
            try:
                for job in concurrent.futures.as_completed(jobs):
                    advance(job.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()  # the next call starts its shard anew
                raise
    return [len(part) for part in parts], sum(path.stat().st_size for path in paths)


def write_shard(path: pathlib.Path, records: Iterable[bytes], compress: bool = True) -> int:
    """Writes one shard and returns its number of records; the file appears when it is complete.

    Args:
      path: of the shard.
      records: serialised examples.
      compress: whether ArrayRecord compresses them; reading decoded pixels then takes longer.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f"writing-{path.name}")
    options = "group_size:1" if compress else "group_size:1,uncompressed"
    writer = ArrayRecordWriter(str(temporary), options)
    count = 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    os.replace(temporary, path)
    return count


def count_records(path: pathlib.Path) -> int | None:
    """Returns the number of records in a shard, or None if it is damaged."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except RuntimeError:
        return None


def record(features: Mapping[str, bytes | int]) -> bytes:
    """Returns a serialised tf.train.Example.

    Args:
      features: by name, such as the encoded `image`, its `label` and its `file_name`.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        if isinstance(value, bytes):
            example.features.feature[name].bytes_list.value.append(value)
        else:
            example.features.feature[name].int64_list.value.append(value)
    return example.SerializeToString(deterministic=True)


def standard_image(image: bytes, max_size: int | None = None, jpeg_only: bool = False) -> bytes:
    """Returns an image as it is stored: the same bytes if they need no change.

    Args:
      image: an encoded image.
      max_size: limit of the shorter side in pixels, to which larger images are reduced; None: none.
      jpeg_only: whether to convert images that are not RGB or grey JPEGs to RGB JPEGs.

    Raises:
      ImageError: the image must be changed and cannot be decoded.
    """
    header = jpeg_header(image)
    plain = header is not None and header[2] in (1, 3)  # an RGB or grey JPEG
    if header and plain and not (max_size and min(header[:2]) > max_size):
        return image
    if decoding.is_scientific(image):
        if max_size and min(decoding.dimensions(image)) > max_size:
            raise ImageError("only images of 8 bits can be reduced: leave out --max-size")
        return image
    try:
        with pillow.opened(image) as picture:
            shorter = min(picture.size)
            scale = max_size / shorter if max_size and shorter > max_size else 1
            shrink = scale < 1
            if not shrink and (plain or not jpeg_only):
                return image
            width, height = (max(1, round(side * scale)) for side in picture.size)
            if shrink and plain:
                picture.draft(
                    "RGB", (2 * width, 2 * height)
                )  # decode at a reduced size, which is faster
            mode = "L" if picture.mode == "L" else "RGB"
            resized = picture.convert(mode).resize((width, height), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            # With colours at half resolution, a photograph is decoded in two thirds of the time.
            quality, subsampling = (QUALITY, "4:2:0") if shrink else (100, "4:4:4")
            resized.save(out, "JPEG", quality=quality, subsampling=subsampling)
            return out.getvalue()
    except ImageError:
        raise
    except Exception as e:
        raise ImageError(f"not a readable image: {e}") from e


def raw_image(image: bytes, side: int) -> dict[str, bytes | int]:
    """Returns the features of an image that is stored decoded, as a square.

    Args:
      image: an encoded image.
      side: height and width of the square in pixels.

    Returns:
      {"image": uint8 [side, side, 3] as bytes, "height", "width": of the image in pixels}.

    Raises:
      ImageError: it cannot be decoded, or does not have 8 bits.
    """
    with limits.reading():
        pixels = decoding.decode(image, 3)
        if pixels.dtype != "uint8":
            raise ImageError("only images of 8 bits can be stored decoded: leave out --raw")
        square = host.resize(pixels, side, side, "bicubic")
    return {"image": square.tobytes(), "height": pixels.shape[0], "width": pixels.shape[1]}


def _write_images(
    path: pathlib.Path,
    items: Sequence[Item],
    max_size: int | None,
    jpeg_only: bool,
    raw: int | None,
) -> int:
    """Writes a shard of images and returns their number; a function that a worker can import."""

    def records() -> Iterator[bytes]:
        for item in items:
            image: dict[str, bytes | int]
            try:
                if raw:
                    image = raw_image(item.read(), raw)
                else:
                    image = {"image": standard_image(item.read(), max_size, jpeg_only)}
            except (ImageError, OSError) as e:
                raise DataError(
                    f"{item.name} in {item.path}: {e}. Repair or remove that file."
                ) from e
            yield record({**image, "label": item.label, "file_name": item.name.encode()})

    return write_shard(path, records(), compress=not raw)
