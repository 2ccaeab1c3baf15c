"""How a command ends early: by a signal, or because the DVC or make that started it is gone.

A killed DVC or make leaves its children running, and the next `dvc repro` would meet them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipelines.command import errors
from pipelines.command.children import end_children

CHECK_EVERY_S = 0.5
GRACE_S = 30.0  # to clean up; shutting Ray down takes two seconds, or ten on a busy machine
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
DEALT = 0  # no signal has this number


class _Interrupt:
    """Ctrl-C and the like: raises a KeyboardInterrupt in the main thread, and ends the process in any case.

    The exception may be swallowed within a library (an import, a destructor), leave behind a lock that another thread
    waits for, or never be raised while C code runs. So a thread enforces the end. A second signal, since make and the
    terminal may both send one, does not disturb the handling of the first.
    """

    def __init__(self) -> None:
        self.raised = False
        # A pipe. Python's C code writes the number of each signal to it at once, whoever handles the signal: while Ray
        # starts, Ray does.
        self.pipe: int | None = None

    def answer(self, number: int, frame: object) -> None:
        """Handle a signal. It takes no lock: it may interrupt a thread that holds one."""
        errors.asked_to_end(number)
        if not self.raised:
            self.raised = self.pipe is not None
            raise KeyboardInterrupt

    def bound(self) -> None:
        """From now on, this process ends within ``GRACE_S`` of the signal that asks for it."""
        if self.pipe is None:
            asked, self.pipe = os.pipe()
            os.set_blocking(self.pipe, False)
            signal.set_wakeup_fd(self.pipe, warn_on_full_buffer=False)
            threading.Thread(target=self._enforce, args=(asked,), daemon=True, name="end").start()

    def deal(self) -> None:
        """The command goes on: a later signal counts as the first."""
        if self.pipe is not None:
            self.raised = False
            os.write(self.pipe, bytes([DEALT]))

    def _enforce(self, asked: int) -> None:
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([asked], [], [], left)[0]:
                try:
                    end_children()
                finally:
                    errors.end_interrupted()
            number = os.read(asked, 1)[0]
            if number == DEALT:
                deadline = None
            elif number in ENDS and deadline is None:
                deadline = time.monotonic() + GRACE_S


_interrupt = _Interrupt()
dealt_with = _interrupt.deal


def heed(*numbers: signal.Signals) -> None:
    """Make each signal end this process as Ctrl-C does; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, _interrupt.answer)


def follow() -> None:
    """End this process as Ctrl-C would, once the DVC or make that started it is gone.

    For a command's ``main``: from here on, Ctrl-C, SIGTERM and SIGUSR1 end it within ``GRACE_S``. ``errors`` lists this
    phase and those before it.
    """
    _interrupt.bound()
    heed(signal.SIGTERM, signal.SIGUSR1)  # a stopped Ray job gets SIGTERM, and SIGKILL three seconds later
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        heed(signal.SIGINT)
    names = [name for name, sign in (("dvc", "DVC_STAGE"), ("make", "MAKELEVEL")) if sign in os.environ]
    if not names:
        return
    above = psutil.Process().parents()  # DVC runs a stage's command through a shell, which outlives DVC
    leader = next((process for process in above if _runs(process, names)), None)
    if leader is None and "dvc" in names and len(above) <= 1:  # adopted by init: DVC ended in the meantime
        raise KeyboardInterrupt
    if leader is not None:
        threading.Thread(target=_watch, args=(leader,), daemon=True, name="follow").start()


def _runs(process: psutil.Process, names: Sequence[str]) -> bool:
    try:
        return any(Path(word).name in names for word in process.cmdline()[:4])  # dvc repro, python -m dvc repro
    except psutil.Error:
        return False


def _watch(parent: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between the two calls
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(CHECK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
