"""Locks between processes, by ``flock``: the kernel releases a lock when its process dies."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.command.errors import FULL, HeldError, UserError
from pipelines.command.files import require_folder

POLL_S = 0.2


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
        if not _taken(file):
            waiting()
            _wait(file, time.monotonic() + patience_s, f"{what} is already being run by process")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _wait(file: IO[str], deadline: float, line: str) -> None:
    while not _taken(file):
        if time.monotonic() > deadline:
            file.seek(0)
            raise HeldError(f"{line} {file.read().strip() or 'unknown'}", "wait for it or end it")
        time.sleep(POLL_S)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
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
