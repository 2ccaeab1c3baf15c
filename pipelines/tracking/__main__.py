"""Send waiting runs to MLflow, as a command and as the process that ``helper`` starts.

python -m pipelines.tracking            # send all waiting runs, and print their names
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipelines.command import arguments
from pipelines.command.errors import UserError, guard
from pipelines.tracking.addresses import clean, place, safe, tracking_uri
from pipelines.tracking.delivery import Sender
from pipelines.tracking.helper import FINISH, Helper
from pipelines.tracking.probe import AwayError, LoginError, be_patient
from pipelines.tracking.spool import Spool


def helper_main() -> None:
    """The helper process: read the order, send round by round until told to finish, and print the outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = json.loads(sys.stdin.readline())
    if order["interval_s"] is not None:
        os.nice(10)  # running trials come first
    finish = threading.Event()

    def listen() -> None:
        if sys.stdin.readline() == FINISH:
            finish.set()
        if not sys.stdin.readline():  # the pipe is closed: the stage is gone, or has given this process up
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    sender = Sender(Spool(**{name: Path(folder) for name, folder in order["spool"].items()}), order["uri"])
    interval, outcome = order["interval_s"], {}
    while interval is not None and not finish.wait(interval):
        outcome = _round(sender)
        if finish.is_set() and "away" in outcome:  # the server has just had its time
            break
    else:
        outcome = _round(sender, verify=order["verify"])
    print(json.dumps(outcome), flush=True)
    os._exit(0)  # MLflow's threads, and those that a server left hanging, need not end


def _round(sender: Sender, *, verify: bool = False) -> dict[str, Any]:
    """Send once, printing each run that is sent, and return the outcome."""
    try:
        mine = sender.round(
            verify=verify, announce=lambda run, name: print(json.dumps({"sent": run, "name": name}), flush=True)
        )
    except (AwayError, LoginError) as error:
        return {"away": str(error)}
    except Exception as error:
        return {"failed": clean(f"{type(error).__name__}: {error}", sender.uri)}
    came_from = None if sender.came_from is None else str(sender.came_from)
    return {"busy": not mine, "refused": next(iter(sender.refused.values()), None), "came_from": came_from}


def replay(spool: Spool) -> None:
    """Send everything now and print each run; UserError when something could not be sent."""
    uri, began = tracking_uri(spool.project), time.monotonic()
    be_patient()
    with Helper(spool, verify=True, announce=lambda name: print(f"sent {name}", flush=True)) as helper:
        result = helper.finish(None)
    if result.busy:
        raise UserError(f"another process is sending to {place(safe(uri))} right now; run this again in a moment")
    for problem in result.problems:
        print(f"not tracked: {problem}")
    if result.away is not None:
        left = f": {result.waiting} in the spool" if result.trials_waiting + result.benchmarks_waiting else ""
        raise UserError(f"{place(result.uri)} {result.away}{left}")
    if result.failed is not None or result.refused is not None:
        raise UserError(str(result.line))
    if result.came_from is not None:
        print(result.line)
    took = f"in {time.monotonic() - began:.1f} s" if result.sent else "there was nothing to send"
    print(f"{place(result.uri)} has everything: {result.sent} runs sent, {took}")


def main() -> None:
    """Send all waiting runs."""
    parser = arguments.Parser(
        prog="python -m pipelines.tracking",
        description="Send to MLflow what waits in the run store, and print what was sent. $MLFLOW_TRACKING_URI names "
        "the server; without it, mlflow.db.",
    )
    parser.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)  # the process that sync starts
    if parser.parse_args().helper:
        helper_main()
    replay(Spool.here())


if __name__ == "__main__":
    guard(main)
