"""Photographs in folders, ``train/<class>/*`` and ``val/<class>/*``, from an archive or a directory, to arrays."""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from pipelines.datasets import Images, Labels, Split, new_dataset, release_pages
from pipelines.download import Patience, Remote, SourceError, download, mismatch, shown
from pipelines.errors import UserError
from pipelines.progress import counting

if TYPE_CHECKING:
    from pipelines.benchmarks import Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# What the readers of archives and images raise; RuntimeError is zipfile's for a password or a method that it lacks.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, struct.error),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes and scales outside Python's lock
IN_FLIGHT = 32  # images a thread that wait, packed, in memory
RELEASE_EVERY = 500  # images
# Archives of https://github.com/fastai/imagenette, by their published names.
OFFICIAL = {
    name: f"https://s3.amazonaws.com/fast-ai-imageclas/{name}"
    for name in ("imagenette2.tgz", "imagenette2-320.tgz", "imagenette2-160.tgz")
}
Slots = Mapping[str, tuple[Split, int]]  # file name: its split and place in it


class Files(Protocol):
    """A collection of files: a directory, a tar or a zip archive."""

    @property
    def label(self) -> str:
        """How messages call it."""

    def names(self) -> Iterable[str]:
        """Paths of all regular files, with forward slashes."""

    def read(self, wanted: Slots) -> Iterator[tuple[str, bytes]]:
        """Path and content of each wanted file, in whatever order is quick."""


@dataclass(frozen=True)
class Folder:
    """An unpacked directory; links are followed."""

    root: Path
    label: str

    def names(self) -> Iterable[str]:  # noqa: D102
        for folder, _, files in os.walk(self.root, followlinks=True):
            for file in files:
                yield Path(folder, file).relative_to(self.root).as_posix()

    def read(self, wanted: Slots) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        for name in wanted:
            try:
                packed = (self.root / name).read_bytes()
            except OSError as error:  # a link to nowhere, say
                raise UserError(f"{self.label}: {name} cannot be read ({error.strerror})") from None
            yield name, packed


@dataclass(frozen=True)
class Tar:
    """A tar archive, packed or not. It is read through, never unpacked, so no path in it can do harm."""

    path: Path
    label: str

    def names(self) -> Iterable[str]:  # noqa: D102
        with tarfile.open(self.path) as tar:
            for member in tar:
                if member.isfile() or member.islnk():
                    yield member.name

    def read(self, wanted: Slots) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        with tarfile.open(self.path) as tar:
            for member in tar:
                if member.name in wanted and (file := tar.extractfile(member)):
                    yield member.name, file.read()


@dataclass(frozen=True)
class Zip:
    """A zip archive, read in place."""

    path: Path
    label: str

    def names(self) -> Iterable[str]:  # noqa: D102
        with zipfile.ZipFile(self.path) as archive:
            yield from (info.filename for info in archive.infolist() if not info.is_dir())

    def read(self, wanted: Slots) -> Iterator[tuple[str, bytes]]:  # noqa: D102
        with zipfile.ZipFile(self.path) as archive:
            for name in wanted:
                yield name, archive.read(name)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which file becomes which row of which array: by class, then by path, as sorted."""

    classes: tuple[str, ...]
    slots: Mapping[str, tuple[Split, int]]
    labels: Mapping[Split, list[int]]


def write(root: Path, name: str, source: Source, say: Callable[[str], None]) -> None:
    """Write ``datasets/<name>`` from the archive or folder that ``source`` names; ``val`` becomes the test split.

    Images are RGB, their short side scaled to ``source.size`` pixels, the centre square cut out. Raises ``UserError``
    where there is no archive, no images, a class in one split alone, or an image that cannot be decoded.
    """
    files, md5s = locate(root, name, source, say)
    if not md5s:
        say(f"datasets.{name} has no md5: when its files change, `dvc repro -f fetch@{name}` takes them in")
    layout = lay_out(files, source.train, source.val)
    say(f"{len(layout.slots)} images of {len(layout.classes)} classes in {files.label}")
    _decode_all(root, name, source.size, files, layout, md5s)


def locate(root: Path, name: str, source: Source, say: Callable[[str], None]) -> tuple[Files, dict[str, str]]:
    """The files of ``source``, and the md5 of the archive they are in, by its name."""
    if source.folder is not None:
        path = root / source.folder
        if not path.is_dir():
            raise UserError(f"datasets.{name}.folder: no such folder: {source.folder}")
        return Folder(path, source.folder), {}
    assert source.archive is not None
    path = _find_archive(root, name, source.archive, source, say)
    md5s = {} if source.md5 is None else {PurePosixPath(source.archive).name: source.md5}
    with _reading(source.archive):
        return _open_archive(path, source.archive), md5s


def lay_out(files: Files, train: str, val: str) -> Layout:
    """Sort the images of ``files`` into splits and classes; the two split folders may lie below a common folder."""
    with _reading(files.label):  # a tar may hold a file twice: the last counts
        images = dict.fromkeys(name for name in files.names() if _is_image(name))
    found: dict[tuple[str, Split], dict[str, list[str]]] = {}
    for image in images:
        for split, folder in (("train", train), ("test", val)):
            for base, kind in _below(image, folder):
                found.setdefault((base, split), {}).setdefault(kind, []).append(image)  # type: ignore[arg-type]
    bases = [base for base, split in found if split == "train" and (base, "test") in found]
    if not bases:
        lacking = [folder for folder, split in ((train, "train"), (val, "test")) if split not in {s for _, s in found}]
        where = " or ".join(f"{folder}/<class>/" for folder in lacking) or f"{train}/ and {val}/ of one folder"
        raise UserError(f"{files.label}: no images in {where}; expected files such as {SUFFIXES[0]} and {SUFFIXES[2]}")
    base = min(bases, key=lambda base: (base.count("/"), len(base)))
    by_split: dict[Split, dict[str, list[str]]] = {"train": found[base, "train"], "test": found[base, "test"]}
    _check_classes(files.label, by_split, {"train": train, "test": val})
    classes = tuple(sorted(by_split["train"]))
    slots: dict[str, tuple[Split, int]] = {}
    labels: dict[Split, list[int]] = {"train": [], "test": []}
    for split, kinds in by_split.items():
        for label, kind in enumerate(classes):
            for image in sorted(kinds[kind]):
                slots[image] = (split, len(labels[split]))
                labels[split].append(label)
    return Layout(classes=classes, slots=slots, labels=labels)


def decode(packed: bytes, size: int) -> Images:
    """An image file as (3, size, size): RGB, short side scaled to ``size`` (bilinear, antialiased), centre crop."""
    with Image.open(io.BytesIO(packed)) as opened:
        image = opened.convert("RGBA").convert("RGB") if "transparency" in opened.info else opened.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def _decode_all(root: Path, name: str, size: int, files: Files, layout: Layout, md5s: Mapping[str, str]) -> None:
    counts = {split: len(labels) for split, labels in layout.labels.items()}
    with (
        new_dataset(
            root / "datasets",
            name,
            classes=layout.classes,
            shape=(3, size, size),
            train=counts["train"],
            test=counts["test"],
            source_md5=md5s,
        ) as arrays,
        counting(f"fetch: {name}: decoding", len(layout.slots), unit="images") as advance,
    ):
        for split, labels in layout.labels.items():
            arrays[split][1][:] = labels

        def store(image: str, packed: bytes) -> None:
            split, slot = layout.slots[image]
            try:
                arrays[split][0][slot] = decode(packed, size)
            except (*UNREADABLE, SyntaxError, Image.DecompressionBombError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"{files.label}: {image} cannot be decoded ({_without_address(reason)})") from None

        _in_threads(_contents(files, layout.slots), store, advance, arrays)


@contextmanager
def _reading(label: str) -> Iterator[None]:
    """Around what reads ``label`` and does nothing else: a full disk, or a bug of ours, is no damaged archive."""
    try:
        yield
    except (*UNREADABLE, KeyError) as error:  # KeyError: a hard link to what the tar does not hold
        whole = "expected a whole tar, tgz or zip (of method Deflate, without a password)"
        raise UserError(f"{label}: cannot be read through ({error}); {whole}") from None


def _contents(files: Files, wanted: Slots) -> Iterator[tuple[str, bytes]]:
    with _reading(files.label):
        yield from files.read(wanted)


def _in_threads(
    images: Iterator[tuple[str, bytes]],
    store: Callable[[str, bytes], None],
    advance: Callable[[int], None],
    arrays: Mapping[str, tuple[Images, Labels]],
) -> None:
    """Read in this thread, decode in others; the first error ends it."""
    waiting: deque[Future[None]] = deque()

    def finish_one() -> None:
        waiting.popleft().result()
        advance(1)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for count, (image, packed) in enumerate(images):
                waiting.append(pool.submit(store, image, packed))
                if len(waiting) > THREADS * IN_FLIGHT:
                    finish_one()
                if count % RELEASE_EVERY == 0:
                    for array, _ in arrays.values():
                        release_pages(array)
            while waiting:
                finish_one()
        finally:
            pool.shutdown(cancel_futures=True)


def _find_archive(root: Path, name: str, archive: str, source: Source, say: Callable[[str], None]) -> Path:
    """The archive with the right size and md5; ``UserError`` says where it was looked for and what was there."""
    mirror = os.environ.get("DATA_MIRROR", "")
    remote = mirror.startswith(("http://", "https://"))
    places = [Path(mirror, archive)] if mirror and not remote else []
    seen = []
    for path in (*places, root / "data" / archive):
        problem = _problem(path, source)
        if problem is None:
            say(f"{archive}: {path}" + (", md5 ok" if source.md5 else ""))
            return path
        seen.append(f"{path}: {problem}")
        if problem != "absent":
            say(f"{archive}: not from {path}: {problem}")
    urls = [f"{mirror.rstrip('/')}/{quote(archive)}"] if remote else []
    urls += [OFFICIAL[archive]] if archive in OFFICIAL else []
    for url in urls:
        try:
            return _download(root, name, archive, Remote(url=url, size=source.bytes, md5=source.md5), say)
        except SourceError as error:
            seen.append(f"{shown(url)}: {error}")
            say(f"{archive}: not from {shown(url)}: {error}")
    hint = "put it into data/ or point DATA_MIRROR at a directory or URL that has it"
    raise UserError(f"datasets.{name}.archive: {archive} was not found ({'; '.join(seen)}); {hint}")


def _problem(path: Path, source: Source) -> str | None:
    """What keeps the archive from being taken from ``path``, if anything."""
    try:
        if not path.is_file():
            return "absent"
        with path.open("rb") as file:
            file.read(1)  # without an md5 nothing else reads it here, while there are other places to try
        return mismatch(path, source.bytes, source.md5)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _download(root: Path, name: str, archive: str, remote: Remote, say: Callable[[str], None]) -> Path:
    final = root / "data" / archive
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.part")
    download(remote, part, Patience(), archive)
    part.replace(final)
    say(f"{archive}: from {shown(remote.url)}" + (", md5 ok" if remote.md5 else ""))
    return final


def _open_archive(path: Path, label: str) -> Files:
    if zipfile.is_zipfile(path):
        return Zip(path, label)
    if tarfile.is_tarfile(path):
        return Tar(path, label)
    raise UserError(f"{path}: not an archive; expected a tar, tgz or zip")


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _below(image: str, folder: str) -> Iterator[tuple[str, str]]:
    """Each reading of ``image`` as ``<base>/<folder>/<class>/...``: its base and its class."""
    parts, wanted = PurePosixPath(image).parts, PurePosixPath(folder).parts
    for start in range(len(parts) - len(wanted) - 1):
        if parts[start : start + len(wanted)] == wanted:
            yield "/".join(parts[:start]), parts[start + len(wanted)]


def _check_classes(label: str, by_split: Mapping[Split, Mapping[str, object]], folders: Mapping[Split, str]) -> None:
    train, test = by_split["train"], by_split["test"]
    for have, lack in (("train", "test"), ("test", "train")):
        missing = sorted(by_split[have].keys() - by_split[lack].keys())  # type: ignore[index]
        if missing:
            named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            held, absent = folders[have], folders[lack]  # type: ignore[index]
            raise UserError(f"{label}: class {named} has images in {held}/ but none in {absent}/; expected both")
    assert train.keys() == test.keys()


def _without_address(reason: str) -> str:
    """Pillow names the object it read from, which tells a user nothing."""
    return reason.partition(" <")[0]
