"""What is handed to a cluster: scripts and manifests that say what was asked for, and bad input in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines import submit
from pipelines.cluster import connection
from pipelines.command.errors import UserError
from tests import projects

CRD = os.environ.get("KUBERAY_CRD")  # ray.io_rayjobs.yaml of the KubeRay operator


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the committed benchmarks and no datasets."""
    projects.copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUN_STORE", "/shared/a store")
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["submit", *words])
        submit.main()
    return capsys.readouterr().out


def test_a_batch_script_says_what_was_asked_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes=2", "--gpus-per-node=8", "--suite=mnist", "--time=2-00", "--print", "--", "--account=a"]
    script = printed(capsys, "slurm", *words)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    lines = script.splitlines()
    for line in ("--nodes=2", "--gpus-per-node=8", "--time=2-00", "--account=a", "--job-name=convnets-mnist"):
        assert f"#SBATCH {line}" in lines
    assert '    bash cluster/suite.sh checkout mnist mnist &>> "$log" &' in lines
    assert f"cd {home}" in lines and "RUN_STORE='/shared/a store'" in script
    assert "\n        --num-gpus=8 \\\n        -- bash -c driver\n" in script, "Ray counts what SLURM promised"
    assert "gpus" not in printed(capsys, "slurm", "--print")
    assert not (home / "store").exists()


@pytest.mark.parametrize("time", ["1440", "90:00", "1000:00:00", "7-0", "7-12:30", "7-12:30:00"])
def test_slurms_ways_to_write_a_time_are_taken(capsys: pytest.CaptureFixture[str], time: str) -> None:
    assert f"#SBATCH --time={time}\n" in printed(capsys, "slurm", f"--time={time}", "--print")


def test_a_ray_job_runs_in_the_checkout_or_in_a_copy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = printed(capsys, "ray", "--suite=mnist", "--print")
    assert f"cd {home} && PATH={Path(sys.executable).parent}:$PATH bash cluster/suite.sh checkout mnist mnist" in shared
    copied = printed(capsys, "ray", "--working-dir=.", "--data=/local/data", "--print")
    assert copied.startswith("bash cluster/suite.sh copy laptop mnist cifar10\n")
    assert f"'DATASETS': '/local/data'}}, 'working_dir': '{home}'" in copied


def test_a_job_gets_the_address_of_mlflow_and_no_login(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert "'MLFLOW_TRACKING_URI': 'https://mlflow.example.org'}" in printed(capsys, "ray", "--print")
    (head,) = manifest(capsys)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example.org"} in head["env"]
    assert head["envFrom"] == [{"secretRef": {"name": "convnets-mlflow", "optional": True}}]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@mlflow.example.org")
    for way in (["ray"], ["kuberay", "--image=a"]):
        with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI holds a login; expected that in ~/.mlflow/cred"):
            printed(capsys, *way)


def manifest(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return yaml.safe_load(printed(capsys, "kuberay", "--image=registry/convnets:1", "--suite=paper", *words))


def test_a_manifest_has_a_head_that_trains_nothing_and_workers_that_come(capsys: pytest.CaptureFixture[str]) -> None:
    found = manifest(capsys, "--gpus=2", "--workers=5", "--claim=nfs")["spec"]
    cluster = found["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    head, worker = (part["template"]["spec"] for part in (cluster["headGroupSpec"], group))
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and cluster["enableInTreeAutoscaling"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 5)
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "convnets-token"}
    for pod in (head, worker):
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "nfs"}
        (container,) = pod["containers"]
        assert {"name": "RUN_STORE", "value": "/shared/store"} in container["env"]
        assert container["volumeMounts"][0] == {"name": "shared", "mountPath": "/shared"}
    assert found["entrypoint"] == "bash cluster/suite.sh copy paper mnist cifar10"


@pytest.mark.skipif(not CRD, reason="KubeRay's schema of a RayJob is needed, at $KUBERAY_CRD")
@pytest.mark.parametrize("gpus", ["0", "1"])
def test_a_manifest_is_one_to_kuberay(capsys: pytest.CaptureFixture[str], gpus: str) -> None:
    versions = yaml.load(Path(str(CRD)).read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")
    closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft4Validator(schema).validate(manifest(capsys, f"--gpus={gpus}"))


def closed(schema: Any) -> None:
    """Kubernetes drops the fields that it does not know; here they are mistakes."""
    if isinstance(schema, dict) and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for below in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        closed(below)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["slurm", "--nodes=0"], "--nodes is 0; expected a whole number from 1"),
        (["slurm", "--gpus-per-node=-1"], "--gpus-per-node is -1; expected a whole number from 0"),
        (["kuberay", "--image=a", "--workers=0"], "--workers is 0; expected a whole number from 1"),
        (["slurm", "--time=soon"], "--time is soon; expected days-hours:minutes:seconds, such as 1-00:00:00"),
        (["slurm", "--suite=laptpo"], "suite laptpo is not known; did you mean laptop?"),
        (["slurm"], "datasets/cifar10 is not there; expected it before a job that needs it: python -m pipelines.suite"),
        (
            ["slurm", "--suite=mnist"],
            "there is no sbatch on the PATH; expected a machine of a SLURM cluster, or --print",
        ),
        (["ray", "--address=http://127.0.0.1:1"], "--address is http://127.0.0.1:1, which can't be asked (Failed to "),
        (["ray", "--address=nowhere"], "--address is nowhere, which can't be asked ("),
        (["ray", "--working-dir=none"], "--working-dir: none is no folder; expected the project's"),
    ],
)
def test_bad_input_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("RUN_STORE", str(home / "store"))
    (home / "datasets/mnist").mkdir(parents=True)
    (home / "datasets/mnist/meta.json").touch()
    with pytest.raises(UserError) as caught:
        printed(capsys, *words)
    assert str(caught.value).startswith(line)


def test_no_second_ray_is_started_within_a_job_of_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(
        UserError, match=r"^this is SLURM job 7 on 2 nodes, and RAY_ADDRESS is not set; expected the Ray"
    ):
        connection.named_address()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert connection.named_address() is None
