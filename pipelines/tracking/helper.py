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
import time
from collections.abc import Iterator
from dataclasses import replace

from pipelines.tracking import records
from pipelines.tracking.addresses import URI_VARIABLE, address, safe, tracking_uri
from pipelines.tracking.cursors import Cursor
from pipelines.tracking.outcome import SyncResult
from pipelines.tracking.spool import Spool
from pipelines.training.fingerprint import ROOT

DEADLINE_S = 30.0  # for a slow server; one that never answers is given up within 5 s
OVERTIME_S = 2.0  # more, for a helper that can't keep the deadline itself
INTERVAL_S = 30.0
HELPER = "--helper"


def sync(spool: Spool | None = None, *, deadline_s: float = DEADLINE_S) -> SyncResult:
    """Send all missing runs; return within **deadline_s** + OVERTIME_S, whatever the server does. Never raises.

    Costs some 20 ms when there is nothing to send. Unsent runs wait in the spool.
    """
    spool = spool or Spool.here()
    uri = address(spool.project)
    result = SyncResult(uri=safe(uri))
    with result.keeping_errors(uri):
        everything, result.problems = records.all_runs(spool)
        result.count(filter(Cursor.of(spool.store, uri).lacks, everything))
        tracking_uri(spool.project)
        if result.waits:
            with _helper(spool) as process:
                result = _finish(process, deadline_s, result)
    return result


@contextlib.contextmanager
def follow(
    spool: Spool | None = None, *, interval_s: float = INTERVAL_S, deadline_s: float = DEADLINE_S
) -> Iterator[None]:
    """Keep the server up to date while the block runs, and send the rest at its end. Never raises.

    The end of the block takes **deadline_s** + OVERTIME_S at most. The helper ends with the block's process, however
    that ends.
    """
    with contextlib.ExitStack() as stack:
        process = None
        with contextlib.suppress(Exception):
            process = stack.enter_context(_helper(spool or Spool.here(), interval_s))
        try:
            yield
        except BaseException:
            deadline_s = min(deadline_s, 5.0)  # nobody waits long for an interrupted stage
            raise
        finally:
            if process is not None:
                _finish(process, deadline_s, SyncResult(uri=""))


@contextlib.contextmanager
def _helper(spool: Spool, interval_s: float | None = None) -> Iterator[subprocess.Popen[str]]:
    """The process that talks to MLflow; it ends with the block, or with this process."""
    command = [sys.executable, "-m", "pipelines.tracking", HELPER, *([] if interval_s is None else [str(interval_s)])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUN_STORE": str(spool.store.absolute())}
    environment[URI_VARIABLE] = tracking_uri(spool.project)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        command,
        encoding="utf-8",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=spool.project,
        env=environment,
        start_new_session=True,  # the stage handles Ctrl-C
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _finish(process: subprocess.Popen[str], deadline_s: float, so_far: SyncResult) -> SyncResult:
    """Have the helper send the rest: its outcome within **deadline_s** + OVERTIME_S, or **so_far** and why."""
    try:
        answer, _ = process.communicate(f"{time.time() + deadline_s}\n", timeout=deadline_s + OVERTIME_S)
    except subprocess.TimeoutExpired:
        return replace(so_far, slow=True)
    if process.returncode:
        return replace(so_far, failed=f"the sending process ended with status {process.returncode}")
    try:
        result = SyncResult(**json.loads(answer))
    except ValueError:
        return replace(so_far, failed="the sending process gave no answer")
    return result if result.waiting else replace(result, waiting=so_far.waiting, problems=so_far.problems)
