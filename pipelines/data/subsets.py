"""Subsets of a file's images by position; imports NumPy but not torch, for the estimate's sake.

Random subsets are part of a benchmark's definition, and the same for every seed of a trial. NumPy promises never to
change the numbers of their generator.
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
    """Positions (n,), rising, of the images to train on, among ``count`` in the training file."""
    kept = np.arange(count if chosen.first is None else min(chosen.first, count))
    if chosen.skip_every is not None:
        kept = kept[kept % chosen.skip_every != 0]
    if chosen.hold_out is not None:
        kept = np.setdiff1d(kept, validation(count, chosen.hold_out))
    if chosen.sample is not None:
        kept = kept[draw(len(kept), chosen.sample, SAMPLE_SEED)]
    return kept


def cut(kept: NDArray[np.int64], size: int | None) -> NDArray[np.int64]:
    """``size`` of these positions at random, as a file may be sorted by class, in order; all of them for None."""
    return kept if size is None else kept[draw(len(kept), size, SAMPLE_SEED)]


def claimed_on(count: int, on: ClaimedOn) -> NDArray[np.int64]:
    """Positions of a claim's images among ``count`` in the file."""
    return on.first + draw(count - on.first, on.count, SAMPLE_SEED) if on.drawn else np.arange(on.first, on.end)


def validation(count: int, size: int) -> NDArray[np.int64]:
    """Positions of the validation slice for tuning: ``size`` among ``count`` training images."""
    return draw(count, size, VALIDATION_SEED)


def draw(count: int, size: int, seed: int) -> NDArray[np.int64]:
    """``size`` numbers of 0..count - 1 at random, rising; all of them where there are no more."""
    return np.sort(np.random.RandomState(seed).permutation(count)[:size]).astype(np.int64)
