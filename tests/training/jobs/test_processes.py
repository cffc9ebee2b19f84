"""Jobs of real processes with real collectives: killed, stopped, resumed by fewer, and failing.

By Open MPI where it is installed, else as plain processes that are told of each other.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from densenet_jax import cli
from densenet_jax.training import experiment
from densenet_jax.training.rundir import metrics_log, run_weights

ROOT = pathlib.Path(__file__).parents[3]
MPIRUN = shutil.which("mpirun")
SECONDS = 400  # a machine may be slow; nothing here waits for its end
CONFIG = f"--config={pathlib.Path(__file__).parents[1]}/several_config.py"


class JobOf:
    """Processes that work on one run."""

    def __init__(
        self,
        count: int,
        workdir: pathlib.Path,
        mpi: bool,
        words: tuple[str, ...] = (),
        last: tuple[str, ...] = (),
    ):
        """Starts them.

        Args:
          words: of the command line; by default they train in `workdir`.
          last: further ones of the last process, without Open MPI.
        """
        options = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        environ = os.environ | {
            "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": options,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        self.workdir, self.log = workdir, workdir.with_suffix(".log")
        command = [sys.executable, f"{ROOT}/main.py", CONFIG, *(words or [f"--workdir={workdir}"])]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if mpi:
            commands = [[MPIRUN, "--oversubscribe", "-n", str(count), *command]]
        else:
            flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
            commands = [[*command, *flags, f"--process_id={i}"] for i in range(count)]
            commands[-1] += last
        with self.log.open("wb") as log:
            self.processes = [
                subprocess.Popen(
                    c,
                    stdout=log,
                    stderr=log,
                    env=environ,
                    cwd=workdir.parent,
                    start_new_session=True,
                )
                for c in commands
            ]

    def wait(self) -> list[int]:
        """Returns the exit codes; processes that take too long are killed."""
        end = time.monotonic() + SECONDS
        try:
            return [p.wait(max(1, end - time.monotonic())) for p in self.processes]
        finally:
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def signal(self, index: int, number: int) -> None:
        """Sends a signal to a process."""
        if len(self.processes) > 1:
            self.processes[index].send_signal(number)
            return
        for folder in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                environ = (folder / "environ").read_bytes().split(b"\0")
                words = (folder / "cmdline").read_bytes().split(b"\0")
                own = f"--workdir={self.workdir}".encode() in words
                if own and f"OMPI_COMM_WORLD_RANK={index}".encode() in environ:
                    os.kill(int(folder.name), number)

    def wait_for_step(self, step: int) -> None:
        """Waits until metrics.jsonl has a step."""
        end = time.monotonic() + SECONDS
        while not any(r["step"] >= step for r in read(self.workdir)):
            dead = all(p.poll() is not None for p in self.processes)
            assert not dead, self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)


def read(workdir: pathlib.Path) -> list[dict]:
    return metrics_log.read(workdir / "metrics.jsonl")


def variables(workdir: pathlib.Path) -> list[np.ndarray]:
    config = experiment.build(cli.parse(["main.py", CONFIG])[1]).config
    return jax.tree.leaves(jax.device_get(run_weights.read(str(workdir), config, "latest")[1]))


def test_killed_stopped_and_resumed_it_is_the_run_of_one(tmp_path):
    """Kills one of two processes, then asks one of four to stop, then ends the run with two."""
    workdir = tmp_path / "several"
    job = JobOf(2, workdir, mpi=bool(MPIRUN))
    job.wait_for_step(3)
    job.signal(1, signal.SIGKILL)
    assert 0 not in job.wait()
    reached = max(r["step"] for r in read(workdir))
    assert reached < 18

    job = JobOf(4, workdir, mpi=bool(MPIRUN))
    job.wait_for_step(reached + 3)
    job.signal(1, signal.SIGTERM)
    assert set(job.wait()) == {75}, job.log.read_text()
    text = job.log.read_text()
    assert text.count("the state is saved") == 1  # one process speaks
    assert "4 device(s) in 4 process(es)" in text
    stopped = max(r["step"] for r in read(workdir))
    assert stopped < 24
    assert (workdir / "checkpoints" / str(stopped)).is_dir()

    job = JobOf(2, workdir, mpi=bool(MPIRUN))
    assert set(job.wait()) == {0}, job.log.read_text()
    text = job.log.read_text()
    assert f"resuming at step {stopped} of 24" in text
    assert text.count("\ntop-1 ") == 1
    assert (workdir / "report.html").is_file()

    alone = tmp_path / "alone"
    job = JobOf(1, alone, mpi=False)
    assert job.wait() == [0], job.log.read_text()
    with jax.enable_x64():
        for a, b in zip(variables(alone), variables(workdir), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)
    for a, b in zip(read(alone), read(workdir), strict=True):
        assert (a["step"], a["split"], a["top1"]) == (b["step"], b["split"], b["top1"])
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-10)


def test_what_one_process_alone_finds_wrong_ends_all_and_is_said_once(tmp_path):
    """The second process has another configuration than the first one."""
    job = JobOf(2, tmp_path / "run", mpi=False, last=("--config.log_every=7",))
    assert job.wait() == [2, 2]
    text = job.log.read_text()
    assert text.count("does not see what process 0 wrote") == 1
    assert "Traceback" not in text


def test_a_sweep_whose_second_run_diverges_and_an_evaluation_from_its_first(tmp_path):
    """In two processes a rollback happens in both and is printed once, and one writes the table."""
    folder = tmp_path / "sweep"
    sweep = "--sweep=optimizer.learning_rate=[0.05,1e30]"
    length = ("--config.total_steps=12", "--config.checkpoint_every_steps=2")
    bad = ("--config.nonfinite_limit=2", "--config.nonfinite_rollbacks=1")
    job = JobOf(2, folder, mpi=bool(MPIRUN), words=(f"--workdir={folder}", sweep, *length, *bad))
    assert set(job.wait()) == {0}, job.log.read_text()
    text = job.log.read_text()
    assert text.count("on with the data in another order") == 1
    assert text.count("written: ") == 1
    assert "Traceback" not in text
    good, diverged = json.loads((folder / "sweep.json").read_text())
    assert (good["step"], diverged["top1"]) == (12, None)
    assert "not finite in 2 steps in a row" in diverged["error"]
    report = json.loads((pathlib.Path(diverged["workdir"]) / "nonfinite.json").read_text())
    assert report["step"] < 12
    assert len(report["examples"]) == 16

    source = f"--config.init_from={good['workdir']}"
    job = JobOf(2, tmp_path / "evaluation", mpi=False, words=("evaluate", source))
    assert job.wait() == [0, 0], job.log.read_text()
    assert job.log.read_text().count("written to") == 1
    (path,) = tmp_path.glob("runs/*/evaluation.json")
    found = json.loads(path.read_text())
    assert (found["examples"], found["top1"]) == (360, good["top1"])
    np.testing.assert_allclose(found["loss"], good["loss"], rtol=1e-7)  # of float32 scores
