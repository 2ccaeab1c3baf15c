"""``python -m pipelines.tracking`` sends what is waiting; see ``pipelines.tracking.helper``."""

from pipelines.command.errors import guard
from pipelines.tracking.helper import main

if __name__ == "__main__":
    guard(main)
