"""Paths that a command reads, writes or removes: a file may be opened, and who opens a FIFO may wait for ever."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pipelines.command.errors import FULL, UserError

FILE_KINDS = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


def intruder(path: Path) -> str | None:
    """What stands at ``path`` in the place of a file; None for a file, and for nothing or a link to nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return FILE_KINDS.get(stat.S_IFMT(mode), "a device")


def expect_file(path: Path) -> None:
    """Raise ``UserError`` where something else than a file stands at ``path``; nothing may."""
    other = intruder(path)
    if other is not None:
        raise UserError(f"{path}: {other} stands where a file belongs; move it away")


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
