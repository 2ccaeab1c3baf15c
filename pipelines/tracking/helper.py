"""Best-effort tracking with MLflow: whenever a server is reachable, it gets what lies on the disk.

A stage calls ``sync`` at its end; ``follow`` keeps a server up to date while trials train. Both start a helper process,
which can hang, fail and be killed without harm to a trial, and which keeps MLflow (a second of imports, 240 MB) out of
the stage. Results never depend on MLflow: tracking is written, never read.

The run store and the stages' outputs are the spool: nothing is lost while a server is away, the next call sends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.command.errors import UserError
from pipelines.tracking import limits, records
from pipelines.tracking.addresses import address, clean, place, safe, tracking_uri
from pipelines.tracking.cursors import Cursor, Record
from pipelines.tracking.probe import ENVIRONMENT
from pipelines.tracking.spool import Spool
from pipelines.training.fingerprint import ROOT

DEADLINE_S = 30.0  # for a slow server; one that never answers is given up within 5 s
INTERVAL_S = 30.0
LONGEST_PROBLEM = 400  # characters, of a problem with a file
FINISH = "finish\n"


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """The outcome of an attempt to send."""

    uri: str  # without credentials
    sent: int = 0  # runs
    trials_waiting: int = 0
    benchmarks_waiting: int = 0
    away: str | None = None  # predicate: can't be reached, gives no answer, wants a login
    slow: bool = False  # given up though it still answered
    refused: str | None = None  # the first run that was refused, and why
    failed: str | None = None  # why nothing could be sent, where the server is not the reason
    problems: tuple[str, ...] = ()  # files that can't be tracked
    busy: bool = False  # another process is sending to the same server
    came_from: str | None = None  # where a copied database kept its artifacts until now

    @property
    def line(self) -> str | None:
        """The line for the user; None when all is well."""
        where, waits = place(self.uri), self.trials_waiting + self.benchmarks_waiting
        if self.failed is not None:
            return f"not tracked: {self.failed}" + (f"; {self.waiting} in the spool" if waits else "")
        if self.slow and waits:
            total = self.sent + waits
            return f"{where} is slow: {self.sent} of {total} runs sent, the next stage sends the rest"
        if self.away is not None and waits:
            return f"{where} {self.away}: {self.waiting} in the spool; they are sent by the next stage"
        if self.refused is not None:
            return f"{where} lacks {self.refused}; {self.waiting} in the spool"
        if self.came_from is not None:
            return f"{where} was copied or moved: its artifacts were in {self.came_from}, and are beside it from now on"
        more = f" (and {len(self.problems) - 1} more like it)" if len(self.problems) > 1 else ""
        return f"not tracked: {self.problems[0]}{more}" if self.problems else None

    @property
    def waiting(self) -> str:
        """The number of waiting runs, in words."""
        counts = {"trial": self.trials_waiting, "benchmark": self.benchmarks_waiting}
        words = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n]
        return f"{' and '.join(words) or 'nothing'} wait{'s' if sum(counts.values()) == 1 else ''}"


def pending(spool: Spool, uri: str) -> list[Record]:
    """The runs that the server at **uri** lacks according to the cursor; the server is not asked."""
    cursor = Cursor.of(spool.store, uri)
    return [record for record in records.gather(spool)[0] if cursor.lacks(record)]


def sync(spool: Spool | None = None, *, deadline_s: float = DEADLINE_S) -> SyncResult:
    """Send all missing runs; return within **deadline_s**, whatever the server does. Never raises.

    Costs some 20 ms when there is nothing to send. Unsent runs wait in the spool.
    """
    spool = spool or Spool.here()
    try:
        if not pending(spool, tracking_uri(spool.project)):
            return _result(spool)
        with Helper(spool) as helper:
            return helper.finish(deadline_s)
    except Exception as error:  # best effort: never ends a stage
        return _failed(spool, error)


@contextlib.contextmanager
def follow(
    spool: Spool | None = None, *, interval_s: float = INTERVAL_S, deadline_s: float = DEADLINE_S
) -> Iterator[list[SyncResult]]:
    """Keep the server up to date while the block runs, and send the rest at its end.

    Yields a list that holds the result after the block. The helper ends with the block's process, however that ends.
    """
    spool = spool or Spool.here()
    results: list[SyncResult] = []
    helper = None
    with contextlib.suppress(Exception):
        helper = Helper(spool, interval_s=interval_s)
    try:
        yield results
    except BaseException:
        deadline_s = min(deadline_s, 5.0)  # nobody waits long for an interrupted stage
        raise
    finally:
        try:
            with helper or Helper(spool) as last:
                results.append(last.finish(deadline_s))
        except Exception as error:
            results.append(_failed(spool, error))


class Helper:
    """The process that talks to MLflow. It ends with the pipe to it, so it can't outlive its stage."""

    def __init__(
        self,
        spool: Spool,
        *,
        interval_s: float | None = None,
        verify: bool = False,
        announce: Callable[[str], None] = lambda name: None,
    ) -> None:
        """**announce** gets the name of each run that is sent, in another thread."""
        self.spool, self.announce = spool, announce
        self.sent: set[str] = set()  # identities
        self.outcome: dict[str, Any] | None = None
        folders = {name: str(folder) for name, folder in vars(spool).items()}
        order = {"spool": folders, "uri": tracking_uri(spool.project), "interval_s": interval_s, "verify": verify}
        environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.tracking", "--helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # the stage handles Ctrl-C
        )
        self._write(json.dumps(order) + "\n")

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the helper is gone: there will be no outcome
            self.process.stdin.write(text)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def finish(self, deadline_s: float | None) -> SyncResult:
        """Send the rest and return the outcome; after **deadline_s** the outcome so far."""
        self._write(FINISH)
        reader = threading.Thread(target=self._listen, daemon=True)
        reader.start()
        reader.join(deadline_s)
        late = reader.is_alive()
        if late:
            self.process.kill()
            reader.join()
        if self.outcome is None and not late:
            self.outcome = {"failed": f"the sending process ended with status {self.process.wait()}"}
        return _result(self.spool, self.sent, **({"slow": True} if self.outcome is None else self.outcome))

    def _listen(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # a cut-off line
            for line in self.process.stdout:  # type: ignore[union-attr]
                message = json.loads(line)
                if "sent" in message:
                    self.sent.add(message["sent"])
                    self.announce(message["name"])
                else:
                    self.outcome = message


def _result(spool: Spool, sent: Collection[str] = (), **outcome: Any) -> SyncResult:
    """The outcome, with the runs that still wait after those **sent** (identities)."""
    uri = address(spool.project)
    gathered, problems = records.gather(spool)
    cursor = Cursor.of(spool.store, uri)
    waiting = [record.identity for record in gathered if cursor.lacks(record)]
    kinds = [identity.partition(":")[0] for identity in waiting]
    return SyncResult(
        uri=safe(uri),
        sent=len(set(sent) - set(waiting)),
        trials_waiting=kinds.count("trial"),
        benchmarks_waiting=kinds.count("benchmark"),
        problems=tuple(limits.name(line, LONGEST_PROBLEM) for line in problems),
        **outcome,
    )


def _failed(spool: Spool, error: Exception) -> SyncResult:
    """The result of an attempt that raised **error**, even if reading the spool raises it again. Never raises."""
    uri = address(spool.project)
    reason = str(error) if isinstance(error, UserError) else clean(f"{type(error).__name__}: {error}", uri)
    try:
        return _result(spool, failed=reason)
    except Exception:
        return SyncResult(uri=safe(uri), failed=reason)
