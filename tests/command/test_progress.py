"""What a person reads of a trial's progress, and what it is read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.command import progress

TOLD: dict[str, Any] = {
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
    line = progress.line("lenet5-mnist seed 0", TOLD | changes)
    assert line.split() == ["lenet5-mnist", "seed", "0", *words]


def test_a_trial_that_has_not_begun_waits() -> None:
    assert progress.line("lenet5-mnist seed 0", None).split() == ["lenet5-mnist", "seed", "0", "waiting"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.4, "8 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (3600, "1 h 0 min")]
)
def test_durations_are_said_as_a_person_says_them(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time": null}', '{"time": "now"}', '{"time": 99}'])
def test_what_is_damaged_or_of_an_earlier_run_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    assert progress.read(tmp_path / "progress.json", since=100) is None
    assert progress.read(tmp_path / "absent.json", since=0) is None


def test_what_is_of_this_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps(TOLD | {"time": 100}))
    assert progress.read(tmp_path / "progress.json", since=100) == TOLD | {"time": 100}


def test_a_download_in_a_log_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with progress.counting("fetch: train-images", 10_000_000) as advance:
        advance(4_000_000)
    said = capsys.readouterr().out
    assert said.startswith("fetch: train-images: 4 of 10 MB, ") and said.count("\n") == 1


def test_a_download_on_a_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.counting("fetch: train-images", 10_000_000) as advance:
        advance(10_000_000)
    shown = capsys.readouterr().err
    assert "train-images" in shown and "10.0/10.0 MB" in shown


def test_a_label_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.counting("fetch: pets[/b] [red].tar", 10) as advance:
        advance(10)
    assert "pets[/b] [red].tar" in capsys.readouterr().err
