"""Errors that a user can mend: one clear line, a non-zero exit, no traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

USER_ERROR = 2  # exit status of every error that a user can mend
LONGEST_LINE = 500  # characters of an error
PREEMPTED = 75  # exit status: run the same command again, perhaps elsewhere (EX_TEMPFAIL)
UNREAD = 128 + signal.SIGPIPE  # a shell's status for a command whose output has no reader
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    errno.EISDIR,
    errno.ELOOP,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EIO,
    errno.ENAMETOOLONG,
)
TORCH_MEMORY = "can't allocate memory"  # text of torch's RuntimeError
SHORT = "not enough memory; expected more of it free, or allowed (ulimit -v)"
ENDINGS = {  # exit status and line by signal; SIGINT's for all others
    signal.SIGINT: (130, "interrupted; the same command continues where this one stopped"),
    signal.SIGUSR1: (PREEMPTED, "ended by SIGUSR1; the same command goes on at its last checkpoint"),
}
_ended_by: list[int] = []  # signals that asked this process to end


def printable(text: str, fits: Callable[[str], bool] = str.isprintable) -> str:
    """``text`` on one line without control characters: unprintable ones become backslash escapes.

    For text from elsewhere: names of files, classes and hosts, answers of servers.
    """
    return "".join(c if fits(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def brief(text: str, most: int = 100) -> str:
    """``text`` for a message: ``printable``, and at most ``most`` characters; the middle is left out."""
    shown, half = printable(text), most // 2 - 1
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[-half:]}"


def reason(error: BaseException, most: int = 120) -> str:
    """The first line of an error's text, or its type where it has no text."""
    lines = str(error).splitlines()
    return brief(lines[0], most) if lines else type(error).__name__


class UserError(Exception):
    """A problem with the input or the surroundings; its text is the whole line for the user.

    It is made ``brief``: names in it may have any length and any characters.
    """

    status: int = USER_ERROR  # exit status of a command that it ends

    def __init__(self, line: str, *more: object) -> None:
        super().__init__(brief(line, LONGEST_LINE), *more)

    def __str__(self) -> str:
        return self.fact

    @property
    def fact(self) -> str:
        """The line without advice, for a caller that handles the error in another way."""
        return str(self.args[0])


class AdvisedError(UserError):
    """A fact, and advice to the user."""

    def __init__(self, fact: str, advice: str, *more: object) -> None:
        super().__init__(fact, advice, *more)

    def __str__(self) -> str:
        return f"{self.fact}; {self.args[1]}"


class HeldError(AdvisedError):
    """A lock that another live process holds."""


def guard(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a mendable error ends it with one line, and so does Ctrl-C.

    Mendable are a ``UserError``, a full or refusing disk, and too little memory. Where the output's reader is gone
    (``| head``), the command ends silently.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        begin_main()
        main()
        print(end="", flush=True)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # a pipe without a reader
            print(end="", flush=True)
        end_interrupted()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise SystemExit(UNREAD) from None
        line = mendable(error)
        if line is None:
            raise
        fail(line, getattr(error, "status", USER_ERROR))
    finally:
        _drop_unwritable()


def mendable(error: Exception) -> str | None:
    """The line for the user about a mendable error; None for a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError):
        return SHORT if isinstance(error, MemoryError) or TORCH_MEMORY in str(error) else None
    if error.errno == errno.ENOMEM:
        return SHORT
    if error.errno in FULL:
        return f"no space left on the disk that holds {error.filename or 'the working directory'}"
    if error.errno in REFUSED and error.filename is not None:
        return f"{error.filename}: {error.strerror}; expected a place that can be read and written"
    return None


def fail(line: str, status: int) -> NoReturn:
    """Print ``error: line`` and exit with ``status``."""
    with contextlib.suppress(OSError):  # each stream may be a pipe without a reader
        print(end="", flush=True)
    with contextlib.suppress(OSError):
        print(f"error: {printable(line)}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _unread() -> bool:
    """Whether output goes to a pipe without a reader: other pipes and connections may break, too."""
    poll = select.poll()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_unwritable() -> None:
    """Empty streams that can't be written, or Python would complain about them at exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- signals, in three phases ---------------------------------------------------------------------------------------
# 1. `python -m pipelines.train` imports for seconds: Ctrl-C and SIGUSR1 end it at once (`begin_importing`).
# 2. From `guard` on, Ctrl-C is Python's KeyboardInterrupt, so that `main` can clean up; SIGUSR1, by which schedulers
#    preempt, still ends the command at once (`begin_main`).
# 3. From `ending.follow` on, where a command calls it, Ctrl-C, SIGTERM and SIGUSR1 raise KeyboardInterrupt, and the
#    command ends within `ending.GRACE_S`.


def begin_importing() -> None:
    """Phase 1; a shell's background jobs, which ignore Ctrl-C, go on ignoring it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_early)
    _await_preemption()


def begin_main() -> None:
    """Phase 2."""
    if signal.getsignal(signal.SIGINT) is end_early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _await_preemption()


def _await_preemption() -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, end_early)


def asked_to_end(number: int) -> None:
    """Record a signal that asks this process to end: the first decides its exit status."""
    _ended_by.append(number)


def preempted() -> bool:
    """Whether the process is ending because its machine is taken away."""
    return _ended_by[:1] == [signal.SIGUSR1]


def end_early(number: int, frame: FrameType | None) -> None:
    """Handle a signal that comes when nothing needs cleaning up: end the process at once."""
    asked_to_end(number)
    end_interrupted()


def end_interrupted() -> NoReturn:
    """Print a line and end the process at once: a usual exit waits for threads of libraries."""
    status, line = ENDINGS[signal.SIGUSR1 if preempted() else signal.SIGINT]
    try:
        shown = sys.stderr.fileno()
        if select.select([], [shown], [], 0)[1]:  # a full pipe would block
            os.write(shown, f"error: {line}\n".encode())
    finally:
        os._exit(status)
