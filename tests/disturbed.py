"""Runs of ``python -m pipelines.train`` for the tests: started, disturbed, and compared."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from pipelines.config.params import Params, load_params
from pipelines.training import spec
from tests import projects
from tests.conftest import ROOT, edit_params
from tests.processes import end, environment, name_of, nothing_left, started_by, until

TRAIN = [sys.executable, "-W", "ignore", "-m", "pipelines.train"]
# No tracking here: a server that refuses at once keeps the test about training.
QUIET = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}

# A checkpoint wherever there may be one, so that there is one to go on from however soon the kill comes; and while the
# project has a file "slow", training that takes its time to be disturbed. Done at the moment of import: Ray's own
# processes run this file too, and would each take seconds to load torch.
OFTEN = """
import faulthandler, importlib.abc, importlib.util, os, signal, sys, time

faulthandler.register(signal.SIGUSR2, all_threads=True)

class Often(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "pipelines.training.checkpoint":
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        load = found.loader.exec_module
        def patched(module):
            load(module)
            module.CHECKPOINT_EVERY_S = 0.0
            module.CheckpointCallback._agree = often(module.CheckpointCallback._agree)
        found.loader.exec_module = patched
        return found

def often(agree):
    def agree_often(self, now, number):
        if os.path.exists(os.path.join(os.path.dirname(__file__), "slow")):
            time.sleep(0.5)
        self.saving_s = 0.0
        return agree(self, now, 0)
    return agree_often

sys.meta_path.insert(0, Often())
"""


def only(project: Path, **changes: dict[str, Any]) -> Params:
    """Change benchmarks of ``project`` as ``edit_params`` does, and make them its whole suite."""
    names = [name.replace("_", "-") for name in changes]
    found = projects.read(project)
    found["suites"][found["suite"]["name"]]["benchmarks"] = names
    return edit_params(projects.write(project, found), **changes)


def specs(name: str, root: str = "store") -> list[spec.Spec]:
    """The trials of a benchmark in the working directory, as Ray's workers get them."""
    planned = spec.trials(load_params(), name, data=Path("datasets"), root=Path(root))
    return [one.on("cpu", threads=1) for one in planned]


PLAIN = """
    import os, pickle, sys
    from pipelines.training import trainer
    from pipelines.training.checkpoint import Worker
    one, rank = pickle.loads(bytes.fromhex(sys.argv[1])), int(os.environ["RANK"])
    trainer.run(one, Worker(rank=rank, workers=2, trainer={"strategy": "ddp", "devices": 2}))
"""


def on_two_workers(one: spec.Spec) -> None:
    """Train under Lightning's own DDP, in two processes and without Ray."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PLAIN), pickle.dumps(one).hex()]
    places = [{"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "plain"} for rank in "01"]
    with nothing_left():
        both = [subprocess.Popen(command, env=environment(**meeting, **place)) for place in places]
        assert [process.wait(timeout=240) for process in both] == [0, 0]


def slurm(folder: Path) -> dict[str, str]:
    """The environment of a task of two in a SLURM job, with an ``srun`` that does nothing."""
    tools = folder / "slurm"
    tools.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    numbers = {"JOB_ID": 7, "NTASKS": 2, "PROCID": 1, "LOCALID": 1, "NODEID": 0, "NNODES": 1, "RESTART_COUNT": 0}
    about = {f"SLURM_{name}": str(value) for name, value in numbers.items()}
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return about | {"SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost", "PATH": path}


def train(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Train to the end."""
    return subprocess.run(
        [*TRAIN, *words], env=environment(**QUIET, **extra), capture_output=True, text=True, timeout=400
    )


@dataclasses.dataclass
class Run:
    """A training of the suite of ``project``, with checkpoints as often as can be; output in ``project/log``."""

    project: Path
    driver: subprocess.Popen[bytes]

    @classmethod
    def start(cls, project: Path, **extra: str) -> Run:
        (project / "sitecustomize.py").write_text(OFTEN)
        (project / "slow").touch()
        paths = os.pathsep.join([str(project), str(ROOT)])
        with (project / "log").open("wb") as log:
            started = subprocess.Popen(
                TRAIN, env=environment(**QUIET, **extra) | {"PYTHONPATH": paths}, stdout=log, stderr=log
            )
        return cls(project, started)

    def until_saved(self, *trials: spec.Spec) -> None:
        """Wait for a new checkpoint of each; they go on training."""
        began = {one.key: stamp(one.files.checkpoint) for one in trials}
        self.until(lambda: all(stamp(one.files.checkpoint) > began[one.key] for one in trials))

    def until(self, condition: Callable[[], bool]) -> None:
        until(lambda: condition() or self.driver.poll() is not None)
        assert self.driver.poll() is None, self.log

    def kill(self, process: int, how: signal.Signals) -> int:
        """Send a signal to a process; the driver's exit status, once nothing is left of what it started."""
        family = started_by(self.driver.pid)
        assert any(name_of(one).startswith("ray::") for one in family)
        os.kill(process, how)
        status = self._ended()
        # Two agents of Ray's, which train nothing, look for a killed cluster for a minute before they follow it.
        agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent") if how == signal.SIGKILL else ()
        _, alive = psutil.wait_procs([one for one in family if name_of(one) not in agents], timeout=40)
        assert not alive
        return status

    def _ended(self) -> int:
        """The exit status; where it does not end, what each of its threads is at, and nothing is left of it."""
        try:
            return self.driver.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.driver.send_signal(signal.SIGUSR2)
            time.sleep(2)
            end(started_by(self.driver.pid))
            self.driver.kill()
            self.driver.wait()
            raise AssertionError(f"did not end: {self.log}") from None

    def finish(self, *, status: int = 0) -> None:
        """Let it end by itself."""
        (self.project / "slow").unlink()
        assert self.driver.wait(timeout=300) == status, self.log

    def says_nothing_of_rays(self) -> None:
        """Neither what Python prints of an exception nor what Ray prints by itself."""
        found = [
            words for words in ("Traceback", "(raylet)", "[state-dump]", ".cc:", "ray.", "(pid=") if words in self.log
        ]
        assert not found, self.log

    @property
    def log(self) -> str:
        return (self.project / "log").read_text()


def stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def worker_of(one: spec.Spec) -> int:
    """The process that trains it, or its rank 0."""
    return int(json.loads(one.files.progress.read_text())["pid"])


def same_weights(first: Path, second: Path) -> bool:
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
