"""Locks between processes, by ``flock``: the kernel releases a lock when its process dies."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.command.errors import FULL, HeldError, UserError
from pipelines.command.files import expect_file, require_folder
from pipelines.command.progress import becomes


@contextmanager
def held(
    path: Path, what: str, *, patience_s: float = 30.0, waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold the file ``path`` alone while the block does ``what``; makes its folder if need be.

    Raises HeldError when another process holds it longer than ``patience_s``: a killed run's children need a moment to
    end, anything longer is a second run. ``waiting`` is called before a wait. Raises UserError where ``path`` can be no
    lock.
    """
    require_folder(path.parent)
    expect_file(path)
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock outlives a killed holder
    if not _taken(lock):
        waiting()
        if not becomes(lambda: _taken(lock), within_s=patience_s):
            holder = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
            raise HeldError(f"{what} is already being run by process {holder}", "wait for it or end it")
    try:
        path.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        expected = "a file system with locks" if error.errno == errno.ENOSYS else "a file that can be written, or none"
        raise UserError(f"{lock.lock_file}: {error.strerror}; expected {expected}") from None
    return True
