"""What a network is trained to make small, each as a mean over images, with the second derivatives that SDLM asks for.

A loss is called with outputs (N, classes) and labels (N,) int64 and gives a scalar. Its ``curvature`` is the diagonal
second derivative of each image's own loss with respect to its outputs, (N, classes), never negative; none of ours
depends on the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.config.recipes import Recipe


class Loss(Protocol):
    """See the module's text."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over images, a scalar."""

    def curvature(self, outputs: Tensor) -> Tensor:
        """The diagonal second derivative of each image's loss with respect to its outputs, (N, classes)."""


class CrossEntropy:
    """-log of the softmax's probability of the class."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See ``Loss``."""
        return F.cross_entropy(outputs, labels)

    def curvature(self, outputs: Tensor) -> Tensor:
        """p (1 - p), p the softmax."""
        p = outputs.softmax(1)
        return p * (1 - p)


class MeanSquaredError:
    """Squared distance to targets of +1 for the class and -1 for the others, summed over classes.

    LeCun et al. 1998 train by mean squared error; that its targets are these is recalled.
    """

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See ``Loss``."""
        targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) * 2 - 1
        return (outputs - targets).square().sum(1).mean()

    def curvature(self, outputs: Tensor) -> Tensor:
        """2 everywhere."""
        return torch.full_like(outputs, 2.0)


@dataclass(frozen=True)
class MaximumAPosteriori:
    """The MAP criterion, D_c + log(exp(-j) + sum_i exp(-D_i)), for outputs that are negated penalties -D_i.

    LeCun et al. 1998, section II.C, equation 9; the sum is over all classes, ``constant`` is j. The class "rubbish"
    with its fixed penalty j keeps the penalties of classes that are far off from being pushed further: beyond j it pays
    no more. With j large this is the cross-entropy.
    """

    constant: float

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See ``Loss``."""
        return (self._total(outputs) - outputs.gather(1, labels[:, None]).squeeze(1)).mean()

    def curvature(self, outputs: Tensor) -> Tensor:
        """q (1 - q), q_i = exp(-D_i) / (exp(-j) + sum exp(-D)): a softmax with one class more."""
        q = (outputs - self._total(outputs)[:, None]).exp()
        return q * (1 - q)

    def _total(self, outputs: Tensor) -> Tensor:
        """log(exp(-j) + sum_i exp(outputs_i)), (N,), in steps that neither overflow nor vanish."""
        total = outputs.logsumexp(1)
        return torch.logaddexp(total, torch.full_like(total, -self.constant))


LOSSES: dict[str, Loss] = {"cross_entropy": CrossEntropy(), "mse": MeanSquaredError()}


def build_loss(recipe: Recipe) -> Loss:
    """The loss that ``recipe`` names."""
    return MaximumAPosteriori(recipe.map_constant) if recipe.loss == "map" else LOSSES[recipe.loss]
