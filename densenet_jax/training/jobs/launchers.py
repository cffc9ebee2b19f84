"""Detection of launchers (mpirun, srun, Kubernetes) from the environment's variables."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from densenet_jax.training.errors import ConfigError

# Launchers that start copies of a command, and the variables that hold the number of copies and the
# index of this one.
COPIES = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
TPU_VARIABLES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


@dataclasses.dataclass(frozen=True)
class Launch:
    """A process's place among the processes of its job.

    `jax.distributed` finds out by itself what is None.

    Attributes:
      coordinator: HOST:PORT on which process 0 listens.
      count: number of processes in the job.
      index: which of them this is, from 0.
      local_count: number of processes on this machine.
      local_index: which of them this is, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_count: int = 1
    local_index: int = 0


def detect(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: str | None = None,
    process_id: str | None = None,
) -> Launch | None:
    """Returns this process's place in its job; None if it was started alone.

    Args:
      environ: the environment's variables.
      coordinator: value of --coordinator; this and the other flags take precedence over variables.
      num_processes: value of --num_processes.
      process_id: value of --process_id.

    Raises:
      ConfigError: a flag has no valid value, or the process is one of several and the flags and
        variables do not say how they find each other.
    """
    found = _open_mpi(environ) or _slurm(environ)
    if found is None and not any(name in environ for name in TPU_VARIABLES):
        found = _kubernetes(environ, explicit=num_processes is not None)
    given: dict[str, Any] = {
        "coordinator": coordinator,
        "count": _number("num_processes", num_processes),
        "index": _number("process_id", process_id),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if found is None and not given:
        on_tpu = any(name in environ for name in TPU_VARIABLES) or importlib.util.find_spec(
            "libtpu"
        )
        return Launch() if on_tpu else None
    launch = dataclasses.replace(found or Launch(), **given)
    if launch.count == 1:
        return None
    flags = {
        "--coordinator=HOST:PORT": launch.coordinator,
        "--num_processes=N": launch.count,
        "--process_id=I": launch.index,
    }
    missing = [flag for flag, value in flags.items() if value is None]
    if found is None and missing:
        raise ConfigError(
            f"{' and '.join(missing)} must be given, too: several processes need all three flags, "
            "or a launcher (mpirun, srun, Kubernetes) that sets these values."
        )
    if launch.coordinator and not re.fullmatch(r".+:\d{1,5}", launch.coordinator):
        raise ConfigError(f"--coordinator is {launch.coordinator!r}; it must be HOST:PORT.")
    if launch.count is not None and not 0 <= (launch.index or 0) < launch.count:
        raise ConfigError(
            f"--process_id is {launch.index}; it must be from 0 to {launch.count - 1}, as "
            f"--num_processes is {launch.count}."
        )
    return launch


def is_alone(command: str, environ: Mapping[str, str]) -> bool:
    """Returns whether a command that is made for a single process was started only once.

    Pods of Kubernetes are not counted as copies: a command typed in a pod runs there alone.

    Args:
      command: its name, for the message.
      environ: the environment's variables.

    Returns:
      False in all copies but the first, so that only the first one reports the error.

    Raises:
      ConfigError: this is the first of several copies.
    """
    for launcher, count, index in COPIES:
        if environ.get(count, "1") == "1":
            continue
        if environ.get(index, "0") != "0":
            return False
        raise ConfigError(
            f"{command} is for one process, but {launcher} has started {environ[count]}; start it "
            f"without {launcher}."
        )
    return True


def _number(flag: str, text: str | None) -> int | None:
    """Returns the number that a flag or variable holds; None if it is absent."""
    if text is not None and not re.fullmatch(r"\d{1,7}", text):
        raise ConfigError(f"--{flag} is {text!r}; it must be a whole number.")
    return None if text is None else int(text)


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    """Returns the place that mpirun's variables describe; None if there are none."""
    if "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    index, count, local_index, local_count = (
        int(environ[f"OMPI_COMM_WORLD_{name}"])
        for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    )
    coordinator = None  # JAX reads it from Open MPI 4's OMPI_MCA_orte_hnp_uri
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        # Open MPI 5 names the job after the host and the process of mpirun: prterun-HOST-PID@1.
        job = re.search(r"-(.+)-(\d+)@\d+$", environ.get("PMIX_NAMESPACE", ""))
        if job is None:
            raise ConfigError(
                "This process was started by mpirun, but Open MPI's variables do not name the "
                "host of process 0; add --coordinator=HOST:PORT, with a free port of that host."
            )
        host = "127.0.0.1" if local_count == count else job[1]
        coordinator = f"{host}:{61440 + int(job[2]) % 4096}"
    return Launch(coordinator, count, index, local_count, local_index)


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    """Returns the place that srun's variables describe; None outside srun."""
    names = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
    if any(name not in environ for name in names):  # the last one exists only within srun
        return None
    # The number of tasks on each node, such as "4(x2),3" for 4, 4 and 3.
    tasks = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        number, _, times = part.partition("(x")
        tasks += [int(number)] * int(times.rstrip(")") or 1)
    node = int(environ.get("SLURM_NODEID", 0))
    return Launch(
        count=int(environ["SLURM_NTASKS"]),
        index=int(environ["SLURM_PROCID"]),
        local_count=tasks[min(node, len(tasks) - 1)],
        local_index=int(environ["SLURM_LOCALID"]),
    )


def _kubernetes(environ: Mapping[str, str], explicit: bool) -> Launch | None:
    """Returns the place of a pod of an Indexed Job; None elsewhere.

    Args:
      environ: the environment's variables.
      explicit: whether --num_processes was given.
    """
    if "JOB_COMPLETION_INDEX" not in environ or "KUBERNETES_SERVICE_HOST" not in environ:
        return None
    index = int(environ["JOB_COMPLETION_INDEX"])
    coordinator, count = environ.get("JAX_COORDINATOR_ADDRESS"), environ.get("JAX_NUM_PROCESSES")
    if coordinator and count:
        return Launch(coordinator, _number("num_processes", count), index)
    if explicit:
        return Launch(coordinator, index=index)
    if importlib.util.find_spec("kubernetes"):
        return Launch()  # JAX asks the cluster's API
    raise ConfigError(
        f"This is pod {index} of an Indexed Job, and it cannot find the others: set "
        "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES as launch/kubernetes does, or pass "
        "--num_processes=1 if each pod is to work by itself."
    )


def local_device_ids(launch: Launch, environ: Mapping[str, str]) -> list[int] | None:
    """Returns the GPUs of this machine that belong to this process: an equal share, in order.

    JAX by itself would take one GPU per process, even if a machine has one process and eight GPUs.

    Args:
      launch: this process's place in its job.
      environ: the environment's variables.

    Returns:
      indices of visible GPUs; [] for all of them; None to let JAX choose.

    Raises:
      ConfigError: there are more processes than GPUs.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = len([p for p in pathlib.Path("/dev").glob("nvidia*") if p.name[6:].isdigit()])
    else:
        gpus = len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    dealt = any(f"SLURM_{name}" in environ for name in ("GPUS_PER_TASK", "GPU_BIND"))
    # A launcher that assigns GPUs to processes usually leaves one visible to each.
    dealt |= visible is not None and gpus == 1
    if launch.local_count == 1 or dealt:
        return []
    if gpus == 0 or environ.get("JAX_PLATFORMS") == "cpu":
        return None
    share = gpus // launch.local_count
    if share == 0:
        raise ConfigError(
            f"{launch.local_count} processes on this machine share {gpus} GPU(s); start at most "
            "one process per GPU, or set JAX_PLATFORMS=cpu."
        )
    return list(range(launch.local_index * share, (launch.local_index + 1) * share))
