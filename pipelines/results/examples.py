"""The test images that are kept behind the cells of several seeds' confusion matrices, and their size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

A_CELL = 10  # images of a cell, from each seed
KEPT_SIDE = 64  # pixels; larger images are shrunk
MOST_KEPT = 3000  # distinct images of a benchmark

Positions = NDArray[np.int64]


def behind(cells: NDArray[np.int64], a_cell: int = A_CELL) -> Positions:
    """Rising positions of ``a_cell`` images of each cell of each seed, or of all images of the cell.

    ``cells`` (S, N) holds the number of a cell for each of S seeds and N images. Images that many seeds put into the
    cell come first, then those early in the file, so that few images serve all seeds.
    """
    kept = np.zeros(cells.shape[1], dtype=bool)
    for mine in cells:
        agreeing = (cells == mine).sum(0)  # seeds that put the image where this one does
        order = np.lexsort((-agreeing, mine))  # stable
        _, starts, counts = np.unique(mine[order], return_index=True, return_counts=True)
        rank = np.arange(len(mine)) - np.repeat(starts, counts)
        kept[order[rank < a_cell]] = True
    return np.flatnonzero(kept)


def bounded(actual: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, most: int = MOST_KEPT) -> Positions:
    """The same for ``actual`` (N,) and ``predicted`` (S, N), but at most ``most`` images: fewer of a cell if need be.

    Where even one image of each cell is too many, the commonest errors keep theirs.
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
