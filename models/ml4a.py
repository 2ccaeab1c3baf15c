"""The "ordinary" networks of the ml4a chapter on convnets: one hidden layer of ten sigmoid units.

Source: ml4a.github.io, the snapshots behind the confusion-matrix demos (CIFAR-10: 37 %, MNIST: 91.28 % correct). The
chapter's convolutional nets are ConvNetJS's own and live in ``convnetjs.py``.

| layer  | output  | parameters on CIFAR-10     | on MNIST                |
|--------|---------|----------------------------|-------------------------|
| input  | 3x32x32 | 0                          | 0                       |
| hidden | 10      | 3072 x 10 + 10 = 30,730    | 784 x 10 + 10 = 7,850   |
| output | 10      | 10 x 10 + 10 = 110         | 110                     |
| total  |         | 30,840                     | 7,960                   |
"""

from __future__ import annotations

import math

from torch import nn

HIDDEN = 10


def ordinary(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """Build pixels -> 10 sigmoid units -> ``classes`` logits, any ``in_shape``: (N, C, H, W) -> (N, classes).

    Open questions, and what we chose:
      the initial weights of the published snapshots are not documented: we follow ConvNetJS's own rule, weights
      N(0, 1/F) for a fan-in of F and biases zero (its 0.1 is only for ReLU layers); the chapter calls the net "1-layer"
      in one place and "2-layer" in another: the snapshots have one hidden layer.
    """
    pixels = math.prod(in_shape)
    hidden, output = nn.Linear(pixels, HIDDEN), nn.Linear(HIDDEN, classes)
    for layer in (hidden, output):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), hidden, nn.Sigmoid(), output)
