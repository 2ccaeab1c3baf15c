"""Guards the line of a trial's progress, and the reading of its progress.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.command.files import write_json
from pipelines.training import status
from pipelines.training.store import TrialFiles

RUNNING: dict[str, Any] = {
    "state": "running",
    "epoch": 2.5,
    "epochs": 20,
    "loss": 0.12345,
    "images_per_s": 4321.9,
    "eta_s": 200,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["epoch", "2.5/20", "loss", "0.1235", "4,322", "images/s", "3", "min", "20", "s", "left"]),
        ({"loss": None, "images_per_s": None, "eta_s": None}, ["epoch", "2.5/20"]),
        ({"state": "done", "epoch": 20.0}, ["epoch", "20.0/20", "loss", "0.1235", "4,322", "images/s", "done"]),
        ({"state": "failed"}, ["epoch", "2.5/20", "loss", "0.1235", "4,322", "images/s", "failed"]),
    ],
)
def test_a_trial_has_one_line(changes: dict[str, Any], words: list[str]) -> None:
    line = status.line("lenet5-mnist seed 0", RUNNING | changes)
    assert line.split() == ["lenet5-mnist", "seed", "0", *words]


def test_a_trial_that_has_not_begun_waits() -> None:
    assert status.line("lenet5-mnist seed 0", None).split() == ["lenet5-mnist", "seed", "0", "waiting"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time": null}', '{"time": "now"}', '{"time": 99}'])
def test_what_is_damaged_or_of_an_earlier_run_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    assert status.read(tmp_path / "progress.json", since=100) is None
    assert status.read(tmp_path / "absent.json", since=0) is None


@dataclasses.dataclass
class Trial:
    """As much of a trial as its progress needs."""

    name: str
    folder: Path

    @property
    def files(self) -> TrialFiles:
        return TrialFiles(self.folder)


def test_a_look_reads_what_has_changed_and_nothing_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Any] = [Trial(str(number), tmp_path / str(number)) for number in range(3)]
    overview = status.Overview(trials, since=100)

    def write(number: int, **changes: Any) -> None:
        write_json(trials[number].files.progress, RUNNING | {"time": 100} | changes, lasting=False)

    assert overview.look() == []
    write(0)
    write(1, state="done")
    assert overview.look() == ["0", "1"]
    assert overview.look() == []
    write(0, epoch=3)
    write(1, state="running")  # it can't be: it was done
    assert overview.look() == ["0"]
    write(2)
    board = overview.board(1)
    assert board[0].split()[:3] == ["0", "epoch", "3.0/20"]
    assert board[1:] == ["1 of 3 trials done, 1 more running, 0 waiting"]


def test_what_is_of_this_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps(RUNNING | {"time": 100}))
    assert status.read(tmp_path / "progress.json", since=100) == RUNNING | {"time": 100}
