"""Losses, each a mean over images, with the second derivatives that SDLM needs.

A loss is called with outputs (N, classes) and labels (N,) int64 and returns a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.config.registry import Registry

if TYPE_CHECKING:
    from pipelines.config.recipes import Recipe


class Loss:
    """A loss; one entry in ``LOSSES`` adds one."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The loss with the constants that ``recipe`` sets."""
        return cls()

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over images, a scalar."""
        raise NotImplementedError

    def curvature(self, outputs: Tensor) -> Tensor:
        """The diagonal second derivative of each image's loss with respect to its outputs, (N, classes).

        It is never negative; none of ours depends on the labels.
        """
        raise NotImplementedError


LOSSES: Registry[type[Loss]] = Registry("loss", __name__)


@LOSSES.entry("cross_entropy")
class CrossEntropy(Loss):
    """-log of the softmax's probability of the class."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        return F.cross_entropy(outputs, labels)

    def curvature(self, outputs: Tensor) -> Tensor:
        """p (1 - p), p the softmax."""
        p = outputs.softmax(1)
        return p * (1 - p)


@LOSSES.entry("mse")
class MeanSquaredError(Loss):
    """Squared distance to targets of +1 for the class and -1 for the others, summed over classes.

    LeCun et al. 1998 train by mean squared error; that its targets are these is recalled.
    """

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) * 2 - 1
        return (outputs - targets).square().sum(1).mean()

    def curvature(self, outputs: Tensor) -> Tensor:
        """2 everywhere."""
        return torch.full_like(outputs, 2.0)


@LOSSES.entry("map")
@dataclass(frozen=True)
class MaximumAPosteriori(Loss):
    """The MAP criterion, D_c + log(exp(-j) + sum_i exp(-D_i)), for outputs that are negated penalties -D_i.

    LeCun et al. 1998, section II.C, equation 9; the sum is over all classes, ``constant`` is j. The class "rubbish"
    has the fixed penalty j, so that penalties beyond j are not pushed any further. With j large this is the
    cross-entropy.
    """

    constant: float

    @classmethod
    def of(cls, recipe: Recipe) -> Self:  # noqa: D102
        return cls(recipe.map_constant)

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        return (self._total(outputs) - outputs.gather(1, labels[:, None]).squeeze(1)).mean()

    def curvature(self, outputs: Tensor) -> Tensor:
        """q (1 - q), q_i = exp(-D_i) / (exp(-j) + sum exp(-D)): a softmax with one class more."""
        q = (outputs - self._total(outputs)[:, None]).exp()
        return q * (1 - q)

    def _total(self, outputs: Tensor) -> Tensor:
        """log(exp(-j) + sum_i exp(outputs_i)), (N,), without overflow or underflow."""
        total = outputs.logsumexp(1)
        return torch.logaddexp(total, torch.full_like(total, -self.constant))


def build_loss(recipe: Recipe) -> Loss:
    """The loss that ``recipe`` names."""
    return LOSSES[recipe.loss].of(recipe)
