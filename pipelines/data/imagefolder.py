"""Photographs in folders, ``train/<class>/*`` and ``val/<class>/*``, from archives or a directory, to arrays."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import PIL
from PIL import features

from pipelines.command.errors import UserError, brief
from pipelines.command.progress import counting
from pipelines.config.origins import Origin
from pipelines.data.containers import Files, Folder, LeftOut, Mounted, Picture, open_archive
from pipelines.data.datasets import SPLITS, FaultyError, Images, Mapped, Split, is_made, new_dataset, release_pages
from pipelines.data.labels import LabelList, read_devkit, read_list
from pipelines.data.layout import Layout, lay_out
from pipelines.data.pictures import Undecodable, decode, quiet_libraries

IN_FLIGHT_BYTES = 48 << 20  # of all jobs at once; a local Ray's object store has room for them and to spare
MOST_IN_A_JOB = 64  # images

Encoded = Iterable[tuple[str, bytes]]  # place and content of each file
Job = tuple[int, Sequence[tuple[str, bytes]]]  # side of the squares; place and content of each file
Decoded = Sequence[tuple[str, Images | str]]  # by place, the pixels or the reason for having none
Decode = Callable[[Encoded, int], Iterable[Decoded]]  # all files, to squares of so many pixels, in any order
DecodeFor = Callable[[int], AbstractContextManager[Decode]]  # of a number of images
Say = Callable[[str], None]


@contextmanager
def in_this_process(images: int) -> Iterator[Decode]:
    """One job after the other."""
    yield lambda files, size: map(decode_job, jobs(files, size, in_flight=1))


def write(
    root: Path,
    name: str,
    origin: Origin,
    say: Say,
    *,
    md5s: Mapping[str, str] = MappingProxyType({}),
    decoders: DecodeFor = in_this_process,
) -> None:
    """Write ``datasets/<name>`` from the archives or folder that ``origin`` names; ``val`` becomes the test split.

    Images become squares of ``origin.size`` pixels (:func:`decode`); files that are left out are logged by reason.
    ``md5s`` are those of checked archives; ``decoders`` takes the number of images to decode. An interrupted run is
    continued. Raises ``UserError`` where the pictures do not form two splits of the same classes, or one cannot be
    decoded.
    """
    folders: dict[Split, str] = {"train": origin.train, "test": origin.val}
    where = f"params.yaml: datasets.{name}"
    files, left_out = _open(root, where, origin), LeftOut()
    if not md5s:
        say(f"{where}: data.dvc has no md5 of it: when its files change, `dvc repro -f fetch@{name}` takes them in")
    try:
        with counting(f"fetch: {name}: reading names", None, unit=""):
            found = files.scan(left_out, origin.labels or "")
        labels = _labels(root, files, origin, [one for one in found if _is_list(one.path, origin)])
        pictures = [one for one in found if not _is_list(one.path, origin)]
        layout = lay_out(files.label, pictures, folders, left_out, labels, origin.subset)
    except UserError:
        if left_out.reasons:
            say(f"{files.label}: left out: {left_out}")
        raise
    say(f"{layout.images} images of {len(layout.classes)} classes in {files.label}")
    classes = [origin.names.get(kind, kind) for kind in layout.classes]
    plan = _plan(root, origin, layout, classes, md5s)
    if is_made(root / "datasets", name, plan):
        say("they are decoded already, and undamaged")
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
        rows = _Rows(files.label, layout, arrays)
        _decode_all(rows, files, origin.size, decoders, f"fetch: {name}: decoding", say)
    say(f"{layout.images} images taken from {files.label}; left out: {left_out}")


def _open(root: Path, where: str, origin: Origin) -> Files:
    if origin.folder is not None:
        if not (root / origin.folder).is_dir():
            raise UserError(f"{where}.folder: no such folder: {brief(origin.folder)}")
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


def _decode_all(rows: _Rows, files: Files, size: int, decoders: DecodeFor, what: str, say: Say) -> None:
    left, images = sum(map(len, rows.rows.values())), rows.layout.images
    if left < images:
        say(f"{images - left} of {images} images were decoded by an earlier run")
    with (
        quiet_libraries(),
        warnings.catch_warnings(action="ignore"),  # about odd EXIF and the like; only errors matter
        decoders(left) as decode_all,
        counting(what, left, unit="images") as advance,
    ):
        for decoded in decode_all(files.read(rows.paths), size):
            advance(sum(rows.write(place, square) for place, square in decoded))
            for pixels, _ in rows.arrays.values():
                release_pages(pixels)
    if rows.rows:  # they would be black
        lost = rows.paths[next(iter(rows.rows))]
        expected = "expected files that do not change while they are read"
        raise FaultyError(f"{files.label}: {brief(lost)} is gone; {expected}")


def _plan(root: Path, origin: Origin, layout: Layout, classes: Sequence[str], md5s: Mapping[str, str]) -> str:
    """A digest of all that decides the arrays and class names: the pictures in order, and the code that decodes."""
    versions = f"{PIL.__version__} {features.version('jpg')}"
    digest = hashlib.sha256(f"{origin.size} {sorted(md5s.items())} {versions} {classes} {origin.subset.words}".encode())
    digest.update(Path(inspect.getfile(decode)).read_bytes())
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


def decode_job(job: Job) -> Decoded:
    """Decode the files of one job, each to (3, size, size)."""
    size, images = job
    return [(place, _decoded(packed, size)) for place, packed in images]


def _decoded(packed: bytes, size: int) -> Images | str:
    try:
        return decode(packed, size)
    except Undecodable as error:
        return brief(str(error))


class _Rows:
    """The rows that pictures have still to fill."""

    def __init__(self, label: str, layout: Layout, arrays: Mapping[Split, tuple[Mapped, Mapped]]) -> None:
        self.label, self.layout, self.arrays = label, layout, arrays
        self.paths: dict[str, str] = {}  # of the places still to be decoded
        self.rows: dict[str, list[tuple[Split, int]]] = {}  # of each place, which may have several paths
        for split in SPLITS:
            for row in np.flatnonzero(arrays[split][1] < 0).tolist():
                picture = layout.pictures[split][row]
                self.rows.setdefault(picture.place, []).append((split, row))
                self.paths[picture.place] = picture.path

    def write(self, place: str, pixels: Images | str) -> int:
        """Fill the rows of one file, and return their number; ``FaultyError`` where it could not be decoded."""
        if isinstance(pixels, str):
            raise FaultyError(f"{self.label}: {brief(self.paths[place])} cannot be decoded ({pixels})")
        ours = self.rows.pop(place)  # so that a row is written once
        for split, row in ours:
            images, labels = self.arrays[split]
            images[row] = pixels
            labels[row] = self.layout.labels[split][row]  # last, as it marks the row as filled
        return len(ours)
