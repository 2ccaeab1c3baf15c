"""Trials of several workers, on real Ray Train: they train as one does, and survive what one survives."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines
from pipelines.training import spec, trainer
from tests import projects
from tests.conftest import edit_params
from tests.disturbed import Run, on_two_workers, only, same_weights, slurm, specs, worker_of
from tests.processes import name_of, started_by, until

pytestmark = pytest.mark.usefixtures("ends_all")
TWO: dict[str, Any] = {
    "recipe.batch": 32,
    "budgets.laptop": {"epochs": 5, "seeds": [0]},
    "resources": {"workers": 2},
}
DIVERGING: dict[str, Any] = {
    "recipe.subset": {"first": 600},
    "recipe.loss": "mse",
    "recipe.optimiser.lr": 1e30,
    "budgets.laptop": {"epochs": 2, "seeds": [0]},
    "resources": {"workers": 2},
}


@pytest.fixture(scope="module")
def undisturbed(mnist_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> spec.Spec:
    """The trial on two workers that nothing disturbs: two processes under Lightning's own DDP, without Ray."""
    home = tmp_path_factory.mktemp("undisturbed")
    projects.copy_params(home)
    params = edit_params(home / "params.yaml", lenet5_mnist=TWO)
    (one,) = spec.trials(params, "lenet5-mnist", data=mnist_slice, root=home / "store")
    one = one.on("cpu", threads=1)
    on_two_workers(one)
    return one


def test_two_workers_train_as_one_does(project: Path, undisturbed: spec.Spec) -> None:
    """The same batches, sharded: but for the order of sums, the same curve."""
    edit_params(project / "params.yaml", lenet5_mnist=TWO | {"resources": {"workers": 1}})
    alone = trainer.run(specs("lenet5-mnist")[0])
    for ours, theirs in zip(read_lines(undisturbed.files.curve), read_lines(alone.curve), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["train_error"] == pytest.approx(theirs["train_error"], abs=0.5)


def test_an_elastic_trial_resumes_with_another_number_of_workers(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same minibatches: but for the order of sums, the same curve as one worker's from start to end."""
    short = {"recipe.subset": {"first": 640}, "recipe.batch": 32, "budgets.laptop": {"epochs": 4, "seeds": [0]}}
    edit_params(project / "params.yaml", lenet5_mnist=short)
    alone = trainer.run(specs("lenet5-mnist")[0])
    edit_params(project / "params.yaml", lenet5_mnist=short | {"resources": {"workers": {"min": 1, "max": 2}}})
    (one,) = specs("lenet5-mnist")
    monkeypatch.setattr("pipelines.training.checkpoint.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr("pipelines.training.checkpoint.PROGRESS_EVERY_S", 0.0)

    def ends(progress: Mapping[str, Any]) -> None:
        if progress["epoch"] > 1.5:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.run(one, watch=ends)
    on_two_workers(one)
    result = read_json(one.files.result)
    assert (result["resumed"], result["workers"]) == (1, [1, 2])
    assert result["wall_s"] < result["device_s"] < 2 * result["wall_s"]
    for ours, theirs in zip(read_lines(one.files.curve), read_lines(alone.curve), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_a_row_of_two_workers_is_not_trained_on_one(project: Path) -> None:
    """Its key says two, and with dropout one draws other masks."""
    edit_params(project / "params.yaml", lenet5_mnist=TWO)
    with pytest.raises(UserError, match=r"lenet5-mnist\.resources\.workers: this is 1; expected 2: python -m"):
        trainer.run(specs("lenet5-mnist")[0])


def test_whatever_is_killed_both_workers_go_on_to_the_same_weights(project: Path, undisturbed: spec.Spec) -> None:
    """And where a trial's loss ends as no number, all its workers end, at once, and no other trial.

    All that within a job of SLURM's, which Lightning would take for its own launcher.
    """
    only(project, lenet5_mnist=TWO, linear_mnist=DIVERGING)
    job = slurm(project)
    one, diverging = specs("lenet5-mnist")[0], specs("linear-mnist")[0]

    run = Run.start(project, **job)
    run.until_saved(one)
    assert run.kill(run.driver.pid, signal.SIGKILL) == -9

    run = Run.start(project, **job)
    run.until(lambda: bool(ranks(run)))  # Ray Train, which has an answer of its own to Ctrl-C, places its workers
    assert run.kill(run.driver.pid, signal.SIGINT) == 130
    assert run.log.splitlines()[-1].startswith("error: interrupted")

    run = Run.start(project, **job)
    run.until_saved(one)
    waits = next(process for process in started_by(run.driver.pid) if name_of(process) == f"ray::{one.name}")
    assert run.kill(waits.pid, signal.SIGKILL) == 2  # nothing would give the CPUs of its workers back
    assert "its worker was lost" in run.log and "run the same command again" in run.log

    run = Run.start(project, **job)
    run.until_saved(one)
    first = worker_of(one)
    (other,) = set(ranks(run)) - {first}
    os.kill(other, signal.SIGKILL)
    until(lambda: worker_of(one) != first)
    run.until_saved(one)
    second = worker_of(one)
    (other,) = set(ranks(run)) - {second}
    os.kill(other, signal.SIGUSR1)  # the machine of one of them is taken away: both save, and go on elsewhere
    until(lambda: worker_of(one) != second)
    run.finish(status=2)
    result = read_json(one.files.result)
    assert result["resumed"] in (4, 5) and result["workers"] == 2  # a machine may be slow to press Ctrl-C
    assert same_weights(one.files.weights, undisturbed.files.weights)

    assert run.log.splitlines()[-1] == "error: linear-mnist seed 0: the loss of epoch 1 is nan; try a lower lr"
    run.says_nothing_of_rays()
    assert read_json(diverging.files.progress)["state"] == "failed"


def ranks(run: Run) -> list[int]:
    """The processes that train; Ray names each after what it does."""
    return [process.pid for process in started_by(run.driver.pid) if "RayTrainWorker" in name_of(process)]
