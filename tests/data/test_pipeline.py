"""Batches: order, shares of processes, resuming, workers, memory, unreadable examples, exit."""

import concurrent.futures
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densenet_jax.data.reading import buffers, examples, order, pipeline
from densenet_jax.data.sources import by_name
from densenet_jax.data.sources.source import Arrays, DataError, Source

from .conftest import encode, picture, write_tfds

OPTIONS = {"batch_size": 8, "image_size": 16, "seed": 5}


def take(reader, count):
    with iter(reader) as stream:
        return [next(stream) for _ in range(count)]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def numbered(count, classes=None):
    """Returns a source whose example i is an image of constant value i with label i."""
    values = np.arange(count)
    images = np.broadcast_to(values[:, None, None, None], (count, 4, 4, 3)).astype(np.uint8)
    names = tuple(map(str, range(classes or count)))
    return Source(Arrays(images, values.astype(np.int32)), names, "numbers")


@pytest.fixture(scope="module")
def source(tiny):
    return by_name.load("tiny", "train", str(tiny))


@pytest.fixture
def mesh():
    devices = jax.devices()
    return NamedSharding(Mesh(devices, "data"), PartitionSpec("data"))


# --- order --------------------------------------------------------------------------------------


def test_every_epoch_holds_every_example_once_in_its_own_order():
    stream = order.examples_at(np.arange(30), 10, seed=1)
    epochs = stream.reshape(3, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (order.examples_at(np.arange(10), 10, seed=2) != epochs[0]).any()
    np.testing.assert_array_equal(order.examples_at(np.arange(7, 25), 10, seed=1), stream[7:25])


def test_the_random_numbers_belong_to_the_position():
    draws = order.draws_at(5, 7, seed=3)
    assert draws.shape == (7, 10, 4)
    np.testing.assert_array_equal(draws[4:], order.draws_at(9, 3, seed=3))
    assert len(np.unique(draws)) == draws.size
    assert (order.draws_at(5, 7, seed=4) != draws).all()
    assert order.draws_at(2**40, 1, seed=3).max() < 1


# --- training -----------------------------------------------------------------------------------


def test_training_batches(source):
    batches = take(pipeline.train_batches(source, **OPTIONS), 10)  # two epochs
    assert batches[0]["image"].shape == (8, 16, 16, 3)
    assert batches[0]["image"].dtype == np.uint8
    assert batches[0]["label"].dtype == np.int32
    labels = np.concatenate([b["label"] for b in batches])
    assert (np.bincount(labels) == 20).all()
    assert not np.concatenate([b["bad"] for b in batches]).any()


def test_resuming_sees_the_remaining_batches(source):
    batches = take(pipeline.train_batches(source, **OPTIONS), 7)
    same(take(pipeline.train_batches(source, start=3, **OPTIONS), 4), batches[3:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_batches(source, count):
    whole = take(pipeline.train_batches(source, **OPTIONS), 3)
    parts = [
        take(pipeline.train_batches(source, process_index=i, process_count=count, **OPTIONS), 3)
        for i in range(count)
    ]
    joined = [
        {key: np.concatenate([part[k][key] for part in parts]) for key in whole[0]}
        for k in range(3)
    ]
    same(joined, whole)


def test_workers_give_the_same_batches(source):
    same(
        take(pipeline.train_batches(source, workers=2, **OPTIONS), 4),
        take(pipeline.train_batches(source, **OPTIONS), 4),
    )


def test_an_array_is_lent_again_when_no_view_of_it_is_left():
    recycler = buffers.Recycler()
    batch = {"image": recycler.empty((2, 3), "uint16")}
    address, view = batch["image"].ctypes.data, batch["image"][1:].reshape(3)
    del batch
    assert recycler.empty((2, 3), "uint16").ctypes.data != address
    del view
    assert recycler.empty((2, 3), "uint16").ctypes.data == address
    assert recycler.empty((3, 2)).dtype == np.uint8


def test_threads_never_share_a_lent_array():
    recycler = buffers.Recycler()

    def use(number):
        for _ in range(300):
            array = recycler.empty((64,))
            array[...] = number
            time.sleep(0)
            assert (array == number).all()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))


def test_a_workers_block_is_taken_until_no_view_of_its_array_is_left():
    block = buffers.take_block((2, 3))
    block.array((2, 3))[...] = 7
    receive = buffers.Receiver()
    message = pickle.loads(pickle.dumps(block.message((2, 3))))
    view = receive({"image": message})["image"][1:]
    del receive  # a stream may be closed while its batches are still in use
    assert buffers.take_block((2, 3)) is not block
    np.testing.assert_array_equal(view, [[7, 7, 7]])
    del view
    assert buffers.take_block((2, 3)) is block


def test_a_block_has_no_name_once_it_has_arrived_and_outlives_its_worker():
    worker = buffers._Blocks()
    arrived, lost = worker.take(6), worker.take(6)
    arrived.array((2, 3))[...] = 7
    message = pickle.loads(pickle.dumps(arrived.message((2, 3))))
    later = pickle.loads(pickle.dumps(arrived.message((2, 3))))
    with pytest.raises(FileNotFoundError):  # nothing remains if both processes are killed now
        SharedMemory(arrived.memory.name)
    worker._end()
    with pytest.raises(FileNotFoundError):
        SharedMemory(lost.memory.name)
    receive = buffers.Receiver()
    for each in message, later:
        np.testing.assert_array_equal(receive({"image": each})["image"], np.full((2, 3), 7))


def test_the_seed_changes_order_and_crops(source):
    first = take(pipeline.train_batches(source, **OPTIONS), 1)[0]
    other = take(pipeline.train_batches(source, **(OPTIONS | {"seed": 6})), 1)[0]
    assert (first["image"] != other["image"]).mean() > 0.5


def test_batches_that_cannot_be_shared():
    with pytest.raises(DataError, match="8 examples cannot be shared by 3"):
        pipeline.train_batches(numbered(10), process_count=3, **OPTIONS)


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_sees_every_example_once(tiny, workers):
    source = by_name.load("tiny", "validation", str(tiny))
    batches = list(pipeline.eval_batches(source, batch_size=8, image_size=16, workers=workers))
    assert [b["mask"].sum() for b in batches] == [8, 2]
    assert [b["image"].shape for b in batches] == [(8, 16, 16, 3)] * 2
    labels = np.concatenate([b["label"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(labels, np.arange(10) % 4)


def test_evaluation_by_processes_with_nothing_left_for_one():
    options = {"batch_size": 8, "image_size": 4, "crop_fraction": 1.0, "process_count": 4}
    parts = [list(pipeline.eval_batches(numbered(9), process_index=i, **options)) for i in range(4)]
    assert [[b["mask"].sum() for b in part] for part in parts] == [[2, 1], [2, 0], [2, 0], [2, 0]]


# --- in memory ----------------------------------------------------------------------------------


def test_memory_and_device_give_the_same_batches(source, mesh):
    options = OPTIONS | {"random_crop": False, "start": 3}
    held = pipeline.in_memory(source, image_size=16)
    assert held.examples.images.nbytes == 40 * 16 * 16 * 3
    expected = take(pipeline.train_batches(source, **options), 5)
    same(take(pipeline.train_batches(held, **options), 5), expected)
    for s in (source, held):
        with pipeline.to_mesh(pipeline.train_batches(s, **options), mesh) as stream:
            batches = [next(stream) for _ in range(5)]
        assert batches[0]["image"].sharding == mesh
        same(jax.device_get(batches), expected)


def test_memory_gives_the_same_evaluation(tiny):
    source = by_name.load("tiny", "validation", str(tiny))
    held = pipeline.in_memory(source, image_size=16, crop_fraction=0.875)
    options = {"batch_size": 8, "image_size": 16}
    same(
        list(pipeline.eval_batches(held, **options)), list(pipeline.eval_batches(source, **options))
    )


def test_memory_mistakes(source):
    held = pipeline.in_memory(source, image_size=16)
    with pytest.raises(DataError, match="random_crop must be False"):
        pipeline.train_batches(held, **OPTIONS)
    with pytest.raises(DataError, match=r"held in memory are \[16, 16, 3\]"):
        pipeline.train_batches(held, batch_size=8, image_size=32, random_crop=False)


# --- unreadable examples ------------------------------------------------------------------------


class Broken(list):
    """Examples, some of which cannot be decoded, or can only be read after some failed attempts.

    `broken` has the numbers of the former, `flaky` maps the latter to their failed attempts.
    """

    def __init__(self, count, broken=(), flaky=None):
        good = encode(picture())
        super().__init__(
            {"image": good[:99] if i in broken else good, "label": i % 2} for i in range(count)
        )
        self.flaky = flaky or {}

    def __getitem__(self, i):
        if self.flaky.get(i):
            self.flaky[i] -= 1
            raise OSError(5, "Input/output error")
        return super().__getitem__(i)

    def path(self, i):
        return f"/data/{i}.jpg"


def broken(*args, **kwargs):
    return Source(Broken(*args, **kwargs), ("a", "b"), "broken")


def test_an_unreadable_example_is_named_counted_and_replaced(caplog):
    examples._named.clear()
    source = broken(16, broken={3, 4})
    batches = take(pipeline.train_batches(source, **OPTIONS), 4)
    # In each of the two epochs, the place of example 3 skips 3 and 4, and that of 4 skips 4.
    assert sum(b["bad"].sum() for b in batches) == 2 * (2 + 1)
    assert "Skipping /data/3.jpg" in caplog.text
    assert caplog.text.count("/data/3.jpg") == 1  # once, though there were two epochs
    same(take(pipeline.train_batches(source, workers=1, **OPTIONS), 4), batches)


def test_strict_raises_and_names_the_file():
    reader = pipeline.train_batches(broken(16, broken={3}), strict=True, **OPTIONS)
    with pytest.raises(DataError, match=r"/data/3.jpg: not a readable image"):
        take(reader, 2)


def test_errors_of_workers_arrive():
    reader = pipeline.train_batches(broken(16, broken={3}), strict=True, workers=1, **OPTIONS)
    with pytest.raises(DataError, match=r"/data/3.jpg: not a readable image"):
        take(reader, 2)


def test_evaluation_masks_what_cannot_be_read():
    batches = list(pipeline.eval_batches(broken(10, broken={3, 9}), batch_size=4, image_size=16))
    mask = np.concatenate([b["mask"] for b in batches])
    np.testing.assert_array_equal(np.flatnonzero(~mask), [3, 9, 10, 11])
    assert sum(b["bad"].sum() for b in batches) == 2


def test_memory_counts_and_masks_alike():
    source = broken(10, broken={3, 9})
    options = {"batch_size": 4, "image_size": 16}
    held = pipeline.in_memory(source, image_size=16, crop_fraction=0.875)
    same(
        list(pipeline.eval_batches(held, **options)), list(pipeline.eval_batches(source, **options))
    )


def test_a_broken_data_set_ends_the_run():
    with pytest.raises(DataError, match=r"10 examples in a row .*Check the disk"):
        take(pipeline.train_batches(broken(32, broken=set(range(32))), **OPTIONS), 1)


def test_a_disk_that_fails_for_a_moment_is_read_again(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert examples.read(broken(4, flaky={2: 3}), 2)["label"] == 0
    assert waits == list(examples.RETRY_DELAYS[:3])
    out = np.zeros(1)
    flaky = broken(4, flaky={2: 99})
    assert examples.load(flaky, 2, lambda _, out: np.ones(1), False, out) == (1, 1)
    assert out == 1


def test_a_corrupt_record_is_skipped(tmp_path):
    rng = np.random.default_rng(0)
    noise = [(encode(rng.integers(0, 256, (64, 64, 3), np.uint8)), 0) for _ in range(40)]
    folder = write_tfds(tmp_path, "damaged", {"train": noise}, ["a"])
    path = next(folder.glob("*.array_record*"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)
    source = by_name.load("damaged", "train", str(tmp_path))
    batches = list(pipeline.eval_batches(source, batch_size=40, image_size=16))
    assert 1 <= batches[0]["bad"].sum() <= 2
    held = pipeline.in_memory(source, image_size=16)  # reads many records at once, then one by one
    assert 1 <= (held.examples.bad > 0).sum() <= 2


def test_a_label_out_of_range_is_always_an_error():
    with pytest.raises(DataError, match=r"has the label 7, but there are 7 classes \(0 to 6\)"):
        take(pipeline.train_batches(numbered(8, classes=7), **OPTIONS), 1)
    source = numbered(8)
    source.examples.labels[:] = -1  # TFDS's test splits without labels
    with pytest.raises(DataError, match="has the label -1"):
        take(pipeline.train_batches(source, **OPTIONS), 1)


# --- speed and exit -------------------------------------------------------------------------------


def test_memory_is_fast():
    images = np.zeros((5000, 32, 32, 3), np.uint8)
    labels = np.zeros(5000, np.int32)
    source = Source(Arrays(images, labels, labels), ("a",))
    reader = pipeline.train_batches(source, batch_size=256, image_size=32, random_crop=False)
    with iter(reader) as stream:
        next(stream)
        start = time.perf_counter()
        for _ in range(100):
            next(stream)
    assert 25_600 / (time.perf_counter() - start) > 40_000  # an idle machine reaches 500,000


def test_a_worker_that_is_killed_is_noticed(source):
    import multiprocessing

    with iter(pipeline.train_batches(source, workers=1, **OPTIONS)) as stream:
        next(stream)
        for child in multiprocessing.active_children():
            if "grain" in child.name:
                os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"has died \(.*exit code -9.*--config.data.workers"):
            list(stream)  # first the batches already read, then the error


ABANDONED = """
import os, signal, sys
from densenet_jax.data.reading import pipeline
from densenet_jax.data.sources import by_name
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
if __name__ == "__main__":
    sharding = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
    source = by_name.load("tiny", "train", sys.argv[1])
    options = dict(batch_size=8, image_size=64, workers=1)
    stream = pipeline.to_mesh(pipeline.train_batches(source, **options), sharding)
    other = iter(pipeline.train_batches(source, **options))
    batches = [next(stream), next(stream), next(other)]
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["abandoned", "killed"])
def test_abandoned_and_killed_processes_leave_nothing_behind(tiny, tmp_path, end):
    script = tmp_path / "abandon.py"
    script.write_text(ABANDONED)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    done = subprocess.run(
        [sys.executable, script, str(tiny), end],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,  # its workers have its stderr, so `run` waits for them too
    )
    if end == "abandoned":
        assert done.returncode == 0
        assert done.stderr == ""
    else:
        assert done.returncode == -signal.SIGKILL
    if before:
        assert not {f for f in set(os.listdir("/dev/shm")) - before if f.startswith("psm_")}


def test_a_stream_can_be_closed_twice(source):
    stream = iter(pipeline.train_batches(source, **OPTIONS))
    next(stream)
    stream.close()
    stream.close()


def test_the_reader_can_be_copied(source):
    reader = pipeline.train_batches(source, **OPTIONS)
    later = dataclasses.replace(reader, start=2)
    same(take(later, 1), take(reader, 3)[2:])


# --- image sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_sizes_change_with_the_batch_wherever_a_run_starts(source, workers):
    options = {**OPTIONS, "later_sizes": ((2, 20), (3, 12)), "workers": workers}
    batches = take(pipeline.train_batches(source, **options), 5)
    assert [b["image"].shape[1:3] for b in batches] == [
        (size, size) for size in (16, 16, 20, 12, 12)
    ]
    same(take(pipeline.train_batches(source, start=2, **options), 3), batches[2:])
    small = take(pipeline.train_batches(source, **{**OPTIONS, "image_size": 12}), 5)
    same(small[3:], batches[3:])  # the same examples and regions, at another size


def test_sizes_cannot_change_in_memory(source):
    held = pipeline.in_memory(source, image_size=16)
    with pytest.raises(DataError, match="images of one size"):
        pipeline.train_batches(held, random_crop=False, later_sizes=((2, 20),), **OPTIONS)


# --- images of other types ----------------------------------------------------------------------


def wide_source(count=20, channels=5):
    images = np.random.default_rng(0).integers(0, 65536, (count, 12, 10, channels))
    labels = (np.arange(count) % 2).astype(np.int32)
    return Source(Arrays(images.astype(np.uint16), labels), ("a", "b"), "wide")


@pytest.mark.parametrize("random_crop", [True, False])
def test_sixteen_bits_and_many_channels_reach_the_mesh(mesh, random_crop):
    source, look = wide_source(), {"channels": 5, "dtype": "uint16", "fit": "pad", "fill": (9.0,)}
    options = OPTIONS | look | {"random_crop": random_crop}
    alone = take(pipeline.train_batches(source, **options), 4)
    same(alone, take(pipeline.train_batches(source, workers=1, **options), 4))
    assert alone[0]["image"].dtype == np.uint16
    assert alone[0]["image"].max() > 255
    with pipeline.to_mesh(pipeline.train_batches(source, **options), mesh) as stream:
        same(alone[:2], [jax.device_get(next(stream)) for _ in range(2)])
    if not random_crop:
        held = pipeline.in_memory(source, image_size=16, **look)
        same(alone, take(pipeline.train_batches(held, **options), 4))


def test_an_image_of_another_kind_ends_the_run_and_is_named():
    images = [np.zeros((8, 8, 3), np.uint8)] * 5 + [np.zeros((8, 8, 3), np.uint16)]
    source = Source([{"image": image, "label": 0} for image in images], ("a", "b"), "mixed")
    reader = pipeline.eval_batches(source, batch_size=6, image_size=8)
    with pytest.raises(
        DataError, match="example 5 of mixed: it has uint16 pixels instead of uint8"
    ):
        list(reader)
    with pytest.raises(DataError, match="example 0 of mixed: it has 3 channels instead of 4"):
        list(pipeline.eval_batches(source, batch_size=6, image_size=8, channels=4))
