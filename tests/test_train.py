"""Training on real Ray: packing, several workers, and what must survive a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines import spec, store, trial
from tests.conftest import ROOT, edit_params, environment

TRAIN = [sys.executable, "-W", "ignore", "-m", "pipelines.train"]
SHORT: dict[str, Any] = {"recipe.subset": {"first": 600}, "budgets.laptop": {"epochs": 2, "seeds": [0, 1, 2]}}
LONG: dict[str, Any] = {"recipe.batch": 8, "budgets.laptop": {"epochs": 10, "seeds": [0, 1]}}  # some 12 s a seed
# No tracking here: a server that refuses at once keeps the test about training.
QUIET = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}


def train(*names: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *names], env=environment(**QUIET, **extra), capture_output=True, text=True, timeout=240
    )


def specs(name: str, root: str = "store") -> list[spec.Spec]:
    from pipelines import benchmarks

    planned = spec.trials(benchmarks.load(), name, data=Path("datasets"), root=Path(root))
    return [one.on("cpu", threads=1) for one in planned]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    return all(torch.equal(a[key], b[key]) for key in a)


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def named(process: psutil.Process, names: tuple[str, ...]) -> bool:
    try:
        return process.name() in names
    except psutil.NoSuchProcess:
        return False


def test_packed_seeds_end_at_the_weights_of_plain_trials(project: Path) -> None:
    edit_params(project / "params.yaml", linear_mnist=SHORT, lenet5_mnist=SHORT)
    done = train("linear-mnist", "lenet5-mnist")
    assert done.returncode == 0, done.stderr
    assert "2 CPUs" in done.stdout or "CPUs, 0 GPUs" in done.stdout
    assert "6 trials to train at the laptop budget, about" in done.stdout
    for one in [*specs("linear-mnist", "plain"), *specs("lenet5-mnist", "plain")]:
        collected = project / "runs" / one.benchmark.name / f"seed-{one.seed}"
        assert same_weights(collected / "weights.pt", trial.run(one).weights)
        assert json.loads((collected / "result.json").read_text())["versions"]["ray"]
        assert len(store.read_lines(collected / "curve.jsonl")) == 2
    again = train("linear-mnist")
    assert "3 of 3 trials are in the store already" in again.stdout and "to train" not in again.stdout


def test_two_workers_train_as_one_does(project: Path) -> None:
    """The same batches, sharded: but for the order of sums, the same curve."""
    edit_params(project / "params.yaml", lenet5_mnist=SHORT | {"budgets.laptop": {"epochs": 2, "seeds": [0]}})
    alone = trial.run(specs("lenet5-mnist", "plain")[0])
    edit_params(project / "params.yaml", lenet5_mnist={"resources": {"workers": 2}})
    done = train("lenet5-mnist")
    assert done.returncode == 0, done.stderr
    curve = store.read_lines(project / "runs/lenet5-mnist/seed-0/curve.jsonl")
    for ours, theirs in zip(curve, store.read_lines(alone.curve), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["train_error"] == pytest.approx(theirs["train_error"], abs=0.5)
    result = json.loads((project / "runs/lenet5-mnist/seed-0/result.json").read_text())
    assert result["workers"] == 2


@pytest.fixture(scope="module")
def straight(mnist_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> list[spec.Spec]:
    """Two trials long enough to be disturbed, and what they come to when they are not."""
    home = tmp_path_factory.mktemp("straight")
    shutil.copy(ROOT / "params.yaml", home)
    params = edit_params(home / "params.yaml", lenet5_mnist=LONG)
    planned = spec.trials(params, "lenet5-mnist", data=mnist_slice, root=home / "store")
    found = [one.on("cpu", threads=1) for one in planned]
    for one in found:
        trial.run(one)
    return found


@pytest.fixture
def undisturbed(project: Path, straight: list[spec.Spec]) -> list[spec.Spec]:
    """The same two trials, about to be started in ``project``."""
    edit_params(project / "params.yaml", lenet5_mnist=LONG)
    return straight


def start(project: Path) -> subprocess.Popen[bytes]:
    # Every half second a checkpoint, so that there is one to go on from however soon the kill comes.
    (project / "sitecustomize.py").write_text("from pipelines import journal; journal.CHECKPOINT_EVERY_S = 0.5")
    paths = os.pathsep.join([str(project), str(ROOT)])
    with (project / "log").open("ab") as log:
        return subprocess.Popen(
            [*TRAIN, "lenet5-mnist"], env=environment(**QUIET) | {"PYTHONPATH": paths}, stdout=log, stderr=log
        )


def both_have_checkpoints(found: list[spec.Spec]) -> bool:
    return all(one.files.checkpoint.exists() for one in found)


def worker_of(one: spec.Spec) -> int:
    return int(json.loads(one.files.progress.read_text())["pid"])


def test_a_killed_worker_goes_on_at_its_checkpoint(project: Path, undisturbed: list[spec.Spec]) -> None:
    running = specs("lenet5-mnist")
    driver = start(project)
    until(lambda: both_have_checkpoints(running))
    os.kill(worker_of(running[0]), signal.SIGKILL)
    assert driver.wait(timeout=180) == 0, (project / "log").read_text()
    assert store.read_json(running[0].files.result)["resumed"] == 1
    assert store.read_json(running[1].files.result)["resumed"] == 0
    for ours, theirs in zip(running, undisturbed, strict=True):
        assert same_weights(ours.files.weights, theirs.files.weights)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_ended_driver_leaves_nothing_running_and_is_continued(
    project: Path, undisturbed: list[spec.Spec], how: signal.Signals
) -> None:
    running = specs("lenet5-mnist")
    driver = start(project)
    until(lambda: both_have_checkpoints(running))
    family = descendants(driver.pid)
    assert any(process.pid == worker_of(running[0]) for process in family)
    driver.send_signal(how)
    status = driver.wait(timeout=30)
    assert status == (-9 if how == signal.SIGKILL else 130)
    # Two agents of Ray's, which train nothing, look for a killed cluster for a minute before they follow it.
    patient = ("ray::DashboardAgent", "ray::RuntimeEnvAgent") if how == signal.SIGKILL else ()
    _, alive = psutil.wait_procs([p for p in family if not named(p, patient)], timeout=20)
    assert not alive
    if how != signal.SIGKILL:
        assert (project / "log").read_text().splitlines()[-1].startswith("error: interrupted")
    assert start(project).wait(timeout=180) == 0, (project / "log").read_text()
    for ours, theirs in zip(running, undisturbed, strict=True):
        assert store.read_json(ours.files.result)["resumed"] == 1
        assert same_weights(ours.files.weights, theirs.files.weights)


def test_an_unreachable_cluster_is_one_line(project: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = train("linear-mnist", RAY_ADDRESS=address)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: RAY_ADDRESS is {address}, which can't be reached (Connection refused); "
        "expected a running Ray cluster, or unset it"
    ]
    assert not list((project / "store").glob("*/progress.json"))


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"workers": 4}, "benchmarks.lenet5-mnist.resources: 4 workers of 99 CPUs; expected at most the "),
        ({"gpus": 3}, "benchmarks.lenet5-mnist.resources: 3 GPUs; expected at most the 0 of the cluster"),
    ],
)
def test_asking_for_more_than_the_cluster_has_is_one_line(project: Path, resources: dict[str, int], words: str) -> None:
    cpus = {"cpus": 99} if "workers" in resources else {}
    edit_params(project / "params.yaml", lenet5_mnist={"resources": resources | cpus})
    done = train("lenet5-mnist")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr


def test_a_diverging_loss_is_one_line(project: Path) -> None:
    edit_params(project / "params.yaml", lenet5_mnist=SHORT | {"recipe.loss": "mse", "recipe.optimiser.lr": 1e30})
    done = train("lenet5-mnist")
    assert done.returncode == 2
    assert "the loss of epoch 1 is nan" in done.stderr and len(done.stderr.splitlines()) == 1


def test_too_little_disk_is_said_before_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import benchmarks, estimate
    from pipelines import train as stage
    from pipelines.errors import UserError

    monkeypatch.setattr(estimate, "disk_bytes", lambda one: 10**18)
    with pytest.raises(UserError, match="GB free; expected"):
        stage.train(benchmarks.load(), specs("linear-mnist"))


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster of somebody else's, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [str(Path(sys.executable).parent / "ray")]
    token = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # Foreground, so that the test ends what it started and nothing else.
    begin = [*ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    begin += ["--object-store-memory=80000000", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    head = subprocess.Popen(begin, env=environment(**token), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    family = descendants(head.pid)
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.wait(timeout=30)
    for process in psutil.wait_procs(family, timeout=10)[1]:
        process.kill()


def test_a_named_cluster_is_joined_and_left_running(project: Path, ray_cluster: str) -> None:
    edit_params(project / "params.yaml", linear_mnist=SHORT)
    done = train("linear-mnist", RAY_ADDRESS=ray_cluster, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert f"Ray cluster at {ray_cluster}: 2 CPUs" in done.stdout
    host, port = ray_cluster.split(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass  # still there for the others
    assert all(one.files.finished for one in specs("linear-mnist"))
