"""The parts of a recipe that change during a trial: the factors on its rate, and the member that boosting trains.

``training.schedules`` computes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.config import registry, wording
from pipelines.config.schema import require, require_within

if TYPE_CHECKING:
    Between = str
else:
    Between = Literal[tuple(registry.entries("training/schedules.py", "BETWEEN"))]
MOST_CANDIDATES = 1_000_000_000  # images


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factors at epochs of the *paper's* budget; a shorter budget runs through them faster.

    ``between: hold`` keeps a factor until the next point (steps), ``linear`` interpolates.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    between: Between = "hold"

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


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """An ensemble of three whose later members train on examples that the earlier ones find hard.

    Both numbers are of the *paper's* budget: a shorter one trains each member, and searches the candidates, in
    proportion (``training.boosting``).
    """

    epochs: tuple[int, int, int]  # that train each member, one after the other
    candidates: int  # augmented images to select the second member's examples from, and as many for the third's

    def __post_init__(self) -> None:
        require(min(self.epochs) >= 1, f"epochs is {list(self.epochs)}; expected at least 1 for each member")
        require_within("candidates", self.candidates, 1, MOST_CANDIDATES)
