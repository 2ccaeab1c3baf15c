"""Fully connected networks with one or two hidden layers, the rivals of LeNet on MNIST.

Source: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998, sections III.C.5 and III.C.6, and Fig. 9.

| net            | layers                | parameters                            | published  | with distortions |
|----------------|-----------------------|---------------------------------------|------------|------------------|
| 300 hidden     | 784-300-10            | 235,500 + 3,010 = 238,510             | 4.7 %      | 3.6 %            |
| 1000 hidden    | 784-1000-10           | 785,000 + 10,010 = 795,010            | 4.5 %      | 3.8 %            |
| 300 + 100      | 784-300-100-10        | 235,500 + 30,100 + 1,010 = 266,610    | 3.05 %     | 2.5 %            |
| 500 + 150      | 784-500-150-10        | 392,500 + 75,150 + 1,510 = 469,160    | 2.95 %     | 2.45 %           |

On deslanted images of 20 x 20, the net of 300 hidden units has 123,310 parameters and an error of 1.6 %.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

AMPLITUDE, SLOPE = 1.7159, 2 / 3  # f(a) = A tanh(S a): f(1) = 1, f(-1) = -1 (LeCun 1998, appendix A)


class ScaledTanh(nn.Module):
    """f(a) = 1.7159 tanh(2a/3), element by element."""

    def forward(self, a: Tensor) -> Tensor:
        """Squash ``a`` into (-1.7159, 1.7159)."""
        return AMPLITUDE * torch.tanh(SLOPE * a)


def mlp(
    *,
    hidden: tuple[int, ...] = (300,),
    output: Literal["linear", "tanh"] = "linear",
    init: Literal["fan_in", "sqrt_fan_in"] = "fan_in",
    classes: int = 10,
    in_shape: tuple[int, int, int] = (1, 28, 28),
) -> nn.Module:
    """Build a network with ``hidden`` units a layer, any ``in_shape``: (N, C, H, W) -> (N, classes).

    ``output`` is "linear" (raw sums, for cross-entropy) or "tanh" (squashed, for squared error against +-1 targets);
    ``init`` the range of the uniform initial weights, as in LeNet-5: "fan_in" 2.4/F, "sqrt_fan_in" 2.4/sqrt(F).

    Open questions, and what we chose:
      the paper calls the units sigmoid and gives the scaled tanh for LeNet-5: we take the scaled tanh here too;
      the initial weights are by default those of LeNet-5, U(-2.4/F, 2.4/F), biases zero; the text of section III.C.6
      says 1000-150 where Fig. 9 and the MNIST page say 500-150 (2.95 %): both can be built.

    Raises:
        ValueError: a layer has no unit.
    """
    if any(units < 1 for units in hidden):
        raise ValueError(f"hidden {list(hidden)} must hold at least 1 unit a layer")
    widths = [math.prod(in_shape), *hidden, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, units in pairwise(widths):
        layer = nn.Linear(fan_in, units)
        bound = 2.4 / (fan_in if init == "fan_in" else math.sqrt(fan_in))  # the same appendix
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)
        layers += [layer, ScaledTanh()]
    return nn.Sequential(*layers[: len(layers) if output == "tanh" else -1])
