"""Subsets of a file's images, by their positions in it. NumPy alone: the estimate counts images without torch.

Random subsets are the same for every seed, drawn by a generator whose numbers NumPy promises never to change: they are
part of a benchmark's definition, not of a trial's randomness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipelines.config.claims import ClaimedOn
    from pipelines.config.recipes import Subset

SAMPLE_SEED = 1989
VALIDATION_SEED = 1998


def positions(count: int, chosen: Subset) -> NDArray[np.int64]:
    """Positions (n,) of the images to train on, of ``count`` in the training file, in its order."""
    kept = np.arange(count if chosen.first is None else min(chosen.first, count))
    if chosen.skip_every is not None:
        kept = kept[kept % chosen.skip_every != 0]
    if chosen.hold_out is not None:
        kept = np.setdiff1d(kept, validation(count, chosen.hold_out))
    if chosen.sample is not None:
        kept = kept[draw(len(kept), chosen.sample, SAMPLE_SEED)]
    return kept


def cut(kept: NDArray[np.int64], size: int | None) -> NDArray[np.int64]:
    """``size`` of these positions at random, in their order: a file may be sorted by class. All of them for None."""
    return kept if size is None else kept[draw(len(kept), size, SAMPLE_SEED)]


def claimed_on(count: int, on: ClaimedOn) -> NDArray[np.int64]:
    """Positions of the images that a claim was measured on, of ``count`` in the file."""
    return on.first + draw(count - on.first, on.count, SAMPLE_SEED) if on.drawn else np.arange(on.first, on.end)


def validation(count: int, size: int) -> NDArray[np.int64]:
    """Positions of the slice of ``size`` training images, of ``count``, on which hyperparameters are tuned."""
    return draw(count, size, VALIDATION_SEED)


def draw(count: int, size: int, seed: int) -> NDArray[np.int64]:
    """``size`` of 0..count - 1 at random, rising; all of them where there are not more."""
    return np.sort(np.random.RandomState(seed).permutation(count)[:size]).astype(np.int64)
