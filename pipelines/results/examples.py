"""The test images behind the cells of several seeds' confusion matrices: which are kept, and how large."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

A_CELL = 10  # images of a cell, from each seed
PIXELS = 64  # of a side; larger images are shrunk
MOST = 3000  # distinct images of a benchmark; beyond it fewer are kept of each cell

Positions = NDArray[np.int64]


def behind(cells: NDArray[np.int64], a_cell: int = A_CELL) -> Positions:
    """Positions, rising, of images that show each cell of each seed: ``a_cell`` of them, or all that it has.

    ``cells`` (S, N) holds for each of S seeds and N images the number of a cell. Of a cell's images those come first
    that most seeds put there, then the first of the file: so that few images serve all seeds.
    """
    kept = np.zeros(cells.shape[1], dtype=bool)
    for mine in cells:
        agreeing = (cells == mine).sum(0)  # seeds that put the image where this one does
        order = np.lexsort((-agreeing, mine))  # stable
        _, starts, counts = np.unique(mine[order], return_index=True, return_counts=True)
        rank = np.arange(len(mine)) - np.repeat(starts, counts)
        kept[order[rank < a_cell]] = True
    return np.flatnonzero(kept)


def bounded(actual: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, most: int = MOST) -> Positions:
    """The same for ``actual`` (N,) and ``predicted`` (S, N), at most ``most``: fewer a cell, where need be.

    Where even one a cell is too many, the images of the commonest errors.
    """
    cells = actual * classes + predicted
    for a_cell in range(A_CELL, 0, -1):
        found = behind(cells, a_cell)
        if len(found) <= most:
            return found
    counts = np.bincount(cells.ravel(), minlength=classes * classes)
    counts[:: classes + 1] = 0  # the diagonal is right
    commonest = np.argsort(-counts[cells[:, found]].max(0), kind="stable")
    return np.sort(found[commonest[:most]])


def shape(image: Sequence[int]) -> tuple[int, int, int]:
    """The shape (C, h, w) in which an image (C, H, W) is kept."""
    channels, height, width = image
    return (channels, height, width) if max(height, width) <= PIXELS else (channels, PIXELS, PIXELS)
