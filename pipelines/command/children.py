"""The processes that this one has started."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

import psutil


def end_children(*, but: Collection[psutil.Process] = ()) -> None:
    """Kill the descendants of this process."""
    for process in set(psutil.Process().children(recursive=True)) - set(but):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
