"""The course of a trial: the factor on its rate, and which member of an ensemble trains.

A module of its own: these functions decide weights, so a trial's key hashes them, and not the checks on other settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.config import wording
from pipelines.config.schema import require, require_within

MOST_CANDIDATES = 1_000_000_000  # images


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factors at epochs of the *paper's* budget; a shorter budget runs through them faster.

    ``between: hold`` keeps a factor until the next point (steps), ``linear`` interpolates.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    between: Literal["hold", "linear"] = "hold"

    def __post_init__(self) -> None:
        shown, epochs = (
            f"points is {wording.show([list(point) for point in self.points])}",
            [epoch for epoch, _ in self.points],
        )
        begins = f"{shown}; expected points that begin at epoch 0, as in [[0, 1.0], [20, 0.1]]"
        require(len(epochs) > 0 and epochs[0] == 0, begins)
        require(epochs == sorted(set(epochs)), f"{shown}; expected rising epochs")
        require(all(factor >= 0 for _, factor in self.points), f"{shown}; expected factors of at least 0")
        require(any(factor > 0 for _, factor in self.points), f"{shown}; expected a factor above 0")

    def factor(self, epoch: float) -> float:
        """The factor on the rate at ``epoch`` (fractional, of the paper's budget)."""
        before = max(i for i, (at, _) in enumerate(self.points) if at <= epoch)
        start, value = self.points[before]
        if self.between == "hold" or before + 1 == len(self.points):
            return value
        end, following = self.points[before + 1]
        return value + (following - value) * (epoch - start) / (end - start)


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """An ensemble of three whose later members train on what the earlier ones find hard (``training.boosting``).

    Both numbers belong to the *paper's* budget: a shorter one cuts each member's epochs and the candidates in
    proportion.
    """

    epochs: tuple[int, int, int]  # that train each member, one after the other
    candidates: int  # augmented images filtered for the second member's training set, and as many for the third's

    def __post_init__(self) -> None:
        require(min(self.epochs) >= 1, f"epochs is {list(self.epochs)}; expected at least 1 for each member")
        require_within("candidates", self.candidates, 1, MOST_CANDIDATES)

    def member(self, epoch: float) -> int:
        """Which member trains at ``epoch`` (fractional, of the paper's budget), from 0."""
        first, second, _ = self.epochs
        return (epoch >= first) + (epoch >= first + second)
