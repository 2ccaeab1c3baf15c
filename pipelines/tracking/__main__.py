"""Send waiting runs to MLflow, as a command and as the process that ``helper`` starts.

python -m pipelines.tracking            # send all waiting runs, and print their names
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from dataclasses import asdict, replace

from pipelines.command import arguments
from pipelines.command.errors import UserError, guard
from pipelines.tracking.addresses import place, safe, tracking_uri
from pipelines.tracking.delivery import Sender
from pipelines.tracking.helper import HELPER
from pipelines.tracking.probe import be_patient
from pipelines.tracking.spool import Spool


def helper_main(interval_s: float | None = None) -> None:
    """The helper process: send round by round until a line names a deadline, in unix seconds.

    Then it sends the rest, and prints the outcome at that time. It ends at once when its standard input is closed
    without such a line, and within half a second when the stage ends later.
    """
    stage = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage handles Ctrl-C
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # MLflow's words would fill a pipe that is read at the end
    if interval_s is not None:
        os.nice(10)  # running trials come first
    finish = threading.Event()
    spool = Spool.here()
    sender = Sender(spool, tracking_uri(spool.project))

    def send() -> None:
        try:
            while True:
                last = finish.wait(interval_s)
                away = sender.round().away is not None
                if last or (away and finish.is_set()):  # a server that is away has just had its time
                    return
        except BaseException:
            os._exit(1)  # without an outcome that would look as if all was well

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    if line := sys.stdin.readline():
        finish.set()
        while sending.is_alive() and os.getppid() == stage and (left := float(line) - time.time()) > 0:
            sending.join(min(left, 0.5))
        if os.getppid() == stage:
            print(json.dumps(asdict(replace(sender.result, slow=sending.is_alive()))), file=answer, flush=True)
    os._exit(0)  # MLflow's threads, and those that a server left hanging, need not end


def replay(spool: Spool) -> None:
    """Send everything now and print each run; UserError when something could not be sent."""
    uri, began = tracking_uri(spool.project), time.monotonic()
    be_patient()
    result = Sender(spool, uri, lambda name: print(f"sent {name}", flush=True)).round(verify=True)
    where = place(safe(uri))
    if result.busy:
        raise UserError(f"another process is sending to {where} right now; run this again in a moment")
    for problem in result.problems:
        print(f"not tracked: {problem}")
    if result.away or result.failed or result.refused:
        raise UserError(str(result.line))
    if result.came_from is not None:
        print(result.line)
    took = f"in {time.monotonic() - began:.1f} s" if result.sent else "there was nothing to send"
    print(f"{where} has everything: {result.sent} runs sent, {took}")


def main() -> None:
    """Send all waiting runs."""
    arguments.Parser(
        prog="python -m pipelines.tracking",
        description="Send to MLflow what waits in the run store, and print what was sent. $MLFLOW_TRACKING_URI names "
        "the server; without it, mlflow.db.",
    ).parse_args()
    warnings.simplefilter("ignore")  # of MLflow's libraries
    logging.disable()
    replay(Spool.here())


if __name__ == "__main__":
    if sys.argv[1:2] == [HELPER]:
        helper_main(*map(float, sys.argv[2:]))
    guard(main)
