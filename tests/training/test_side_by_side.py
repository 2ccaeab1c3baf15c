"""Trials side by side without Ray: the bits of each alone, failures that end no other, signals that lose nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

from pipelines import trial
from pipelines.command import errors
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines
from pipelines.config.params import load_params
from pipelines.training import side_by_side, spec, trainer
from tests import projects
from tests.conftest import edit_params
from tests.disturbed import same_weights
from tests.processes import environment, until

BLOCKED = ["ray", "mlflow", "dvc", "psutil", "requests", "jinja2", "sklearn", "filelock"]
CUT: dict[str, Any] = {"recipe.subset": {"first": 900}, "recipe.batch": 4}
ROWS: dict[str, dict[str, Any]] = {
    "mlp300_mnist": {**CUT, "budgets.laptop": {"epochs": 2, "seeds": [0, 1]}},
    "linear_mnist": {  # diverges
        "recipe.loss": "mse",
        "recipe.optimiser.lr": 1e30,
        "recipe.subset": {"first": 300},
        "budgets.laptop": {"epochs": 1, "seeds": [0]},
    },
}
LONG = {"linear_mnist": {**CUT, "budgets.laptop": {"epochs": 30, "seeds": [0, 1]}}}


def command(*words: str) -> subprocess.Popen[str]:
    """In a session of its own, as a terminal starts it, where nothing but a trial's few libraries can be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))"
    Path("sitecustomize.py").write_text(block)  # which every process runs first
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "pipelines.trial", *words, "--budget=laptop", "--device=cpu"],
        env=environment(PYTHONPATH=f"{Path().absolute()}{os.pathsep}{projects.ROOT}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trials(root: str = "store", name: str = "linear-mnist") -> list[spec.Spec]:
    found = spec.trials(load_params(), name, data=Path("datasets"), root=Path(root))
    return [one.on("cpu", threads=1) for one in found]


@pytest.mark.usefixtures("ends_all")
def test_each_ends_at_its_own_weights_and_a_failed_one_ends_no_other(project: Path) -> None:
    edit_params(project / "params.yaml", **ROWS)
    process = command("linear-mnist", "mlp300-mnist", "--seeds", "0", "1", "0", "--side-by-side", "2")
    said, complained = process.communicate(timeout=300)
    assert (process.returncode, complained) == (1, "")
    lines = said.splitlines()
    assert "4 trials, 0 of them finished before; 2 at once" in lines
    for seed in (0, 1):
        line = f"linear-mnist seed {seed} failed: the loss of epoch 1 is nan; try a lower lr"
        assert lines.count(line) == 1
        assert sum(line.startswith(f"mlp300-mnist seed {seed}: trained in ") for line in lines) == 1
    for one, alone in zip(trials(name="mlp300-mnist"), trials("alone", "mlp300-mnist"), strict=True):
        assert same_weights(one.files.weights, trainer.run(alone).weights)


def running(process: subprocess.Popen[str], planned: list[spec.Spec]) -> list[psutil.Process]:
    """The processes of trials that train, once all do."""
    until(lambda: process.poll() is not None or all(one.files.curve.exists() for one in planned), 180)
    until(lambda: process.poll() is not None or all(read_lines(one.files.curve) for one in planned), 180)
    assert process.poll() is None, process.communicate()
    pids = [read_json(one.files.progress)["pid"] for one in planned]
    return [psutil.Process(pid) for pid in pids]


def to_all(number: signal.Signals, times: int = 1) -> Callable[[subprocess.Popen[str]], None]:
    """A signal to every process of the command, as a terminal and schedulers send it; twice, as ``timeout`` does."""

    def send(process: subprocess.Popen[str]) -> None:
        for _ in range(times):
            os.killpg(process.pid, number)
            time.sleep(0.05)

    return send


CTRL_C = to_all(signal.SIGINT)
INTERRUPTED = "error: interrupted; the same command continues where this"
PREEMPTED = "error: ended by SIGUSR1; the same command goes on at its last"


@pytest.mark.usefixtures("ends_all")
@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        (CTRL_C, 130, INTERRUPTED),
        (to_all(signal.SIGTERM, 2), 130, INTERRUPTED),
        (lambda p: p.send_signal(signal.SIGUSR1), 75, PREEMPTED),
        (to_all(signal.SIGUSR1), 75, PREEMPTED),
        (lambda p: p.kill(), -9, ""),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGUSR1", "SIGUSR1 to all", "killed"],
)
def test_all_are_ended_at_a_checkpoint(
    project: Path, end: Callable[[subprocess.Popen[str]], None], status: int, line: str
) -> None:
    edit_params(project / "params.yaml", **LONG)
    planned, began = trials(), time.time()
    process = command("linear-mnist", "--seeds", "0", "1", "--side-by-side", "2")
    family = running(process, planned)
    end(process)
    _, complained = process.communicate(timeout=180)
    assert process.returncode == status
    assert complained.startswith(line) and complained.count("\n") == bool(line)
    assert not psutil.wait_procs(family, timeout=30)[1]
    for one in planned:
        assert one.files.checkpoint.stat().st_mtime > began and not one.files.finished
    if end is not CTRL_C:  # once is enough
        return
    process = command("linear-mnist", "--seeds", "0", "1")
    process.communicate(timeout=300)
    assert process.returncode == 0
    for one, alone in zip(planned, trials("alone"), strict=True):
        assert read_json(one.files.result)["resumed"] == 1
        assert same_weights(one.files.weights, trainer.run(alone).weights)


@pytest.mark.usefixtures("ends_all")
def test_a_process_that_is_killed_is_one_failed_trial(project: Path) -> None:
    edit_params(project / "params.yaml", **LONG)
    planned = trials()
    process = command("linear-mnist", "--seeds", "0", "1", "2", "--side-by-side", "2")
    running(process, planned)[0].kill()
    said, complained = process.communicate(timeout=300)
    assert (process.returncode, complained) == (1, "")
    assert "linear-mnist seed 0 failed: its process was ended by SIGKILL" in said.splitlines()
    assert [f"linear-mnist seed {seed}: trained in " in said for seed in (0, 1, 2)] == [False, True, True]


class OtherSeat:
    """A seat without a process. Once two have begun, a signal comes while the next one is made."""

    made: ClassVar[list[OtherSeat]] = []
    seats: side_by_side.Seats

    def __init__(self) -> None:
        self.trial: spec.Spec | None = None
        self.pipe, self.theirs = multiprocessing.Pipe()
        self.process = SimpleNamespace(terminate=lambda: self.theirs.close(), kill=self.theirs.close)
        OtherSeat.made.append(self)
        if len(OtherSeat.made) == 2:
            self.seats._ask(signal.SIGUSR1, None)

    def begin(self, trial: spec.Spec) -> None:
        self.trial = trial

    def report(self) -> tuple[str, str]:
        return "crashed", "it crashed"

    def leave(self) -> None:
        self.pipe.close()


def test_a_seat_that_a_signal_has_missed_is_left(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It idled until the patience with the others was over."""
    edit_params(project / "params.yaml", **LONG)
    monkeypatch.setattr(side_by_side, "Seat", OtherSeat)
    monkeypatch.setattr(errors, "_ended_by", [])
    OtherSeat.seats = seats = side_by_side.Seats(trials(), 1)
    (first,) = OtherSeat.made
    first.theirs.close()
    with pytest.raises(KeyboardInterrupt):
        seats.run()
    assert seats.seats == [] and len(OtherSeat.made) == 2


def test_as_many_as_the_rows_ask_for_are_trained_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = edit_params(project / "params.yaml", linear_mnist={"resources": {"cpus": 2, "gpus_if_any": 0.25}})

    def planned(device: str, threads: int) -> list[spec.Spec]:
        found = spec.trials(params, "linear-mnist", data=Path("datasets"), root=Path("store"))
        return [one.on(device, threads=threads) for one in found]

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert [trial._capacity(planned("cpu", threads)) for threads in (1, 2, 16)] == [8, 4, 1]
    assert trial._capacity(planned("cuda", 2)) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["linear-mnist", "linaer-mnist"], "benchmark linaer-mnist is not known; did you mean linear-mnist?"),
        (["linear-mnist", "--seeds", "0", "-1"], "--seeds has -1; expected whole numbers from 0"),
        (["linear-mnist", "--side-by-side", "0"], "--side-by-side is 0; expected at least 1"),
        (["linear-mnist", "--threads", "0"], "--threads is 0; expected at least 1"),
        (["linear-mnist", "mlp300-mnist", "--budget", "lapto"], "--budget: linear-mnist: budget lapto is not known;"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["trial", *words])
    with pytest.raises(UserError) as caught:
        trial.main()
    assert str(caught.value).startswith(line)
    assert not Path("store").exists() or not list(Path("store").iterdir())
