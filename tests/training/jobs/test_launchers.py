"""Detection of each launcher from its variables."""

import pytest

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.jobs import launchers
from densenet_jax.training.jobs.launchers import Launch, detect, local_device_ids

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
SLURM = {
    "SLURM_NTASKS": "11",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-3]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_NODEID": "2",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
MEETING = {"JAX_COORDINATOR_ADDRESS": "run-0.run:1234", "JAX_NUM_PROCESSES": "4"}


@pytest.fixture(autouse=True)
def _no_packages(monkeypatch):
    """Neither `libtpu` nor `kubernetes` is installed."""
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, None),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, Launch(None, 8, 5, 4, 1)),
        # Open MPI 5
        (
            OPEN_MPI | {"PMIX_NAMESPACE": "prterun-node-1-4100@1"},
            Launch("node-1:61444", 8, 5, 4, 1),
        ),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "PMIX_NAMESPACE": "prterun-x-7@1"},
            Launch("127.0.0.1:61447", 8, 5, 8, 1),
        ),
        (SLURM, Launch(None, 11, 9, 3, 1)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x11)"}, Launch(None, 11, 9, 1, 1)),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),  # outside of srun
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (POD | MEETING, Launch("run-0.run:1234", 4, 3)),
        (POD | MEETING | {"JAX_NUM_PROCESSES": "1"}, None),
        ({"JOB_COMPLETION_INDEX": "3"}, None),  # not in a cluster
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Launch()),
        (POD | {"TPU_WORKER_HOSTNAMES": "a,b"}, Launch()),
    ],
)
def test_launchers(environ, launch):
    assert detect(environ) == launch


def test_flags_come_first():
    assert detect({}, "host:1", "2", "1") == Launch("host:1", 2, 1)
    assert detect(POD, "host:1", "4") == Launch("host:1", 4, 3)
    assert detect(SLURM, "host:1") == Launch("host:1", 11, 9, 3, 1)
    assert detect(POD, num_processes="1") is None
    assert detect(OPEN_MPI | {"PMIX_NAMESPACE": "prterun-x-7@1"}, num_processes="1") is None


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({}, ("host:1", "2", None), "--process_id=I must be given, too"),
        ({}, (None, None, "1"), "--coordinator=HOST:PORT and --num_processes=N must be given"),
        ({}, ("host", "2", "1"), "--coordinator is 'host'; it must be HOST:PORT"),
        ({}, ("host:1", "2", "2"), "--process_id is 2; it must be from 0 to 1"),
        ({}, ("host:1", "two", "2"), "--num_processes is 'two'"),
        (OPEN_MPI, (), "add --coordinator=HOST:PORT"),
        (POD, (), "pod 3 of an Indexed Job, and it cannot find the others"),
    ],
)
def test_what_is_missing_is_named(environ, flags, message):
    with pytest.raises(ConfigError, match=message):
        detect(environ, *flags)


def test_what_is_typed_in_a_pod_or_an_allocation_runs_alone():
    assert all(launchers.is_alone("report", e) for e in ({}, POD | MEETING, {"SLURM_NTASKS": "8"}))
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}
    assert not launchers.is_alone("report", step)
    assert launchers.is_alone("report", step | {"SLURM_STEP_NUM_TASKS": "1"})
    with pytest.raises(ConfigError, match="report is for one process, but srun has started 8"):
        launchers.is_alone("report", step | {"SLURM_PROCID": "0"})


@pytest.mark.parametrize(
    ("count", "index", "environ", "expected"),
    [
        (8, 3, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [3]),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [4, 5, 6, 7]),
        (1, 0, {"CUDA_VISIBLE_DEVICES": "0,1"}, []),  # all
        (4, 2, {"CUDA_VISIBLE_DEVICES": "2"}, []),  # the launcher has dealt them out
        (2, 1, {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, []),
        (2, 1, {"CUDA_VISIBLE_DEVICES": ""}, None),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, None),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
    ],
)
def test_processes_of_a_machine_share_its_gpus(count, index, environ, expected):
    assert local_device_ids(Launch("h:1", count, index, count, index), environ) == expected


def test_more_processes_than_gpus():
    with pytest.raises(ConfigError, match=r"8 processes on this machine share 4 GPU"):
        local_device_ids(Launch("h:1", 8, 3, 8, 3), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
