"""The launch scripts: the commands they start, and which exit codes cause how many restarts."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"


@pytest.fixture
def launch(tmp_path):
    """Runs a script with fake launchers that log their arguments and exit with given codes."""

    def run(script: str, *words: str, codes: str, **variables: str):
        for name in ("mpirun", "srun", "gcloud", "xpk"):
            program = tmp_path / name
            program.write_text(
                '#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> "$LOG"\n'
                'read -r code rest < "$CODES"\necho "$rest" > "$CODES"\nexit "$code"\n'
            )
            program.chmod(0o755)
        (tmp_path / "scontrol").write_text('#!/usr/bin/env bash\necho "scontrol $*" >> "$LOG"\n')
        (tmp_path / "scontrol").chmod(0o755)
        log, left = tmp_path / "log", tmp_path / "codes"
        log.write_text("")
        left.write_text(codes + "\n")
        environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PAUSE": "0"}
        environ |= {"LOG": str(log), "CODES": str(left), "PYTHON": "python3", **variables}
        done = subprocess.run([LAUNCH / script, *words], env=environ, capture_output=True)
        return done.returncode, log.read_text().splitlines()

    return run


TPU = {"TPU": "slice", "ZONE": "us-central1-a"}


@pytest.mark.parametrize(
    ("script", "words", "variables"), [("mpirun.sh", ["4"], {}), ("tpu_pod.sh", [], TPU)]
)
@pytest.mark.parametrize(
    ("codes", "code", "starts"),
    [("0", 0, 1), ("2", 2, 1), ("3", 3, 1), ("137 75 1 0", 0, 4), ("1 1 1 1 1", 1, 3)],
)
def test_exit_codes_decide_about_restarts(launch, script, words, variables, codes, code, starts):
    got, log = launch(script, *words, "--workdir=x", codes=codes, RESTARTS="2", **variables)
    if starts == 4:
        got, log = launch(script, *words, "--workdir=x", codes=codes, RESTARTS="3", **variables)
    assert (got, len(log)) == (code, starts)


def test_mpirun_gets_its_options_and_arguments(launch):
    _, log = launch("mpirun.sh", "4", "--config=a b", "--workdir=x", codes="0", HOSTFILE="hosts")
    assert log == ["-n 4 --hostfile hosts --bind-to none python3 main.py --config=a b --workdir=x"]


def test_arguments_reach_every_host_of_a_slice_unchanged(launch):
    _, log = launch("tpu_pod.sh", "--config.data.std=(0.1, 0.2)", codes="0", **TPU)
    (line,) = log
    assert "ssh slice --zone=us-central1-a --worker=all" in line
    command = line.partition("--command=")[2].partition("main.py")[2]
    words = subprocess.run(["bash", "-c", f"printf '%s|' {command}"], capture_output=True).stdout
    assert words.decode() == "--config.data.std=(0.1, 0.2)|"


@pytest.mark.parametrize(
    ("code", "restarts", "queued"),
    [
        ("0", "0", False),
        ("2", "0", False),
        ("75", "0", True),
        ("137", "3", True),
        ("1", "9", False),
    ],
)
def test_slurm_requeues_jobs_that_can_continue(launch, code, restarts, queued):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts, "RESTARTS": "9"}
    slurm["SLURM_SUBMIT_DIR"] = str(LAUNCH.parent)
    got, log = launch("slurm.sh", "--workdir=x", codes=code, **slurm)
    assert log[0].endswith("python3 main.py --workdir=x")
    assert ("scontrol requeue 7" in log) == queued
    assert got == (0 if queued else int(code))


def test_a_stopped_mpirun_saves_and_is_not_restarted(tmp_path):
    """mpirun gets SIGUSR1, which it forwards; its exit code becomes the script's."""
    program = tmp_path / "mpirun"
    program.write_text(
        f'#!/usr/bin/env bash\ntrap "exit 75" USR1\necho run >> {tmp_path}/log\n'
        "while true; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = subprocess.Popen([LAUNCH / "mpirun.sh", "2"], env=environ)
    end = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < end:
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 75
    assert (tmp_path / "log").read_text() == "run\n"


def test_xpk_gets_the_workload(launch):
    cluster = {"CLUSTER": "c", "TYPE": "v5litepod-256", "IMAGE": "registry/image:1"}
    code, (line,) = launch("xpk.sh", "--config=a b", "--workdir=/runs/x", codes="0", **cluster)
    assert code == 0
    assert line == (
        "workload create --cluster=c --workload=densenet --device-type=v5litepod-256 "
        "--num-slices=1 --docker-image=registry/image:1 --max-restarts=10 "
        "--restart-on-exit-codes=1,75 --termination-grace-period-seconds=120 "
        r"--command=python main.py --config=a\ b --workdir=/runs/x"
    )


def test_xpk_needs_a_cluster(launch):
    code, log = launch("xpk.sh", codes="0", CLUSTER="c", TYPE="v5litepod-256")
    assert (code, log) == (1, [])
