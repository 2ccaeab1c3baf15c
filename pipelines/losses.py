"""What a network is trained to make small: functions of outputs (N, classes) and labels (N,), means over images."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared distance to targets of +1 for the class and -1 for the others, summed over classes, mean over images.

    ``outputs`` (N, classes), ``labels`` (N,). LeCun et al. 1998, section II.A, equation 8 (but for the factor 1/2).
    """
    targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) * 2 - 1
    return (outputs - targets).square().sum(1).mean()


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": mean_squared_error}
