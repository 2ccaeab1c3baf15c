"""Parcels: tar files, whole or in pieces of a given size, that carry files to a machine without a network.

Reading is strict, since anybody may have made a parcel: only regular files, each once, under names that the reader
expects, and in bounded memory. Names from a parcel are checked before anything is written under them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from pipelines.command.errors import UserError, brief, reason
from pipelines.command.files import expect_file, require_folder
from pipelines.data import tars

PIECE_NUMBER = re.compile(r"\.\d{3,}")  # suffix of a piece's name
SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
LEAST_PIECE = 10**6  # bytes


class ParcelError(UserError):
    """A file that is no whole parcel, or has contents that no parcel has; reading ends there."""


class Writer(io.RawIOBase):
    """A parcel being written: one file, or numbered files of at most ``most`` bytes."""

    def __init__(self, whole: Path, most: int | None) -> None:
        self.whole, self.most = whole, most
        self.files: list[Path] = []
        self.file: IO[bytes] = io.BytesIO()  # the last of them
        self.room = self.bytes = 0  # that the last file may still take, and of all files
        self.tar = tarfile.TarFile(fileobj=self, mode="w", format=tarfile.GNU_FORMAT)

    def add(self, name: str, source: Path) -> None:
        """Add the file ``source`` under a name."""
        with source.open("rb") as file:
            self._add(name, file, os.fstat(file.fileno()).st_size)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a file of this content."""
        self._add(name, io.BytesIO(data), len(data))

    def _add(self, name: str, file: IO[bytes], size: int) -> None:
        head = tarfile.TarInfo(name)
        head.size = size
        try:
            self.tar.addfile(head, file)
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            raise UserError(f"{name} was cut while it was read; run this again") from None

    def write(self, data: Any) -> int:
        """Write to the last file, or begin the next; for tarfile."""
        left = memoryview(data)
        while left:
            if not self.room:
                self.end_file()
                number = "" if self.most is None else f".{len(self.files):03d}"
                self.files.append(self.whole.with_name(f"{self.whole.name}{number}"))
                self.file, self.room = self.files[-1].open("wb"), self.most or sys.maxsize
            done = self.file.write(left[: self.room])
            left, self.room, self.bytes = left[done:], self.room - done, self.bytes + done
        return len(data)

    def tell(self) -> int:  # noqa: D102
        return self.bytes

    def end_file(self) -> None:
        """Wait until the last file is on the disk."""
        if self.files:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


@contextmanager
def writing(path: Path, most: int | None = None) -> Iterator[Writer]:
    """Give a parcel to fill, which becomes ``path``, or ``path.000`` and so on in pieces of ``most`` bytes.

    At a normal end of the block it replaces an earlier parcel; otherwise nothing is left.
    """
    require_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file to write")
    if PIECE_NUMBER.fullmatch(path.suffix):  # would be read as a piece of another parcel
        raise UserError(f"{path} ends like a piece of a parcel; expected another ending, such as {path.name}.tar")
    partial = path.with_name(f".{path.name}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    writer = Writer(partial / path.name, most)
    try:
        yield writer
        writer.tar.close()
        writer.end_file()
        for old in (path, *_pieces(path).values()):
            old.unlink(missing_ok=True)
        for file in writer.files:
            file.replace(path.with_name(file.name))
    finally:
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
        found[whole] = [path] if path == whole and path.exists() else _all_pieces(whole)
    return found


def _all_pieces(whole: Path) -> list[Path]:
    pieces = _pieces(whole)
    if not pieces:
        raise UserError(f"{whole}: no such file, nor pieces of it; expected what `export` wrote")
    last = max(pieces)
    missing = sorted(set(range(last)) - pieces.keys())
    if missing:
        expected = f"expected all pieces from {whole.name}.000 to {pieces[last].name}"
        raise UserError(f"{whole}.{missing[0]:03d} is missing; {expected}")
    return [pieces[number] for number in range(last + 1)]


def _pieces(whole: Path) -> dict[int, Path]:
    """The pieces of a parcel by number."""
    beside = whole.parent.glob("*")
    return {int(one.suffix[1:]): one for one in beside if one.stem == whole.name and PIECE_NUMBER.fullmatch(one.suffix)}


@dataclass(frozen=True)
class Carried:
    """A file in a parcel, to be read once and before the next file."""

    label: Path  # of the parcel
    name: str
    file: IO[bytes]

    def whole(self, most: int) -> bytes:
        """All of it; ParcelError for more than ``most`` bytes."""
        data = tars.content(self.file, most)
        if data is None:
            raise ParcelError(f"{self.label}: {self.name} has more than the {most:,} bytes that are expected")
        return data

    def copy(self, path: Path, most: int | None = None) -> None:
        """Write it to a file; ParcelError for more than ``most`` bytes."""
        if most is not None:
            path.write_bytes(self.whole(most))
            return
        with path.open("wb") as file:
            shutil.copyfileobj(self.file, file)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def reading(label: Path, pieces: Sequence[Path], expected: re.Pattern[str]) -> Iterator[Iterator[Carried]]:
    """Give the files of a parcel in turn.

    Raises ParcelError, within the block too, for a parcel that is damaged, or has anything but files of ``expected``
    names, each once.
    """
    try:
        with io.BufferedReader(_Joined(pieces)) as joined:
            yield _files(label, joined, expected)
    except tarfile.TarError as error:
        raise _unreadable(label, error) from None


def _unreadable(label: Path, error: Exception) -> ParcelError:
    line = f"{label} cannot be read to its end ({reason(error, 150)})"
    return ParcelError(f"{line}; copy it again, or name all of its pieces")


def _members(label: Path, joined: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a parcel; an error of their headers is one line, an error of the disk stays what it is."""
    members = tars.members_of(joined)
    while True:
        try:
            member = next(members, None)
        except OSError:
            raise
        except tars.UNREADABLE as error:
            raise _unreadable(label, error) from None
        if member is None:
            return
        yield member


def _files(label: Path, joined: IO[bytes], expected: re.Pattern[str]) -> Iterator[Carried]:
    seen = set[str]()
    for member, tar in _members(label, joined):
        regular = member.type == tarfile.REGTYPE and not member.issparse()
        if not regular or not expected.fullmatch(member.name):
            link = member.issym() or member.islnk()
            kind = "a file" if regular else "a link" if link else "something else than a file"
            line = f"{label}: holds {brief(member.name)}, {kind}; expected files of trials and data sets alone"
            raise ParcelError(line)
        if member.name in seen:
            raise ParcelError(f"{label}: holds {member.name} twice; expected each file once")
        seen.add(member.name)
        yield Carried(label, member.name, cast(IO[bytes], tar.extractfile(member)))


class _Joined(io.RawIOBase):
    """The files of a parcel, to read as one from the beginning on."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.waiting, self.place = list(paths), 0
        self.file: Any = io.BytesIO()

    def readinto(self, buffer: Any) -> int:
        while not (count := self.file.readinto(buffer)) and self.waiting:
            self.file.close()
            expect_file(self.waiting[0])
            self.file = self.waiting.pop(0).open("rb")
        self.place += count
        return int(count)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go forward to ``place``, or to the end if that comes before."""
        while self.place < place and self.read(min(place - self.place, tars.PIECE)):
            pass
        return self.place

    def close(self) -> None:
        self.file.close()
        super().close()
