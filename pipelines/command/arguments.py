"""The command line: argparse with printable errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pipelines.command.errors import brief


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that quotes bad arguments in printable characters, and long ones in part."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and ``message``, and exit with status 2."""
        super().error(brief(message, 500))
