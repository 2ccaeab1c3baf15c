"""What every command does with its arguments before it does anything else."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.checkout import Checkout
from tests.conftest import ROOT

MODULES = {path.stem: path.stem for path in (ROOT / "pipelines").glob("*.py") if "\ndef main() " in path.read_text()}
MODULES |= {path.parent.name: f"{path.parent.name}.__main__" for path in (ROOT / "pipelines").glob("*/__main__.py")}
COMMANDS = sorted(MODULES)


def test_the_commands_are_those_that_are_documented() -> None:
    """A stage, a command of the README, or both."""
    told = (ROOT / "README.md").read_text() + (ROOT / "dvc.yaml").read_text() + (ROOT / "Makefile").read_text()
    told += "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert set(re.findall(r"python -m pipelines\.(\w+)", told)) == {*COMMANDS, "tracking"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_a_misspelt_option_do_nothing_else(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"pipelines.{MODULES[command]}")
    for word, status in (("--help", 0), ("--hepl", 2)):
        monkeypatch.setattr("sys.argv", [command, word])
        with pytest.raises(SystemExit) as ended:
            module.main()
        told = capsys.readouterr()
        assert ended.value.code == status
        assert f"usage: python -m pipelines.{command}" in told.out + told.err
        assert status == 0 or told.err.endswith(f"error: unrecognized arguments: {word}\n") or "required" in told.err
    assert not list(tmp_path.iterdir())


def test_an_unpacked_archive_is_reproduced_without_git(tmp_path: Path, mirror: Path) -> None:
    """DVC refuses to work outside Git, or to be told to, unless it is told."""
    found = Checkout(tmp_path, mirror)
    found.small()
    shutil.rmtree(tmp_path / ".git")
    found.environment["GIT_CEILING_DIRECTORIES"] = str(tmp_path.parent)
    assert "is not a git repository" in found.run("dvc", "repro", "fetch", ok=False)
    for _ in range(2):
        subprocess.run(["make", "outside-git"], cwd=tmp_path, env=found.environment, check=True)
    assert (tmp_path / ".dvc/config.local").read_text().split() == ["[core]", "no_scm", "=", "true"]
    found.run("dvc", "repro", "fetch")
    assert (tmp_path / "datasets/mnist/meta.json").exists()


def test_a_home_that_is_a_file_is_said_before_the_installation() -> None:
    words = ["make", "-s", "install"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"HOME": "/etc/passwd"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: HOME is /etc/passwd; expected a folder\n")
