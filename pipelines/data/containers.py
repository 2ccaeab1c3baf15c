"""Pictures in a directory, a tar or a zip archive: their paths and bytes, and which files are left out and why.

One walk serves all three, so that a folder gives the same pictures unpacked and packed. It follows links, reads each
folder once, by its own path if that lies within, and leaves out hidden folders and files.
"""

from __future__ import annotations

import functools
import heapq
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol

from pipelines.command.errors import UserError, brief
from pipelines.data import tars
from pipelines.data.datasets import FaultyError
from pipelines.data.pictures import FOREIGN, SUFFIXES

SYSTEM = frozenset(("@eaDir", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information"))
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
            elif entry.kind == "folder" and entry.link:
                heapq.heappush(links, (below, entry.place))
            elif entry.kind == "folder":
                folders.append((below, entry.place))
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
                    yield place, _whole(self.label, path, file)
            except OSError as error:
                raise FaultyError(f"{self.label}: {brief(path)} cannot be read ({error.strerror})") from None

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

    kind: Kind | Literal["link", "hard link"]
    place: str = ""


FOLDER, NOTHING = Member("folder"), Member("nothing")
Opened = Iterator[tuple[str, Member, Callable[[], IO[bytes] | None]]]  # path, member, and the function that opens it


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
        if node.kind == "hard link":
            node = self.nodes.get(_inside(node.place) or "", NOTHING)
            node = NOTHING if node.kind == "folder" else node
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
        assert node.kind != "link" and node.kind != "hard link"
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


def _whole(label: str, path: str, file: IO[bytes]) -> bytes:
    """The content of a picture's file; ``FaultyError`` for more bytes than it may have."""
    content = tars.content(file, LARGEST_FILE)
    if content is None:
        raise FaultyError(f"{label}: {brief(path)} cannot be read (more than {LARGEST_FILE} bytes)")
    return content


@contextmanager
def _reading(label: str) -> Iterator[None]:
    """Turn any error of a block that only reads the archive ``label`` into a FaultyError."""
    try:
        yield
    except tars.UNREADABLE as error:
        reason = "not enough memory" if isinstance(error, MemoryError) else brief(str(error), 150)
        whole = "expected a whole tar, tgz or zip (of method Deflate, without a password)"
        raise FaultyError(f"{label}: cannot be read to its end ({reason or type(error).__name__}); {whole}") from None


@dataclass(frozen=True)
class Archive:
    """A tar or zip archive, read in place."""

    label: str
    members: Callable[[Collection[str] | None], Opened]  # all, or at least those of the places that are wanted

    def scan(self, left_out: LeftOut, labels: str = "") -> list[Picture]:  # noqa: D102
        found = Members(left_out)
        with _reading(self.label):
            for name, member, _ in self.members(None):
                found.add(name, member)
        return walk("", found.entries, left_out, labels)

    def read(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        left = len(wanted)
        with _reading(self.label):
            for _, member, opened in self.members(wanted):
                if member.kind == "file" and member.place in wanted and (file := opened()):
                    with file:
                        yield member.place, _whole(self.label, wanted[member.place], file)
                    left -= 1
                    if not left:  # the scan has read the rest without errors
                        return


def _tar_members(path: Path, nested: bool, wanted: Collection[str] | None) -> Opened:
    """The members of a tar, numbered, and where ``nested`` those of the tars in it, in folders of their names."""
    outer = {place.partition("/")[0] for place in wanted or ()}
    for number, (info, tar) in enumerate(tars.tar_members(path)):
        opened = functools.partial(tar.extractfile, info)
        if not (nested and info.isreg() and info.name.endswith(".tar")):
            yield info.name, _tar_member(info, str(number)), opened
        elif (wanted is None or str(number) in outer) and (file := opened()):
            folder = info.name.removesuffix(".tar") + "/"
            for below, (inner, within) in enumerate(tars.members_of(file)):
                member = _tar_member(inner, f"{number}/{below}", folder)
                yield folder + inner.name, member, functools.partial(within.extractfile, inner)


def _tar_member(info: tarfile.TarInfo, place: str, folder: str = "") -> Member:
    if info.islnk():
        return Member("hard link", folder + info.linkname)
    if info.issym():
        return Member("link", info.linkname)
    return Member("file" if info.isreg() else "folder" if info.isdir() else "other", place)


def _zip_members(path: Path, wanted: Collection[str] | None) -> Opened:
    """The members of a zip, numbered."""
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist()):
            if wanted is not None and str(number) not in wanted:
                continue
            opened = functools.partial(archive.open, info)
            mode = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0  # Unix
            if mode == stat.S_IFLNK:
                with opened() as file:
                    target = file.read(PATH_MAX).decode("utf-8", "surrogateescape")
                yield _zip_name(info), Member("link", target), opened
            else:
                odd = mode not in (0, stat.S_IFREG, stat.S_IFDIR)
                kind: Kind = "other" if odd else "folder" if info.is_dir() or mode == stat.S_IFDIR else "file"
                yield _zip_name(info), Member(kind, str(number)), opened


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


def open_archive(path: Path, label: str, nested: bool = False) -> Archive:
    """The archive in ``path``, by its first bytes; raises ``UserError`` for anything but a tar or zip.

    ``nested``: tars in a tar count as folders.
    """
    with _reading(label):
        start = tars.first_bytes(path)
        if start.startswith((b"PK\3\4", b"PK\5\6")):
            return Archive(label, functools.partial(_zip_members, path))
        if start.startswith(tuple(tars.COMPRESSED)) or _is_tar(start):
            return Archive(label, functools.partial(_tar_members, path, nested))
        if zipfile.is_zipfile(path):  # behind a self-extracting program
            return Archive(label, functools.partial(_zip_members, path))
    raise UserError(f"{brief(str(path))}: no archive, or its beginning is damaged; expected a tar, tgz or zip")


def _is_tar(block: bytes) -> bool:
    """Whether this is the first block of a tar: a member's header, or the end of an empty one."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return block == bytes(tarfile.BLOCKSIZE)
    return True
