"""Pictures in a directory, a tar or a zip archive: their paths and bytes, and which files are left out and why.

One walk serves all three, so that a folder gives the same pictures unpacked and packed. It follows links, reads each
folder once, by its own path if that lies within, and leaves out hidden folders and files.
"""

from __future__ import annotations

import bz2
import gzip
import heapq
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol, cast

from pipelines.command.errors import UserError, brief
from pipelines.data.pictures import FOREIGN, SUFFIXES

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
SYSTEM = frozenset(("@eaDir", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information"))
PIECE = 1 << 20  # bytes at a time, and the most that a header of a tar may take
LARGEST_FILE = 1 << 28  # bytes of a picture's file
ROOM_FOR_NAMES = 2_000_000_000  # bytes of memory for the names in an archive: some five million
BESIDE_A_NAME = 350  # bytes of memory that a member takes beside its name
LINKS_IN_TURN = 40  # as in Linux
PATH_MAX = 4096  # bytes, as in Linux
Kind = Literal["file", "folder", "nothing", "other"]


class LeftOut:
    """Files that are left out, by reason: their number, and the first by path as an example."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, path: str) -> None:
        """Count ``path`` under ``reason``."""
        count, example = self.reasons.get(reason, (0, path))
        self.reasons[reason] = (count + 1, min(example, path))

    def __str__(self) -> str:
        parts = (f"{reason}: {count} ({brief(path)})" for reason, (count, path) in sorted(self.reasons.items()))
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: its path, the file that it leads to, and the fault that prevents reading it, if any."""

    path: str
    place: str
    fault: str = ""


@dataclass(frozen=True)
class Item:
    """A name in a folder; ``place`` is what it leads to."""

    name: str
    kind: Kind
    place: str
    link: bool = False


class Files(Protocol):
    """A collection of files: a directory, a tar or a zip archive."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    def scan(self, left_out: LeftOut, labels: str = "") -> list[Picture]:
        """Every picture, and every file whose path ends with ``labels``, in no order; others go to ``left_out``."""

    def read(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        """Place and content of each wanted file, in the fastest order; ``wanted`` has the path of each place."""


def walk(root: str, entries: Callable[[str], Sequence[Item]], left_out: LeftOut, labels: str) -> list[Picture]:
    """Every picture below the folder ``root``, and files called ``labels``; ``entries`` lists a folder by name."""
    pictures: list[Picture] = []
    seen = {root}
    folders, links = [("", root)], list[tuple[str, str]]()  # paths and places; links come after all other folders
    while folders or links:
        path, place = folders.pop() if folders else heapq.heappop(links)
        if path and (place in seen or f"{root}/".startswith(f"{place.rstrip('/')}/")):
            left_out.add("links to folders read before", path)
            continue
        seen.add(place)
        try:
            listed = entries(place)
        except OSError as error:
            pictures.append(Picture(f"{path or '.'}/*", "", error.strerror or "unreadable"))
            continue
        for entry in listed:
            below = f"{path}/{entry.name}" if path else entry.name
            if entry.name.startswith(".") or entry.name in SYSTEM:
                left_out.add("hidden or the system's", below)
            elif entry.kind == "folder":
                heapq.heappush(links, (below, entry.place)) if entry.link else folders.append((below, entry.place))
            elif labels and entry.kind == "file" and f"/{below}".endswith(f"/{labels}"):
                pictures.append(Picture(below, entry.place))
            else:
                _judge(below, entry, pictures, left_out)
    return pictures


def _judge(path: str, entry: Item, pictures: list[Picture], left_out: LeftOut) -> None:
    suffix = PurePosixPath(entry.name).suffix.lower()
    if entry.kind == "other":
        left_out.add("neither files nor folders", path)
    elif suffix in SUFFIXES:
        pictures.append(Picture(path, entry.place, "" if entry.kind == "file" else "No such file or directory"))
    elif entry.kind == "nothing":
        left_out.add("links to nothing", path)
    else:
        left_out.add("pictures of formats that are not read" if suffix in FOREIGN else "other files", path)


@dataclass(frozen=True)
class Folder:
    """An unpacked directory."""

    root: Path
    label: str

    def scan(self, left_out: LeftOut, labels: str = "") -> list[Picture]:  # noqa: D102
        return walk(os.path.realpath(self.root), self._entries, left_out, labels)

    def read(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        for place, path in wanted.items():
            try:
                with Path(place).open("rb") as file:
                    yield place, _whole(self.label, path, file, os.fstat(file.fileno()).st_size)
            except OSError as error:
                raise UserError(f"{self.label}: {brief(path)} cannot be read ({error.strerror})") from None

    @staticmethod
    def _entries(place: str) -> list[Item]:
        with os.scandir(place) as listed:
            return [Folder._entry(place, item) for item in sorted(listed, key=lambda item: item.name)]

    @staticmethod
    def _entry(place: str, item: os.DirEntry[str]) -> Item:
        link = item.is_symlink()
        try:
            mode = item.stat().st_mode
        except OSError:  # leads to nothing, or round in a ring
            return Item(item.name, "nothing", "", link)
        kind: Kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
        return Item(item.name, kind, os.path.realpath(item.path) if link else os.path.join(place, item.name), link)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive; ``place`` is what reads it, or where a link leads."""

    kind: Kind | Literal["link"]
    place: str = ""


FOLDER, NOTHING = Member("folder"), Member("nothing")


class Members:
    """The members of an archive by path, as unpacking would leave them."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out
        self.room = ROOM_FOR_NAMES
        self.nodes = {"": FOLDER}
        self.names: dict[str, set[str]] = {"": set()}  # of what lies in a folder, by its path

    def add(self, name: str, node: Member) -> None:
        """Add a member, in place of an earlier one of the same path; ``ValueError`` where they contradict."""
        path = _inside(name)
        if path is None:
            self.left_out.add("paths that lead out of the archive", name)
        elif path not in self.nodes:
            self._put(path, node)
        elif "folder" in (self.nodes[path].kind, node.kind):
            if self.nodes[path].kind != node.kind:
                raise ValueError(f"{path} is a folder and something else")
        else:
            self.left_out.add("replaced by later ones of the same name", path)
            self.nodes[path] = node

    def hard_link(self, name: str, target: str) -> None:
        """Add a member that is another name of an earlier one."""
        known = self.nodes.get(_inside(target) or "", NOTHING)
        self.add(name, NOTHING if known.kind == "folder" else known)

    def entries(self, folder: str) -> list[Item]:
        """The content of ``folder``, by name."""
        return [self._entry(folder, name) for name in sorted(self.names[folder])]

    def _put(self, path: str, node: Member) -> None:
        self._keep(path, node)
        if node.kind == "folder":
            self.names[path] = set()
        above, _, name = path.rpartition("/")
        while above not in self.names:  # an archive need not name its folders
            if above in self.nodes:
                raise ValueError(f"{above} is a folder and something else")
            self._keep(above, FOLDER)
            self.names[above] = {name}
            above, _, name = above.rpartition("/")
        self.names[above].add(name)

    def _keep(self, path: str, node: Member) -> None:
        self.nodes[path] = node
        self.room -= BESIDE_A_NAME + len(path)
        if self.room < 0:
            raise ValueError(f"more members than fit into {ROOM_FOR_NAMES} bytes of memory")

    def _entry(self, folder: str, name: str) -> Item:
        path = f"{folder}/{name}" if folder else name
        node, link = self.nodes[path], self.nodes[path].kind == "link"
        if link:
            path, node = self._follow(path)
        assert node.kind != "link"
        return Item(name, node.kind, node.place if node.kind == "file" else path, link)

    def _follow(self, path: str) -> tuple[str, Member]:
        """Follow all links of a path; to nothing where they leave the archive or form a ring."""
        at: list[str] = []
        ahead, links, node = path.split("/")[::-1], 0, FOLDER
        while ahead:
            part = ahead.pop()
            if part in ("", "."):
                continue
            if node.kind != "folder" or (part == ".." and not at):
                return "", NOTHING
            at = at[:-1] if part == ".." else [*at, part]
            node = self.nodes.get("/".join(at), NOTHING)
            if node.kind == "link":
                links += 1
                if links > LINKS_IN_TURN or node.place.startswith("/"):
                    return "", NOTHING
                ahead += node.place.split("/")[::-1]
                at, node = at[:-1], FOLDER
        return "/".join(at), node


def _inside(name: str) -> str | None:
    """A member's path in normal form; None where it leads out of the archive."""
    if len(name) > PATH_MAX:
        raise ValueError(f"a path of {len(name)} characters")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _whole(label: str, path: str, file: IO[bytes], size: int) -> bytes:
    """The content of a file whose header states ``size`` bytes, read in pieces, as a false size must allocate nothing.

    Raises ``UserError`` for more bytes than a picture may have.
    """
    pieces, length = list[bytes](), 0
    while max(size, length) <= LARGEST_FILE and (piece := file.read(PIECE)):
        pieces.append(piece)
        length += len(piece)
    if max(size, length) > LARGEST_FILE:
        most = f"{max(size, length)} bytes; expected at most {LARGEST_FILE}"
        raise UserError(f"{label}: {brief(path)} cannot be read ({most})")
    return b"".join(pieces)


@contextmanager
def _reading(label: str) -> Iterator[None]:
    """Turn any error of a block that only reads the archive ``label`` into a UserError."""
    try:
        yield
    except UNREADABLE as error:
        reason = "not enough memory" if isinstance(error, MemoryError) else brief(str(error), 150)
        whole = "expected a whole tar, tgz or zip (of method Deflate, without a password)"
        raise UserError(f"{label}: cannot be read to its end ({reason or type(error).__name__}); {whole}") from None


@dataclass(frozen=True)
class Tar:
    """A tar archive, compressed or not. It is read, never unpacked, so no path in it can do harm.

    With ``nested`` a tar within it is a folder named without the suffix: ILSVRC's training images are a tar per class.
    """

    path: Path
    label: str
    nested: bool = False

    def scan(self, left_out: LeftOut, labels: str = "") -> list[Picture]:  # noqa: D102
        members = Members(left_out)
        with _reading(self.label):
            for place, folder, member, _ in self._members(lambda outer: True):
                if member.islnk():
                    members.hard_link(folder + member.name, folder + member.linkname)
                elif member.issym():
                    members.add(folder + member.name, Member("link", member.linkname))
                else:
                    kind: Kind = "file" if member.isreg() else "folder" if member.isdir() else "other"
                    members.add(folder + member.name, Member(kind, place))
        return walk("", members.entries, left_out, labels)

    def read(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        left, outer = len(wanted), {place.partition("/")[0] for place in wanted}
        with _reading(self.label):
            for place, _, member, tar in self._members(outer.__contains__):
                if place in wanted and (file := tar.extractfile(member)):
                    yield place, _whole(self.label, wanted[place], file, member.size)
                    left -= 1
                    if not left:  # the scan has read the rest without errors
                        return

    def _members(self, opened: Callable[[str], bool]) -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
        """Place, folder, header and tar of each member; of nested tars only those whose place is ``opened``."""
        for number, (member, tar) in enumerate(tar_members(self.path)):
            place = str(number)
            inner = self.nested and member.isreg() and member.name.endswith(".tar")
            if not inner:
                yield place, "", member, tar
            elif opened(place):
                file = tar.extractfile(member)
                assert file is not None
                for below, (one, within) in enumerate(_members_of(file)):
                    yield f"{place}/{below}", f"{member.name.removesuffix('.tar')}/", one, within


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Each member of the tar archive ``path`` in turn, in bounded memory; raises one of ``UNREADABLE``.

    Reads the archive to its end, which checks checksums; tarfile alone takes damage in the middle for the end.
    """
    with _unpacked(path) as stream:
        yield from _members_of(stream)


def _members_of(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
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


def _unpacked(path: Path) -> IO[bytes]:
    """The uncompressed tar in ``path``."""
    start = _start(path)
    reader = next((reader for mark, reader in COMPRESSED.items() if start.startswith(mark)), open)
    return cast(IO[bytes], reader(path, "rb"))


@dataclass(frozen=True)
class Zip:
    """A zip archive, read in place."""

    path: Path
    label: str

    def scan(self, left_out: LeftOut, labels: str = "") -> list[Picture]:  # noqa: D102
        members = Members(left_out)
        with _reading(self.label), zipfile.ZipFile(self.path) as archive:
            for number, info in enumerate(archive.infolist()):
                mode = info.external_attr >> 16 if info.create_system == 3 else 0  # Unix
                if stat.S_ISLNK(mode):
                    with archive.open(info) as file:
                        target = file.read(PATH_MAX).decode("utf-8", "surrogateescape")
                    members.add(_zip_name(info), Member("link", target))
                else:
                    odd = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
                    kind: Kind = "other" if odd else "folder" if info.is_dir() or stat.S_ISDIR(mode) else "file"
                    members.add(_zip_name(info), Member(kind, str(number)))
        return walk("", members.entries, left_out, labels)

    def read(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        with _reading(self.label), zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
            for place, path in wanted.items():
                info = infos[int(place)]
                with archive.open(info) as file:
                    yield place, _whole(self.label, path, file, info.file_size)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's path; most archives have it in UTF-8, and few set the flag for that."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # later Pythons decode a second, UTF-8 name in the header
        return info.filename


@dataclass(frozen=True)
class Mounted:
    """Several archives as one collection, each below a folder of its own, unless it has that folder itself."""

    parts: Mapping[str, Files]  # by folder

    @property
    def label(self) -> str:  # noqa: D102
        return " and ".join(files.label for files in self.parts.values())

    def scan(self, left_out: LeftOut, labels: str = "") -> list[Picture]:  # noqa: D102
        found: list[Picture] = []
        for folder, files in self.parts.items():
            mine, top = files.scan(left_out, labels), f"{folder}/"
            within = "" if all(one.path.startswith(top) for one in mine) else top
            found += [Picture(within + one.path, top + one.place, one.fault) for one in mine]
        return found

    def read(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        for folder, files in self.parts.items():
            top = f"{folder}/"
            mine = {place.removeprefix(top): path for place, path in wanted.items() if place.startswith(top)}
            if mine:
                yield from ((top + place, content) for place, content in files.read(mine))


def open_archive(path: Path, label: str, nested: bool = False) -> Files:
    """The archive in ``path``, by its first bytes; raises ``UserError`` for anything but a tar or zip."""
    with _reading(label):
        start = _start(path)
        if start.startswith((b"PK\3\4", b"PK\5\6")):
            return Zip(path, label)
        if start.startswith(tuple(COMPRESSED)) or _is_tar(start):
            return Tar(path, label, nested)
        if zipfile.is_zipfile(path):  # behind a self-extracting program
            return Zip(path, label)
    raise UserError(f"{brief(str(path))}: no archive, or its beginning is damaged; expected a tar, tgz or zip")


def _is_tar(block: bytes) -> bool:
    """Whether this is the first block of a tar: a member's header, or the end of an empty one."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return block == bytes(tarfile.BLOCKSIZE)
    return True


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)
