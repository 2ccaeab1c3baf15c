"""Guards training: real images are learned, a killed trial resumes bit for bit, no test file is opened."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines, replacing
from pipelines.data import batches, datasets
from pipelines.training import checkpoint, checks, inputs, provenance, status, trainer
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec
from tests.conftest import hide_test_images
from tests.processes import environment
from tests.training.trials import planned, same, weights


@pytest.mark.numeric
def test_a_trial_learns_and_says_where_its_numbers_come_from(project: Path) -> None:
    # Off the plateau at once, and at a rate with which any seed learns on any processor: about 1.5, then 0.5.
    learning = {"model.options": {"init": "sqrt_fan_in"}, "recipe.optimiser.lr": 0.01}
    one = planned({"recipe.subset": {}, "budgets.laptop": {"epochs": 2, "seeds": [0]}, **learning})
    files = trainer.run(one)
    curve = read_lines(files.curve)
    assert [point["epoch"] for point in curve] == [1, 2]
    assert curve[1]["loss"] < 0.8 * curve[0]["loss"] < 0.8 * 2.3026  # ln 10: what guessing costs
    steps, lr = -(-2000 // one.benchmark.recipe.batch), one.benchmark.recipe.optimiser.lr
    assert curve[1]["lr"] == pytest.approx(lr / (2 * steps))  # the paper's schedule, run through in the budget's epochs
    result = read_json(files.result)
    assert result["parameters"] == 60_850
    assert result["images_seen"] == 2 * 2000
    assert result["config"] == one.benchmark.resolved("laptop")
    assert result["dataset_digest"] == datasets.open_dataset(one.data, "mnist").digest
    assert result["versions"]["torch"] == torch.__version__
    assert {"models.lenet", "pipelines.training.classifier", "pipelines.data.transforms"} <= set(result["sources"])
    assert not files.checkpoint.exists()


def test_a_net_on_the_plateau_is_told_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its steps are too small to leave it, whatever the processor."""
    trainer.run(planned({"recipe.optimiser.lr": 1e-7}))
    found = re.findall(r"^.*stuck at chance.*$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == 1
    expected = (
        r"lenet5-mnist seed 0: stuck at chance: after 2 epochs its loss is 2\.3\d\d\d, that of a guess ln 10 = 2\.3026"
    )
    assert re.fullmatch(expected, found[0])


def test_other_code_than_it_was_planned_with_does_not_train_a_trial(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the store would hand out its weights as those of the code that the key stands for."""
    one, losses = planned(), inputs.LOADED["pipelines.training.losses"]
    trainer._loaded.cache_clear()
    with monkeypatch.context() as edited:
        since = losses.replace("F.cross_entropy(outputs, labels)", "2 * F.cross_entropy(outputs, labels)")
        edited.setattr("pipelines.training.trainer.LOADED", inputs.LOADED | {"pipelines.training.losses": since})
        with pytest.raises(UserError, match="lenet5-mnist seed 0: the source files or the data were changed after it"):
            trainer.run(one)
    assert not one.files.trial.exists()
    trainer._loaded.cache_clear()
    trainer.run(one)


def test_a_trial_names_the_commit_that_it_began_with(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or last went on with: hours later the checkout may be at another."""
    one = planned()

    def state() -> dict[str, Any]:  # the curve is there as soon as it trains
        later = one.files.curve.exists()
        return {"git_commit": ("b" if later else "a") * 40, "git_dirty": later}

    monkeypatch.setattr(provenance, "git_state", state)
    result = read_json(trainer.run(one).result)
    assert (result["git_commit"], result["git_dirty"]) == ("a" * 40, False)


def test_a_finished_trial_is_not_trained_again(project: Path) -> None:
    one = planned()
    trainer.run(one)
    stamp = one.files.weights.stat().st_mtime_ns
    trainer.run(one)
    assert one.files.weights.stat().st_mtime_ns == stamp


def test_the_seed_decides_the_weights_and_nothing_else_does(project: Path) -> None:
    first, again, other = planned(root="a"), planned(root="b"), planned(seed=1, root="a")
    assert same(weights(trainer.run(first)), weights(trainer.run(again)))
    assert not same(weights(first.files), weights(trainer.run(other)))


KILLED = """
    import os, signal, sys, pickle
    from pipelines.training import checkpoint, trainer
    checkpoint.CheckpointCallback._agree = lambda self, now, batch: True  # a checkpoint wherever there may be one
    one, stop_at = pickle.load(open(sys.argv[1], "rb")), float(sys.argv[2])
    save = checkpoint.CheckpointCallback._save
    def save_and_die(self, trainer):
        save(self, trainer)
        if self.loader.epoch + self.loader.done / len(self.loader) >= stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.CheckpointCallback._save = save_and_die
    trainer.run(one)
"""


# Each has something of its own to lose in a restart: momentum and bf16; Adadelta's state and augmentation; dropout.
RECIPES: dict[str, dict[str, Any]] = {
    "momentum": {},
    "augmented": {
        "recipe.augment": [{"shift": {"pixels": 2}}],
        "recipe.optimiser": {"name": "adadelta", "lr": 1.0},
        "recipe.schedule": {"points": [[0, 1.0], [10, 0.1]]},
    },
    "dropout": {
        "model": {"family": "allcnn", "name": "allcnn", "options": {"base": "A", "variant": "base"}},
        "recipe.subset": {"first": 60},
        "recipe.precision": {"cpu": "bf16"},
        "recipe.channels_last": True,
    },
}


@pytest.mark.parametrize(  # epochs: in the first, between two, in the second, behind the last
    ("recipe", "stop_at"),
    [("momentum", 0.4), ("augmented", 1.2), ("augmented", 3.0), ("dropout", 0.4), ("dropout", 1.0)],
)
def test_a_killed_trial_ends_at_the_weights_of_an_undisturbed_one(
    project: Path, recipe: str, stop_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = trainer.run(planned(RECIPES[recipe], root="undisturbed"))
    one = planned(RECIPES[recipe], root="killed")
    (project / "spec.pickle").write_bytes(pickle.dumps(one))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), "spec.pickle", str(stop_at)], env=environment()
    )
    assert done.returncode == -9
    assert one.files.checkpoint.exists() and not one.files.finished
    trainer.run(one)
    assert read_json(one.files.result)["resumed"] == 1
    assert same(weights(one.files), weights(undisturbed))
    keys = ("epoch", "loss", "train_error", "lr")
    resumed, straight = read_lines(one.files.curve), read_lines(undisturbed.curve)
    assert [[p[k] for k in keys] for p in resumed] == [[p[k] for k in keys] for p in straight]


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("begun", "resumed"), [(1, 8), (8, 1), (4, 7), (3, 40)])
def test_a_trial_that_resumes_where_chunks_are_of_another_size_trains_as_long(
    project: Path, monkeypatch: pytest.MonkeyPatch, begun: int, resumed: int
) -> None:
    """As on another kind of device: Lightning counts the chunks of an epoch, and would leave out the rest of it."""
    changes = {"recipe.batch": 10}  # 30 minibatches
    undisturbed = trainer.run(planned(changes, root="undisturbed"))
    one, save = planned(changes, root="stopped"), checkpoint.CheckpointCallback._save

    def save_and_stop(self: checkpoint.CheckpointCallback, trainer: Any) -> None:
        save(self, trainer)
        if self.loader.epoch == 1 and self.loader.done:
            raise Stopped

    monkeypatch.setitem(batches.FLOPS_AT_ONCE, "cpu", begun * 10 * Inputs.of(one).flops)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, batch: True)
        patched.setattr(checkpoint.CheckpointCallback, "_save", save_and_stop)
        with pytest.raises(Stopped):
            trainer.run(one)
    monkeypatch.setitem(batches.FLOPS_AT_ONCE, "cpu", resumed * 10 * Inputs.of(one).flops)
    trainer.run(one)
    assert same(weights(one.files), weights(undisturbed))
    epochs = [[point["epoch"] for point in read_lines(files.curve)] for files in (one.files, undisturbed)]
    assert epochs == [[1, 2, 3], [1, 2, 3]]


def test_training_opens_no_test_file(project: Path, mnist_slice: Path) -> None:
    """They are not there while a trial trains; so trains every block in tests/test_every_benchmark.py."""
    hide_test_images(project, mnist_slice)
    one = planned()
    checks.check(Inputs.of(one), "laptop")
    assert trainer.run(one).finished


@pytest.mark.numeric
def test_the_weights_that_are_kept_are_the_last_epochs_even_where_it_is_the_worse_one(project: Path) -> None:
    def spoilt(epochs: int) -> Spec:
        lengths = {"budgets.paper.epochs": epochs, "budgets.laptop": {"epochs": epochs, "seeds": [0]}}
        changes = {"recipe.schedule": {"points": [[0, 1.0], [1, 1000.0]]}, "recipe.subset": {}}
        return planned({**lengths, **changes}, name="linear-mnist", root=f"epochs-{epochs}")

    first, second = trainer.run(spoilt(1)), trainer.run(spoilt(2))
    better, worse = (point["train_error"] for point in read_lines(second.curve))
    assert better < worse and read_lines(first.curve)[0]["train_error"] == better
    assert not same(weights(first), weights(second))
    largest = [max(float(weight.abs().max()) for weight in weights(files).values()) for files in (first, second)]
    assert largest[1] > 10 * largest[0]  # the steps of the last epoch were a thousand times as long


def test_progress_on_disk_ends_done(project: Path) -> None:
    seen: list[dict[str, Any]] = []
    one = planned()
    trainer.run(one, watch=lambda told: seen.append(dict(told)))
    assert seen[0]["state"] == "running" and seen[-1]["state"] == "done"
    assert json.loads(one.files.progress.read_text())["epoch"] == 3


def test_an_epoch_is_a_pass_over_what_the_recipe_trains_on(project: Path) -> None:
    """Not over what a budget leaves of it: the ledger counts so, and everybody else."""
    seen: list[dict[str, Any]] = []
    one = planned({"budgets.laptop": {"epochs": 3, "seeds": [0], "train_images": 200}})  # of 300
    files = trainer.run(one, watch=lambda told: seen.append(dict(told)))
    assert [point["epoch"] for point in read_lines(files.curve)] == pytest.approx([2 / 3, 4 / 3, 2], abs=1e-6)
    result = read_json(files.result)
    assert (result["epochs"], result["images_seen"]) == (2, 600) and one.recipe_epochs() == pytest.approx(2)
    assert {told["epochs"] for told in seen} == {2.0} and (seen[0]["epoch"], seen[-1]["epoch"]) == (0, 2)
    short = planned({"budgets.laptop": {"epochs": 1, "seeds": [0], "train_images": 77}})
    curve, result = read_lines(trainer.run(short).curve), read_json(short.files.result)
    assert curve[-1]["epoch"] == pytest.approx(77 / 300, abs=1e-6) and result["epochs"] == 0.257
    (line,) = [status.line("x", told) for told in [read_json(short.files.progress)]]
    assert line.split()[1:3] == ["epoch", "0.257/0.257"]


def test_a_trial_that_diverges_says_so_and_can_be_read(project: Path) -> None:
    """In JSON that others read, too: NaN is none."""
    one = planned({"recipe.loss": "mse", "recipe.optimiser.lr": 1e30}, name="linear-mnist")
    with pytest.raises(UserError, match=r"^linear-mnist seed 0: the loss of epoch 1 is nan; try a lower lr$"):
        trainer.run(one)
    told = status.read(one.files.progress, since=0.0)
    assert told is not None and (told["state"], told["loss"]) == ("failed", None)
    assert status.line(one.name, told).endswith("failed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system of its own can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("written_next", ["progress", "checkpoint"])
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(
    project: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, written_next: str
) -> None:
    undisturbed = trainer.run(planned(root="undisturbed"))
    monkeypatch.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, batch: True)
    monkeypatch.setattr(checkpoint, "PROGRESS_EVERY_S", 0.0)
    one = planned(root=str(small_disk / "store"))
    filler = small_disk / "filler"

    def fill(told: Mapping[str, Any]) -> None:
        if one.files.checkpoint.exists() and not filler.exists():
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            monkeypatch.setattr(checkpoint, "PROGRESS_EVERY_S", 0.0 if written_next == "progress" else math.inf)

    with pytest.raises(UserError) as caught:
        trainer.run(one, watch=fill)
    assert str(caught.value).startswith(f"no space left in {small_disk / 'store'} (0 MB free)")
    assert one.files.checkpoint.exists()
    filler.unlink()
    trainer.run(one)
    assert read_json(one.files.result)["resumed"] == 1
    assert same(weights(one.files), weights(undisturbed))


def test_weights_that_do_not_fit_are_one_line(small_disk: Path) -> None:
    with (
        pytest.raises(UserError, match="no space left in"),
        trainer._full_disk_reported(small_disk),
        replacing(small_disk / "weights.pt") as temporary,
    ):
        torch.save(torch.zeros(1_000_000), temporary)
