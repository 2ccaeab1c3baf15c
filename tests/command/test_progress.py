"""Guards progress bars and durations, as a person reads them."""

from __future__ import annotations

import pytest

from pipelines.command import progress


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.4, "8 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (3600, "1 h 0 min")]
)
def test_durations_are_said_as_a_person_says_them(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


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
