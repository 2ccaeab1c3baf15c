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
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace

from pipelines.tracking.addresses import URI_VARIABLE, address, safe, tracking_uri
from pipelines.tracking.outcome import SyncResult
from pipelines.tracking.records import survey
from pipelines.tracking.spool import Spool
from pipelines.training.fingerprint import ROOT

DEADLINE_S = 30.0  # for a slow server; one that never answers is given up within 5 s
INTERVAL_S = 30.0
HELPER = "--helper"
Finish = Callable[[float, SyncResult], SyncResult]


def sync(spool: Spool | None = None, *, deadline_s: float = DEADLINE_S) -> SyncResult:
    """Send all missing runs; return within **deadline_s**, whatever the server does. Never raises.

    Costs some 20 ms when there is nothing to send. Unsent runs wait in the spool.
    """
    spool = spool or Spool.here()
    uri = address(spool.project)
    result = SyncResult(uri=safe(uri))
    with result.keeping_errors(uri):
        survey(result, spool, uri)
        tracking_uri(spool.project)
        if result.waits:
            with _helper(spool) as finish:
                result = finish(deadline_s, result)
    return result


@contextlib.contextmanager
def follow(
    spool: Spool | None = None, *, interval_s: float = INTERVAL_S, deadline_s: float = DEADLINE_S
) -> Iterator[None]:
    """Keep the server up to date while the block runs, and send the rest at its end. Never raises.

    The helper ends with the block's process, however that ends.
    """
    with contextlib.ExitStack() as stack:
        finish = None
        with contextlib.suppress(Exception):
            finish = stack.enter_context(_helper(spool or Spool.here(), interval_s))
        try:
            yield
        except BaseException:
            deadline_s = min(deadline_s, 5.0)  # nobody waits long for an interrupted stage
            raise
        finally:
            if finish is not None:
                finish(deadline_s, SyncResult(uri=""))


@contextlib.contextmanager
def _helper(spool: Spool, interval_s: float | None = None) -> Iterator[Finish]:
    """The process that talks to MLflow. It ends with the pipe to it, so it can't outlive its stage.

    Yields a function that tells the process to send the rest, and returns the outcome; after ``deadline_s`` the outcome
    so far.
    """
    command = [sys.executable, "-m", "pipelines.tracking", HELPER, *([] if interval_s is None else [str(interval_s)])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUN_STORE": str(spool.store.absolute())}
    environment[URI_VARIABLE] = tracking_uri(spool.project)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (
        tempfile.TemporaryFile() as results,  # one a line, the latest last
        subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=results,
            stderr=subprocess.DEVNULL,
            cwd=spool.project,
            env=environment,
            start_new_session=True,  # the stage handles Ctrl-C
        ) as process,
    ):

        def finish(deadline_s: float, so_far: SyncResult) -> SyncResult:
            with contextlib.suppress(OSError):  # it is gone, and has a status
                process.stdin.write(b"\n")  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(deadline_s)
            late = process.poll() is None
            process.kill()
            status = process.wait()
            results.seek(0)
            for line in results:
                with contextlib.suppress(ValueError):  # the last line, cut off
                    so_far = SyncResult(**json.loads(line))
            if late:
                return replace(so_far, slow=True)
            return replace(so_far, failed=f"the sending process ended with status {status}") if status else so_far

        try:
            yield finish
        finally:
            process.kill()
