"""Interval plots as inline SVG: the claim and its margin, our mean and its interval, on one axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelines.results.page.markup import Html, joined, tag
from pipelines.results.page.outcomes import LedgerRow
from pipelines.results.page.words import centre, ends

WIDTH = 330  # of the ledger's plot, in SVG units
HEIGHT = 26
ZOOM_WIDTH = 420  # of the plot in a row's details
ZOOM_HEIGHT = 84
EDGE = 12  # free space left and right of an axis, so that end labels are not cut

Place = Callable[[float], float]  # a figure in % -> x


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where a figure lies from left to right, and which figures are labelled."""

    place: Place
    ticks: tuple[float, ...]


def as_error(metric: str, value: float) -> float:
    """A figure in % read as an error, so that left is better on every axis."""
    return value if metric == "error" else 100 - value


def log_axis(errors: Iterable[float], width: float = WIDTH) -> Axis:
    """A logarithmic axis from the 1-2-5 step at or below the smallest error to the one at or above the largest."""
    positive = [e for e in errors if e > 0] or [1.0]
    steps = [*(m * 10.0**k for k in range(-3, 2) for m in (1, 2, 5)), 100.0]
    low = max((s for s in steps if s <= min(positive) * 0.97), default=steps[0])
    high = min((s for s in steps if s >= max(positive) * 1.03), default=100.0)
    scale = (width - 2 * EDGE) / math.log(high / low)

    def place(value: float) -> float:
        return EDGE + scale * math.log(min(max(value, low), high) / low)

    return Axis(place=place, ticks=tuple(s for s in steps if low <= s <= high))


def linear_axis(values: Sequence[float], width: float = ZOOM_WIDTH) -> Axis:
    """A linear axis with room around ``values`` and about five round ticks."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), 0.02)
    low, high = max(0.0, low - room), min(100.0, high + room)
    scale = (width - 2 * EDGE) / (high - low)

    def place(value: float) -> float:
        return EDGE + scale * (min(max(value, low), high) - low)

    step = _round_step((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    return Axis(place=place, ticks=tuple(i * step for i in range(first, math.floor(high / step + 1e-9) + 1)))


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def ledger_axis(rows: Sequence[LedgerRow]) -> Axis:
    """One axis for the whole ledger, in error."""
    errors = []
    for row in rows:
        reach = (row["margin"], -row["margin"])
        errors += [as_error(row["metric"], row["claim"]["value"] + r) for r in reach]
        errors += [as_error(row["metric"], v) for v in _ours(row)]
    return log_axis(errors)


def _ours(row: LedgerRow) -> list[float]:
    tested = [row["test_set"]["mean"]] if row["test_set"] else []
    return [*row["per_seed"].values(), *(row["ci95"] or []), *tested]


def describe(row: LedgerRow) -> str:
    """The plot in words."""
    claim = f"claim {row['claim']['value']:g} ± {row['margin']:.2f} %"
    if row["mean"] is None:
        return f"{row['benchmark']}: {row['metric']}, {claim}; not run"
    spread = f", 95 % interval {ends(row, ' to ')} %" if row["ci95"] else ""
    tested = f"; on the whole test set {centre(row['test_set'])} %" if row["test_set"] else ""
    return f"{row['benchmark']}: {row['metric']}, {claim}; ours {centre(row)} %{spread}{tested}"


def ticks(axis: Axis, *, width: float = WIDTH) -> Html:
    """The labels of the ledger's axis, as the head of its column or at the foot of a plot that stands alone."""
    labels = (_label(axis.place(t), 10, f"{t:g}") for t in axis.ticks)
    return tag("svg", *labels, class_="axis", viewBox=f"0 0 {width} 13", width=width, height=13, aria_hidden="true")


def ledger_plot(row: LedgerRow, axis: Axis) -> Html:
    """Claim and ours of one row on the ledger's axis."""
    lines = (_vertical(axis.place(t), 0, HEIGHT, "grid") for t in axis.ticks)
    marks = _marks(row, axis, lambda v: as_error(row["metric"], v), claim=(4, HEIGHT - 4), ours=HEIGHT / 2)
    return _figure(row, WIDTH, HEIGHT, [*lines, *marks])


def zoomed_plot(row: LedgerRow) -> Html:
    """One row on its own linear axis in the metric of the claim, with a dot a seed."""
    claim, margin = row["claim"]["value"], row["margin"]
    axis = linear_axis([claim - margin, claim + margin, *_ours(row)])
    floor = ZOOM_HEIGHT - 16
    lines = (_vertical(axis.place(t), 0, floor, "grid") for t in axis.ticks)
    labels = (_label(axis.place(t), ZOOM_HEIGHT - 4, f"{t:.4g}") for t in axis.ticks)
    marks = _marks(row, axis, lambda v: v, claim=(4, floor - 4), ours=24)
    seeds = [tag("circle", cx=_n(axis.place(v)), cy=46, r=3.5, class_="seed") for v in row["per_seed"].values()]
    return _figure(row, ZOOM_WIDTH, ZOOM_HEIGHT, [*lines, *labels, *marks, *seeds])


def _marks(row: LedgerRow, axis: Axis, read: Place, *, claim: tuple[float, float], ours: float) -> list[Html]:
    """The claim's band and line, then our interval and mean, or few seeds, and a ring at the whole test set's mean."""
    value, margin = row["claim"]["value"], row["margin"]
    ends = sorted(axis.place(read(value + m)) for m in (-margin, margin))
    top, bottom = claim
    width = _n(max(ends[1] - ends[0], 1))
    marks = [
        tag("rect", x=_n(ends[0]), y=top, width=width, height=bottom - top, class_="margin"),
        _vertical(axis.place(read(value)), top, bottom, "claim"),
    ]
    if row["ci95"]:
        low, high = sorted(axis.place(read(v)) for v in row["ci95"])
        marks.append(tag("line", x1=_n(low), x2=_n(high), y1=ours, y2=ours, class_="interval"))
        marks += [_vertical(x, ours - 4, ours + 4, "interval") for x in (low, high)]
    dots = [row["mean"]] if row["ci95"] and row["mean"] is not None else row["per_seed"].values()
    marks += [tag("circle", cx=_n(axis.place(read(v))), cy=ours, r=3.2, class_="mean") for v in dots]
    if row["test_set"]:
        marks.append(tag("circle", cx=_n(axis.place(read(row["test_set"]["mean"]))), cy=ours, r=5, class_="tested"))
    return marks


def _figure(row: LedgerRow, width: int, height: int, parts: Sequence[Html]) -> Html:
    label = describe(row)
    size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return tag("svg", tag("title", label), joined(parts), class_="plot", role="img", aria_label=label, **size)


def _vertical(x: float, top: float, bottom: float, kind: str) -> Html:
    return tag("line", x1=_n(x), x2=_n(x), y1=top, y2=bottom, class_=kind)


def _label(x: float, y: float, words: str) -> Html:
    return tag("text", words, x=_n(x), y=y, text_anchor="middle")


def _n(value: float) -> str:
    return f"{value:.1f}"
