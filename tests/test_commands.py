"""What every command does with its arguments before it does anything else."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMANDS = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py") if "\ndef main() " in path.read_text())


def test_the_commands_are_those_that_are_documented() -> None:
    """A stage, a command of the README, or both."""
    told = (ROOT / "README.md").read_text() + (ROOT / "dvc.yaml").read_text() + (ROOT / "Makefile").read_text()
    assert set(re.findall(r"python -m pipelines\.(\w+)", told)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_a_misspelt_option_do_nothing_else(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"pipelines.{command}")
    for word, status in (("--help", 0), ("--hepl", 2)):
        monkeypatch.setattr("sys.argv", [command, word])
        with pytest.raises(SystemExit) as ended:
            module.main()
        told = capsys.readouterr()
        assert ended.value.code == status
        assert f"usage: python -m pipelines.{command}" in told.out + told.err
        assert status == 0 or told.err.endswith(f"error: unrecognized arguments: {word}\n") or "required" in told.err
    assert not list(tmp_path.iterdir())
