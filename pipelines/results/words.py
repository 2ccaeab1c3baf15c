"""Figures and provenance in words, the same in the ledger, on the page and in MLflow.

Fewer than three seeds have no interval, and a mean alone would hide their spread: each figure is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from pipelines.results.rows import AblationRow, LedgerRow, Mean, Summary
from pipelines.results.verdicts import MIN_SPREAD

NONE = "–"
MARK = "†"  # marks a figure that was measured on the images of its claim, not on the test set


def figure(found: Summary) -> str:
    """Mean and interval, ``4.71 [4.29, 5.14]``; each figure of few seeds, ``88.10, 66.90 (2 seeds)``."""
    if found.ci95:
        return f"{centre(found)} [{ends(found, ', ')}]"
    return NONE if found.mean is None else f"{centre(found)} ({seeds(len(found.per_seed))})"


def claim(row: LedgerRow) -> str:
    """The claim and its sampling error, ``4.7 ± 0.41``; ``–`` without one."""
    ablation = row.ablation
    if ablation:
        return f"{ablation.claimed:g} ± {ablation.margin:.2f} more than {ablation.of}"
    if row.claim.value is None:
        return NONE
    return f"{row.claim.value:g}" + ("" if row.margin is None else f" ± {row.margin:.2f}")


def compared(ablation: AblationRow) -> str:
    """Our difference to the whole net, in points, ``1.52 [1.31, 1.73]``; ``–`` until both are measured."""
    if ablation.mean is None:
        return NONE
    return f"{ablation.mean:.2f}" + (f" [{ends(ablation, ', ')}]" if ablation.ci95 else "")


def spelt(found: Summary) -> str:
    """Mean and interval with units, ``4.71 %, 95 % interval 4.29 to 5.14 %``; each figure of few seeds."""
    return f"{centre(found)} %" + (f", 95 % interval {ends(found, ' to ')} %" if found.ci95 else "")


def plus_minus(found: Summary) -> str:
    """Mean and half the interval, ``4.71 ± 0.43``; both ends of an interval that is cut at 0 or 100."""
    if found.mean is None or not found.ci95:
        return centre(found)
    low, high = found.ci95
    return figure(found) if low <= 0 or high >= 100 else f"{centre(found)} ± {high - found.mean:.2f}"


def centre(found: Summary) -> str:
    """The mean, or each figure of few seeds."""
    if found.mean is None:
        return NONE
    return listed([found.mean] if found.ci95 else list(found.per_seed.values()))


def listed(values: Sequence[float]) -> str:
    """Each figure with two decimals."""
    return ", ".join(f"{value:.2f}" for value in values)


def mean_or_each(values: Sequence[float]) -> str:
    """The mean of figures in %; each of fewer than three."""
    return f"{listed(values if len(values) < MIN_SPREAD else [sum(values) / len(values)])} %"


def ends(found: Mean, between: str) -> str:
    """The two ends of the interval."""
    return between.join(f"{end:.2f}" for end in found.ci95 or ())


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
