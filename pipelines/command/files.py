"""What stands at a path, and its removal: a file may be opened, and who opens a FIFO may wait for ever."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from pipelines.command.errors import UserError

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
