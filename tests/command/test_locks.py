"""Guards locks between processes: one holder at a time, none after its death, and its name in the error."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from pipelines.command import locks
from pipelines.command.errors import HeldError, UserError
from tests.processes import child, hears

HOLD = """
    with locks.held(Path(sys.argv[1]), "linear-mnist seed 0"):
        subprocess.Popen(["sleep", "30"]) if len(sys.argv) > 2 else None
        print("held", flush=True)
        time.sleep(30)
"""


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "lock") as holder:
        hears(holder, "held")
        words = f"^linear-mnist seed 0 is already being run by process {holder.pid} on "
        taken = locks.held(tmp_path / "lock", "linear-mnist seed 0", patience_s=0)
        with pytest.raises(HeldError, match=words) as caught, taken:
            raise AssertionError("two hold it")
        assert str(caught.value) == f"{caught.value.fact}; wait for it or end it"
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_killed_holder_lets_go_at_once(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "lock") as holder:
        hears(holder, "held")
        began = time.monotonic()
        threading.Timer(0.3, holder.kill).start()
        with locks.held(tmp_path / "lock", "another", patience_s=20):
            waited = time.monotonic() - began
            assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} on ")
    assert 0.2 < waited < 10


def test_a_killed_holders_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "lock", "with a child that outlives it") as holder:
        hears(holder, "held")
        holder.kill()
        holder.wait()
        with locks.held(tmp_path / "lock", "another", patience_s=1):
            pass


def test_a_lock_is_held_alone(tmp_path: Path) -> None:
    """Three processes add to one number under the lock; an addition is lost where two hold it at once."""
    code = """
        folder = Path(sys.argv[1])
        for _ in range(15):
            with locks.held(folder / "lock", "the number"):
                number = int((folder / "number").read_text())
                time.sleep(0.002)
                (folder / "number").write_text(str(number + 1))
            time.sleep(0.05)
    """
    (tmp_path / "number").write_text("0")
    with child(code, tmp_path) as first, child(code, tmp_path) as second, child(code, tmp_path) as third:
        assert [process.wait(timeout=60) for process in (first, second, third)] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "45"


def test_a_lock_is_let_go_when_its_work_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with locks.held(tmp_path / "lock", "first"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with locks.held(tmp_path / "lock", "second", patience_s=0):
        pass


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", fail)
    words = "lock: Function not implemented; expected a file system with locks$"
    with pytest.raises(UserError, match=words), locks.held(tmp_path / "lock", "linear-mnist seed 0"):
        raise AssertionError("nothing holds it")
