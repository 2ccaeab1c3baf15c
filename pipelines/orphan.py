"""Die with DVC. Killed, DVC leaves its stage running, and the next ``dvc repro`` would start a second one beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import psutil

CHECK_EVERY_S = 0.5
GRACE_S = 10.0  # for shutting Ray down; after that the process ends at once


def end_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does: a job that is stopped sends it, and kills three seconds later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def follow_dvc() -> None:
    """End this process (as Ctrl-C would) once the DVC that started it is gone; nothing outside a DVC stage."""
    end_on_sigterm()
    if "DVC_STAGE" not in os.environ:
        return
    above = psutil.Process().parents()  # DVC runs a stage's command through a shell, which outlives DVC
    dvc = next((process for process in above if _is_dvc(process)), None)
    if dvc is None and len(above) <= 1:  # adopted by init: DVC ended while this process was starting
        raise KeyboardInterrupt
    if dvc is not None:
        threading.Thread(target=_watch, args=(dvc,), daemon=True, name="follow-dvc").start()


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:4])  # dvc repro, python -m dvc repro
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
