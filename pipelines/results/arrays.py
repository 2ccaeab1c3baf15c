"""The arrays of an evaluation, and their .npz files: NumPy's archive, followed by its sha256."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.command.files import DamagedError, MissingError, reading_sealed, sealing

Array = npt.NDArray[Any]


def write(path: Path, **arrays: Array) -> None:
    """Replace ``path`` in one step by these arrays."""
    packed = BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    with sealing(path) as file:
        file.write(packed.getbuffer())


def read(path: Path) -> dict[str, Array]:
    """The arrays that ``write`` saved; DamagedError for a missing file and for any other."""
    try:
        with reading_sealed(path) as file, np.load(file) as archive:
            return dict(archive)
    except MissingError:
        raise
    except DamagedError as error:
        raise DamagedError(f"{error}; run dvc repro, with -f where it finds nothing to do") from None


def confusion(labels: Array, predicted: Array, classes: int) -> Array:
    """The counts (C, C) int64 of N answers, rows actual, columns predicted; both arguments are (N,) class numbers."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def first_layer(path: Path) -> dict[str, Any]:
    """``filters`` (O, I, kH, kW) or ``templates`` (C, channels, H, W), float32; empty where the file is missing.

    With the filters comes ``towers``, the number of equal groups that they form. The weights of a diverged net, which
    are not finite, count as 0.
    """
    try:
        found = read(path)
    except MissingError:
        return {}
    return {key: np.nan_to_num(values, posinf=0, neginf=0) for key, values in found.items()}
