"""Schedules over a trial's epochs: the factor on the learning rate, and the ensemble's member in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.config.registry import Registry

if TYPE_CHECKING:
    from pipelines.config.recipes import Boosting, Schedule

# The factor between two points: called with the factors at both, the epochs since the first, and those between them.
BETWEEN: Registry[Callable[[float, float, float, float], float]] = Registry("interpolation", __name__)


@BETWEEN.entry("hold")
def hold(value: float, following: float, done: float, length: float) -> float:
    """The factor of a point until the next one: steps."""
    return value


@BETWEEN.entry("linear")
def linear(value: float, following: float, done: float, length: float) -> float:
    """A line from each point to the next."""
    return value + (following - value) * done / length


def factor(schedule: Schedule, epoch: float) -> float:
    """The factor on the rate at ``epoch`` (fractional, of the paper's budget)."""
    before = max(i for i, (at, _) in enumerate(schedule.points) if at <= epoch)
    start, value = schedule.points[before]
    if before + 1 == len(schedule.points):
        return value
    end, following = schedule.points[before + 1]
    return BETWEEN[schedule.between](value, following, epoch - start, end - start)


def member(boosting: Boosting, epoch: float) -> int:
    """The member that trains at ``epoch`` (fractional, of the paper's budget), from 0."""
    first, second, _ = boosting.epochs
    return (epoch >= first) + (epoch >= first + second)
