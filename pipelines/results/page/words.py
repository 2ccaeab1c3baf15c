"""Our figures in words, the same in every form of the ledger.

With fewer than three seeds there is no interval, and a mean alone would hide how far they are apart: then the seeds'
own figures stand there.
"""

from __future__ import annotations

from pipelines.results.page.outcomes import LedgerRow, TestSet

NONE = "–"
Found = LedgerRow | TestSet


def figure(found: Found) -> str:
    """Mean and interval, ``4.71 [4.29, 5.14]``; of few seeds each, ``88.10, 66.90 (2 seeds)``."""
    return f"{centre(found)} [{ends(found, ', ')}]" if found["ci95"] else f"{centre(found)}{_count(found)}"


def plus_minus(found: Found) -> str:
    """Mean and half the interval, ``4.71 ± 0.43``; both its ends where it is cut, and so no longer symmetric."""
    low, high = found["ci95"] or (0.0, 0.0)
    mean = found["mean"]
    if not found["ci95"] or mean is None:
        return centre(found)
    if low <= 0 or high >= 100:
        return figure(found)
    return f"{centre(found)} ± {high - mean:.2f}"


def centre(found: Found) -> str:
    """The mean, or where it stands for too few seeds, these one by one."""
    if found["mean"] is None:
        return NONE
    values = [found["mean"]] if found["ci95"] else found["per_seed"].values()
    return ", ".join(f"{value:.2f}" for value in values)


def ends(found: Found, between: str) -> str:
    """The two ends of an interval that there is."""
    assert found["ci95"]
    return between.join(f"{end:.2f}" for end in found["ci95"])


def seeds(n: int) -> str:
    """So many seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"


def _count(found: Found) -> str:
    return f" ({seeds(len(found['per_seed']))})" if found["mean"] is not None else ""
