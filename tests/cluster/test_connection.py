"""Placement by node: what a cluster can hold, asked of constructed clusters and of a real one of two nodes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cluster import campaign, connection, estimate, failures, local, packing, readiness
from pipelines.cluster.connection import Cluster
from pipelines.cluster.placement import Job, Need, Node, Placing
from pipelines.command.errors import PREEMPTED, UserError
from pipelines.command.files import write_json
from pipelines.config.benchmarks import Benchmark, Resources
from pipelines.config.params import load_params
from pipelines.training import spec
from tests.conftest import ROOT
from tests.disturbed import QUIET, only, specs
from tests.processes import environment, runs, until

pytestmark = pytest.mark.usefixtures("ends_all")


def asking(**resources: Any) -> Benchmark:
    benchmark = load_params(ROOT / "params.yaml").benchmark("lenet5-mnist")
    recipe = dataclasses.replace(benchmark.recipe, batch=60)
    return dataclasses.replace(benchmark, recipe=recipe, resources=Resources(**resources), choice=None)


def of(*nodes: tuple[int, int]) -> Cluster:
    found = (Node(cpus=cpus, gpus=gpus, id=str(number)) for number, (cpus, gpus) in enumerate(nodes))
    return Cluster(address=None, nodes=tuple(found))


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "fits"),
    [
        ((4, 0), 1, 0.0, 4),
        ((5, 0), 2, 0.0, 2),
        ((1, 0), 2, 0.0, 0),
        ((8, 2), 1, 1.0, 2),
        ((8, 2), 1, 0.5, 4),
        ((8, 2), 1, 0.6, 2),  # what is left of one GPU and of another makes no third
        ((30, 2), 1, 0.1, 20),
        ((30, 1), 1, 1 / 3, 3),
        ((3, 2), 1, 0.5, 3),
        ((8, 0), 1, 0.5, 0),
    ],
)
def test_how_many_workers_a_node_holds(node: tuple[int, int], cpus: int, gpus: float, fits: int) -> None:
    assert Node(cpus=node[0], gpus=node[1]).holds(Need(cpus=cpus, gpus=gpus)) == fits


@pytest.mark.parametrize(
    ("found", "resources", "line"),
    [
        (of((2, 0)), {"cpus": 99}, "99 CPUs; expected no more than one node has: 1 of 2 CPUs"),
        (
            of((2, 0)),
            {"cpus": 99, "workers": 4},
            "4 workers of 99 CPUs; expected no more than one node has: 1 of 2 CPUs",
        ),
        (of((2, 0), (2, 0)), {"gpus": 1}, "1 CPU and 1 GPU; expected no more than one node has: 2 of 2 CPUs"),
        (
            of((2, 1), (2, 0)),
            {"gpus": 1, "workers": 3},
            "3 workers of 1 CPU and 1 GPU; expected at most 1 of them, as fit on the nodes: 1 of 2 CPUs and 1 GPU, "
            "1 of 2 CPUs",
        ),
        (of((2, 0), (2, 0)), {"cpus": 4}, "4 CPUs; expected no more than one node has: 2 of 2 CPUs"),
        (of((8, 0)), {"memory": 64}, "64 GB of memory; expected at most the 0 GB of memory that one node has"),
        (
            of((8, 1)),
            {"gpus": 1, "accelerator_type": "H100"},
            "a GPU of type H100; expected one that a node has",
        ),
        (
            of((8, 0), (1, 1)),
            {"cpus": 2, "gpus": 1},
            "2 CPUs and 1 GPU; expected no more than one node has: 1 of 1 CPU and 1 GPU, 1 of 8 CPUs",
        ),
        (
            of((3, 0), (3, 0)),
            {"cpus": 2, "workers": 3},
            "3 workers of 2 CPUs; expected at most 2 of them, as fit on the nodes: 2 of 3 CPUs",
        ),
    ],
)
def test_what_no_node_holds_is_one_line(found: Cluster, resources: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        found.require(asking(**resources))
    assert str(caught.value) == f"models/lenet.yaml: lenet5-mnist.resources: {line}"


@pytest.mark.parametrize(
    ("found", "resources"),
    [
        (of((2, 0), (2, 0)), {"cpus": 2, "workers": 2}),
        (of((2, 0), (4, 0)), {"cpus": 4}),
        (of((2, 0)), {"gpus_if_any": 1.0}),
        (of((1, 2)), {"gpus": 0.5}),
    ],
)
def test_what_a_node_holds_is_let_through(found: Cluster, resources: dict[str, Any]) -> None:
    found.require(asking(**resources))


def test_the_estimate_is_that_of_the_placing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial takes as many seconds as its seed says."""
    monkeypatch.setattr(estimate, "trials_seconds", lambda specs: {one.key: float(one.seed % 100) for one in specs})

    def seconds(found: Cluster, resources: dict[str, Any], durations: list[int]) -> float:
        common: dict[str, Any] = {"budget": "laptop", "data": Path(), "store": Path()}
        seeds = [100 * number + duration for number, duration in enumerate(durations)]
        return estimate.seconds(
            [spec.Spec(benchmark=asking(**resources), seed=seed, **common) for seed in seeds], found
        )

    assert seconds(of((2, 0)), {}, [3, 3, 3]) == 6
    assert seconds(of((2, 0)), {}, [1, 2, 3]) == 3
    assert seconds(of((3, 0), (3, 0)), {"cpus": 2}, [3, 3, 3]) == 6  # a third fits on no node
    assert seconds(of((8, 1), (8, 1)), {"gpus": 0.5}, [5, 5, 5, 5, 5]) == 10
    assert seconds(of((8, 0)), {}, [5, 1]) == 5  # the longest
    assert seconds(of((8, 0)), {"workers": 2}, [5, 5]) == 5  # side by side
    assert seconds(of((3, 0)), {"workers": 2}, [5, 5]) == 10  # one after the other
    assert seconds(of((8, 0)), {}, [5, 0]) == 5  # one was never measured


def test_a_lost_node_counts_against_no_trial_and_a_dead_worker_does() -> None:
    found, gone, dead = failures.Losses(), failures.LostError("gone"), failures.LostWorkerError("dead")
    preempted = UserError("preempted")
    preempted.status = PREEMPTED
    assert all(found.forgives("a", error) for error in [gone, preempted] * 10)
    assert [found.forgives("a", dead) for _ in range(failures.RETRIES + 1)] == [True] * failures.RETRIES + [False]
    assert not found.forgives("a", gone) and found.forgives("b", gone)
    assert not found.forgives("b", UserError("a bad row"))


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan"])
def test_a_time_to_wait_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("RAY_WAIT_S", seconds)
    joined = dataclasses.replace(of((1, 0)), address="head:6379")
    with pytest.raises(UserError, match=rf"^RAY_WAIT_S is {seconds}; expected seconds, such as 600$"):
        readiness.awaited(joined, [])


def test_a_command_that_hangs_on_a_node_is_a_fault_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(subprocess, "run", hangs)
    assert str(readiness._gpu_fault(2)).endswith(" finds none: is its driver in order?")
    question = dataclasses.replace(readiness.decoding(), data=tmp_path / "datasets", digests={"mnist": "0"})
    assert readiness._fetch(question) == "it can't fetch the data within 1 h 0 min"


def test_a_node_that_is_cut_off_is_noticed_while_other_trials_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a trial ended every second, nobody looked for those whose node was gone."""
    ended, hung = (
        spec.Spec(benchmark=asking(), seed=seed, budget="laptop", data=tmp_path, store=tmp_path) for seed in (0, 1)
    )
    joined = dataclasses.replace(of((1, 0), (1, 0)), address="head:6379")
    running = packing._Packing([ended, hung], joined)
    running.placing.starts(0.0)
    running.tasks = {"ended": (ended, 0.0), "hung": (hung, 0.0)}
    running.checked -= connection.CUT_OFF_S
    state = {"state": "running", "time": time.time() - 2 * connection.CUT_OFF_S, "epoch": 1, "epochs": 2}
    write_json(hung.files.progress, state | {"host": "gone"})
    monkeypatch.setattr("ray.wait", lambda tasks, **options: (tasks[:1], tasks[1:]))
    monkeypatch.setattr(packing, "_error_of", lambda *about: None)
    monkeypatch.setattr(connection, "living", lambda: joined.nodes)
    first, second = running._ended()
    assert first == (ended, None)
    assert second[0] == hung and str(second[1]) == "lenet5-mnist seed 1: its node gone is cut off"


def test_candidates_of_one_speed_are_measured_once(tmp_path: Path) -> None:
    def key(**recipe: Any) -> str:
        benchmark = asking()
        changed = dataclasses.replace(benchmark, recipe=dataclasses.replace(benchmark.recipe, **recipe))
        one = spec.Spec(benchmark=changed, seed=0, budget="laptop", data=tmp_path, store=tmp_path)
        return estimate.rate_key(one.on("cpu", threads=1))

    optimiser = asking().recipe.optimiser
    assert key(optimiser=dataclasses.replace(optimiser, lr=0.5)) == key()
    assert len({key(), key(batch=8), key(optimiser=dataclasses.replace(optimiser, momentum=0.0))}) == 3


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster that somebody else started: two nodes of three CPUs and what passes for two GPUs."""
    from ray.cluster_utils import Cluster as RayCluster

    node = {"num_cpus": 3, "num_gpus": 2, "object_store_memory": local.OBJECT_STORE_BYTES}
    for left in (2, 1, 0):
        started = RayCluster()
        try:
            started.add_node(**node, include_dashboard=False)
            started.add_node(**node)
            break
        except Exception:  # a raylet ends itself where the machine is too busy to start its agent in time
            started.shutdown()
            if not left:
                raise
    try:
        yield started.address
    finally:
        started.shutdown()


@pytest.mark.alone  # a raylet of a busy machine ends itself
def test_ray_places_as_is_reckoned_here(two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def there(folder: Path, number: int) -> None:
        (folder / str(number)).touch()
        while not (folder / "go").exists():
            time.sleep(0.05)

    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    with connection.connect() as found:
        assert found.nodes == (Node(cpus=3, gpus=2), Node(cpus=3, gpus=2))
        assert str(found) == f"Ray cluster at {two_nodes}: 2 nodes, 6 CPUs, 4 GPUs"
        for gpus, at_once in ((0.5, 6), (0.6, 4)):
            assert found.side_by_side(asking(gpus=gpus)) == at_once
            folder = tmp_path / str(gpus)
            folder.mkdir()
            place = ray.remote(there).options(num_cpus=1, num_gpus=gpus)
            tasks = [place.remote(folder, number) for number in range(8)]
            until(lambda: len(list(folder.iterdir())) >= at_once)  # noqa: B023
            time.sleep(1.0)  # for one too many
            assert len(list(folder.iterdir())) == at_once
            (folder / "go").touch()
            ray.get(tasks)
            # Else the first node may take the second for full, keep what comes next, and look again at no time.
            until(lambda: ray.available_resources().get("GPU") == found.gpus)


@pytest.mark.alone  # a raylet of a busy machine ends itself
def test_ray_puts_trials_that_share_gpus_where_they_are_seated(two_nodes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray alone fills one GPU before it takes the next."""
    import ray

    def gpu() -> tuple[str, str | None]:
        time.sleep(1.0)  # while the others begin
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    with connection.connect() as found:
        need, shared = Need(gpus=0.25), packing.SharedGPUs(found)
        placing = Placing([Job(key=str(number), need=need, seconds=1.0) for number in range(4)], found.nodes)
        starts = placing.starts(0)
        places = [shared.option(start, placing.floor.reserved_cpus(start.seats[0])) for start in starts]
        remote = ray.remote(gpu)
        tasks = [remote.options(**need.options, **place).remote() for place in places]
        assert len(set(ray.get(tasks))) == 4
        for start in starts:
            shared.left(start)
        until(lambda: ray.available_resources().get("GPU") == found.gpus)


@pytest.mark.alone  # a raylet of a busy machine ends itself
def test_a_named_cluster_is_joined_and_left_running(
    project: Path, two_nodes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    monkeypatch.setenv("RAY_WAIT_S", "0")
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    short: dict[str, Any] = {"recipe.subset": {"first": 600}, "budgets.laptop": {"epochs": 1, "seeds": [0, 1]}}
    params = only(project, linear_mnist=short | {"resources": {"cpus": 4}})
    with pytest.raises(UserError, match="4 CPUs; expected no more than one node has: 2 of 3 CPUs and 2 GPU"):
        campaign.train(params, specs("linear-mnist"), contextlib.nullcontext)
    assert not list((project / "store").glob("*/progress.json"))
    params = only(project, linear_mnist={"resources": {"cpus": 1}})
    campaign.train(params, specs("linear-mnist"), contextlib.nullcontext)
    assert all(one.files.finished for one in specs("linear-mnist"))
    assert f"Ray cluster at {two_nodes}: 2 nodes, 6 CPUs, 4 GPUs; training on cpu" in capsys.readouterr().out
    host, port = two_nodes.split(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass  # still there for the others


IMPORTING = """
    import importlib.abc, sys, time

    class Waiting(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name in {"ray.train", *("pipelines.training." + part for part in ("checks", "checkpoint", "speed"))}:
                print("importing", flush=True)
                time.sleep(600)

    sys.meta_path.insert(0, Waiting())
    from pipelines.cluster import distributed, measuring, packing, spreading
"""
RAYLET = """
    import subprocess, sys
    worker = subprocess.Popen([sys.executable, "-W", "ignore", "-c", sys.argv[1]], stdout=subprocess.PIPE)
    assert worker.stdout.readline() == b"importing\\n"
    print(worker.pid)
"""


@pytest.mark.parametrize(
    "task",
    [
        "spreading._call(None, 'pipelines.cluster.campaign._check', [])",
        "packing._train_one(None, None)",
        "measuring._measure(None)",
        "distributed._train_rank({'question': None})",
        "distributed._fit(distributed.Attempt(None, None, None, 2, None))",
    ],
)
def test_a_worker_ends_with_its_raylet_even_while_it_imports(task: str) -> None:
    """Seconds go by before torch is there: whoever asked for its parent only then would follow another process."""
    code = f"{textwrap.dedent(IMPORTING)}\n{task}"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RAYLET), code],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
    )
    until(lambda: not runs(int(done.stdout)), 60)


SLOW_AGENT = """
    import os, sys, time
    if any(word.endswith("dashboard/agent.py") for word in sys.orig_argv):
        folder = os.path.dirname(__file__)
        if not os.path.exists(os.path.join(folder, "started")) or os.path.exists(os.path.join(folder, "always")):
            open(os.path.join(folder, "started"), "w").close()
            time.sleep(60)
"""


def test_a_machine_too_busy_to_start_ray_in_time_is_asked_again(tmp_path: Path) -> None:
    """Ray's raylet aborts where its agent takes more than 15 s: here once in one folder, each time in another."""
    code = (
        "from pipelines.cluster import connection, local\nlocal.STARTS = {}\n"
        "with connection.connect() as found: print(found)"
    )
    started = []
    for name, attempts in (("once", 3), ("always", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(textwrap.dedent(SLOW_AGENT))
        paths = os.pathsep.join([str(tmp_path / name), str(ROOT)])
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code.format(attempts)],
                env={k: v for k, v in environment().items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": paths},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    (tmp_path / "always/always").touch()
    (once, error), (always, last) = (process.communicate(timeout=240) for process in started)
    again = "Ray's processes did not come up in time; trying again"
    assert started[0].returncode == 0, error
    *tried, found = once.splitlines()  # more than once, where the machine is as busy as that
    assert set(tried) == {again} and found.startswith("Ray started here")
    assert always == ""
    assert "UserError: Ray's processes did not come up in time on this machine, tried 1 times; expected it less" in last
