"""Folders that a command writes into."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.command.errors import FULL, UserError


def require_folder(path: Path) -> None:
    """Make ``path`` if it is not there; UserError unless it then is a folder that can be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        wrong = next(one for one in (path, *path.parents) if os.path.lexists(one) and not one.is_dir())
        raise UserError(
            f"{wrong} is no folder; expected one{f', to hold {path.name}' if wrong != path else ''}"
        ) from None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"{path} can't be made ({error.strerror}); expected a folder that can be written to") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be written to; expected a folder that can")
