"""Guards how a command ends: one line and a status for what a user can mend or a signal asks, a traceback for a bug."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.command import errors
from pipelines.command.errors import UserError
from tests.conftest import ROOT
from tests.processes import environment


def full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def user_error() -> None:
    raise UserError("batch is 0; expected at least 1")


def no_folder() -> None:
    Path("/dev/null/store").mkdir(parents=True)


@pytest.mark.parametrize(
    ("main", "status", "words"),
    [
        (user_error, 2, "error: batch is 0; expected at least 1\n"),
        (full_disk, 2, "error: no space left on the disk that holds "),
        (no_folder, 2, "error: /dev/null/store: Not a directory; expected a place that can be read and written\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_a_status(
    main: Callable[[], None], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        errors.guard(main)
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [("SIGINT", 130, "interrupted; "), ("SIGUSR1", 75, "ended by SIGUSR1; the same command goes on")],
)
@pytest.mark.parametrize("command", ["trial", "train"])
def test_a_signal_while_a_command_is_imported_is_one_line(
    tmp_path: Path, number: str, status: int, words: str, command: str
) -> None:
    """The first import that takes long sends it."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import os, signal, sys

        class Press:
            def find_spec(self, name, path, target=None):
                if name in ("numpy", "pytorch_lightning"):
                    os.kill(os.getpid(), signal.{number})

        sys.meta_path.insert(0, Press())
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{command}", "lenet5-mnist"],
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(f"error: {words}")


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    def bug() -> None:
        raise PermissionError(13, "a bug")

    with pytest.raises(PermissionError):
        errors.guard(bug)
