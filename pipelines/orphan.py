"""Die with DVC or make: killed, they leave what they started running, and the next `dvc repro` would meet it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

CHECK_EVERY_S = 0.5
GRACE_S = 10.0  # for shutting Ray down; after that the process ends at once


def end_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does: a job that is stopped sends it, and kills three seconds later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def follow() -> None:
    """End this process (as Ctrl-C would) once the DVC or the make that started it is gone; by hand, it stays."""
    end_on_sigterm()
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


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _watch(parent: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between the two calls
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(CHECK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
