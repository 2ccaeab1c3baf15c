"""Data sets as arrays on disk: uint8 images and int64 labels for each split, described in ``meta.json``.

<root>/<name>/train_images.npy  uint8 (N, C, H, W)      train_labels.npy  int64 (N,)
<root>/<name>/test_images.npy   uint8 (M, C, H, W)      test_labels.npy   int64 (M,)
<root>/<name>/meta.json         names, sizes, a sha256 for each array, md5s of the raw files
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pipelines.command.errors import UserError, reason
from pipelines.command.files import (
    MissingError,
    file_sha256,
    hashed,
    read_json,
    reading,
    remove,
    replace_folder,
    require_folder,
    restore_folder,
)
from pipelines.command.progress import counting
from pipelines.config import schema, wording
from pipelines.config.values import Count, Rule, plain
from pipelines.config.wording import require

Split = Literal["train", "test"]
Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
Mapped = np.memmap[Any, Any]
Shape = tuple[int, int, int]  # channels, height, width

SPLITS: tuple[Split, ...] = get_args(Split)
DATA = Path(os.environ.get("DATASETS") or "datasets")  # the <root> of stages that read; fetch writes to datasets/
META = "meta.json"
ARRAYS = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
FORMER_KEYS = ("mean", "std")  # of meta.json, as earlier versions wrote it
PLAN = "plan"  # file beside unfinished arrays
Digests = Annotated[dict[str, str], Rule(f"those of {', '.join(ARRAYS)}", lambda found: set(found) == set(ARRAYS))]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set as its ``meta.json`` describes it; only :meth:`split` opens the arrays."""

    path: Path
    name: str
    classes: tuple[str, ...]
    shape: tuple[Count, Count, Count]  # channels, height, width
    train: Count  # number of training images
    test: Count
    digests: Digests  # sha256 by file name
    source_md5: dict[str, str] = field(default_factory=dict)  # of the raw files or archives, by name
    subset: str = ""  # the rule that selects it from a larger data set, in words
    plan: str = ""  # of photographs, a digest of all that decides the arrays

    def __post_init__(self) -> None:
        sizes = f"train is {self.train}, test {self.test} and shape {wording.show(self.shape)}"
        size = math.prod(self.shape) * max(self.train, self.test)
        require(size <= sys.maxsize, f"{sizes}; expected images that fit into memory")

    @property
    def digest(self) -> str:
        """One sha256 of the whole data set: of the names and digests of its arrays, and of the subset's rule."""
        lines = "".join(f"{file} {digest}\n" for file, digest in sorted(self.digests.items()))
        lines += f"subset {self.subset}\n" if self.subset else ""
        return hashlib.sha256(lines.encode()).hexdigest()

    def split(self, split: Split) -> tuple[Images, Labels]:
        """Images (N, C, H, W) and labels (N,) of one split, memory-mapped for reading; the other is not opened.

        Raises ``UserError`` where a file is missing or differs from ``meta.json``.
        """
        count = self.train if split == "train" else self.test
        images_file, labels_file = (self.path / file for file in _files(split))
        with _advising(self.name):
            images = _open_array(images_file, np.dtype(np.uint8), (count, *self.shape))
            labels = _open_array(labels_file, np.dtype(np.int64), (count,))
            _check_labels(f"{labels_file}: labels", labels, len(self.classes))
        return images, labels

    def verify(self, *splits: Split) -> None:
        """Compare the digests of the arrays of ``splits``, by default of both, with ``meta.json``.

        Raises ``UserError`` with the file and both digests.
        """
        with _advising(self.name):
            for path in (self.path / file for split in splits or SPLITS for file in _files(split)):
                found = file_sha256(path)
                if found != self.digests[path.name]:
                    raise UserError(f"{path}: expected sha256 {self.digests[path.name]}, found {found}")


@contextmanager
def _advising(name: str) -> Iterator[None]:
    """Add to errors how to write the data set anew."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; write it with: python -m pipelines.fetch {name}") from None


def open_dataset(root: Path, name: str) -> Dataset:
    """Read ``<root>/<name>/meta.json``; raises ``UserError`` where it is absent or damaged."""
    return read_description(root / name, name)


def is_up_to_date(root: Path, name: str, plan: str) -> bool:
    """Whether ``<root>/<name>`` was made by the same ``plan`` and is whole; hashes its files."""
    try:
        there = open_dataset(root, name)
        if there.plan == plan:
            there.verify()
            return True
    except UserError:  # so that it is made anew
        pass
    return False


def read_description(path: Path, name: str) -> Dataset:
    """As ``open_dataset``, for the data set ``name`` in any folder."""
    with _advising(name):
        try:
            description = {key: value for key, value in read_json(path / META).items() if key not in FORMER_KEYS}
            dataset = schema.parse(Dataset, description, str(path / META), path=path)
        except MissingError:
            raise UserError(f"{path}: no such dataset") from None
        if dataset.name != name:
            raise UserError(f"{path / META}: name is {dataset.name!r}, expected {name!r}")
        return dataset


def write_dataset(
    root: Path,
    name: str,
    *,
    classes: Sequence[str],
    train: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    test: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    source_md5: Mapping[str, str] | None = None,
) -> Dataset:
    """Write images (N, C, H, W) uint8 and labels (N,) from memory to ``<root>/<name>``, all or nothing."""
    channels, height, width = train[0].shape[1:]
    shape = (channels, height, width)
    with new_dataset(
        root, name, classes=classes, shape=shape, train=len(train[0]), test=len(test[0]), source_md5=source_md5
    ) as arrays:
        arrays["train"][0][:], arrays["train"][1][:] = train
        arrays["test"][0][:], arrays["test"][1][:] = test
    return open_dataset(root, name)


class FaultyError(UserError):
    """The images that a data set is made of are at fault: no later run could finish."""


@contextmanager
def new_dataset(
    root: Path,
    name: str,
    *,
    classes: Sequence[str],
    shape: Shape,
    train: int,
    test: int,
    source_md5: Mapping[str, str] | None = None,
    subset: str = "",
    plan: str = "",
) -> Iterator[dict[Split, tuple[Mapped, Mapped]]]:
    """Give arrays on disk, ``{"train": (images, labels), "test": ...}``, to fill within the ``with`` block.

    Images are 0 and labels -1. At a normal end of the block they become ``<root>/<name>``, with digests. When it
    raises, nothing is left behind, unless there is a ``plan``, a digest of all that decides the rows, and no
    FaultyError: the next call of the same plan then continues these arrays, in which the rows that were filled have
    labels. Two writers of one data set must exclude each other (``fetch`` holds a lock). A full disk raises ``OSError``
    before the block begins; later, writing to a mapped page without room would be a SIGBUS. Raises ``UserError`` where
    ``root`` cannot be written to, or where files that are no data set stand in the place.
    """
    partial, arrays = root / f".{name}.partial", dict[Split, tuple[Mapped, Mapped]]()
    require_folder(root)
    _refuse_foreign_files(root / name)
    try:
        arrays = _begin(partial, shape, {"train": train, "test": test}, plan)
        yield arrays
        for split, (_, labels) in arrays.items():
            _check_labels(f"{name}: {split} labels", labels, len(classes))
        for array in (array for pair in arrays.values() for array in pair):
            array.flush()
        pixels = sum(images.nbytes for images, _ in arrays.values())
        with counting(f"{name}: checksums", pixels) as advance:
            digests = {file: hashed(partial / file, "sha256", advance) for file in ARRAYS}
        dataset = Dataset(
            path=partial,
            name=name,
            classes=tuple(classes),
            shape=shape,
            train=train,
            test=test,
            digests=digests,
            source_md5=dict(source_md5 or {}),
            subset=subset,
            plan=plan,
        )
        meta = {key: value for key, value in plain(dataset).items() if key != "path" and value != ""}
        (partial / PLAN).unlink()
        (partial / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        replace_folder(partial, root / name)
    except BaseException as error:  # an interruption, a lost cluster
        if not plan or isinstance(error, FaultyError) or not (partial / PLAN).exists():
            remove(partial)
        elif arrays:  # otherwise rows of a killed run may not be on the disk yet
            for array in (array for pair in arrays.values() for array in pair):
                array.flush()
            (partial / PLAN).write_text(plan, encoding="ascii")
        raise


def _begin(partial: Path, shape: Shape, counts: Mapping[Split, int], plan: str) -> dict[Split, tuple[Mapped, Mapped]]:
    """New arrays in the folder ``partial``, or those of the same plan in it."""
    arrays, shapes = dict[Split, tuple[Mapped, Mapped]](), dict[str, tuple[int, ...]]()
    for split, count in counts.items():
        shapes |= zip(_files(split), ((count, *shape), (count,)), strict=True)
    continued = _continues(partial, plan, shapes)
    if not continued:
        remove(partial)
        partial.mkdir()
    for split, count in counts.items():
        images_file, labels_file = (partial / file for file in _files(split))
        images = _create_array(images_file, np.dtype(np.uint8), (count, *shape), continued)
        labels = _create_array(labels_file, np.dtype(np.int64), (count,), continued)
        if not continued:
            labels[:] = -1
        arrays[split] = images, labels
    (partial / PLAN).write_text(plan + _boot(), encoding="ascii")
    return arrays


def _continues(partial: Path, plan: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether ``partial`` has arrays of the same plan, all of whose rows are on the disk or in this kernel's memory."""
    try:
        kept = (partial / PLAN).read_text(encoding="ascii")
        whole = all(np.load(partial / file, mmap_mode="r").shape == shape for file, shape in shapes.items())
    except Exception:  # absent or damaged: numpy raises errors of many kinds
        return False
    return whole and plan != "" and kept in (plan, plan + _boot())


def _boot() -> str:
    """Names the run of the kernel: what a killed process wrote is safe until the machine goes down."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")


@contextmanager
def receiving(root: Path, name: str) -> Iterator[Path]:
    """Give a folder to copy a data set's files into; whole, they become ``<root>/<name>``.

    Raises ``UserError`` where a file is missing or differs from its digest, and as ``new_dataset``.
    """
    partial = root / f".{name}.partial"
    restore_or_refuse(root, name)
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        dataset = read_description(partial, name)
        dataset.verify()
        for split in SPLITS:
            dataset.split(split)
        replace_folder(partial, root / name)
    finally:
        remove(partial)


def release_pages(array: npt.NDArray[Any]) -> None:
    """Release a mapped array's pages from this process's memory; the file keeps what was written."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)


def _files(split: Split) -> tuple[str, str]:
    return f"{split}_images.npy", f"{split}_labels.npy"


def _open_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    with reading(path):  # a regular file
        pass
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        if not isinstance(array, np.ndarray):  # of a zip archive np.load makes something else
            raise ValueError("several arrays")
    except Exception as error:  # for a damaged header numpy raises errors of many kinds
        raise UserError(f"{path}: not a readable array ({reason(error)})") from None
    if array.dtype != dtype or array.shape != shape:
        raise UserError(f"{path}: {array.dtype} {array.shape}, expected {dtype} {shape} as in {META}")
    return array


def _create_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], continued: bool = False) -> Mapped:
    """An array of zeros in a new file, or the array in the file where it is ``continued``."""
    try:
        mode: Literal["r+", "w+"] = "r+" if continued else "w+"
        array = np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:  # neither call's error has the file's name
        if error.errno == errno.ENOMEM:
            limit = "expected room for that in what may be mapped (ulimit -v)"
            raise UserError(f"{path}: {math.prod(shape) * dtype.itemsize} bytes; {limit}") from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    return array


def _check_labels(where: str, labels: Labels, classes: int) -> None:
    if not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{where} {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")


def _refuse_foreign_files(final: Path) -> None:
    """UserError where a replacement would remove files that are no data set; of a link only the link is replaced."""
    if final.is_symlink() or not final.exists():
        return
    if not final.is_dir():
        raise UserError(f"{final}: a file stands where a dataset belongs; move it away")
    ours = {META, *ARRAYS}
    foreign = sorted(path.name for path in final.iterdir() if path.name not in ours or path.is_dir())
    if foreign:
        raise UserError(f"{final}: holds {foreign[0]}, which is no part of a dataset and would be lost; move it away")


def restore_or_refuse(root: Path, name: str) -> None:
    """Make ``root``, and restore ``<root>/<name>`` where its replacement was killed between the two renames.

    Raises ``UserError`` before long work begins, where :func:`new_dataset` would raise it at the end.
    """
    require_folder(root)
    restore_folder(root / name)
    _refuse_foreign_files(root / name)
