"""Locks between processes, by ``flock``: the kernel releases a lock when its process dies."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.command.errors import FULL, HeldError, UserError
from pipelines.command.files import require_folder
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
    with _open(path) as file:
        if not _taken(file, path):
            waiting()
            if not becomes(lambda: _taken(file, path), within_s=patience_s):
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise HeldError(f"{what} is already being run by process {holder}", "wait for it or end it")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _taken(file: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as ENOSYS
        raise UserError(f"{path}: {error.strerror}; expected a file system with locks") from None
    return True


def _open(path: Path) -> IO[str]:
    """Open or make the file, writable for all who may write in its folder; UserError for anything else."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"{path}: {error.strerror}; expected a file that can be written, or none") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file; expected one, or none")
    return os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
