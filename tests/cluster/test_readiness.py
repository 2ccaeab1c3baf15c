"""Nodes that are not alike: asked before training, waited for, lost in the middle, cut off; on real machines' Ray."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from pipelines.command.files import read_json, read_lines
from pipelines.training import status
from pipelines.training.spec import Spec
from tests.checkout import Checkout
from tests.cluster.machines import NOTICED_SOON, SCRATCH, Machine, Machines, machines
from tests.disturbed import OFTEN, QUIET, specs, stamp
from tests.processes import until

pytestmark = [pytest.mark.usefixtures("ends_all"), pytest.mark.alone]


class Scene:
    """A checkout on three machines: a head that trains nothing, and two nodes of one CPU."""

    def __init__(self, network: Machines, checkout: Checkout) -> None:
        self.network, self.checkout = network, checkout
        head = network.address(1)
        self.environment = (
            checkout.environment
            | QUIET
            | NOTICED_SOON
            | {
                "PYTHONPATH": os.pathsep.join([str(network.folder), str(checkout.folder)]),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_TMPDIR": SCRATCH,
                "RAY_gcs_rpc_server_reconnect_timeout_s": "60",
            }
        )
        self.ray(1, "--head", f"--node-ip-address={head}", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
        self.environment |= {"RAY_ADDRESS": f"{head}:6379"}

    def ray(self, number: int, *words: str) -> None:
        start = ["ray", "start", "--object-store-memory=100000000", "--disable-usage-stats", *words]
        self.node(number).run(*start, environment=self.environment)

    def join(self, number: int, *words: str) -> None:
        head = f"--address={self.environment['RAY_ADDRESS']}"
        self.ray(number, head, f"--node-ip-address={self.network.address(number)}", "--num-cpus=1", *words)

    def replace(self, number: int) -> Machine:
        """A new machine in the place of one, which is switched off."""
        self.node(number).end()
        self.network.nodes[number - 1] = self.network.start(number)
        return self.node(number)

    def node(self, number: int) -> Machine:
        return self.network.nodes[number - 1]

    def start(self, **extra: str) -> subprocess.Popen[bytes]:
        """``python -m pipelines.train`` on the head, with its output in ``log``."""
        command = [*self.node(1).inside, sys.executable, "-W", "ignore", "-m", "pipelines.train"]
        with self.path.open("wb") as log:
            environment = self.environment | extra
            return subprocess.Popen(command, cwd=self.checkout.folder, env=environment, stdout=log, stderr=log)

    def alive(self) -> list[str]:
        """The nodes that are there, as Ray knows."""
        return self.node(1).run(sys.executable, "-W", "ignore", "-c", ALIVE, environment=self.environment).split()

    @property
    def path(self) -> Path:
        return self.network.folder / "log"

    @property
    def log(self) -> str:
        return self.path.read_text()

    def told(self, status: int, **extra: str) -> str:
        assert self.start(**extra).wait(timeout=300) == status, self.log
        return self.log


@pytest.fixture
def scene(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    (tmp_path / "checkout").mkdir()
    checkout = Checkout(tmp_path / "checkout", mirror)
    checkout.small(epochs=60, images=2000)
    (tmp_path / "sitecustomize.py").write_text(OFTEN)
    checkout.run("dvc", "repro", "fetch")
    monkeypatch.chdir(checkout.folder)
    with machines(tmp_path, 3) as network:
        yield Scene(network, checkout)


ALIVE = """
import ray
ray.init(logging_level=50)
print(*sorted(node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]))
"""
PROBE = """
    import dataclasses, sys
    from pathlib import Path
    from pipelines.cluster import connection, readiness, spreading
    from pipelines.config.benchmarks import Resources
    from pipelines.config.params import load_params
    from pipelines.training import spec, store
    planned = spec.trials(load_params(), "linear-mnist", data=Path("datasets").absolute(), root=store.default())
    connection.CUT_OFF_S = 1.0
    with connection.connect() as found:
        for line in sys.stdin:
            if line.startswith("calls"):
                calls = {number: (line.removeprefix("calls "),) for number in range(4)}
                with readiness.admitted(found, readiness.decoding) as able:
                    print(*dict(spreading.spread("os.system", calls, what="calls", cluster=able)), flush=True)
                continue
            gpus = Resources(gpus_if_any=float(line.partition(" ")[2] or 0))
            one = dataclasses.replace(planned[0], benchmark=dataclasses.replace(planned[0].benchmark, resources=gpus))
            ask = readiness.decoding if line == "decoding\\n" else lambda: readiness.training([one])
            with readiness.admitted(found, ask) as able:
                print(able, flush=True)
"""


def installed() -> Path:
    """The folder of the package ``pipelines`` that an editable installation leads to."""
    code = "import importlib.util; print(importlib.util.find_spec('pipelines').submodule_search_locations[0])"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return Path(subprocess.check_output([sys.executable, "-c", code], cwd="/", env=environment, text=True).strip())


def hidden(path: Path) -> list[str]:
    """What to mount on a node that is not to have what is in a folder."""
    return ["-t", "tmpfs", "tmpfs", str(path)]


def test_a_node_that_lacks_something_takes_no_part(scene: Scene, tmp_path: Path) -> None:
    home, node = scene.checkout.folder, scene.node(3)
    scene.join(2)
    scene.join(3, "--num-gpus=1")

    def changed(path: Path, old: str, new: str) -> list[str]:
        copy = tmp_path / f"changed-{path.name}"
        copy.write_text(path.read_text().replace(old, new, 1))
        return ["--bind", str(copy), str(path)]

    meta, library = home / "datasets/mnist/meta.json", Path(numpy.__file__).parents[1]
    (metadata,) = library.glob("numpy-*.dist-info/METADATA")
    version, all_nodes = f"Version: {numpy.__version__}", "Ray cluster at 10.77.0.1:6379: 3 nodes, 2 CPUs, 1 GPUs\n"
    faults = [
        (hidden(home / "pipelines"), "it has no module 'pipelines"),
        (changed(home / "pipelines/train.py", '"""', '"""Not '), f"its pipelines.train in {home} differs from the"),
        (hidden(home / "store"), f"it does not see what the driver wrote into {home}/store; expected a run store that"),
        (changed(metadata, version, "Version: 1.0.0"), "it has numpy 1.0.0; expected "),
        (changed(meta, '"train_images.npy": "', '"train_images.npy": "f'), f"{meta.parent} is another than the driver"),
    ]
    (home / "store").mkdir(exist_ok=True)
    node.run("mount", *hidden(installed()))
    command = [*scene.node(1).inside, sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROBE)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=home, env=scene.environment, stdin=pipe, stdout=pipe, text=True) as probe:
        assert probe.stdin and probe.stdout

        def answer(work: str) -> list[str]:
            probe.stdin.write(f"{work}\n")  # type: ignore[union-attr]
            probe.stdin.flush()  # type: ignore[union-attr]
            told = [probe.stdout.readline()]  # type: ignore[union-attr]
            while not told[-1].startswith("Ray cluster at "):
                assert told[-1], told
                told.append(probe.stdout.readline())  # type: ignore[union-attr]
            return told

        for mount, line in faults:
            node.run("mount", *mount)
            fault, found = answer("training")
            node.run("umount", mount[-1])
            assert fault.startswith(f"node n3 takes no part: {line}")
            assert found == "Ray cluster at 10.77.0.1:6379: 2 nodes, 1 CPUs, 0 GPUs\n"
        if torch.version.cuda is None:
            assert answer("training 1.0")[0].startswith(
                "node n3 takes no part: Ray has 1 GPU on it, and a torch that is built for CPUs"
            )
        node.run("mount", *hidden(home / "datasets"))
        assert answer("decoding") == [all_nodes]  # which needs neither data nor store
        assert answer("training") == ["fetching the data on n3\n", all_nodes]
        assert answer("training") == [all_nodes]

        begun = tmp_path / "begun"  # what evaluate and fetch spread: Ray awaits a call on a node that is cut off
        probe.stdin.write(f"calls hostname >> {begun}; sleep 5\n")
        probe.stdin.flush()
        until(lambda: begun.exists() and "n3" in begun.read_text())
        scene.network.cut(3)
        assert sorted(probe.stdout.readline().split()) == ["0", "1", "2", "3"]
        probe.stdin.close()
        assert probe.wait(timeout=300) == 0
    assert not list((home / "store/seen").iterdir())


def test_trials_outlive_nodes_that_are_late_lost_and_cut_off(scene: Scene) -> None:
    trials = [*specs("lenet5-mnist"), *specs("linear-mnist")]
    told = scene.told(2, RAY_WAIT_S="1")
    waiting, error = told.splitlines()
    what = "models/linear.yaml: linear-mnist.resources: 1 CPU"
    assert waiting.endswith(f"0 CPUs, 0 GPUs; waiting up to 1 s for nodes that hold {what}")
    assert error == f"error: {what}; expected no more than one node has: 1 of 0 CPUs; none came in 1 s (RAY_WAIT_S)"

    slow = scene.network.folder / "slow"
    slow.touch()
    training = scene.start()
    until(lambda: "waiting up to 10 min for nodes" in scene.log)
    scene.join(2)
    until(lambda: any(stamp(trial.files.checkpoint) for trial in trials))
    for folders, line in (
        (
            (installed(), scene.checkout.folder / "pipelines"),
            "it has no module 'pipelines.training'; expected the proj",
        ),
        ((scene.checkout.folder / "store",), "it does not see what the driver wrote into "),
    ):
        for folder in folders:
            scene.node(3).run("mount", *hidden(folder))
        scene.join(3)  # and is asked by the first trial that it gets
        # with the beginning of its id, as long as Ray has not noticed that the one before is gone
        pattern = rf"\nnode n3( \(\w+\))? takes no part: {re.escape(line)}"
        until(lambda pattern=pattern: re.search(pattern, scene.log) is not None)  # type: ignore[misc]
        scene.replace(3)
    scene.join(3)

    def on_the_third(since: float) -> Spec | None:
        states = {trial.key: status.read(trial.files.progress, since=since) for trial in trials}
        there = (trial for trial in trials if (state := states[trial.key]) and state["host"] == "n3")
        return next((trial for trial in there if stamp(trial.files.checkpoint) > since * 1e9), None)

    until(lambda: on_the_third(0.0) is not None)
    lost = on_the_third(0.0)
    assert lost is not None
    scene.node(3).end()
    until(lambda: f"{lost.name}: its node is gone; it goes on elsewhere" in scene.log)

    def back_on_the_third() -> Spec:
        scene.replace(3)
        scene.join(3)
        again = time.time()
        until(lambda: on_the_third(again) is not None)
        found = on_the_third(again)
        assert found is not None
        return found

    apart = back_on_the_third()
    before = len(scene.log)
    scene.network.cut(3)
    until(lambda: scene.alive() == ["n1", "n2"])
    scene.network.heal(3)  # too late for Ray: what trained there ends, and its trial goes on elsewhere
    gone = re.compile(rf"^{apart.name}: its node .*; it goes on elsewhere$", re.MULTILINE)  # the first one, perhaps
    until(lambda: gone.search(scene.log[before:]) is not None)
    back_on_the_third()
    scene.network.cut(3)  # it goes on, and finishes its trial in the store: the driver need not hear of it
    slow.unlink()
    assert training.wait(timeout=300) == 0, scene.log
    assert all(trial.files.finished for trial in trials)
    for trial in trials:
        passes = [line["epoch"] for line in read_lines(trial.files.curve)]
        assert len(passes) == 60 and passes == sorted(set(passes))  # none was trained twice
    assert len(list((scene.checkout.folder / "runs").glob("*/seed-*/result.json"))) == len(trials)


def test_two_nodes_train_one_trial_and_one_of_them_is_replaced(scene: Scene) -> None:
    """Over the interface of their Ray addresses: by their own names both know themselves as 127.0.1.1."""

    def change(found: dict[str, Any]) -> None:
        found["suites"]["laptop"]["benchmarks"] = ["linear-mnist"]
        found["benchmarks"]["linear-mnist"]["budgets"]["laptop"]["seeds"] = [0]
        found["benchmarks"]["linear-mnist"]["resources"] = {"workers": 2}

    scene.checkout.edit(change)
    (one,) = specs("linear-mnist")
    slow = scene.network.folder / "slow"
    slow.touch()
    scene.join(2)
    scene.join(3)
    training = scene.start()
    until(lambda: stamp(one.files.checkpoint) > 0 or training.poll() is not None)
    scene.node(3).end()
    until(lambda: "; it goes on elsewhere" in scene.log or training.poll() is not None)
    scene.network.nodes[2] = scene.network.start(3)
    for folder in (installed(), scene.checkout.folder / "pipelines"):
        scene.node(3).run("mount", *hidden(folder))
    scene.join(3)
    until(lambda: "\nnode n3 takes no part: it has no module 'pipelines" in scene.log or training.poll() is not None)
    scene.replace(3)
    scene.join(3)
    slow.unlink()
    assert training.wait(timeout=300) == 0, scene.log
    result = read_json(one.files.result)
    assert result["workers"] == 2 and result["resumed"] == 1
    assert re.search(r"\nlinear-mnist seed 0: (its|a) node is gone; it goes on elsewhere\n", scene.log), scene.log
