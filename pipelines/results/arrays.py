"""The .npz files of an evaluation, read without trusting their headers: the limits here bound the memory."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.command.errors import printable
from pipelines.command.files import DamagedError, MissingError, reading

LONGEST_SIDE = 4096  # entries along an axis, except along one of images or units
MOST_ENTRIES = 10_000_000  # entries along any axis
LARGEST_ARRAY = 256_000_000  # bytes

Array = npt.NDArray[Any]


def read(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays of these names in ``path``; DamagedError where one is missing."""
    arrays = _read(path, keys)
    for key in keys:
        if key not in arrays:
            raise DamagedError(f"{path} lacks {key}; expected the arrays {', '.join(keys)}: run dvc repro")
    return arrays


def first_layer(path: Path) -> dict[str, Any]:
    """``filters`` (O, I, kH, kW) or ``templates`` (C, channels, H, W), float32; neither where the file is missing.

    Beside filters ``towers``, a whole number: that many equal parts of them, one after the other, stand side by side.
    """
    try:
        arrays = _read(path, ("filters", "templates", "towers"))
    except MissingError:
        return {}
    towers = arrays.pop("towers", np.array(1))
    for key, array in arrays.items():
        sides = array.shape[1:]
        sound = array.ndim == 4 and 0 not in array.shape and max(sides) <= LONGEST_SIDE and array.dtype.kind == "f"
        if not sound or not (np.abs(array) < 1e30).all():  # NaN is not
            line = f"{array.dtype} of shape {array.shape}"
            raise DamagedError(f"{path}: {key} is {line}; expected finite floats on four axes")
    count = len(arrays.get("filters", ()))
    if towers.shape != () or towers.dtype.kind not in "iu" or towers < 1 or count % towers:
        line = f"{towers.dtype} of shape {towers.shape}"
        raise DamagedError(f"{path}: towers is {line}; expected a whole number that divides {count}, the filters")
    shown = {key: array.astype(np.float32) for key, array in arrays.items()}
    return {**shown, "towers": int(towers)} if "filters" in shown else shown


def _read(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays of these names that are there."""
    with reading(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with zipfile.ZipFile(file) as archive:
                names = {key: f"{key}.npy" for key in keys if f"{key}.npy" in archive.namelist()}
                return {key: _array(archive, name) for key, name in names.items()}
        except Exception as error:  # zipfile, its decompressors and NumPy raise some fifteen kinds
            reason = printable(" ".join(str(error).split()))[:80]
            raise DamagedError(f"{path} is damaged ({reason}); delete it and run the stage again") from None


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    size = archive.getinfo(name).file_size  # what zipfile returns at most
    if size > LARGEST_ARRAY:
        raise ValueError(f"an array of {size} bytes")
    array: Array = np.lib.format.read_array(BytesIO(archive.read(name)), allow_pickle=False)
    if array.dtype.kind not in "uif":
        raise ValueError(f"an array of {array.dtype}")
    return array
