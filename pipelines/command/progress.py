"""The progress of work, as bars or as lines of a log."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

from pipelines.command.errors import printable

LOG_EVERY_S = 10.0  # between lines where no terminal shows a bar
Advance = Callable[[int], None]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from JSON is a finite number that fits a double."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds % 60 else f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def becomes(condition: Callable[[], bool], *, within_s: float, every_s: float = 0.2) -> bool:
    """Whether ``condition`` holds within so many seconds."""
    deadline = time.monotonic() + within_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return holds


def say(line: str) -> None:
    """Print a line of the log at once; the line may hold any characters."""
    print(printable(line), flush=True)


class Board:
    """A line for each running thing: rewritten in place on a terminal, printed at times elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.drawn = 0  # lines on the terminal that the next ones replace
        self.last: Sequence[str] = ()
        self.printed = -math.inf

    def show(self, lines: Sequence[str], *, final: bool = False) -> None:
        """Replace the lines; the ``final`` ones stay."""
        if self.live:
            room = shutil.get_terminal_size().columns - 1
            self._erase()
            print("".join(f"{printable(line)[:room]}\n" for line in lines), end="", flush=True)
            self.drawn = 0 if final else len(lines)
        elif final or time.monotonic() - self.printed > LOG_EVERY_S:
            self.printed = time.monotonic()
            for line in lines:
                if line not in self.last:
                    say(line)
            self.last = lines

    def say(self, line: str) -> None:
        """Print a line that stays, above the rewritten ones."""
        self._erase()
        say(line)

    def _erase(self) -> None:
        if self.drawn:
            print(f"\x1b[{self.drawn}F\x1b[J", end="")
            self.drawn = 0


@contextmanager
def counting(label: str, total: int | None, unit: str = "MB") -> Iterator[Advance]:
    """Yield a function that adds an amount of work: it moves a bar on a terminal, and prints a line at times elsewhere.

    Amounts are bytes where ``unit`` is MB, otherwise counts; ``total`` may be unknown.
    """
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _lines(label, total, unit)


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console

    counts: list[rich.ProgressColumn] = [rich.DownloadColumn(), rich.TransferSpeedColumn()] if unit == "MB" else []
    if total is not None and unit != "MB":
        counts.append(rich.MofNCompleteColumn())
    clock = rich.TimeElapsedColumn() if total is None else rich.TimeRemainingColumn()
    columns = (rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), *counts, clock)
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda amount: bars.advance(task, amount)


def _lines(label: str, total: int | None, unit: str) -> Advance:
    started = printed = time.monotonic()
    done = 0
    scale = 1_000_000 if unit == "MB" else 1

    def advance(amount: int) -> None:
        nonlocal done, printed
        done += amount
        now = time.monotonic()
        if now - printed < LOG_EVERY_S:
            return
        printed = now
        seconds = now - started
        amounts = f"{done // scale} of {total // scale} {unit}" if total else f"{done // scale} {unit}" if done else ""
        rate = f"{done / scale / seconds:.1f} {unit}/s" if done else ""
        print(f"{label}: {', '.join(filter(None, (amounts, rate, f'{seconds:.0f} s')))}", flush=True)

    return advance
