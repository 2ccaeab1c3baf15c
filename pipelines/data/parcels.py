"""Parcels: tar files, whole or in pieces of a given size, that carry files to a machine without a network.

Reading is strict, since anybody may have made a parcel: only regular files, each once, under names that the reader
expects, and in bounded memory. Names from a parcel are checked before anything is written under them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipelines.command.errors import UserError, brief
from pipelines.command.files import expect_file, require_folder

READ_BYTES = 2**20  # bytes
PIECE_NUMBER = re.compile(r"\.\d{3,}")  # suffix of a piece's name
SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
LEAST_PIECE = 10**6  # bytes


class ParcelError(UserError):
    """A file that is no whole parcel, or has contents that no parcel has; reading ends there."""


class Writer:
    """A parcel being written."""

    def __init__(self, folder: Path, name: str, most: int | None) -> None:
        """In ``folder``: one file ``name``, or numbered files of at most ``most`` bytes."""
        self.folder, self.name, self.most = folder, name, most
        self.files: list[Path] = []
        self.room = 0  # bytes that the last file may still take
        self.file: IO[bytes] | None = None
        self.bytes = 0

    def add(self, name: str, source: Path) -> None:
        """Add the file ``source`` under a name."""
        with source.open("rb") as file:
            self._add(name, file, os.fstat(file.fileno()).st_size)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a file of this content."""
        self._add(name, io.BytesIO(data), len(data))

    def close(self) -> None:
        """Write the end."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._end_file()

    def _add(self, name: str, file: IO[bytes], size: int) -> None:
        head = tarfile.TarInfo(name)
        head.size = size
        self._write(head.tobuf(tarfile.GNU_FORMAT))
        left = size
        while left and (part := file.read(min(left, READ_BYTES))):
            self._write(part)
            left -= len(part)
        if left:
            raise UserError(f"{name} was cut while it was read; run this again")
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        while data:
            if not self.room:
                self._begin_file()
            assert self.file is not None
            part, data = data[: self.room], data[self.room :]
            self.file.write(part)
            self.bytes += len(part)
            if self.most is not None:
                self.room -= len(part)

    def _begin_file(self) -> None:
        self._end_file()
        number = f".{len(self.files):03d}" if self.most is not None else ""
        self.files.append(self.folder / f"{self.name}{number}")
        self.file, self.room = self.files[-1].open("wb"), self.most or 2**62

    def _end_file(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None


@contextmanager
def writing(path: Path, most: int | None = None) -> Iterator[Writer]:
    """Give a parcel to fill, which becomes ``path``, or ``path.000`` and so on in pieces of ``most`` bytes.

    At a normal end of the block it replaces an earlier parcel; otherwise nothing is left.
    """
    require_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file to write")
    partial = path.with_name(f".{path.name}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        writer = Writer(partial, path.name, most)
        yield writer
        writer.close()
        for old in _pieces(path):
            old.unlink()
        for file in writer.files:
            file.replace(path.with_name(file.name))
    finally:
        if writer.file is not None:
            writer.file.close()
        shutil.rmtree(partial, ignore_errors=True)


def piece_bytes(text: str) -> int:
    """Bytes of a size such as 60M; UserError for another text."""
    found = re.fullmatch(r"(\d{1,15})([KMG]?)B?", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(found[1]) * SIZE_UNITS[found[2].upper()] if found else 0
    if size < LEAST_PIECE:
        raise UserError(f"--piece-size is {brief(text)}; expected bytes, at least 1M, such as 60M")
    return size


def gather(named: Sequence[Path]) -> dict[Path, list[Path]]:
    """The files of each parcel, named by itself or by any of its pieces; UserError where one is missing."""
    found: dict[Path, list[Path]] = {}
    for path in named:
        whole = path.with_suffix("") if PIECE_NUMBER.fullmatch(path.suffix) else path
        expect_file(path)
        if path.exists() and whole == path:
            found[path] = [path]
        else:
            found[whole] = _pieces(whole)
            _check_numbers(whole, found[whole])
    return found


def _pieces(whole: Path) -> list[Path]:
    """A parcel's pieces in their order, or the parcel in one file."""
    one = [whole] if whole.is_file() else []
    beside = whole.parent.iterdir() if whole.parent.is_dir() else ()
    pieces = [path for path in beside if path.stem == whole.name and PIECE_NUMBER.fullmatch(path.suffix)]
    return one + sorted(pieces, key=_number)


def _number(piece: Path) -> int:
    return int(piece.suffix[1:])


def _check_numbers(whole: Path, pieces: Sequence[Path]) -> None:
    pieces = [piece for piece in pieces if piece != whole]
    if not pieces:
        raise UserError(f"{whole}: no such file, nor pieces of it; expected what `export` wrote")
    missing = sorted(set(range(_number(pieces[-1]))) - set(map(_number, pieces)))
    if missing:
        last = pieces[-1].name
        raise UserError(f"{whole}.{missing[0]:03d} is missing; expected all pieces from {whole.name}.000 to {last}")


@dataclass
class Carried:
    """A file in a parcel, to be read once and before the next file."""

    name: str
    size: int
    stream: _Joined
    left: int

    def read(self, most: int = READ_BYTES) -> bytes:
        """The next bytes, at most ``most``; none at the end."""
        data = self.stream.exactly(min(most, self.left))
        self.left -= len(data)
        return data

    def whole(self, most: int) -> bytes:
        """All of it; ParcelError for more than ``most`` bytes."""
        if self.size > most:
            raise ParcelError(f"{self.stream.label}: {self.name} has {self.size:,} bytes; expected at most {most:,}")
        return self.read(most)

    def copy(self, path: Path) -> None:
        """Write the rest to a file."""
        with path.open("wb") as file:
            while data := self.read():
                file.write(data)
            file.flush()
            os.fsync(file.fileno())


def members(label: Path, pieces: Sequence[Path], expected: re.Pattern[str]) -> Generator[Carried, None, None]:
    """Each file of a parcel in turn; ParcelError for anything but files of ``expected`` names, each once."""
    stream, seen = _Joined(label, pieces), set[str]()
    try:
        while any(block := stream.exactly(tarfile.BLOCKSIZE)):
            member = _member(stream, block, expected)
            if member.name in seen:
                raise ParcelError(f"{label}: holds {member.name} twice; expected each file once")
            seen.add(member.name)
            yield member
            while member.read():
                pass
            stream.exactly(-member.size % tarfile.BLOCKSIZE)
        while rest := stream.read(READ_BYTES):
            if any(rest):
                raise ParcelError(f"{label} is damaged: something follows its end")
    finally:
        stream.close()


def _member(stream: _Joined, block: bytes, expected: re.Pattern[str]) -> Carried:
    try:
        head = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        raise ParcelError(f"{stream.label} is damaged, or no parcel; expected what `export` wrote") from None
    regular = head.type == tarfile.REGTYPE and head.size >= 0
    if not regular or not expected.fullmatch(head.name):
        kind = "a file" if regular else "a link" if head.issym() or head.islnk() else "something else than a file"
        line = f"{stream.label}: holds {brief(head.name)}, {kind}; expected files of trials and data sets alone"
        raise ParcelError(line)
    return Carried(head.name, head.size, stream, head.size)


class _Joined:
    """The files of a parcel, read as one."""

    def __init__(self, label: Path, paths: Sequence[Path]) -> None:
        self.label, self.waiting = label, list(paths)
        self.file: IO[bytes] = io.BytesIO()

    def read(self, most: int) -> bytes:
        """The next bytes, at most ``most``; none at the end."""
        while not (data := self.file.read(most)) and self.waiting:
            self.file.close()
            expect_file(self.waiting[0])
            self.file = self.waiting.pop(0).open("rb")
        return data

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes, read piece by piece; ParcelError where the parcel ends before."""
        parts, left = list[bytes](), size
        while left:
            data = self.read(min(left, READ_BYTES))
            if not data:
                raise ParcelError(f"{self.label} is cut short; copy it again, or name all of its pieces")
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Close the open file."""
        self.file.close()
