"""Trains on CIFAR-10 for a number of minutes, on a machine with this checkout but without the data.

  python benchmarks/cifar.py --archive=cifar10.tar.xz --out=OUT --minutes=9 [--resume=EARLIER_OUT]
      [--config=configs/cifar10.py:modern] [--config.key=value ...]

The archive contains TFDS's cifar10/VERSION/ as ArrayRecord files; it is unpacked once, next to OUT.
OUT becomes the run's directory with checkpoints, metrics and summary.json.  When the minutes are
over, the run saves its state and stops (exit code 75, as after any SIGTERM).  To continue a run,
give its directory as --resume and a new --out; the result is bit-identical to that of an
uninterrupted run.  Exit code 0 means that the run is finished.
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

GOAL = 0.94  # the summary has the time at which top-1 reached this accuracy
MOST_BYTES = 2**30  # largest size of an unpacked archive


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Unpacks the archive into a folder unless that was done before; returns the folder."""
    done = folder / "unpacked"
    if not done.exists():
        with tarfile.open(archive) as tar:
            if sum(member.size for member in tar.getmembers()) > MOST_BYTES:
                sys.exit(f"error: {archive} unpacks to more than {MOST_BYTES:,} bytes.")
            tar.extractall(folder, filter="data")
        done.touch()
    return folder


def summarize(out: pathlib.Path) -> dict:
    """Returns the progress and accuracy of a run, for summary.json.

    Returns:
      "step", "epoch", "seconds" (of training, including compilation), "images_per_second"
      (median), "top1" (of the last evaluation), "best_top1", and "seconds_to_94%" (until an
      evaluation reached `GOAL`); None where there is no evaluation.
    """
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
    parser.add_argument("--archive", type=pathlib.Path, required=True, help="of the data")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the run's directory")
    parser.add_argument("--minutes", type=float, required=True, help="until the run stops")
    parser.add_argument("--resume", type=pathlib.Path, help="directory of the run to continue")
    parser.add_argument("--config", default="configs/cifar10.py", help="configuration file")
    args, overrides = parser.parse_known_args()
    began = time.monotonic()
    for path in filter(None, (args.archive, args.resume)):
        if not path.exists():
            parser.error(f"{path} does not exist")
    if args.resume and not args.out.exists():
        shutil.copytree(args.resume, args.out)
    data = unpack(args.archive, args.out.absolute().parent / "cifar10_data")

    # SIGTERM makes the run save its state and stop.
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
