"""Tracking with MLflow, best effort: what the disk holds is sent when a server is there to take it.

    python -m pipelines.tracking            # send now what is waiting, and say what was sent

A stage calls ``sync`` at its end; ``follow`` keeps a server up to date while trials train. Both leave the work to a
process of its own, which can hang, fail and be killed without a trial noticing, and which keeps MLflow (a second of
imports, 240 MB) out of the stage. Results never depend on it: tracking is written, never read.

The run store and the stages' outputs are the spool, so nothing is lost while a server is away: the next call sends it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import tracking_client, tracking_content
from pipelines.errors import UserError, guard
from pipelines.tracking_client import AwayError, Sender
from pipelines.tracking_cursor import Cursor, address, clean, pending, safe, tracking_uri
from pipelines.tracking_spool import Spool

DEADLINE_S = 30.0  # for a server that answers, but slowly; one that does not answer is given up after 2 to 12 seconds
INTERVAL_S = 30.0
FINISH = "finish\n"


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """What became of an attempt to send."""

    uri: str  # without credentials
    sent: int = 0  # runs that got something new
    trials_waiting: int = 0
    benchmarks_waiting: int = 0
    away: str | None = None  # why the server could not be reached, or was given up
    refused: str | None = None  # the first run that could not be sent whole, and why
    failed: str | None = None  # why none could be, though nobody is away: the address is none
    problems: tuple[str, ...] = ()  # files that can't be tracked
    busy: bool = False  # another process is sending to the same server

    @property
    def line(self) -> str | None:
        """What a person should know, in one line; None when all is well."""
        if self.failed is not None:
            left = f"; {self.waiting} in the spool" if self.trials_waiting or self.benchmarks_waiting else ""
            return f"not tracked: {self.failed}{left}"
        if self.away is not None and (self.trials_waiting or self.benchmarks_waiting):
            left = f"{self.waiting} in the spool; they are sent by the next stage"
            return f"MLflow at {self.uri} is away ({self.away}): {left}"
        if self.refused is not None:
            return f"MLflow at {self.uri} lacks {self.refused}; {self.waiting} in the spool"
        more = f" (and {len(self.problems) - 1} more like it)" if len(self.problems) > 1 else ""
        return f"not tracked: {self.problems[0]}{more}" if self.problems else None

    @property
    def waiting(self) -> str:
        """How much is still to be sent, in words."""
        counts = {"trial": self.trials_waiting, "benchmark": self.benchmarks_waiting}
        words = [f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n]
        total = sum(counts.values())
        return f"{' and '.join(words) or 'nothing'} wait{'s' if total == 1 else ''}"


def sync(spool: Spool | None = None, *, deadline_s: float = DEADLINE_S) -> SyncResult:
    """
    Send what the tracking server lacks; return within **deadline_s**, whatever the server does. Never raises.

    Costs some 20 ms when there is nothing to send. A server that does not answer is left alone at once; what is not
    sent waits in the spool.
    """
    spool = spool or Spool.here()
    try:
        if not pending(spool, tracking_uri(spool.project)):
            return _result(spool, {})
        with _Helper(spool, interval_s=None) as helper:
            return helper.finish(deadline_s)
    except Exception as error:  # best effort: whatever it is, it must not end a stage
        return _failed(spool, error)


@contextlib.contextmanager
def follow(
    spool: Spool | None = None, *, interval_s: float = INTERVAL_S, deadline_s: float = DEADLINE_S
) -> Iterator[list[SyncResult]]:
    """
    Keep the server up to date while the block runs, and send the rest at its end.

    Yields a list that holds the result once the block is left. When the block's process dies, however it dies, the
    helper ends with it.
    """
    spool = spool or Spool.here()
    results: list[SyncResult] = []
    helper = None
    with contextlib.suppress(Exception):
        helper = _Helper(spool, interval_s=interval_s)
    try:
        yield results
    except BaseException:
        deadline_s = min(deadline_s, 5.0)  # an interrupted stage tells the server if that is quick
        raise
    finally:
        try:
            with helper or _Helper(spool, interval_s=None) as last:
                results.append(last.finish(deadline_s))
        except Exception as error:
            results.append(_failed(spool, error))


class _Helper:
    """The process that talks to MLflow. It lives as long as the pipe to it, so it can't outlive its stage."""

    def __init__(self, spool: Spool, *, interval_s: float | None) -> None:
        self.spool = spool
        order = {"spool": spool.pack(), "uri": tracking_uri(spool.project), "interval_s": interval_s}
        root = str(Path(__file__).resolve().parent.parent)
        environment = {**tracking_client.ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.tracking", "--helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is the stage's to answer
        )
        self._write(json.dumps(order) + "\n")

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a helper that is gone shows in what it does not say
            self.process.stdin.write(text)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def finish(self, deadline_s: float) -> SyncResult:
        """Let it send the rest; what it says, or what its cursor says when it is not done in time."""
        self._write(FINISH)
        answer: list[str] = []
        reader = threading.Thread(target=lambda: answer.append(self.process.stdout.read()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(deadline_s)
        if reader.is_alive():
            self.process.kill()
            reader.join()
            return _result(self.spool, {"away": f"not done within {deadline_s:.0f} s"})
        try:
            return _result(self.spool, json.loads(answer[0]))
        except (ValueError, IndexError):
            return _result(self.spool, {"away": f"the sending process ended with status {self.process.wait()}"})


def _result(spool: Spool, said: dict[str, Any]) -> SyncResult:
    uri = address(spool.project)
    records, problems = tracking_content.gather(spool)
    cursor = Cursor.of(spool, uri)
    waiting = [record.identity.partition(":")[0] for record in records if cursor.lacks(record)]
    return SyncResult(
        uri=safe(uri),
        trials_waiting=waiting.count("trial"),
        benchmarks_waiting=waiting.count("benchmark"),
        problems=tuple(line.encode(errors="backslashreplace").decode() for line in problems),  # a path may be no text
        **said,
    )


def _failed(spool: Spool, error: Exception) -> SyncResult:
    """Of an attempt that ended with **error**, which may come from whatever this asks in its turn. Never raises."""
    uri = address(spool.project)
    reason = str(error) if isinstance(error, UserError) else clean(f"{type(error).__name__}: {error}", uri)
    try:
        return _result(spool, {"failed": reason})
    except Exception:
        return SyncResult(uri=safe(uri), failed=reason)


def helper_main() -> None:
    """The helper: reads its order, sends round by round until told to finish, says how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = json.loads(sys.stdin.readline())
    if order["interval_s"] is not None:
        os.nice(10)  # the trials that run come first
    finish = threading.Event()

    def listen() -> None:
        if sys.stdin.readline() == FINISH:
            finish.set()
        if not sys.stdin.readline():  # the pipe is closed: the stage is gone, or has given this process up
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    sender = Sender(Spool.unpack(order["spool"]), order["uri"])
    interval, sent = order["interval_s"], 0
    while interval is not None and not finish.wait(interval):
        with contextlib.suppress(Exception):  # the last round tells
            sender.round()
            sent += len(sender.sent)
    said: dict[str, Any] = {}
    try:
        said["busy"] = not sender.round()
        said["refused"] = next(iter(sender.refused.values()), None)
    except AwayError as error:
        said["away"] = str(error)
    except Exception as error:
        said["failed"] = clean(f"{type(error).__name__}: {error}", order["uri"])
    print(json.dumps({**said, "sent": sent + len(sender.sent)}), flush=True)
    os._exit(0)  # MLflow's threads have nothing left to say


def replay(spool: Spool) -> None:
    """Send everything now, naming each run; UserError when something stays behind."""
    uri = tracking_uri(spool.project)
    sender, began = Sender(spool, uri), time.monotonic()
    try:
        mine = sender.round(verify=True, told=lambda name: print(f"sent {name}", flush=True))
    except AwayError as error:
        result = _result(spool, {"away": str(error)})
        raise UserError(f"MLflow at {result.uri} is away ({error}): {result.waiting} in the spool") from None
    if not mine:
        raise UserError(f"another process is sending to MLflow at {safe(uri)} right now; run this again in a moment")
    result = _result(spool, {"sent": len(sender.sent), "refused": next(iter(sender.refused.values()), None)})
    for problem in result.problems:
        print(f"not tracked: {problem}")
    if result.refused is not None:
        raise UserError(str(result.line))
    took = f"in {time.monotonic() - began:.1f} s" if result.sent else "there was nothing to send"
    print(f"MLflow at {result.uri} has everything: {result.sent} runs sent, {took}")


def main() -> None:
    """Send what is waiting."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tracking",
        description="Send to MLflow what waits in the run store, and say what was sent. $MLFLOW_TRACKING_URI names the "
        "server; without it, mlflow.db.",
    )
    parser.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)  # the process that sync starts
    if parser.parse_args().helper:
        helper_main()
    replay(Spool.here())


if __name__ == "__main__":
    guard(main)
