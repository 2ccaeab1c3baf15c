"""Runs the areas' cases and holds each to what every command promises: no traceback, no hang, one readable line."""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import random
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import tests.fuzz
from pipelines.command.errors import UserError

LIMIT_S = 5.0  # of a case
LONGEST_LINE = 500  # characters of an error
Case = Callable[[random.Random, Path], None]


class _LateError(BaseException):
    """No Exception: readers turn those into lines for the user, and a hang would count as a good end."""


def areas() -> dict[str, Case]:
    """The areas by name: every module of this package that has a function ``case``."""
    modules = (
        importlib.import_module(f"tests.fuzz.{found.name}")
        for found in pkgutil.iter_modules(tests.fuzz.__path__)
        if found.name != "__main__"
    )
    return {module.__name__.rpartition(".")[2]: module.case for module in modules if hasattr(module, "case")}


def run(case: Case, seed: int) -> str | None:
    """Run one case; what is wrong with how it ended, if anything."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            with _time_limit():
                case(random.Random(seed), Path(folder))
        except UserError as error:
            return _unreadable(str(error))
        except BaseException:
            return traceback.format_exc()
    return None


def _unreadable(line: str) -> str | None:
    if not line.isprintable():
        return f"an error of several lines, or with control characters: {line!r}"
    if len(line) > LONGEST_LINE:
        return f"an error of {len(line)} characters: {line}"
    return None


@contextmanager
def _time_limit() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise _LateError(f"not over after {LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
