"""Trains on CIFAR-10 for some minutes, on a machine that has nothing but this checkout.

  python benchmarks/cifar.py --archive=cifar10.tar.xz --out=OUT --minutes=9 [--resume=EARLIER_OUT]
      [--config=configs/cifar10.py:modern] [--config.key=value ...]

The archive holds TFDS's cifar10/VERSION/ as ArrayRecord; it is unpacked beside OUT once.  OUT gets
a run's directory, checkpoints and metrics included, and summary.json.  At the end of its minutes
the run saves its state and stops (exit code 75, as after any SIGTERM); with --resume=OUT, into
another folder, it goes on from there to the bit.  Exit code 0: the run is finished.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import sys
import tarfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from densenet_jax import cli
from densenet_jax.training.rundir import metrics_log

GOAL = 0.94  # top-1 whose time is of interest
MOST_BYTES = 2**30  # that an archive may unpack to


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Returns TFDS's data directory with what the archive holds; unpacked once."""
    done = folder / "unpacked"
    if not done.exists():
        with tarfile.open(archive) as tar:
            if sum(member.size for member in tar.getmembers()) > MOST_BYTES:
                sys.exit(f"error: {archive} holds more than {MOST_BYTES} bytes.")
            tar.extractall(folder, filter="data")
        done.touch()
    return folder


def summarize(out: pathlib.Path) -> dict:
    """Returns what a run has reached; `seconds` are of training, compilation included."""
    records = metrics_log.read(out / "metrics.jsonl")
    evaluations = [r for r in records if r["split"] == "eval"]
    speeds = sorted(r["images_per_second"] for r in records if r["split"] == "train")
    last = max(evaluations, key=lambda r: r["step"], default={})
    return {
        "step": records[-1]["step"] if records else 0,
        "epoch": records[-1]["epoch"] if records else 0,
        "seconds": records[-1]["seconds"] if records else 0,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "top1": last.get("top1"),
        "best_top1": max((r["top1"] for r in evaluations), default=None),
        f"seconds_to_{GOAL:.0%}": next(
            (r["seconds"] for r in evaluations if r["top1"] >= GOAL), None
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--resume", type=pathlib.Path, help="the folder of the piece before")
    parser.add_argument("--config", default="configs/cifar10.py")
    args, overrides = parser.parse_known_args()
    began = time.monotonic()
    for path in filter(None, (args.archive, args.resume)):
        if not path.exists():
            parser.error(f"there is no {path}")
    if args.resume and not args.out.exists():
        shutil.copytree(args.resume, args.out)
    data = unpack(args.archive, args.out.absolute().parent / "cifar10_data")

    # The run saves and stops as it does for any other SIGTERM.
    left = 60 * args.minutes - (time.monotonic() - began)
    timer = threading.Timer(max(left, 1), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    command = ["main.py", "train", f"--config={args.config}", f"--workdir={args.out}"]
    code = cli.main([*command, f"--config.data.data_dir={data}", *overrides])
    timer.cancel()
    if code in (0, cli.EXIT_INTERRUPTED):
        summary = summarize(args.out)
        (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(json.dumps(summary))
    return code


if __name__ == "__main__":
    sys.exit(main())
