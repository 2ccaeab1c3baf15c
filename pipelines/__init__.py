"""The pipeline: fetch, train, evaluate, compare; and what tracks it."""

import logging
import signal
import sys

from pipelines.command import errors

# `python -m pipelines.train` imports for seconds before its own handling of signals is in place (errors.guard); while
# Python looks for the module, argv is "-m".
if sys.argv[:1] == ["-m"]:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, errors.end_early)
    errors.await_preemption()

# Without a home that can be written matplotlib, which torchmetrics imports, says so each time, and does without.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
