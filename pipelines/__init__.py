"""The pipeline: fetch, train, evaluate, compare; and what tracks it."""

import logging
import sys

from pipelines.command import errors

if sys.argv[:1] == ["-m"]:  # while Python looks for the module of `python -m pipelines.train`
    errors.begin_importing()

# Without a home that can be written matplotlib, which torchmetrics imports, says so each time, and does without.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
