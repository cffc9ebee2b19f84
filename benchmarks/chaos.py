"""Kills runs and damages their checkpoints, and checks that no training progress is lost.

  python benchmarks/chaos.py [--kills=50] [--seed=0] [--work=DIR] [--workers=2] [--clock]

A small DenseNet is trained on the digits once without disturbance, and once while its whole process
group is killed (SIGKILL) repeatedly: at random times, while a checkpoint is written, and while one
is deleted; sometimes it is stopped for a second and continued first (SIGSTOP, SIGCONT).  With
--workers, sometimes only a process that reads data is killed, as the system does without memory;
the run must then end with exit code 2.  With --clock, every start has another
date, and the clock sometimes jumps by hours, days or years while the run trains.
Between kills the newest checkpoint is sometimes damaged.
At the end, the final
parameters must be bit-identical, and metrics.jsonl must have every step exactly once.  Prints
tables of the injected faults and of what the kills left on disk; exits with 1 if anything was lost.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import TextIO

import psutil

ROOT = pathlib.Path(__file__).parent.parent
CHECKSUMS = "SHA256SUMS"
CLOCK = ("seconds", "images_per_second", "data_wait")  # metrics that differ between equal runs
COMMAND = (
    sys.executable,
    str(ROOT / "main.py"),
    f"--config={ROOT}/configs/digits.py",
    "--config.model.depth=10",
    "--config.model.growth_rate=4",
    "--config.data.image_size=8",
    "--config.model.dropout_rate=0.1",
    "--config.batch_size=32",
    "--config.total_steps=600",
    "--config.eval_every_epochs=2.0",
    "--config.checkpoint_every_steps=7",
)
READER = "a process that reads data"  # is killed while it trains
MOMENTS = (
    "while it starts",
    "while it trains",
    "while a checkpoint is written",
    "while a checkpoint is deleted",
)
START_SECONDS = 8.0  # about the time that a start takes, including the resume
HOUR, YEAR = 3600, 365 * 86400
JUMPS = (-30 * YEAR, -24 * HOUR, -2 * HOUR, 0, HOUR, 48 * HOUR, 10 * YEAR)  # of the clock, seconds
# The time of day goes through these functions; the steady clock, which measures durations, does not
# jump on a real machine either.
SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) {
  long seconds = 0;
  FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
  if (file && fscanf(file, "%ld", &seconds) != 1) seconds = 0;
  if (file) fclose(file);
  return seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, now);
  if (id == CLOCK_REALTIME) now->tv_sec += shift();
  return code;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec time;
  int code = clock_gettime(CLOCK_REALTIME, &time);
  now->tv_sec = time.tv_sec, now->tv_usec = time.tv_nsec / 1000;
  return code;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return out ? (*out = now.tv_sec) : now.tv_sec;
}
"""
DAMAGES = ("a flipped bit", "a truncated file", "half of it deleted")
# Makes a run kill itself during the removal of a checkpoint's folder: in the Nth removal, after a
# given number of files.  A removal takes a millisecond, too short to be hit by another process.
DIES_DELETING = """
import os, runpy, signal, sys
folders, files = int(sys.argv.pop(1)), int(sys.argv.pop(1))
def hook(event, args):
    global folders, files
    if event == "shutil.rmtree" and "/checkpoints/" in str(args[0]):
        folders -= 1
    elif event == "os.remove" and folders < 0:
        files -= 1
        if files < 0:
            os.killpg(0, signal.SIGKILL)
sys.addaudithook(hook)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(
    workdir: pathlib.Path,
    log: TextIO,
    dies: tuple[int, int] | None = None,
    workers: int = 0,
    clock: pathlib.Path | None = None,
) -> subprocess.Popen:
    """Starts the run in a process group of its own.

    Args:
      workdir: the run's directory.
      log: gets the run's output.
      dies: (folders, files): the run kills itself after it has removed this many checkpoint
        folders, and this many files of the next one; None: it does not.
      workers: number of processes that read data; 0: the run itself does.
      clock: a file with the seconds by which the run's clock is off, one of `JUMPS`.
    """
    command = [*COMMAND, f"--workdir={workdir}"]
    if workers:
        command += ["--config.data.in_memory=False", f"--config.data.workers={workers}"]
    if dies:
        command[1:1] = ["-c", DIES_DELETING, *map(str, dies)]
    # Every program goes into the compilation cache, so that later starts take only seconds.
    environ = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if clock:
        environ |= {"LD_PRELOAD": str(fake_clock(clock.parent)), "CLOCK_SHIFT": str(clock)}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=log, env=environ, start_new_session=True
    )


def fake_clock(folder: pathlib.Path) -> pathlib.Path:
    """Returns a library, built once, that shifts the clock of a process that loads it first."""
    library = folder / "clock.so"
    if not library.exists():
        compiler = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-xc", "-", "-ldl"]
        subprocess.run([*compiler, "-o", library], input=SHIFTED_CLOCK.encode(), check=True)
    return library


def kill(
    moment: str,
    workdir: pathlib.Path,
    log: TextIO,
    rng: random.Random,
    faults: collections.Counter,
    workers: int,
    clock: pathlib.Path | None,
) -> int:
    """Starts the run and kills it at a moment; returns its exit code, 0 if it finished before."""
    if clock:
        clock.write_text(str(rng.choice(JUMPS)))
    if moment == MOMENTS[3]:
        return start(workdir, log, (rng.randrange(8), rng.randrange(20)), workers, clock).wait()
    process = start(workdir, log, workers=workers, clock=clock)
    if wait_for(moment, process, workdir, rng):
        if rng.random() < 0.3:
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(1)
            os.killpg(process.pid, signal.SIGCONT)
            faults["stopped for a second and continued"] += 1
        if clock and rng.random() < 0.5:
            clock.write_text(str(rng.choice(JUMPS)))
            time.sleep(0.3)
            faults["the clock jumped"] += 1
        if moment == READER:
            readers = psutil.Process(process.pid).children()
            rng.choice([r for r in readers if "spawn_main" in " ".join(r.cmdline())]).kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait(120)


def wait_for(
    moment: str, process: subprocess.Popen, workdir: pathlib.Path, rng: random.Random
) -> bool:
    """Waits for the moment to kill a run; returns False if the run ended before."""
    if moment == MOMENTS[0]:
        time.sleep(rng.uniform(0, START_SECONDS))
        return process.poll() is None
    metrics = workdir / "metrics.jsonl"
    before, size = inode_and_size(metrics)[0], None
    while True:  # until the resumed run has rewritten the file and appends to it
        inode, now = inode_and_size(metrics)
        if inode != before:
            size = now if size is None else size
            if now > size:
                break
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    until = time.monotonic() + rng.uniform(0, 1.5)
    while process.poll() is None:
        if time.monotonic() > until and (
            moment in (MOMENTS[1], READER) or any((workdir / "checkpoints").glob("*tmp*"))
        ):
            return True
        time.sleep(0.0005)
    return False


def inode_and_size(path: pathlib.Path) -> tuple[int, int]:
    """Returns a file's inode and size in bytes; (0, 0) if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_size


def left(workdir: pathlib.Path) -> str:
    """Returns what a kill left on disk, in words."""
    folders = list((workdir / "checkpoints").glob("*"))
    steps = sorted((f for f in folders if f.name.isdigit()), key=lambda f: int(f.name))
    torn = [f for f in steps if not complete(f)]
    if any(f != steps[-1] or (f / CHECKSUMS).exists() for f in torn):
        return "a partly deleted checkpoint"
    if len(steps) < len(folders):
        return "a partly written checkpoint"
    return "a checkpoint without its checksums" if torn else "no incomplete file"


def complete(folder: pathlib.Path) -> bool:
    """Returns whether a checkpoint has its list of checksums and every file in the list."""
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except OSError:
        return False
    return all((folder / line.partition("  ")[2]).exists() for line in lines)


def damage(workdir: pathlib.Path, kind: str, rng: random.Random) -> None:
    """Damages the newest checkpoint; `kind` is one of `DAMAGES`."""
    steps = [f for f in (workdir / "checkpoints").iterdir() if f.name.isdigit()]
    newest = max(steps, key=lambda f: int(f.name))
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
    if not files:  # the kill came just before the empty folder itself was removed
        return
    victim = rng.choice(files)
    if kind == DAMAGES[0]:
        content = bytearray(victim.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        victim.write_bytes(content)
    elif kind == DAMAGES[1]:
        os.truncate(victim, victim.stat().st_size // 2)
    else:
        for path in files[::2]:
            path.unlink()


def run_to_end(workdir: pathlib.Path, log: TextIO) -> None:
    """Starts or resumes the run and waits for its end.

    Raises:
      RuntimeError: the run failed.
    """
    if start(workdir, log).wait() != 0:
        raise RuntimeError(f"The run in {workdir} failed; see {log.name}.")


def records(workdir: pathlib.Path) -> list[dict]:
    """Returns the records of metrics.jsonl without metrics that depend on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def parameters(workdir: pathlib.Path) -> bytes:
    """Returns a hash of all bits of the last checkpoint's variables."""
    script = (
        "import sys, hashlib, jax, numpy as np\n"
        "from densenet_jax.training.rundir import run_weights as r\n"
        f"v = r.read({str(workdir)!r}, r.read_config({str(workdir)!r}), 'latest')[1]\n"
        "d = [np.asarray(x).tobytes() for x in jax.tree.leaves(v)]\n"
        "print(hashlib.sha256(b''.join(d)).hexdigest())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    ).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages")
    parser.add_argument("--work", type=pathlib.Path, help="folder of the runs; default: a new one")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data")
    parser.add_argument("--clock", action="store_true", help="the clock of the runs jumps")
    options = parser.parse_args()
    moments = (*MOMENTS, READER) if options.workers else MOMENTS
    rng = random.Random(options.seed)
    work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="chaos_"))
    work.mkdir(parents=True, exist_ok=True)
    faults, remains = collections.Counter(), collections.Counter()
    with (work / "log").open("w") as log:
        run_to_end(work / "undisturbed", log)
        finished, kills = 0, 0
        disturbed = work / "disturbed0"
        while kills < options.kills:
            moment = rng.choice(moments)
            clock = work / "clock" if options.clock else None
            code = kill(moment, disturbed, log, rng, faults, options.workers, clock)
            if code == (2 if moment == READER else -signal.SIGKILL):
                faults[f"killed {moment}" if moment != READER else f"{moment} killed"] += 1
                remains[left(disturbed)] += 1
                kills += 1
            elif code != 0:
                raise RuntimeError(f"The run in {disturbed} failed; see {log.name}.")
            if code == 0:  # it finished before the kill: the kills continue with a new run
                finished += 1
                disturbed = work / f"disturbed{finished}"
            # Without any intact checkpoint a run refuses to start, so one is left.
            elif (
                rng.random() < 0.3
                and sum(map(complete, (disturbed / "checkpoints").glob("[0-9]*"))) > 1
            ):
                kind = rng.choice(DAMAGES)
                damage(disturbed, kind, rng)
                faults[f"newest checkpoint: {kind}"] += 1
        run_to_end(disturbed, log)
    expected = records(work / "undisturbed")
    steps = [r["step"] for r in expected if r["split"] == "train"]
    if steps != list(range(1, len(steps) + 1)):
        raise RuntimeError("metrics.jsonl of the undisturbed run does not have every step once.")
    wanted = parameters(work / "undisturbed")
    lost = 0
    for i in range(finished + 1):
        workdir = work / f"disturbed{i}"
        same_metrics, same_bits = records(workdir) == expected, parameters(workdir) == wanted
        lost += not (same_metrics and same_bits)
        print(f"run {i}: metrics {'equal' if same_metrics else 'DIFFER'}, ", end="")
        print(f"final parameters {'bit-identical' if same_bits else 'DIFFER'}")
    print("\n| fault injected | times | survived |\n|---|---:|---:|")
    for fault, times in sorted(faults.items()):
        print(f"| {fault} | {times} | {times if not lost else '?'} |")
    print("\n| state on disk after a kill | times |\n|---|---:|")
    for what, times in sorted(remains.items()):
        print(f"| {what} | {times} |")
    print(f"\n{finished + 1} runs, {sum(faults.values())} faults, runs with data lost: {lost}")
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main())
