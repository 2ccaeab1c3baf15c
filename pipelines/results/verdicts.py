"""Statistical verdict on a claim: interval over seeds, margin from its test set.

The interval is Student's t at 95 % on the mean over seeds. The margin is the claim's own sampling error: the source
measured one figure on ``test_images`` images, so a rerun of the same net may differ from it by the binomial
``1.96 * sqrt(p (1 - p) / test_images)`` and still agree.

For an error claim ``c`` with margin ``m``, and an interval ``[low, high]`` over ``n`` seeds, the first line that
holds is the verdict (an accuracy claim is read as the mirror image: higher is better):

==  ==============================================================  ==============
0   the claim has no figure                                         no claim
1   no seed was run                                                 untested
2   ``n >= 5`` and ``high < c - m``                                 better
3   ``n >= 5`` and ``high <= c + m``                                reproduced
4   trained for fewer epochs than the budget ``paper`` (the source's  under budget
    length, or ours where it gives none), and not there:
    ``high > c + m``, or fewer than three seeds, which have no interval
5   ``n < 5``                                                       inconclusive
6   ``low > c + m``                                                 not reproduced
7   anything else: the interval straddles ``c + m``                 inconclusive
==  ==============================================================  ==============

Two seeds have no interval: with one degree of freedom, Student's t would make it 13 times as wide as their difference,
wider than a percentage can be. Their figures are reported one by one.

The margin treats the claim's test images as a sample of its own. Most claims were measured on the test images that we
use: the two errors are then correlated, by an unknown amount. The interval covers the variance over seeds, not over
test images. The margin leaves out how much the source's own run varied, and the rounding of a whole per cent: so
verdicts lean towards *not reproduced*. Where the images of a claim were trained on, *better* means better memorised.

Three decisions. *Better* needs the whole interval below the claim **and its margin**: below the claim alone could be
chance in the source's test set. The rules are one-sided: an interval that starts below ``c - m`` and ends inside the
margin is `reproduced`, never `inconclusive`. A short budget that reaches the claim needs the same five seeds as the
published one, and nothing more: a net that needs fewer epochs has reproduced the figure.

Seeds that all give the same figure have an interval of no width, which is compared as a point.

An ablation claims a difference ``d`` to another net's error, and is judged on ours: the difference of the means over
seeds, with Welch's interval ``[low, high]``. Its margin ``m`` is the sampling error of both published figures, as if
they came from different images: those of one set differ by less. It is `reproduced` where the interval lies within
``[d - m, d + m]`` and above 0, since that the part helps at all is half of the claim; `not reproduced` where the
interval lies outside of that range, or below 0; else `inconclusive`. Both nets need five seeds; with none: `untested`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from scipy.special import stdtrit  # the quantile behind scipy.stats.t.ppf, a second quicker to import

MIN_SEEDS = 5  # fewer can neither confirm nor refute
MIN_SPREAD = 3  # seeds that an interval needs
CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.96  # two-sided 95 %, for the claim's binomial margin


class Verdict(StrEnum):
    """The words of the ledger."""

    REPRODUCED = "reproduced"
    BETTER = "better"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    UNDER_BUDGET = "under budget"
    UNTESTED = "untested"
    NO_CLAIM = "no claim"


class Interval(NamedTuple):
    """A two-sided 95 % confidence interval, in the unit of the values it was made from."""

    low: float
    high: float


def interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval on the mean of ``values``; None when fewer than three leave no spread to judge by."""
    n = len(values)
    if n < MIN_SPREAD:
        return None
    mean = statistics.fmean(values)
    quantile = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean - half, mean + half)


def clipped(values: Sequence[float]) -> Interval | None:
    """The interval of figures in %, cut at 0 and 100."""
    found = interval(values)
    return found and Interval(max(0.0, found.low), min(100.0, found.high))


def summary(prefix: str, errors: Sequence[float]) -> dict[str, float | None]:
    """Mean error and accuracy of some seeds in %, and the error's interval, named with a ``prefix``."""
    mean, found = statistics.fmean(errors), clipped(errors)
    return {
        f"{prefix}error": mean,
        f"{prefix}error_ci95_low": found and found.low,
        f"{prefix}error_ci95_high": found and found.high,
        f"{prefix}accuracy": 100 - mean,
    }


def claim_margin(value: float, test_images: int) -> float:
    """Half the width in points of the binomial 95 % interval of ``value`` % of ``test_images`` images."""
    share = value / 100
    return 100 * NORMAL_QUANTILE * math.sqrt(share * (1 - share) / test_images)


def ablation_margin(value: float, test_images: int) -> float:
    """The margin in points of a difference to an error of ``value`` %, both on so many images."""
    return math.sqrt(2) * claim_margin(value, test_images)


def difference(values: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Welch's t interval on the mean of ``values`` minus that of ``others``; None where one has fewer than three."""
    if min(len(values), len(others)) < MIN_SPREAD:
        return None
    middle = statistics.fmean(values) - statistics.fmean(others)
    squares = [(statistics.variance(each) / len(each), len(each) - 1) for each in (values, others)]
    total = sum(square for square, _ in squares)
    if total == 0:
        return Interval(middle, middle)
    freedom = total**2 / sum(square**2 / n for square, n in squares)
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * math.sqrt(total)
    return Interval(middle - half, middle + half)


def judge_ablation(
    *, claim: float, margin: float, values: Sequence[float], others: Sequence[float], short: bool
) -> Verdict:
    """The verdict on a difference of ``claim`` points: errors of the net without a part, and of the whole net."""
    if not values or not others:
        return Verdict.UNTESTED
    low, high = difference(values, others) or (-math.inf, math.inf)
    enough = min(len(values), len(others)) >= MIN_SEEDS
    if enough and low > 0 and low >= claim - margin and high <= claim + margin:
        return Verdict.REPRODUCED
    if short:
        return Verdict.UNDER_BUDGET
    if enough and (high <= 0 or high < claim - margin or low > claim + margin):
        return Verdict.NOT_REPRODUCED
    return Verdict.INCONCLUSIVE


def judge(*, metric: str, claim: float | None, test_images: int, values: Sequence[float], short: bool) -> Verdict:
    """The verdict, by the table above, on a ``claim`` in % of ``test_images`` images; None where there is no figure.

    ``values`` are ours in the same metric, one a seed; ``short`` where any of our trials was shorter than the source's.
    """
    if claim is None:
        return Verdict.NO_CLAIM
    if not values:
        return Verdict.UNTESTED
    sign = -1.0 if metric == "accuracy" else 1.0
    margin = claim_margin(claim, test_images)
    best, worst = sign * claim - margin, sign * claim + margin
    low, high = interval([sign * value for value in values]) or (-math.inf, math.inf)
    enough = len(values) >= MIN_SEEDS
    if enough and high <= worst:
        return Verdict.BETTER if high < best else Verdict.REPRODUCED
    if short and high > worst:
        return Verdict.UNDER_BUDGET
    if enough and low > worst:
        return Verdict.NOT_REPRODUCED
    return Verdict.INCONCLUSIVE
