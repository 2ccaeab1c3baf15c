"""Photographs in folders, ``train/<class>/*`` and ``val/<class>/*``, from archives or a directory, to arrays."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import PIL
from PIL import features

from pipelines.command.errors import UserError, brief
from pipelines.command.progress import counting
from pipelines.config.meaning import as_text, meaning
from pipelines.config.origins import Origin
from pipelines.data.containers import Files, Folder, LeftOut, Mounted, Picture, open_archive
from pipelines.data.datasets import (
    SPLITS,
    FaultyError,
    Images,
    Mapped,
    Split,
    is_up_to_date,
    new_dataset,
    release_pages,
)
from pipelines.data.labels import LabelList, read_devkit, read_list
from pipelines.data.layout import Layout, lay_out
from pipelines.data.pictures import Undecodable, decode

IN_FLIGHT_BYTES = 48 << 20  # of all jobs at once; a local Ray's object store has room for them and to spare
MOST_IN_A_JOB = 64  # images

Encoded = Iterable[tuple[str, bytes]]  # place and content of each file
Job = tuple[int, Sequence[tuple[str, bytes]]]  # side of the squares; place and content of each file
Decoded = Sequence[tuple[str, Images | str]]  # by place, the pixels or the reason for having none
Decode = Callable[[Encoded, int], Iterable[Decoded]]  # all files, to squares of so many pixels, in any order
Say = Callable[[str], None]


@contextmanager
def writing(
    root: Path, name: str, origin: Origin, say: Say, *, md5s: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Rows]:
    """Lay out the pictures of the archives or folder that ``origin`` names, and give the rows to fill with them.

    At a normal end of the block the rows become ``datasets/<name>``; ``val`` is its test split. There are none to fill
    where that is up to date, and fewer where an interrupted run is continued. Files that are left out are logged by
    reason. ``md5s`` are those of checked archives. Raises ``UserError`` where the pictures do not form two splits of
    the same classes.
    """
    files, left_out = _open(root, name, origin), LeftOut()
    if not md5s:
        where = f"params.yaml: datasets.{name}"
        say(f"{where}: data.dvc has no md5 of it: when its files change, `dvc repro -f fetch@{name}` takes them in")
    try:
        layout = _lay_out(root, name, origin, files, left_out)
    except UserError:
        if left_out.reasons:
            say(f"{files.label}: left out: {left_out}")
        raise
    say(f"{layout.images} images of {len(layout.classes)} classes in {files.label}")
    classes = _class_names(name, layout, origin.names)
    plan = _plan(root, origin, layout, classes, md5s)
    if is_up_to_date(root / "datasets", name, plan):
        say("they are decoded already, and undamaged")
        yield Rows(name, files, layout, {})
        return
    with new_dataset(
        root / "datasets",
        name,
        classes=classes,
        shape=(3, origin.size, origin.size),
        train=len(layout.pictures["train"]),
        test=len(layout.pictures["test"]),
        source_md5=md5s,
        subset=origin.subset.words,
        plan=plan,
    ) as arrays:
        rows = Rows(name, files, layout, arrays)
        if rows.left < layout.images:
            say(f"{layout.images - rows.left} of {layout.images} images were decoded by an earlier run")
        yield rows
        rows.expect_none()
    say(f"{layout.images} images taken from {files.label}; left out: {left_out}")


def _lay_out(root: Path, name: str, origin: Origin, files: Files, left_out: LeftOut) -> Layout:
    with counting(f"fetch: {name}: reading names", None, unit=""):
        found = files.scan(left_out, origin.labels or "")
    labels = _labels(root, files, origin, [one for one in found if _is_list(one.path, origin)])
    pictures = [one for one in found if not _is_list(one.path, origin)]
    folders: dict[Split, str] = {"train": origin.train, "test": origin.val}
    return lay_out(files.label, pictures, folders, left_out, labels, origin.subset)


def _class_names(name: str, layout: Layout, names: Mapping[str, str]) -> list[str]:
    """The names of the classes; UserError where two have the same, or ``names`` has a folder that is no class."""
    where, known = f"params.yaml: datasets.{name}.names", layout.known
    absent = sorted(names.keys() - set(known))
    if absent:
        there = f"{len(known)} classes, {brief(known[0], 30)} to {brief(known[-1], 30)}"
        raise UserError(f"{where} has {brief(absent[0], 30)}, which is no class here; expected some of {there}")
    classes = [names.get(folder, folder) for folder in layout.classes]
    most_common, count = Counter(classes).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{where} gives {count} classes the name {brief(most_common, 30)}; expected a name of its own for each"
        )
    return classes


def _open(root: Path, name: str, origin: Origin) -> Files:
    if origin.folder is not None:
        if not (root / origin.folder).is_dir():
            raise UserError(f"params.yaml: datasets.{name}.folder: no such folder: {brief(origin.folder)}")
        return Folder(root / origin.folder, brief(origin.folder))
    if origin.archive is not None:
        return open_archive(root / "data" / origin.archive, brief(origin.archive))
    folders = {origin.train: origin.archives["train"], origin.val: origin.archives["val"]}
    return Mounted({to: open_archive(root / "data" / one, brief(one), nested=True) for to, one in folders.items()})


def _is_list(path: str, origin: Origin) -> bool:
    return origin.labels is not None and f"/{path}".endswith(f"/{origin.labels}")


def _labels(root: Path, files: Files, origin: Origin, lists: Sequence[Picture]) -> LabelList | None:
    """The classes of the images in a flat validation folder, if ``origin`` names them."""
    if origin.devkit is not None:
        return read_devkit(root / "data" / origin.devkit, brief(origin.devkit))
    if origin.labels is None:
        return None
    if not lists:
        named = f"which params.yaml names as the labels of {brief(origin.val)}/"
        raise UserError(f"{files.label}: {brief(origin.labels)} is missing; expected that file, {named}")
    return read_list(files, min(lists, key=lambda one: (one.path.count("/"), one.path)))


def _plan(root: Path, origin: Origin, layout: Layout, classes: Sequence[str], md5s: Mapping[str, str]) -> str:
    """A digest of all that decides the arrays and class names: the pictures in order, and the code that decodes."""
    versions = f"{PIL.__version__} {features.version('jpg')}"
    digest = hashlib.sha256(f"{origin.size} {sorted(md5s.items())} {versions} {classes} {origin.subset.words}".encode())
    digest.update(as_text(meaning(Path(inspect.getfile(decode)).read_text(encoding="utf-8"))).encode())
    for archive in origin.packed_images:
        digest.update(b"" if PurePosixPath(archive).name in md5s else _stamp(root / "data" / archive))
    for split in SPLITS:
        for picture, label in zip(layout.pictures[split], layout.labels[split], strict=True):
            digest.update(f"{split} {label} {picture.path} {picture.place}\n".encode("utf-8", "surrogateescape"))
            if origin.folder is not None:
                digest.update(_stamp(Path(picture.place)))
    return digest.hexdigest()


def _stamp(path: Path) -> bytes:
    """Size and time of a file, which tell versions of the same name apart."""
    try:
        found = path.stat()
    except OSError:  # reported when it is read
        return b""
    return f"{found.st_size} {found.st_mtime_ns}".encode()


def jobs(images: Encoded, size: int, in_flight: int) -> Iterator[Job]:
    """Files to decode together; the bytes of all jobs under way, encoded and as pixels, are bounded."""
    most, job, held = IN_FLIGHT_BYTES // in_flight, list[tuple[str, bytes]](), 0
    for place, packed in images:
        job.append((place, packed))
        held += len(packed) + 3 * size**2
        if held >= most or len(job) == MOST_IN_A_JOB:
            yield size, job
            job, held = [], 0
    if job:
        yield size, job


def in_this_process(files: Encoded, size: int) -> Iterator[Decoded]:
    """Decode one job after the other."""
    return map(decode_job, jobs(files, size, in_flight=1))


def decode_job(job: Job) -> Decoded:
    """Decode the files of one job, each to (3, size, size)."""
    size, images = job
    return [(place, _decoded(packed, size)) for place, packed in images]


def _decoded(packed: bytes, size: int) -> Images | str:
    try:
        return decode(packed, size)
    except Undecodable as error:
        return brief(str(error))


class Rows:
    """The rows of a data set's arrays that pictures have still to fill."""

    def __init__(self, name: str, files: Files, layout: Layout, arrays: Mapping[Split, tuple[Mapped, Mapped]]) -> None:
        self.name, self.files, self.layout, self.arrays = name, files, layout, arrays
        self.paths: dict[str, str] = {}  # of the places still to be decoded
        self.rows: dict[str, list[tuple[Split, int]]] = {}  # of each place, which may have several paths
        for split, (_, labels) in arrays.items():
            for row in np.flatnonzero(labels < 0).tolist():
                picture = layout.pictures[split][row]
                self.rows.setdefault(picture.place, []).append((split, row))
                self.paths[picture.place] = picture.path

    @property
    def left(self) -> int:
        """Their number."""
        return sum(map(len, self.rows.values()))

    def fill(self, decode: Decode) -> None:
        """Fill all rows by ``decode``; ``FaultyError`` where a file could not be decoded."""
        if not self.rows:
            return
        with (
            warnings.catch_warnings(action="ignore"),  # about odd EXIF and the like; only errors matter
            counting(f"fetch: {self.name}: decoding", self.left, unit="images") as advance,
        ):
            size = self.arrays["train"][0].shape[-1]
            for decoded in decode(self.files.read(self.paths), size):
                advance(sum(self._write(place, square) for place, square in decoded))
                for images, _ in self.arrays.values():
                    release_pages(images)

    def expect_none(self) -> None:
        """``FaultyError`` for rows that nothing has filled: they would be black."""
        if self.rows:
            lost = self.paths[next(iter(self.rows))]
            expected = "expected files that do not change while they are read"
            raise FaultyError(f"{self.files.label}: {brief(lost)} is gone; {expected}")

    def _write(self, place: str, pixels: Images | str) -> int:
        """Fill the rows of one file; their number."""
        if isinstance(pixels, str):
            raise FaultyError(f"{self.files.label}: {brief(self.paths[place])} cannot be decoded ({pixels})")
        filled = self.rows.pop(place)  # so that a row is written once
        for split, row in filled:
            images, labels = self.arrays[split]
            images[row] = pixels
            labels[row] = self.layout.labels[split][row]  # last, as it marks the row as filled
        return len(filled)
