"""The pipeline: fetch, train, evaluate, compare; and what tracks it."""

import logging
import signal
import sys

from pipelines.command import errors

# `python -m pipelines.train` imports for seconds before its own handling of Ctrl-C is in place (errors.guard); Python
# says "-m" for as long as it looks for the module.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, errors.interrupted_early)

# Without a home that can be written matplotlib, which torchmetrics imports, says so each time, and does without.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
