"""The manifests match Kubernetes' schemas, and the numbers and names of pods are consistent."""

import os
import pathlib
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

FOLDER = pathlib.Path(__file__).parent.parent.parent / "launch" / "kubernetes"
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]  # of Kubernetes

TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
# Names of pods and services, and of rules; JobSet's admission checks refuse other names.
LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$"}
RULE_NAME = {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}


def fields(required: str, **properties) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def list_of(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


# The fields of jobset.x-k8s.io/v1alpha2 that the manifests use, as in the CRD and the admission
# checks of JobSet 0.8.  The template is that of a Job and is checked as a Job.
RULE = fields(
    "action name",
    name=RULE_NAME,
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=list_of(
        {
            "enum": [
                *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
                *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
            ]
        }
    ),
    targetReplicatedJobs=list_of(TEXT),
)
JOBSET = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=fields("name", name=LABEL, annotations={"type": "object"}),
    spec=fields(
        "replicatedJobs",
        network=fields(
            "",
            enableDNSHostnames={"type": "boolean"},
            publishNotReadyAddresses={"type": "boolean"},
            subdomain=TEXT,
        ),
        failurePolicy=fields("", maxRestarts=NUMBER, rules=list_of(RULE)),
        replicatedJobs=list_of(
            fields("name template", name=LABEL, replicas=NUMBER, template=fields("spec", spec={}))
        ),
    ),
)


# The fields of a task of SkyPilot 0.14 that skypilot.yaml uses, as in its own schema, without what
# that leaves to plugins.
WORDS = {"type": "object", "additionalProperties": TEXT}
EXIT_CODE = {"type": "integer", "minimum": 0, "maximum": 255}
SKYPILOT = fields(
    "name workdir num_nodes resources setup run",
    name=LABEL,
    workdir=TEXT,
    num_nodes={"type": "integer", "minimum": 1},
    resources=fields(
        "accelerators",
        accelerators={"type": "string", "pattern": "^[A-Z0-9-]+:[1-9]$"},
        use_spot={"type": "boolean"},
        job_recovery=fields(
            "", max_restarts_on_errors=NUMBER, recover_on_exit_codes=list_of(EXIT_CODE)
        ),
    ),
    file_mounts={
        "type": "object",
        "additionalProperties": fields("name mode", name=LABEL, mode={"enum": ["MOUNT", "COPY"]}),
    },
    envs=WORDS,
    setup=TEXT,
    run=TEXT,
)


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def check(document: dict) -> None:
    """Validates a document strictly: unknown fields are errors."""
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


def embedded_job(jobset: dict) -> dict:
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **template}


def variables(job: dict) -> dict[str, str]:
    container = job["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_all_manifests_are_checked():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"job.yaml", "jobset.yaml", "jobset_tpu.yaml"}


def test_the_job():
    service, job = documents("job.yaml")
    for document in (service, job):
        check(document)
    check_job(job)
    # The service names the pods of this job and no others.
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert variables(job)["JAX_COORDINATOR_ADDRESS"].split(":")[0] == host
    assert variables(job)["JAX_NUM_PROCESSES"] == str(job["spec"]["completions"])


@pytest.mark.parametrize("name", ["jobset.yaml", "jobset_tpu.yaml"])
def test_the_job_sets(name):
    (jobset,) = documents(name)
    jsonschema.validate(jobset, JOBSET)
    job = embedded_job(jobset)
    check(job)
    check_job(job)
    assert job["spec"]["backoffLimit"] == 0  # if one pod fails, the whole set restarts
    if name == "jobset.yaml":
        (workers,) = jobset["spec"]["replicatedJobs"]
        set_name = jobset["metadata"]["name"]
        host = f"{set_name}-{workers['name']}-0-0.{set_name}"
        assert variables(job)["JAX_COORDINATOR_ADDRESS"].split(":")[0] == host
        assert variables(job)["JAX_NUM_PROCESSES"] == str(job["spec"]["completions"])


def check_job(job: dict) -> None:
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    fatal = spec["podFailurePolicy"]["rules"][0]
    assert (fatal["action"], fatal["onExitCodes"]["values"]) == ("FailJob", [2, 3])
    assert fatal["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_task_of_skypilot(tmp_path):
    task = yaml.safe_load((FOLDER.parent / "skypilot.yaml").read_text())
    jsonschema.validate(task, SKYPILOT)
    # Exit codes 2 and 3, after which a restart does not help, are not among those that recover.
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    node |= {"SKYPILOT_NODE_RANK": "1", "PATH": os.environ["PATH"], **task["envs"]}
    command = ["bash", "-euc", task["run"]]
    done = subprocess.run(command, cwd=tmp_path, env=node, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert words[-3:] == ["--coordinator=10.0.0.1:1234", "--num_processes=2", "--process_id=1"]
    assert "--config.data.data_dir=/runs/imagenet" in words


def test_unknown_fields_are_errors():
    _, job = documents("job.yaml")
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError, match="completionsMode"):
        check(job)
