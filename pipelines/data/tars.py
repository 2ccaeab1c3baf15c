"""Strict reading of tar archives that anybody may have made: in bounded memory, and to the end, where damage shows."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

# Errors of the archive readers; zipfile raises RuntimeError for a password or an unknown method.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, OverflowError, MemoryError, struct.error),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
COMPRESSED: dict[bytes, Callable[[Path, str], object]] = {  # first bytes, and the function that opens such a file
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
PIECE = 1 << 20  # bytes at a time, and the most that the headers of a member may take


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Each member of the tar archive ``path``, compressed or not; raises one of ``UNREADABLE``."""
    start = first_bytes(path)
    reader = next((reader for mark, reader in COMPRESSED.items() if start.startswith(mark)), open)
    with cast(IO[bytes], reader(path, "rb")) as stream:
        yield from members_of(stream)


def first_bytes(path: Path) -> bytes:
    """The first block of a file."""
    with path.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def members_of(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Each member of the uncompressed tar in ``stream`` in turn; raises one of ``UNREADABLE``.

    Reads the stream to its end, which checks checksums; tarfile alone takes damage in the middle for the end.
    """
    blocks = _Blocks(stream)
    with tarfile.open(fileobj=blocks, mode="r:") as tar:  # type: ignore[call-overload]  # tarfile uses no more of it
        while (member := tar.next()) is not None:
            blocks.heads = None
            tar.members.clear()  # or tarfile would keep them all
            if member.size < 0 or tar.offset <= member.offset:
                raise tarfile.ReadError(f"{member.name} has a size of {member.size} bytes")
            yield member, tar
            blocks.heads = PIECE
    if len(blocks.last) != tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut short")
    rest = blocks.last
    while rest and not rest.strip(b"\0"):
        rest = stream.read(PIECE)
    if rest:
        raise tarfile.ReadError("a member is damaged, or another archive follows")


class _Blocks:
    """The file below a tar reader: reads in pieces, and bounds the headers of one member."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.last = file, b""  # the bytes read last
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.heads: int | None = PIECE  # bytes left for headers; None within a member

    def read(self, size: int) -> bytes:
        if not 0 <= size <= PIECE:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        if self.heads is not None:
            self.heads -= size
            if self.heads < 0:
                raise tarfile.ReadError(f"the headers of a member take more than {PIECE} bytes")
        self.last = self.file.read(size)
        return self.last


def content(file: IO[bytes], most: int) -> bytes | None:
    """All bytes of ``file``, None for more than ``most``; read in pieces, as a false size must allocate nothing."""
    pieces, left = list[bytes](), most
    while piece := file.read(PIECE):
        left -= len(piece)
        if left < 0:
            return None
        pieces.append(piece)
    return b"".join(pieces)
