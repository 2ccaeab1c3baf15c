"""What a user may have got wrong: one clear line, a non-zero exit, no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

USER_ERROR = 2  # exit status of every error that a user can mend
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG)
INTERRUPTED = "interrupted; the same command continues where this one stopped"


class UserError(Exception):
    """A problem with the input or the surroundings; its text is the whole line a user reads."""


def guard(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a ``UserError``, a disk that is full or refuses, or Ctrl-C becomes one line."""
    try:
        if signal.getsignal(signal.SIGINT) is interrupted_early:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except UserError as error:
        fail(str(error), USER_ERROR)
    except OSError as error:
        if error.errno in FULL:
            fail(f"no space left on the disk that holds {error.filename or 'the working directory'}", USER_ERROR)
        if error.errno in REFUSED and error.filename is not None:
            fail(f"{error.filename}: {error.strerror}; expected a place that can be read and written", USER_ERROR)
        raise
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # a pipe that nobody reads any more
            sys.stdout.flush()
        end_interrupted()


def fail(line: str, status: int) -> None:
    """Print ``error: line`` and exit with ``status``."""
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def interrupted_early(number: int, frame: FrameType | None) -> None:
    """End the process at once: Ctrl-C while a command is still being imported, and has nothing to put in order."""
    end_interrupted()


def end_interrupted() -> NoReturn:
    """Say so and end the process at once: at a usual exit Python waits for threads, and libraries for each other."""
    try:
        if select.select([], [2], [], 0)[1]:  # or it would wait for the reader of a full pipe
            os.write(2, f"error: {INTERRUPTED}\n".encode())
    finally:
        os._exit(130)
