"""Processes that a test starts: watched, waited for, ended; any may end by itself between two looks at it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from tests.projects import ROOT

PR_SET_CHILD_SUBREAPER = 36


def environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child that must find the project's packages from any directory."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def runs(process: int) -> bool:
    """Whether it is there, and more than a name in the table."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def name_of(process: psutil.Process) -> str:
    """Nothing where it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def started_by(process: int) -> list[psutil.Process]:
    """Its children and theirs; none where it has ended."""
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill them, and see them gone."""
    found = list(processes)
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(found, timeout=30)


@contextmanager
def child(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Another process with files and locks at hand; gone at the end, with all that it started."""
    prelude = (
        "import os, signal, subprocess, sys, time\nfrom pathlib import Path\nfrom pipelines.command import locks\n"
        "from pipelines.command.files import replacing, sealing, write_json\n"
    )
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, args)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def hears(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None and process.stdout.readline().strip() == word


@contextmanager
def soon() -> Iterator[None]:
    """End what would wait for ever, as it does at a FIFO."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever is started inside ends with it, however it ends; what loses its parent is adopted until then."""
    _adopt(True)
    me = psutil.Process()
    before = set(me.children())
    try:
        yield
    finally:
        left = False
        for _ in range(3):  # what is being killed may start another
            new = set(me.children()) - before
            end([*new, *(one for child in new for one in started_by(child.pid))])
            left = left or bool(new)
        _adopt(False)
        if left:
            _hear_of_the_ended()


def _hear_of_the_ended() -> None:
    """Tell each ``Popen`` that its process has ended, or it complains in the middle of another test."""
    for one in gc.get_objects():
        if type(one) is subprocess.Popen and one.returncode is None:  # isinstance would ask lazy modules what they are
            one.poll()


def _adopt(orphans: bool) -> None:
    """Let what this process's children leave behind become children of its own, and not of init."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0) == 0
