"""Figures and provenance in words, the same in the ledger, on the page and in MLflow.

Fewer than three seeds have no interval, and a mean alone would hide their spread: each figure is listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from pipelines.results.rows import LedgerRow, Mean, Summary

NONE = "–"
MARK = "†"  # marks a figure that was measured on the images of its claim, not on the test set


def figure(found: Summary) -> str:
    """Mean and interval, ``4.71 [4.29, 5.14]``; each figure of few seeds, ``88.10, 66.90 (2 seeds)``."""
    if found.mean is None or found.ci95:
        return mean_and_interval(found)
    return f"{mean_or_each(found)} ({seeds(len(found.per_seed))})"


def over_seeds(found: Summary) -> str:
    """``figure`` with the number of its seeds, ``4.71 [4.29, 5.14], 5 seeds``."""
    return figure(found) + (f", {seeds(len(found.per_seed))}" if found.ci95 else "")


def mean_and_interval(found: Mean) -> str:
    """``1.52 [1.31, 1.73]``; the mean alone without an interval, ``–`` without a mean."""
    if found.mean is None:
        return NONE
    return f"{found.mean:.2f}" + (f" [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]" if found.ci95 else "")


def plus_minus(found: Summary) -> str:
    """``figure`` for a narrow column, ``4.71 ± 0.43``; both ends of an interval that is cut at 0 or 100."""
    if found.mean is None or not found.ci95:
        return mean_or_each(found) or NONE
    low, high = found.ci95
    return figure(found) if low <= 0 or high >= 100 else f"{found.mean:.2f} ± {high - found.mean:.2f}"


def mean_or_each(found: Summary) -> str:
    """The mean alone, ``4.71``; each figure of few seeds, ``88.10, 66.90``."""
    return ", ".join(f"{value:.2f}" for value in ([found.mean] if found.ci95 else found.per_seed.values()))


def claim(row: LedgerRow) -> str:
    """The claim and its sampling error, ``4.7 ± 0.41``; ``–`` without one."""
    ablation = row.ablation
    if ablation:
        return f"{ablation.claimed:g} ± {ablation.margin:.2f} more than {ablation.of}"
    if row.claim.value is None:
        return NONE
    return f"{row.claim.value:g}" + ("" if row.margin is None else f" ± {row.margin:.2f}")


def seeds(n: int) -> str:
    """A number of seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"


def stuck(row: LedgerRow) -> str:
    """How many of a row's seeds did no better than guessing."""
    return f"{len(row.at_chance)} of {seeds(row.n)}"


def each(values: Iterable[object]) -> str:
    """The distinct values in order, as text."""
    return ", ".join(dict.fromkeys(str(v) for v in values))


def day(unix: float) -> str:
    """Date and minute, UTC."""
    return datetime.fromtimestamp(unix, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
