"""Several trials at once on one device, in as many processes; torch and Lightning suffice.

A process trains one trial after another, so that torch is loaded once. It is replaced after an error that may have left
it unfit, since a GPU's errors persist in a process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from multiprocessing import connection, resource_tracker
from types import FrameType
from typing import Literal

import torch

from pipelines.command import errors
from pipelines.command.errors import UserError, reason
from pipelines.command.progress import Board
from pipelines.training import status, trainer
from pipelines.training.checkpoint import AT_ONCE_S, PreemptedError, Worker
from pipelines.training.spec import Spec

TURN_S = 0.5  # at most, between updates of the board
ENDING_S = 60.0  # for the current minibatches and a checkpoint, after a signal to end
ENDED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CROWDED = "not enough memory on the GPU; expected fewer trials side by side"
Kind = Literal["line", "done", "failed", "crashed"]  # crashed: failed, and so that the process ends


class Seat:
    """A process, and this end of the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a GPU does not survive a fork
        self.trial: Spec | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # or its start would unblock SIGINT
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})  # for the parent alone
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def begin(self, trial: Spec) -> None:
        """Train ``trial`` next."""
        self.trial = trial
        self.pipe.send(trial)

    def report(self) -> tuple[Kind, str]:
        """The process's next message; where there is none, how the process ended."""
        try:
            message: tuple[Kind, str] = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            return "crashed", f"its process was ended {how}"
        return message

    def leave(self) -> None:
        """Let the process end, which it does once it has no trial."""
        self.pipe.close()
        self.process.join()


class Seats:
    """Trains ``planned``, ``at_once`` at a time: processes, their trials, and the trials that wait for a process."""

    def __init__(self, planned: Sequence[Spec], at_once: int) -> None:
        self.planned, self.waiting = planned, deque(planned)
        self.seats = [Seat() for _ in range(min(at_once, len(planned)))]
        self.board, self.overview = Board(), status.Overview(planned, since=time.time())
        self.failures: list[str] = []
        self.deadline: float | None = None  # after a signal to end

    def run(self) -> list[str]:
        """Train all; returns a line for each that failed, which does not stop the others.

        SIGINT, SIGTERM and SIGUSR1 let each save a checkpoint, and end as KeyboardInterrupt.
        """
        before = {number: signal.signal(number, self._ask) for number in ENDED_BY}
        try:
            while self.seats:
                self._turn()
            self.board.show(self.overview.board(len(self.planned)), final=True)
        finally:
            for seat in self.seats:
                seat.process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.deadline is not None:
            raise KeyboardInterrupt
        return self.failures

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: let each save its checkpoint; another one later ends all at once."""
        errors.asked_to_end(number)
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline - ENDING_S + AT_ONCE_S:
            raise KeyboardInterrupt
        self.deadline = self.deadline or now + ENDING_S
        for seat in self.seats:
            seat.process.terminate()

    def _turn(self) -> None:
        for seat in [seat for seat in self.seats if seat.trial is None]:
            if self.deadline is not None:  # perhaps begun while the signal came, so without having received it
                self._leave(seat)
            elif self.waiting:
                seat.begin(self.waiting.popleft())
        ready = connection.wait([seat.pipe for seat in self.seats], TURN_S)
        for seat in [seat for seat in self.seats if seat.pipe in ready]:
            self._answer(seat, *seat.report())
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise KeyboardInterrupt
        self.board.show(self.overview.board(len(self.planned)))

    def _answer(self, seat: Seat, kind: Kind, text: str) -> None:
        if kind == "line":
            self.board.say(text)
            return
        if kind != "done" and seat.trial is not None and self.deadline is None:
            line = f"{seat.trial.name} failed: {text.removeprefix(f'{seat.trial.name}: ')}"
            self.failures.append(line)
            self.board.say(line)
        seat.trial = None
        if kind == "crashed" or self.deadline is not None or not self.waiting:
            self._leave(seat)
            if self.waiting and self.deadline is None:
                self.seats.append(Seat())

    def _leave(self, seat: Seat) -> None:
        self.seats.remove(seat)
        seat.leave()


class _Lines:
    """A text stream whose lines go to the parent, which alone writes to the terminal."""

    def __init__(self, pipe: connection.Connection) -> None:
        self.pipe, self.line = pipe, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.pipe.send(("line", line))
        return len(text)

    def flush(self) -> None:
        pass


def _work(pipe: connection.Connection) -> None:
    """Train each trial that comes through ``pipe``; ends upon SIGTERM, and when the parent is gone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    sys.stdout = _Lines(pipe)  # print uses no more of it
    try:
        kind: Kind = "done"
        while kind != "crashed":
            kind, line = _train(pipe.recv())
            pipe.send((kind, line))
    except (EOFError, OSError, KeyboardInterrupt, SystemExit):  # no more trials, or asked to end
        os._exit(0)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _train(trial: Spec) -> tuple[Kind, str]:
    try:
        trainer.run(trial, Worker(preempted_by=(signal.SIGTERM,)))
    except PreemptedError:
        raise KeyboardInterrupt from None
    except UserError as error:
        return "failed", str(error)
    except torch.OutOfMemoryError:
        return "crashed", CROWDED
    except Exception as error:
        line = errors.mendable(error)
        if line is None:
            traceback.print_exc()
        return "crashed", line or f"{type(error).__name__}: {reason(error)}"
    return "done", ""
