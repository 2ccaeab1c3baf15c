"""Files and folders: written in one step, and read so that every fault is one line.

Only regular files are opened: opening a FIFO may block for ever.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pipelines.command.errors import FULL, UserError

FILE_KINDS = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
TEMPORARY = "writing"  # in the names of unfinished files
SEAL = b"\nsha256 "  # stands before the digest at the end of a sealed file
SHA256_DIGITS = 64
PIECE_BYTES = 2**20  # hashed at a time


class DamagedError(UserError):
    """A file with other contents than were written, which must not count as a result."""


class MissingError(DamagedError):
    """A missing file."""


def intruder(path: Path) -> str | None:
    """What stands at ``path`` in place of a file; None for a file, for nothing, and for a link to nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return FILE_KINDS.get(stat.S_IFMT(mode), "a device")


def expect_file(path: Path) -> None:
    """Raise ``UserError`` where something other than a file stands at ``path``; it may be free."""
    other = intruder(path)
    if other is not None:
        raise UserError(f"{path}: {other} stands where a file belongs; move it away")


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(new: Path, final: Path) -> None:
    """Rename the folder ``new`` to ``final``; the old folder goes once the new one is in place."""
    old = _old(final)
    remove(old)
    if final.is_dir() and not final.is_symlink():
        final.rename(old)
    elif os.path.lexists(final):
        final.unlink()
    new.rename(final)
    remove(old)


def restore_folder(final: Path) -> None:
    """Put back the old folder where a replacement was killed between its renames; otherwise remove it."""
    old = _old(final)
    if old.is_dir() and not os.path.lexists(final):
        old.rename(final)
    remove(old)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def require_folder(path: Path) -> None:
    """Make ``path`` if it is missing; UserError unless it then is a writable folder."""
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


def write_json(path: Path, value: Any, *, lasting: bool = True) -> None:
    """Replace ``path`` in one step: a reader sees the old or the new contents as a whole.

    With ``lasting`` also after a crash of the machine, which means waiting for the disk: long on shared storage.
    """
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), lasting=lasting)


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace ``path`` in one step."""
    with replacing(path, lasting=lasting) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; after the block it takes that name, or goes where the block failed."""
    require_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{TEMPORARY}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        if lasting:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a file") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def sealing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to; after the block it replaces ``path``, ending in the digest of its contents.

    torch.load and unzip ignore the digest.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        hashing = _Hashing(file)
        yield cast(IO[bytes], hashing)
        file.write(SEAL + hashing.sum.hexdigest().encode())
        file.flush()


class _Hashing:
    """The part of a file's interface that torch.save needs; hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def check_seal(path: Path) -> None:
    """DamagedError unless ``path`` ends in the digest of its contents."""
    with reading_sealed(path):
        pass


@contextmanager
def reading_sealed(path: Path) -> Iterator[BufferedReader]:
    """A sealed file, open at its beginning; DamagedError for a missing file or any other."""
    with reading(path) as file:
        left = os.fstat(file.fileno()).st_size - len(SEAL) - SHA256_DIGITS
        seen = hashlib.sha256()
        while left > 0 and (part := file.read(min(left, PIECE_BYTES))):
            seen.update(part)
            left -= len(part)
        if left or file.read() != SEAL + seen.hexdigest().encode():
            raise DamagedError(f"{path} is damaged, or older than digests: it does not end in its sha256")
        file.seek(0)
        yield file


def set_aside(path: Path) -> None:
    """Rename ``path``, whatever it is, to ``<name>.damaged``, for a person to look at; replaces an older one."""
    if os.path.lexists(path):
        kept = path.with_name(f"{path.name}.damaged")
        remove(kept)
        path.rename(kept)


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A regular file, open; DamagedError for anything missing, different or unreadable; waits for no pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} is missing; expected a file that an earlier stage writes") from None
    except OSError as error:
        kind = DamagedError if error.errno in (errno.ELOOP, errno.ENXIO) else UserError  # a socket; no right
        raise kind(f"{path} can't be read ({error.strerror}); expected a file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path} is no regular file; expected one")
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise DamagedError(f"{path} can't be read ({error.strerror})") from None


def hashed(path: Path, algorithm: str, advance: Callable[[int], object] = lambda amount: None) -> str:
    """The hexadecimal digest of a file; ``advance`` gets the size of each piece."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file; DamagedError without one. An unchanged file is hashed once."""
    with reading(path) as file:
        about = os.fstat(file.fileno())
        version = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        return _file_sha256(path, version)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: Path, version: tuple[int, ...]) -> str:
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; DamagedError when the file is missing or damaged."""
    found: dict[str, Any] = _parsed(path, dict, "an object")
    return found


def read_list(path: Path) -> list[Any]:
    """The list in ``path``; DamagedError when the file is missing or damaged."""
    found: list[Any] = _parsed(path, list, "a list")
    return found


def _parsed(path: Path, kind: type, expected: str) -> Any:
    with reading(path) as file:
        text = file.read()
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); expected JSON") from None
    if not isinstance(found, kind):
        raise DamagedError(f"{path} is damaged: it holds a {type(found).__name__}; expected {expected}")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none where it is missing; a last line without an end is still being written."""
    try:
        with reading(path) as file:
            text = file.read()
    except MissingError:
        return []
    try:
        lines = text.decode().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); expected one JSON object a line") from None
    others = {type(line).__name__ for line in found} - {"dict"}
    if others:
        raise DamagedError(f"{path} is damaged: it holds a {others.pop()}; expected one JSON object a line")
    return found
