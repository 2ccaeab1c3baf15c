"""The zip-code network of LeCun, Boser, Denker, Henderson, Howard, Hubbard, Jackel, Neural Computation 1(4), 1989.

| layer  | what                                             | output  | parameters            | connections |
|--------|--------------------------------------------------|---------|-----------------------|-------------|
| input  | 16x16 grey image in -1..1                        | 1x16x16 | 0                     |             |
| H1     | conv 5x5 stride 2, a bias for each unit          | 12x8x8  | 300 + 768 = 1,068     | 19,968      |
| H2     | conv 5x5 stride 2 on 8 of the 12, the same       | 12x4x4  | 2,400 + 192 = 2,592   | 38,592      |
| H3     | full                                             | 30      | 5,790                 | 5,790       |
| output | full                                             | 10      | 310                   | 310         |
| total  |                                                  | 1,256 units | 9,760             | 64,660      |

tanh after every layer, the output included. Beyond the border a unit sees the background, -1.

Open questions, and what we chose (the first four as in karpathy/lecun1989-repro, which reports 4.09 % on MNIST digits):
  which 8 planes feed an H2 plane is not specified: H1 and H2 are cut into thirds of four planes, and each third of H2
    sees two thirds of H1 (first and second, second and third, first and third);
  the PDF's formatting leaves open whether the initial range is 2.4/F or 2.4/sqrt(F): ``init``, by default the latter;
  the initial biases: zero, but -1 at the output, where nine targets of ten are -1;
  the border of H2: -1, like the image's;
  the scale of the "scaled hyperbolic tangent" is not given here (1.7159 is in later papers): plain tanh.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLANES, SEEN = 12, 8  # planes of H1 and of H2; H1 planes that an H2 plane sees
# the H1 planes that feed the three thirds of H2, one third after the other
H2_PLANES = (*range(0, 4), *range(4, 8), *range(4, 8), *range(8, 12), *range(0, 4), *range(8, 12))
H3_UNITS = 30
BACKGROUND = -1.0


def lenet1989(
    *,
    output: Literal["tanh", "linear"] = "tanh",
    init: Literal["sqrt_fan_in", "fan_in"] = "sqrt_fan_in",
    classes: int = 10,
    in_shape: tuple[int, int, int] = (1, 16, 16),
) -> nn.Module:
    """Build the 1989 network: (N, 1, 16, 16) -> (N, classes); any other size works too.

    ``output`` is "tanh" (the paper: squared error against targets +-1) or "linear" (logits). ``init`` is "sqrt_fan_in",
    U(-2.4/sqrt(F), 2.4/sqrt(F)), or "fan_in", U(-2.4/F, 2.4/F).
    """
    return LeNet1989(output=output, init=init, classes=classes, in_shape=in_shape)


class LeNet1989(nn.Module):
    """The layers H1, H2, H3 and output; see the module's text."""

    h2_planes: Tensor

    def __init__(self, *, output: str, init: str, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = in_shape
        self.squashed_output = output == "tanh"
        height, width = _halved(height), _halved(width)
        self.h1_weight = nn.Parameter(torch.empty(PLANES, channels, 5, 5))
        self.h1_bias = nn.Parameter(torch.zeros(PLANES, height, width))
        height, width = _halved(height), _halved(width)
        self.h2_weight = nn.Parameter(torch.empty(PLANES, SEEN, 5, 5))
        self.h2_bias = nn.Parameter(torch.zeros(PLANES, height, width))
        self.register_buffer("h2_planes", torch.tensor(H2_PLANES), persistent=False)
        self.h3 = nn.Linear(PLANES * height * width, H3_UNITS)
        self.output = nn.Linear(H3_UNITS, classes)
        nn.init.zeros_(self.h3.bias)
        nn.init.constant_(self.output.bias, BACKGROUND)
        for weight in (self.h1_weight, self.h2_weight, self.h3.weight, self.output.weight):
            fan_in = weight[0].numel()
            bound = 2.4 / (fan_in if init == "fan_in" else fan_in**0.5)
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        x = F.conv2d(_with_border(x), self.h1_weight, stride=2)
        x = torch.tanh(x + self.h1_bias)  # (N, 12, 8, 8)
        x = _with_border(x).index_select(1, self.h2_planes)  # (N, 24, 12, 12)
        x = F.conv2d(x, self.h2_weight, stride=2, groups=3)
        x = torch.tanh(x + self.h2_bias)  # (N, 12, 4, 4)
        x = torch.tanh(self.h3(x.flatten(1)))  # (N, 30)
        out: Tensor = self.output(x)
        return torch.tanh(out) if self.squashed_output else out


def _halved(side: int) -> int:
    return (side + 1) // 2


def _with_border(x: Tensor) -> Tensor:
    return F.pad(x, (2, 2, 2, 2), value=BACKGROUND)
