"""The .npz files of an evaluation, read without believing what they claim of their own size."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipelines.command.errors import printable
from pipelines.training import store
from pipelines.training.store import DamagedError

LONGEST = 4096  # entries along an axis that is no list of images or units
MOST = 10_000_000  # entries along any
MOST_BYTES = 256_000_000  # of an array
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
DAMAGE = (  # what zipfile, its decompressors and NumPy's header make of a file that is none
    *(
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
        OverflowError,
        SyntaxError,
        RuntimeError,
        NotImplementedError,
    ),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, MemoryError, Warning),
)

Array = npt.NDArray[Any]


def read(path: Path, axes: Mapping[str, int]) -> dict[str, Array]:
    """The arrays of ``path``, each with so many axes; DamagedError where one is missing, damaged or another."""
    found = _read(path, axes)
    for key, count in axes.items():
        if key not in found:
            raise DamagedError(f"{path} lacks {key}; expected the arrays {', '.join(axes)}: run dvc repro")
        if found[key].ndim != count:
            raise DamagedError(f"{path}: {key} has shape {found[key].shape}; expected {count} axes")
    return found


def first_layer(path: Path) -> dict[str, Array]:
    """``filters`` (O, I, kH, kW) or ``templates`` (C, channels, H, W), float32; neither where the file is missing."""
    try:
        found = _read(path, ("filters", "templates"))
    except store.MissingError:
        return {}
    for key, array in found.items():
        sides = array.shape[1:]
        sound = array.ndim == 4 and 0 not in array.shape and max(sides) <= LONGEST and array.dtype.kind == "f"
        if not sound or not (np.abs(array) < 1e30).all():  # NaN, too
            told = f"{array.dtype} of shape {array.shape}"
            raise DamagedError(f"{path}: {key} is {told}; expected finite floats on four axes")
    return {key: array.astype(np.float32) for key, array in found.items()}


def _read(path: Path, keys: Iterable[str]) -> dict[str, Array]:
    """The arrays of these names that are there."""
    with store.reading(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with zipfile.ZipFile(file) as archive:
                there = {key: archive.NameToInfo.get(f"{key}.npy") for key in keys}
                return {key: _array(archive, one) for key, one in there.items() if one is not None}
        except DAMAGE as error:
            reason = printable(" ".join(str(error).split()))[:80]
            raise DamagedError(f"{path} is damaged ({reason}); delete it and run the stage again") from None


def _array(archive: zipfile.ZipFile, one: zipfile.ZipInfo) -> Array:
    with archive.open(one) as member:
        shape, turned, dtype = _header(member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "uif" or min(shape, default=0) < 0 or size > MOST_BYTES:
            raise ValueError(f"an array of {dtype} and shape {shape}")
        data = member.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes for an array of {size}")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if turned else "C")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version not in HEADERS:
        raise ValueError(f"version {version} of NumPy's format")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = HEADERS[version](member)
    return found
