"""Trials of several workers, on real Ray Train: they train as one does, and survive what one survives."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import spec, store, trial
from tests.conftest import ROOT, edit_params
from tests.training import Run, only, same_weights, specs, train, until, worker_of

TWO: dict[str, Any] = {
    "recipe.batch": 32,
    "budgets.laptop": {"epochs": 4, "seeds": [0]},
    "resources": {"workers": 2},
}


@pytest.fixture(scope="module")
def undisturbed(mnist_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> spec.Spec:
    """A trial of two workers that nothing has disturbed."""
    home = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(ROOT / "params.yaml", home)
    (home / "datasets").symlink_to(mnist_slice)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("RUN_STORE", raising=False)
        only(home, lenet5_mnist=TWO)
        done = train()
        assert done.returncode == 0, done.stderr
        (found,) = specs("lenet5-mnist")
    return found


def test_two_workers_train_as_one_does(project: Path, undisturbed: spec.Spec) -> None:
    """The same batches, sharded: but for the order of sums, the same curve."""
    edit_params(project / "params.yaml", lenet5_mnist=TWO | {"resources": {"workers": 1}})
    alone = trial.run(specs("lenet5-mnist")[0])
    for ours, theirs in zip(store.read_lines(undisturbed.files.curve), store.read_lines(alone.curve), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["train_error"] == pytest.approx(theirs["train_error"], abs=0.5)
    result = store.read_json(undisturbed.files.result)
    assert result["workers"] == 2 and result["resumed"] == 0


def test_whatever_is_killed_both_workers_go_on_to_the_same_weights(project: Path, undisturbed: spec.Spec) -> None:
    only(project, lenet5_mnist=TWO)
    (one,) = specs("lenet5-mnist")

    for how, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)):
        run = Run.start(project)
        run.until_saved(one)
        assert run.kill(run.driver.pid, how) == status
        assert how == signal.SIGKILL or run.log.splitlines()[-1].startswith("error: interrupted")

    run = Run.start(project)
    run.until_saved(one)
    first = worker_of(one)
    (other,) = set(ranks(run)) - {first}
    psutil.Process(other).kill()
    until(lambda: worker_of(one) != first)
    run.finish()
    result = store.read_json(one.files.result)
    assert result["resumed"] == 4 and result["workers"] == 2
    assert same_weights(one.files.weights, undisturbed.files.weights)


def ranks(run: Run) -> list[int]:
    """The processes that train; Ray names each after what it does."""
    family = psutil.Process(run.driver.pid).children(recursive=True)
    return [process.pid for process in family if "RayTrainWorker" in process.name()]


def test_what_a_worker_says_to_its_user_is_one_line_and_is_not_tried_again(project: Path) -> None:
    """Of two trials one has a checkpoint that can't be read, the other's loss ends as no number."""
    changes = {"recipe.subset": {"first": 600}, "resources": {"workers": 2}, "recipe.batch": 32}
    diverging = changes | {"recipe.loss": "mse", "recipe.optimiser.lr": 1e30}
    only(project, lenet5_mnist=changes | TWO, linear_mnist=diverging | {"budgets.laptop": {"epochs": 2, "seeds": [0]}})
    (damaged,) = specs("lenet5-mnist")
    damaged.files.folder.mkdir(parents=True)
    damaged.files.checkpoint.write_bytes(b"no checkpoint")
    done = train()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{damaged.files.checkpoint} is damaged or foreign" in done.stdout + line
    assert "linear-mnist seed 0: the loss of epoch 1 is nan; try a lower lr" in done.stdout + line
    assert "(and 1 more failed: " in line
    assert json.loads((project / "store" / "rates.json").read_text())
