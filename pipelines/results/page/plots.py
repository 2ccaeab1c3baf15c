"""Interval plots: the claim and its margin, our mean and its interval, on one axis; ``macros.html`` draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.results.rows import LedgerRow, as_error
from pipelines.results.words import NONE, claim, figure

WIDTH, HEIGHT = 330, 26  # of the ledger's plot, in SVG units
ZOOM_WIDTH, ZOOM_HEIGHT = 420, 84  # of the plot in a row's details
EDGE = 12  # free space left and right of an axis, so that end labels are not cut


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Places figures in % from left to right, from ``low`` to ``high``."""

    low: float
    high: float
    ticks: tuple[float, ...]  # the figures that are labelled
    width: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """The x of a figure, within the axis."""
        share = self._on(min(max(value, self.low), self.high)) / self._on(self.high)
        return EDGE + share * (self.width - 2 * EDGE)

    def _on(self, value: float) -> float:
        return math.log(value / self.low) if self.logarithmic else value - self.low


def log_axis(errors: Iterable[float]) -> Axis:
    """A logarithmic axis between the 1-2-5 steps around all errors."""
    positive = [e for e in errors if e > 0] or [1.0]
    steps = [*(m * 10.0**k for k in range(-3, 2) for m in (1, 2, 5)), 100.0]
    low = max((s for s in steps if s <= min(positive) * 0.97), default=steps[0])
    high = min((s for s in steps if s > low and s >= max(positive) * 1.03), default=100.0)
    return Axis(low=low, high=high, ticks=tuple(s for s in steps if low <= s <= high), width=WIDTH, logarithmic=True)


def linear_axis(values: Sequence[float]) -> Axis:
    """A linear axis with room around ``values`` and about five round ticks."""
    low, high = min(values, default=0.0), max(values, default=100.0)
    room = max(0.12 * (high - low), 0.02)
    low, high = max(0.0, low - room), min(100.0, high + room)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    ticks = tuple(i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1))
    return Axis(low=low, high=high, ticks=ticks, width=ZOOM_WIDTH, logarithmic=False)


def ledger_axis(rows: Sequence[LedgerRow]) -> Axis:
    """One axis for the whole ledger, in error: left is better for each metric."""
    return log_axis(as_error(row.metric, value) for row in rows for value in figures(row))


def figures(row: LedgerRow) -> list[float]:
    """All figures in a row's plot."""
    value, margin = row.claim.value, row.margin
    claims = [] if value is None or margin is None else [value - margin, value + margin]
    tested = row.test_set.per_seed.values() if row.test_set else ()
    return [*claims, *row.per_seed.values(), *(row.ci95 or []), *tested]


def describe(row: LedgerRow) -> str:
    """The plot in words."""
    claimed = "no claim" if claim(row) == NONE else f"claim {claim(row)}{' points' if row.ablation else ''}"
    if row.mean is None:
        return f"{row.benchmark}: {row.metric} in %, {claimed}; not run"
    tested = f"; on the whole test set {figure(row.test_set)}" if row.test_set else ""
    return f"{row.benchmark}: {row.metric} in %, {claimed}; ours {figure(row)}{tested}"
