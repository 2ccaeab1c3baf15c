"""LeNet-1, LeNet-4 and LeNet-5, the convolutional networks of LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998.

LeNet-5 (section II.B, Fig. 2; 60,000 trainable parameters below the output layer):

| layer  | what                          | output   | parameters | connections |
|--------|-------------------------------|----------|------------|-------------|
| input  | 28x28 digit padded by 2       | 1x32x32  | 0          |             |
| C1     | conv 5x5                      | 6x28x28  | 156        | 122,304     |
| S2     | subsampling 2x2               | 6x14x14  | 12         | 5,880       |
| C3     | conv 5x5, sparse (``C3_MAPS``) | 16x10x10 | 1,516     | 151,600     |
| S4     | subsampling 2x2               | 16x5x5   | 32         | 2,000       |
| C5     | conv 5x5                      | 120x1x1  | 48,120     | 48,120      |
| F6     | full                          | 84       | 10,164     | 10,164      |
| output | RBF: 10 x 84 fixed +-1        | 10       | (840 fixed) |            |
| output | or softmax (our variant)      | 10       | 850        |             |

Subsampling sums 2x2 units, multiplies by a trainable coefficient, adds a trainable bias and squashes. All layers but
the output squash by f(a) = 1.7159 tanh(2a/3).

Layers pass on t = tanh(2a/3), and fold the constants into the (small) weights of the next layer, since
w f(a) = (1.7159 w) t: a scaled tanh then costs no more than a plain one. The parameters are the paper's, and the result
agrees to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AMPLITUDE, SLOPE = 1.7159, 2 / 3  # f(a) = A tanh(S a): f(1) = 1, f(-1) = -1 (appendix A)
INIT_RANGE = 2.4  # weights start in U(-2.4/F, 2.4/F), F the fan-in (appendix A)

# Table I: the S2 maps that feed each of the 16 maps of C3.
C3_MAPS: tuple[tuple[int, ...], ...] = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
# LeNet-1: which of the 4 maps of S2 feed each of the 12 of C3. The published 2,578 parameters and 98,442 connections of
# the 1990 network require twenty pairs.
LENET1_MAPS: tuple[tuple[int, ...], ...] = (
    *((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1)),
    *((2,), (2, 3), (2, 3), (3,), (2, 3), (2, 3)),
)
# LeNet-4, our choice: 8 subsampling maps, two on each first-level map c (2c and 2c + 1); each of 16 maps sees three of
# them, on three different first-level maps.
LENET4_MAPS: tuple[tuple[int, ...], ...] = (
    *((i, (i + 3) % 8, (i + 6) % 8) for i in range(8)),
    *((i, (i + 2) % 8, (i + 4) % 8) for i in range(8)),
)

# The stylised digits that the RBF units expect on F6, 7 pixels wide and 12 high ('#' is +1, '.' is -1). We drew them:
# the paper prints its own as a figure (Fig. 3), not as numbers.
BITMAPS = """
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
..###..  ...#...  .#####.  .#####.  .....#.  #######  ..####.  #######  .#####.  .#####.
.#...#.  ..##...  #.....#  #.....#  ....##.  #......  .#.....  ......#  #.....#  #.....#
#.....#  .#.#...  ......#  ......#  ...#.#.  #......  #......  .....#.  #.....#  #.....#
#.....#  ...#...  ......#  ......#  ..#..#.  #......  #......  .....#.  #.....#  #.....#
#.....#  ...#...  .....#.  ..####.  .#...#.  ######.  #.####.  ....#..  .#####.  .######
#.....#  ...#...  ....#..  ......#  #....#.  ......#  ##....#  ....#..  #.....#  ......#
#.....#  ...#...  ...#...  ......#  #######  ......#  #.....#  ...#...  #.....#  ......#
#.....#  ...#...  ..#....  ......#  .....#.  ......#  #.....#  ...#...  #.....#  ......#
.#...#.  ...#...  .#.....  #.....#  .....#.  #.....#  #.....#  ..#....  #.....#  .....#.
..###..  .#####.  #######  .#####.  .....#.  .#####.  .#####.  ..#....  .#####.  .####..
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""
Init = Literal["fan_in", "sqrt_fan_in"]
INIT_POWERS = {"fan_in": 1, "sqrt_fan_in": 0.5}
CODE = 84  # units of F6: 7 x 12 pixels


def lenet5(
    *,
    head: Literal["softmax", "rbf"] = "softmax",
    init: Init = "fan_in",
    classes: int = 10,
    in_shape: tuple[int, int, int] = (1, 32, 32),
) -> nn.Module:
    """Build LeNet-5: (N, 1, 32, 32) -> (N, classes).

    Args:
        head: "softmax" ends in a trained 84 -> ``classes`` layer and returns logits. "rbf" ends in the paper's 10
            Euclidean RBF units with fixed centres and returns *negative* squared distances, so that argmax decides as
            the paper does (smallest penalty); the MAP criterion over them is the recipe's.
        init: the range of the uniform initial weights, "fan_in" 2.4/F (the paper) or "sqrt_fan_in", 2.4 over
            the root of F.
        classes: 10 for the RBF head.
        in_shape: (channels, height, width); the sides must leave C5 a whole map (12 + a multiple of 4, from 16 up).

    Open questions, and what we chose:
      biases at the start are not mentioned: zero; a subsampling coefficient is one weight on 4 inputs, so U(-0.6, 0.6)
      under the same rule; the paper shares one RBF bitmap set over all printable ASCII: we draw our own ten digits; F6
      may squash or not before the RBF: it does, the text sets f's range by the RBF's +-1 targets.

    Raises:
        ValueError: an image that does not fit, or ``classes`` other than 10 with the RBF head.
    """
    return LeNet(
        in_shape=in_shape, maps=(6, 6, 16), table=C3_MAPS, full=(120, CODE), classes=classes, head=head, init=init
    )


def lenet1(*, init: Init = "fan_in", classes: int = 10, in_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """Build LeNet-1: (N, 1, 28, 28) -> logits (N, classes); 2,578 parameters ("about 2,600", section III.C).

    | layer  | what                                | output   | parameters | connections |
    |--------|-------------------------------------|----------|------------|-------------|
    | C1     | conv 5x5                            | 4x24x24  | 104        | 59,904      |
    | S2     | subsampling 2x2                     | 4x12x12  | 8          | 2,880       |
    | C3     | conv 5x5, sparse (``LENET1_MAPS``)  | 12x8x8   | 512        | 32,768      |
    | S4     | subsampling 2x2                     | 12x4x4   | 24         | 960         |
    | output | full                                | 10       | 1,930      | 1,930       |

    Open questions, and what we chose:
      the 1998 paper does not repeat the layers; the shapes are those of LeCun et al., NIPS 2 (1990), recalled. Its
      2,578 parameters (also in Optimal Brain Damage, the same volume) fix the number of C3 connections at twenty; which
      twenty is recalled too. Our count of connections is its 98,442 (recalled). Squashing and initial weights as for
      LeNet-5; outputs are left linear for a softmax.

    Raises:
        ValueError: an image that does not fit.
    """
    return LeNet(in_shape=in_shape, maps=(4, 4, 12), table=LENET1_MAPS, full=(), classes=classes, init=init)


def lenet4(*, init: Init = "fan_in", classes: int = 10, in_shape: tuple[int, int, int] = (1, 32, 32)) -> nn.Module:
    """Build our reading of LeNet-4: (N, 1, 32, 32) -> logits (N, classes); 50,698 parameters. Definition uncertain.

    | layer  | what                                      | output   | parameters | connections |
    |--------|-------------------------------------------|----------|------------|-------------|
    | C1     | conv 5x5                                  | 4x28x28  | 104        | 81,536      |
    | S2     | subsampling 2x2, two maps on each C1 map  | 8x14x14  | 16         | 7,840       |
    | C3     | conv 5x5, sparse (``LENET4_MAPS``)        | 16x10x10 | 1,216      | 121,600     |
    | S4     | subsampling 2x2                           | 16x5x5   | 32         | 2,000       |
    | C5     | full                                      | 120      | 48,120     | 48,120      |
    | output | full                                      | 10       | 1,210      | 1,210       |

    Open questions, and what we chose:
      the paper (section III.C.8) names 4 first-level maps, 8 subsampling maps "connected in pairs", 16 maps,
      16 subsampling maps, 120 units and 10 outputs, about 260,000 connections and about 17,000 parameters. Layers and
      parameters contradict each other: 120 units on 16 maps of 5x5 have 48,120 parameters alone. We keep the layers,
      read "in pairs" as two subsampling maps on each first-level map, and choose three inputs for each C3 map, which
      gives 262,306 connections: layers and connections agree with the paper, the parameters do not. Squashing and
      initial weights as for LeNet-5; outputs are left linear for a softmax.

    Raises:
        ValueError: an image that does not fit.
    """
    return LeNet(in_shape=in_shape, maps=(4, 8, 16), table=LENET4_MAPS, full=(120,), classes=classes, init=init)


def boosted_lenet4(
    *, init: Init = "fan_in", classes: int = 10, in_shape: tuple[int, int, int] = (1, 32, 32)
) -> nn.Module:
    """Build boosted LeNet-4, three of our LeNet-4s: (N, 1, 32, 32) -> (N, classes); 152,094 parameters, 3 x 50,698.

    The first trains as usual, the second on examples half of which the first gets wrong, the third on examples on which
    the other two disagree. A test adds their outputs (section III.C). The recipe filters the examples; ``member`` is
    the net that trains.

    Open questions, and what we chose:
      the paper adds outputs of bounded units; ours are linear for a softmax. We add probabilities, so that each net has
      one vote at most: the third hardly sees an easy example, and its answer to one may be arbitrary. To save time, the
      paper runs the second and third net only where the first is in doubt; we run all.

    Raises:
        ValueError: an image that does not fit.
    """
    return Ensemble([lenet4(init=init, classes=classes, in_shape=in_shape) for _ in range(3)])


class LeNet(nn.Module):
    """C1, S2, C3, S4, then full layers (c5, f6: as many as ``full`` names) and a head; see the module's text."""

    def __init__(
        self,
        *,
        in_shape: tuple[int, int, int],
        maps: tuple[int, int, int],
        table: Sequence[Sequence[int]],
        full: Sequence[int],
        classes: int,
        head: Literal["softmax", "rbf"] = "softmax",
        init: Init,
    ) -> None:
        super().__init__()
        if head == "rbf" and classes != 10:
            raise ValueError(f"the RBF head has 10 digits, not {classes} classes")
        channels, first, second, third = in_shape[0], *maps
        height, width = (_after_s4(side, in_shape) for side in in_shape[1:])
        self.c1 = Convolution(channels, first, 5)
        self.s2 = Subsampling(second, copies=second // first)
        self.c3 = SparseConvolution(table, 5)
        self.s4 = Subsampling(third)
        widths = [third * height * width, *full]
        self.full = nn.ModuleList(Full(*pair) for pair in pairwise(widths))
        self.head: nn.Module = RBF() if head == "rbf" else Logits(widths[-1], classes)
        for layer in self.modules():
            _start(layer, init)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, height, width) -> (N, classes); the shapes are LeNet-5's."""
        x = self.s2(self.c1(x))  # (N, 6, 28, 28) -> (N, 6, 14, 14)
        x = self.s4(self.c3(x))  # (N, 16, 10, 10) -> (N, 16, 5, 5)
        x = x.flatten(1)  # (N, 400)
        for layer in self.full:
            x = layer(x)  # (N, 120), (N, 84)
        out: Tensor = self.head(x)
        return out


class Ensemble(nn.Module):
    """Networks trained one after the other: only ``member`` runs in training, all of them vote in evaluation."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.member = 0  # the one being trained

    def forward(self, x: Tensor) -> Tensor:
        """In training the logits of ``member``; else the log of the mean of all members' probabilities, (N, classes).

        The logarithm of a sum decides as the sum does, and a softmax of it is the mean again.
        """
        if self.training:
            logits: Tensor = self.members[self.member](x)
            return logits
        votes = torch.stack([net(x).log_softmax(1) for net in self.members])  # (members, N, classes)
        return votes.logsumexp(0) - math.log(len(votes))


def _after_s4(side: int, in_shape: tuple[int, int, int]) -> int:
    """The side of a map of S4: two 5x5 convolutions without padding, each followed by halving."""
    left, odd = divmod(side - 12, 4)
    if odd or left < 1:
        raise ValueError(f"input {in_shape} does not fit: a side of {side} is not 12 plus a multiple of 4, from 16 up")
    return left


class Convolution(nn.Conv2d):
    """Squashing convolution on the image itself; returns tanh(2a/3)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H - 4, W - 4)."""
        assert self.bias is not None
        return torch.tanh(F.conv2d(x, SLOPE * self.weight, SLOPE * self.bias))


class SparseConvolution(nn.Module):
    """Squashing convolution whose map j sees only the input maps ``table[j]``; takes and returns tanh(2a/3).

    ``weight`` holds one kernel a connection, in the table's order: the missing ones are no parameters. A forward pass
    writes them into a dense kernel, which is far faster on a CPU than a convolution for each group of maps.
    """

    rows: Tensor

    def __init__(self, table: Sequence[Sequence[int]], kernel: int) -> None:
        super().__init__()
        self.table = tuple(tuple(inputs) for inputs in table)
        self.in_maps = 1 + max(max(inputs) for inputs in self.table)
        rows = [self.in_maps * j + i for j, inputs in enumerate(self.table) for i in inputs]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(rows), kernel, kernel))
        self.bias = nn.Parameter(torch.empty(len(self.table)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, len(table), H - 4, W - 4)."""
        return torch.tanh(F.conv2d(x, AMPLITUDE * SLOPE * self.dense(), SLOPE * self.bias))

    def dense(self) -> Tensor:
        """The kernels as one (maps, in, k, k) tensor with zeros for the missing connections."""
        kernel = self.weight.shape[1:]
        empty = self.weight.new_zeros(len(self.table) * self.in_maps, *kernel)
        return empty.index_copy(0, self.rows, self.weight).view(len(self.table), self.in_maps, *kernel)


class Subsampling(nn.Module):
    """Sum of 2x2 units times a coefficient plus a bias, squashed; takes and returns tanh(2a/3).

    With ``copies`` c, each input map feeds c of the ``maps``, each with its own coefficient and bias.
    """

    def __init__(self, maps: int, copies: int = 1) -> None:
        super().__init__()
        self.copies = copies
        self.weight = nn.Parameter(torch.empty(maps, 1, 1))
        self.bias = nn.Parameter(torch.empty(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, maps / copies, H, W) -> (N, maps, H / 2, W / 2)."""
        x = x[..., ::2] + x[..., 1::2]  # as sums of strided views: quicker than avg_pool2d, forward and backward
        x = x[..., ::2, :] + x[..., 1::2, :]
        if self.copies > 1:
            x = x.repeat_interleave(self.copies, dim=1)
        return torch.tanh(x * (AMPLITUDE * SLOPE * self.weight) + SLOPE * self.bias)


class Full(nn.Linear):
    """Squashing full layer; takes and returns tanh(2a/3)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return torch.tanh(F.linear(x, AMPLITUDE * SLOPE * self.weight, SLOPE * self.bias))


class Logits(nn.Linear):
    """The linear layer before a softmax; takes tanh(2a/3)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, classes)."""
        return F.linear(x, AMPLITUDE * self.weight, self.bias)


class RBF(nn.Module):
    """Ten Euclidean RBF units with fixed centres of +-1: y_i = sum_j (x_j - w_ij)^2 (equation 7); takes tanh(2a/3)."""

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", digit_bitmaps().flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 84) -> (N, 10), the distances negated so that the nearest centre is the largest."""
        x = AMPLITUDE * x
        # |x - w|^2 multiplied out; every centre has 84 entries of +-1, so |w|^2 = 84
        return 2 * F.linear(x, self.centres) - x.square().sum(1, keepdim=True) - CODE

    def curvature(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The diagonal second derivative of a loss E with respect to ``x`` (N, 84), as appendix C's recursion needs it.

        ``first`` and ``second`` (N, 10) are those with respect to the outputs o_i = -D_i, D_i the distance. With x_j
        for 1.7159 times ``x``, do_i/dx_j = -2 (x_j - w_ij) and d2o_i/dx_j^2 = -2, so that, second derivatives that mix
        two outputs neglected,

            d2E/dx_j^2 = sum_i d2E/do_i^2 (2 (x_j - w_ij))^2 - 2 sum_i dE/do_i.

        The recursion drops the second term for a squashing unit, whose f'' has either sign. Here it stays, as the first
        may vanish: under the MAP criterion it is 2 (1 - sum_i q_i), never negative, and near 2 while every digit is
        further off than the constant j. For another loss it counts only where it is positive.
        """
        slopes = 2 * AMPLITUDE * (self.centres - AMPLITUDE * x[:, None])  # (N, 10, 84), with respect to tanh(2a/3)
        bends = -2 * AMPLITUDE**2 * first.sum(1, keepdim=True)
        return torch.einsum("ni,nij->nj", second, slopes.square()) + bends.clamp(min=0)


def digit_bitmaps() -> Tensor:
    """The RBF centres as pictures: float (10, 12, 7), +1 for ink and -1 for paper."""
    rows = [line.split() for line in BITMAPS.strip().splitlines()]
    return torch.tensor([[[1.0 if dot == "#" else -1.0 for dot in row[digit]] for row in rows] for digit in range(10)])


def _start(layer: nn.Module, init: Init) -> None:
    """Draw a layer's initial weights by their fan-in; biases start at zero."""
    if isinstance(layer, SparseConvolution):  # each map has its own fan-in
        for kernel in layer.weight.detach().split([len(inputs) for inputs in layer.table]):
            _draw(kernel, kernel.numel(), init)
    elif isinstance(layer, Subsampling):  # one weight on four inputs
        _draw(layer.weight, 4, init)
    elif isinstance(layer, (nn.Conv2d, nn.Linear)):
        _draw(layer.weight, layer.weight[0].numel(), init)
    if isinstance(layer, (SparseConvolution, Subsampling, nn.Conv2d, nn.Linear)) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _draw(weight: Tensor, fan_in: int, init: Init) -> None:
    bound = INIT_RANGE / fan_in ** INIT_POWERS[init]
    nn.init.uniform_(weight, -bound, bound)
