"""A machine is taken away, within SLURM or without: the trial saves its own checkpoint, and loads no other's."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipelines.command.errors import UserError
from pipelines.command.files import read_json
from pipelines.config.params import Params
from pipelines.data.batches import Chunks
from pipelines.training import core, spec, trainer
from pipelines.training.checkpoint import CheckpointCallback, Checkpoints, PreemptedError, Worker
from pipelines.training.inputs import Inputs
from tests import projects
from tests.conftest import edit_params
from tests.disturbed import same_weights, slurm
from tests.processes import environment

NAME = "linear-mnist"
SHORT: dict[str, Any] = {  # 300 minibatches an epoch, in two chunks
    "recipe.subset": {"first": 900},
    "recipe.batch": 3,
    "budgets.laptop": {"epochs": 2, "seeds": [0, 1]},
}

PREEMPTED = """
    import os, signal, sys
    from pipelines import trial
    from pipelines.command import errors
    from pipelines.training import checkpoint, speed
    number, epoch = int(sys.argv.pop()), int(sys.argv.pop())
    train = checkpoint.CheckpointCallback.on_train_batch_end

    def preempt(self, *batch):
        if self.loader.epoch == epoch and not os.path.exists("told"):
            open("told", "w").close()
            os.kill(os.getpid(), number)
        train(self, *batch)

    checkpoint.CheckpointCallback.on_train_batch_end = preempt
    if epoch < 0:
        speed.measure = lambda *_: os.kill(os.getpid(), number)
    errors.guard(trial.main)
"""


@pytest.fixture(scope="module")
def undisturbed(mnist_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> list[spec.Spec]:
    """What two seeds come to where no SLURM is."""
    home = tmp_path_factory.mktemp("undisturbed")
    projects.copy_params(home)
    planned = trials(edit_params(home / "params.yaml", linear_mnist=SHORT), mnist_slice, home / "store")
    for one in planned:
        trainer.run(one)
    return planned


def trials(params: Params, data: Path, root: Path) -> list[spec.Spec]:
    return [one.on("cpu", threads=1) for one in spec.trials(params, NAME, data=data, root=root)]


@pytest.fixture
def job(project: Path, undisturbed: list[spec.Spec], monkeypatch: pytest.MonkeyPatch) -> list[spec.Spec]:
    """The same trials in a store of their own; this process is a task of a SLURM job."""
    edit_params(project / "params.yaml", linear_mnist=SHORT)
    for name, value in slurm(project).items():
        monkeypatch.setenv(name, value)
    return [dataclasses.replace(one, store=project / "store") for one in undisturbed]


def preempted(number: int, epoch: int) -> subprocess.CompletedProcess[str]:
    """The command for seed 0, which is sent a signal as soon as it trains in that epoch; -1 is before it trains."""
    words = [textwrap.dedent(PREEMPTED), NAME, "--device=cpu", "--threads=1", str(epoch), str(int(number))]
    return subprocess.run([sys.executable, "-c", *words], env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("number", "epoch", "status", "line"),
    [
        (signal.SIGUSR1, 1, 75, "linear-mnist seed 0 was ended by SIGUSR1, its checkpoint is saved; the same command"),
        (signal.SIGTERM, 0, 130, "interrupted; the same command continues where this one stopped"),
    ],
)
def test_a_preempted_trial_saves_its_own_checkpoint_and_no_other_seed_goes_on_from_it(
    job: list[spec.Spec], undisturbed: list[spec.Spec], number: int, epoch: int, status: int, line: str
) -> None:
    one, other = job
    done = preempted(number, epoch)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    assert done.stderr.startswith(f"error: {line}")
    assert one.files.checkpoint.exists() and not one.files.finished
    assert not list(Path().glob("*.ckpt"))
    for each, whole in zip((other, one), reversed(undisturbed), strict=True):
        assert same_weights(trainer.run(each).weights, whole.files.weights)
    assert [read_json(each.files.result)["resumed"] for each in job] == [1, 0]


def test_a_command_that_is_preempted_before_it_trains_ends_at_once(job: list[spec.Spec]) -> None:
    done = preempted(signal.SIGUSR1, -1)
    assert (done.returncode, done.stderr) == (
        75,
        "error: ended by SIGUSR1; the same command goes on at its last checkpoint\n",
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_trial_that_is_preempted_in_its_last_minibatches_ends_as_it_would(
    job: list[spec.Spec], undisturbed: list[spec.Spec], number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def preempt(told: Any) -> None:
        if told["epoch"] == 2 and told["state"] == "running":
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as always:
        always.setattr("pipelines.training.checkpoint.PROGRESS_EVERY_S", 0.0)
        trainer.run(job[0], Worker(preempted_by=(number,)), watch=preempt)
    assert same_weights(job[0].files.weights, undisturbed[0].files.weights)
    assert signal.getsignal(number) is before  # it is this process's again


def test_a_checkpoint_in_the_working_directory_is_nobodys(job: list[spec.Spec], undisturbed: list[spec.Spec]) -> None:
    """Lightning would look for the newest of these wherever it finds itself in a job."""
    one, other = job
    found: list[bytes] = []

    def keep(told: Any) -> None:
        if one.files.checkpoint.exists():
            found.append(one.files.checkpoint.read_bytes())

    trainer.run(one, watch=keep)
    for folder in (Path(), other.files.folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hpc_ckpt_1.ckpt").write_bytes(found[-1])
    assert same_weights(trainer.run(other).weights, undisturbed[1].files.weights)
    assert Path("hpc_ckpt_1.ckpt").read_bytes() == found[-1]


def test_no_checkpoint_of_another_trial_is_loaded_whoever_hands_it_over(job: list[spec.Spec]) -> None:
    one, other = job
    copy = Path("copy.ckpt")

    def keep(told: Any) -> None:
        if one.files.checkpoint.exists():
            shutil.copy(one.files.checkpoint, copy)

    trainer.run(one, watch=keep)
    inputs = Inputs.of(other)
    loader, module = core.assemble(other, inputs)
    chunks = Chunks(loader, inputs.flops)
    callback = CheckpointCallback(other, chunks, Worker(), lambda told: None)
    lightning = trainer.build_trainer(other, Worker(), callback, Checkpoints())
    with pytest.raises(UserError, match=rf"^a checkpoint of another trial \(key {one.key}\); expected {other.key}$"):
        lightning.fit(module, train_dataloaders=chunks, ckpt_path=copy)


def test_an_error_that_a_preempted_worker_raises_survives_the_way_to_the_driver() -> None:
    error = pickle.loads(pickle.dumps(PreemptedError("one line", "and more", 10)))
    assert (str(error), error.fact, error.number) == ("one line; and more", "one line", 10)


def test_of_two_signals_at_once_the_first_decides_and_a_later_one_ends(
    job: list[spec.Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's SIGUSR1 asks to be put back in the queue, whatever follows it."""
    one = job[0]
    inputs = Inputs.of(one)
    loader, _ = core.assemble(one, inputs)
    callback = CheckpointCallback(one, Chunks(loader, inputs.flops), Worker(), lambda told: None)
    clock = [100.0]
    monkeypatch.setattr("pipelines.training.checkpoint.time.monotonic", lambda: clock[0])
    callback.preempt(signal.SIGUSR1, None)
    clock[0] = 100.9
    callback.preempt(signal.SIGTERM, None)
    assert callback.ended_by == signal.SIGUSR1
    clock[0] = 101.5  # within a second of the repeat, not of the first
    with pytest.raises(KeyboardInterrupt):
        callback.preempt(signal.SIGTERM, None)
