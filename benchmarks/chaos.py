"""Breaks runs for real, and shows that nothing is lost.

  python benchmarks/chaos.py [--kills=50] [--seed=0] [--work=DIR]

A small DenseNet is trained on the digits once undisturbed, and once with the whole process group
killed (SIGKILL) again and again: at random times, while a checkpoint is written, and while one is
deleted; between kills the newest checkpoint is sometimes damaged.  Then the final parameters must
be the same to the bit, and metrics.jsonl must have every step exactly once.  Prints a table; exits
with 1 if anything was lost.
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

ROOT = pathlib.Path(__file__).parent.parent
CLOCK = ("seconds", "images_per_second", "data_wait")
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
MOMENTS = ("at a random time", "while a checkpoint is written", "while one is deleted")
DAMAGES = ("a flipped bit", "a truncated file", "half of it deleted")


def start(workdir: pathlib.Path, log) -> subprocess.Popen:
    """Starts the run in a process group of its own."""
    command = [*COMMAND, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def wait_for(process: subprocess.Popen, moment: str, workdir: pathlib.Path, rng) -> bool:
    """Waits for a moment to kill; False: the run ended before it came."""
    metrics = workdir / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while not metrics.exists() or metrics.stat().st_mtime_ns == before:  # until it trains
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    until = time.monotonic() + rng.uniform(0, 1.5)
    while process.poll() is None:
        if time.monotonic() > until and (
            moment == MOMENTS[0] or time.monotonic() > until + 20 or happens(moment, workdir)
        ):
            return True
        time.sleep(0.0005)
    return False


def happens(moment: str, workdir: pathlib.Path) -> bool:
    try:
        folders = list((workdir / "checkpoints").iterdir())
        if moment == MOMENTS[1]:
            return any("tmp" in f.name for f in folders)
        # Sealed folders are complete; one that has its seal but lacks its data is being deleted.
        return any(
            (f / "SHA256SUMS").exists() != (f / "_CHECKPOINT_METADATA").exists()
            and len(folders) > 2
            for f in folders
            if f.name.isdigit()
        )
    except OSError:  # it vanished while being looked at: that is the moment
        return moment == MOMENTS[2]


def damage(workdir: pathlib.Path, kind: str, rng) -> None:
    """Damages the newest checkpoint."""
    steps = [f for f in (workdir / "checkpoints").iterdir() if f.name.isdigit()]
    newest = max(steps, key=lambda f: int(f.name))
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
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


def run_to_end(workdir: pathlib.Path, log) -> None:
    if start(workdir, log).wait() != 0:
        raise RuntimeError(f"the run in {workdir} failed; see {log.name}")


def records(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def parameters(workdir: pathlib.Path) -> bytes:
    """Returns every bit of the variables of the last checkpoint."""
    script = (
        "import sys, hashlib, jax, numpy as np\n"
        "from densenet_jax.training import runs\n"
        f"v = runs.read({str(workdir)!r}, runs.read_config({str(workdir)!r}), 'latest')[1]\n"
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
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="chaos_"))
    work.mkdir(parents=True, exist_ok=True)
    faults = collections.Counter()
    with (work / "log").open("w") as log:
        run_to_end(work / "undisturbed", log)
        finished, kills = 0, 0
        disturbed = work / "disturbed0"
        while kills < options.kills:
            moment = rng.choice(MOMENTS)
            process = start(disturbed, log)
            if wait_for(process, moment, disturbed, rng):
                os.killpg(process.pid, signal.SIGKILL)
                faults[f"killed {moment}"] += 1
                kills += 1
            process.wait()
            if process.returncode == 0:  # it got to its end: another one goes on being killed
                finished += 1
                disturbed = work / f"disturbed{finished}"
            elif rng.random() < 0.3 and len(list((disturbed / "checkpoints").glob("[0-9]*"))) > 1:
                kind = rng.choice(DAMAGES)
                damage(disturbed, kind, rng)
                faults[f"newest checkpoint: {kind}"] += 1
        run_to_end(disturbed, log)
    expected, wanted = records(work / "undisturbed"), parameters(work / "undisturbed")
    lost = 0
    for i in range(finished + 1):
        workdir = work / f"disturbed{i}"
        same_metrics, same_bits = records(workdir) == expected, parameters(workdir) == wanted
        lost += not (same_metrics and same_bits)
        print(f"run {i}: metrics {'equal' if same_metrics else 'DIFFER'}, ", end="")
        print(f"final parameters {'equal to the bit' if same_bits else 'DIFFER'}")
    print("\n| fault injected | times | survived |\n|---|---:|---:|")
    for fault, times in sorted(faults.items()):
        print(f"| {fault} | {times} | {times if not lost else '?'} |")
    print(f"\n{finished + 1} runs, {sum(faults.values())} faults, runs with data lost: {lost}")
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main())
