"""Measures input pipelines: images per second and core, from JPEG to uint8 batches of 64 at 224 px.

    python benchmarks/input_pipeline.py [--name=imagenet2012] [--split=train] [--rounds=5]
        [--data-dir=DIR] [--seconds=3] [--only=densenet_jax] [--sixteen-bits] [--raw=NAME]

All pipelines decode and crop (random-resized-crop) the same images: the bare decoder (OpenCV in one
thread, files in memory, nothing else); this project's pipeline (including records, order, crops and
batches) with threads and with 1 and 2 worker processes; and, if they are installed, a PyTorch
DataLoader (Pillow and torchvision) and tf.data, both with files in memory.

With --raw this project's pipeline also reads the data set of that name, prepared with --raw=SIDE,
whose images are decoded already and are cropped on the device.

With --sixteen-bits the images are written as PNG and TIFF of 16 bits instead, and this project's
decoding and crops are compared with OpenCV's decoder in the same loop.

The runs alternate and the medians are compared, because other programs use the machine too.  Rates
are per second of processor time, summed over all threads and processes: the rate of one core.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np
import psutil

from densenet_jax.data.reading import host, pipeline
from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import Source

BATCH, SIZE = 64, 224


def cpu_seconds() -> float:
    """Returns the processor time that this process and its children have used, in seconds."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def bare_decoder(files: list[bytes]) -> Iterator[int]:
    """Runs OpenCV's decoder and bilinear resizing in a loop; yields the size of each batch."""
    rng = np.random.default_rng(0)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    while True:
        for k in rng.integers(0, len(files), BATCH):
            image = cv2.imdecode(np.frombuffer(files[k], np.uint8), flags)
            top, left, h, w = host.random_region(rng.random((10, 4)), *image.shape[:2])
            cv2.resize(image[top : top + h, left : left + w], (SIZE, SIZE))
        yield BATCH


def ours(source: Source, workers: int) -> Iterator[int]:
    """Runs this project's pipeline; yields the size of each batch."""
    reader = pipeline.train_batches(source, batch_size=BATCH, image_size=SIZE, workers=workers)
    with iter(reader) as stream:
        for batch in stream:
            yield len(batch["image"])


def data_loader(files: list[bytes], workers: int) -> Iterator[int]:
    """Runs PyTorch's DataLoader with Pillow and torchvision; yields the size of each batch."""
    import io

    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()])

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, i):
            image = Image.open(io.BytesIO(files[hash((i,)) % len(files)])).convert("RGB")
            return crop(image), i % 1000

    loader = torch.utils.data.DataLoader(Files(), BATCH, num_workers=workers, prefetch_factor=2)
    for images, _ in loader:
        yield len(images)


def tf_data(files: list[bytes], workers: int) -> Iterator[int]:
    """Runs tf.data with decode_and_crop_jpeg as in the TPU reference code; yields batch sizes."""
    import tensorflow as tf

    def crop(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files))
    dataset = dataset.map(crop, workers).batch(BATCH).prefetch(2).with_options(options)
    for images in dataset.as_numpy_iterator():
        yield len(images)


def sixteen_bits(files: list[bytes], rounds: int) -> None:
    """Prints the rates of PNG and TIFF of 16 bits, beside those of OpenCV's decoder alone.

    Args:
      files: JPEG files, whose pixels are used with noise in the lower bits.
      rounds: number of measurements, which alternate.
    """
    rng = np.random.default_rng(0)
    images = [host.decode(file).astype(np.uint16) << 8 for file in files[:16]]
    images = [image | rng.integers(0, 256, image.shape, np.uint16) for image in images]
    kinds: dict[str, tuple[str, list[int]]] = {"PNG": (".png", []), "TIFF, LZW": (".tif", [])}
    kinds["TIFF, uncompressed"] = (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 1])

    def bare(file: bytes, draws: np.ndarray) -> None:
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        top, left, h, w = host.random_region(draws, *image.shape[:2])
        cv2.resize(image[top : top + h, left : left + w], (SIZE, SIZE))

    def ours(file: bytes, draws: np.ndarray) -> None:
        host.random_resized_crop(file, draws, SIZE, dtype="uint16")

    for kind, (suffix, flags) in kinds.items():
        encoded = [cv2.imencode(suffix, image, flags)[1].tobytes() for image in images]
        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            for name, function in (("bare", bare), ("ours", ours)):
                start = time.process_time()
                for file in encoded * 4:
                    function(file, rng.random((10, 4)))
                rates[name].append(4 * len(encoded) / (time.process_time() - start))
        alone, own = (statistics.median(values) for values in rates.values())
        print(f"{kind:26} {own:8.0f} img/s of a core, {own / alone:.2f} of the bare decoder")


def measure(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    """Returns images per second of wall-clock time, and per second of processor time."""
    for _ in range(16):  # untimed: batches that were read ahead, and first uses of memory
        next(batches)
    images, clock, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - clock < seconds:
        images += next(batches)
    rates = images / (time.perf_counter() - clock), images / (cpu_seconds() - cpu)
    batches.close()
    return rates


def contestants(source: Source, files: list[bytes]) -> dict[str, Callable[[], Iterator[int]]]:
    """Returns {name: function that starts a pipeline} of the pipelines that are installed.

    Args:
      source: the images for this project's pipeline.
      files: JPEG files in memory for the others.
    """
    found = {"bare decoder, 1 thread": lambda: bare_decoder(files)}
    found["densenet_jax, threads"] = lambda: ours(source, 0)
    for n in (1, 2):
        found[f"densenet_jax, {n} worker{'s' * (n > 1)}"] = lambda n=n: ours(source, n)
    try:
        import torchvision  # noqa: F401

        for n in (1, 2):
            found[f"DataLoader, {n} worker{'s' * (n > 1)}"] = lambda n=n: data_loader(files, n)
    except (ImportError, RuntimeError):
        print("DataLoader is left out, because torchvision cannot be imported")
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        for n in (1, 2):
            found[f"tf.data, {n} thread{'s' * (n > 1)}"] = lambda n=n: tf_data(files, n)
    except ImportError:
        print("tf.data is left out, because TensorFlow cannot be imported")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="imagenet2012")
    parser.add_argument("--split", default="train")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument(
        "--only", default="", help="measure only pipelines whose names contain this text"
    )
    parser.add_argument("--sixteen-bits", action="store_true", help="PNG and TIFF of 16 bits")
    parser.add_argument("--raw", default="", help="a data set prepared with --raw=SIDE, too")
    options = parser.parse_args()
    source = by_name.load(options.name, options.split, options.data_dir)
    files = [source.examples[i]["image"] for i in range(min(len(source), 2000))]
    print(f"{len(files)} files, {np.mean([len(f) for f in files]) / 1000:.0f} kB on average")
    if options.sixteen_bits:
        sixteen_bits(files, options.rounds)
        return
    runs = contestants(source, files)
    if options.raw:
        raw = by_name.load(options.raw, options.split, options.data_dir)
        runs |= {f"densenet_jax, raw, {n} workers": lambda n=n: ours(raw, n) for n in (0, 1)}
    runs = {name: run for name, run in runs.items() if "bare" in name or options.only in name}
    rates = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, start in runs.items():
            rates[name].append(measure(start(), options.seconds))
    print(f"\n{'':26} {'img/s':>8} {'img/s per core':>16} {'of the bare decoder':>20}")
    bare = statistics.median(core for _, core in rates["bare decoder, 1 thread"])
    for name, pairs in rates.items():
        clock, core = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{name:26} {clock:8.0f} {core:16.0f} {core / bare:20.2f}")


if __name__ == "__main__":
    main()
