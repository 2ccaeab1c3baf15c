"""The linear classifier: the baseline under every other row of the MNIST table.

Source: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998, section III.C.1 (Fig. 9: 12.0 %, and 8.4 % on deslanted
images of 20 x 20, where the classifier has 4,010 parameters).

| layer  | output | parameters on MNIST |
|--------|--------|---------------------|
| input  | 1x28x28 | 0 |
| output | 10     | 784 x 10 + 10 = 7,850 |
"""

from __future__ import annotations

import math

from torch import nn


def linear(*, classes: int = 10, in_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """Build ``classes`` weighted sums of all pixels, any ``in_shape``: (N, C, H, W) -> (N, classes) raw sums.

    Open questions, and what we chose:
      the initial weights are not given: U(-2.4/F, 2.4/F) as for the paper's networks, biases zero (the problem is
      convex, so they decide only where the descent starts); in the paper, sigmoid units, linear units and a direct
      solution gave similar results: we return the linear sums, and the recipe chooses the loss.
    """
    pixels = math.prod(in_shape)
    layer = nn.Linear(pixels, classes)
    bound = 2.4 / pixels  # by the fan-in (LeCun 1998, appendix A)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)
