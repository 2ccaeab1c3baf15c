"""Krizhevsky's CIFAR-10 nets, as his cuda-convnet layer files define them (example-layers/*.cfg).

All: 5x5 convolutions with padding 2, 3x3 pooling with stride 2 that covers the whole map (a window may hang over the
border; an average counts only what is inside), images of 0..255 less the per-pixel mean, not divided by 255: the
initial deviation of 1e-4 in conv1 suits only that scale. Biases start at 0. The modules have the files' layer names, so
that a recipe can give each its own weight decay. The tables list the files' ``wc``, which decay weights only.

layers_80sec ("26 % error in 80 seconds"), 145,578 parameters; layers_19pct and layers_18pct, 89,578 (without fc64):

| layer  | what                                   | output   | initial std | parameters | wc 80sec | 19pct | 18pct |
|--------|----------------------------------------|----------|-------------|------------|----------|-------|-------|
| conv1  | conv 5x5                               | 32x32x32 | 1e-4        | 2,432      | 0.004    | 0.004 | 0.004 |
| pool1  | max pool, then ReLU                    | 32x16x16 |             |            |          |       |       |
| rnorm1 | 18pct alone: normalisation, same map   | 32x16x16 |             |            |          |       |       |
| conv2  | conv 5x5, ReLU                         | 32x16x16 | 0.01        | 25,632     | 0.004    | 0.004 | 0.004 |
| pool2  | average pool                           | 32x8x8   |             |            |          |       |       |
| rnorm2 | 18pct alone: normalisation, same map   | 32x8x8   |             |            |          |       |       |
| conv3  | conv 5x5, ReLU                         | 64x8x8   | 0.01        | 51,264     | 0.004    | 0.004 | 0.004 |
| pool3  | average pool                           | 64x4x4   |             |            |          |       |       |
| fc64   | 80sec alone: full, ReLU                | 64       | 0.1         | 65,600     | 0.03     |       |       |
| fc10   | full                                   | 10       | 0.1 or 0.01 | 650 or 10,250 | 0.03  | 3     | 1     |

conv_local_13pct, 1,116,490 parameters, and conv_local_11pct, 2,112,970, on crops of 24x24:

| layer  | what                                   | output   | initial std | parameters 13 % / 11 % | wc 13 % | 11 %  |
|--------|----------------------------------------|----------|-------------|------------------------|---------|-------|
| conv1  | conv 5x5, ReLU                         | 64x24x24 | 1e-4        | 4,864                  | 0       | 0     |
| pool1  | max pool                               | 64x12x12 |             |                        |         |       |
| rnorm1 | 11 % alone: normalisation, across maps | 64x12x12 |             |                        |         |       |
| conv2  | conv 5x5, ReLU                         | 64x12x12 | 0.01        | 102,464                | 0       | 0     |
| rnorm2 | 11 % alone: normalisation, across maps | 64x12x12 |             |                        |         |       |
| pool2  | max pool                               | 64x6x6   |             |                        |         |       |
| local3 | 3x3 unshared, ReLU (11 %: 64 filters)  | 32x6x6   | 0.04        | 664,704 / 1,329,408    | 0.004   | 0.004 |
| local4 | 3x3 unshared, ReLU                     | 32x6x6   | 0.04        | 332,928 / 664,704      | 0.004   | 0.004 |
| fc10   | full                                   | 10       | 0.01        | 11,530                 | 0.004   | 0.01  |

Normalisation. Same map (``rnorm`` of size 3): u / (1 + scale/9 sum u^2)^pow, the sum over the 3x3 neighbours in the
map, scale 5e-5, pow 0.75. Across maps (``cmrnorm`` of size 9): the sum over 9 neighbouring maps at the same place,
scale/9, scale 1e-3, pow 0.75. The layer parser divides scale by the number of units summed, as torch does.

Open questions, and what we chose:
  the layer file of the 11 % net changed over time: an early one has 32 + 32 local filters and normalises across 5 maps
    before both poolings; we take the later one, with 64 + 32 filters and 9 maps, after pool1 and before pool2. So not
    normalisation alone takes 13 to 11 %.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.normalisation import ResponseNorm

CONV1_STD = 1e-4
CONV_STD = 0.01
LOCAL_STD = 0.04
SAME_MAP_SIZE, SAME_MAP_SCALE = 3, 5e-5
CROSS_MAP_SIZE, CROSS_MAP_SCALE = 9, 1e-3
NORM_POWER = 0.75


def layers_80sec(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """Build layers-80sec (26 %): (N, 3, 32, 32) -> logits (N, classes).

    Raises:
        ValueError: a side of the image is below 12 pixels.
    """
    return _pooled(in_shape, classes, hidden=64, fc_std=0.1, normalised=False)


def layers_19pct(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """Build layers-19pct: layers-18pct without normalisation; (N, 3, 32, 32) -> logits (N, classes).

    Raises:
        ValueError: a side of the image is below 12 pixels.
    """
    return _pooled(in_shape, classes, hidden=0, fc_std=0.01, normalised=False)


def layers_18pct(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """Build layers-18pct: (N, 3, 32, 32) -> logits (N, classes).

    Raises:
        ValueError: a side of the image is below 12 pixels.
    """
    return _pooled(in_shape, classes, hidden=0, fc_std=0.01, normalised=True)


def conv_local_13pct(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 24, 24)) -> nn.Module:
    """Build layers-conv-local-13pct: (N, 3, 24, 24) -> logits (N, classes).

    Raises:
        ValueError: a side of the image is below 6 pixels.
    """
    return _local(in_shape, classes, local3=32, normalised=False)


def conv_local_11pct(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 24, 24)) -> nn.Module:
    """Build layers-conv-local-11pct: (N, 3, 24, 24) -> logits (N, classes).

    Raises:
        ValueError: a side of the image is below 6 pixels.
    """
    return _local(in_shape, classes, local3=64, normalised=True)


def _pooled(in_shape: tuple[int, int, int], classes: int, *, hidden: int, fc_std: float, normalised: bool) -> nn.Module:
    """Three convolutions, each followed by pooling, and one or two full layers."""
    channels, height, width = in_shape
    height, width = (_pooled_side(side, 3, in_shape) for side in (height, width))
    layers = OrderedDict[str, nn.Module]()
    layers["conv1"] = _conv(channels, 32, CONV1_STD)  # (N, 32, 32, 32)
    layers["pool1"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)  # (N, 32, 16, 16)
    layers["relu1"] = nn.ReLU(inplace=True)
    if normalised:
        layers["rnorm1"] = SameMapNorm()
    layers["conv2"] = _conv(32, 32, CONV_STD)
    layers["relu2"] = nn.ReLU(inplace=True)
    layers["pool2"] = nn.AvgPool2d(3, stride=2, ceil_mode=True)  # (N, 32, 8, 8)
    if normalised:
        layers["rnorm2"] = SameMapNorm()
    layers["conv3"] = _conv(32, 64, CONV_STD)
    layers["relu3"] = nn.ReLU(inplace=True)
    layers["pool3"] = nn.AvgPool2d(3, stride=2, ceil_mode=True)  # (N, 64, 4, 4)
    layers["flatten"] = nn.Flatten()
    units = 64 * height * width
    if hidden:
        layers["fc64"] = _full(units, hidden, fc_std)
        layers["relu4"] = nn.ReLU(inplace=True)
        units = hidden
    layers["fc10"] = _full(units, classes, fc_std)
    return nn.Sequential(layers)


def _local(in_shape: tuple[int, int, int], classes: int, *, local3: int, normalised: bool) -> nn.Module:
    """Two convolutions with pooling, two locally connected layers and a full one."""
    channels, height, width = in_shape
    height, width = (_pooled_side(side, 2, in_shape) for side in (height, width))
    layers = OrderedDict[str, nn.Module]()
    layers["conv1"] = _conv(channels, 64, CONV1_STD)  # (N, 64, 24, 24)
    layers["relu1"] = nn.ReLU(inplace=True)
    layers["pool1"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)  # (N, 64, 12, 12)
    if normalised:
        layers["rnorm1"] = _cross_map_norm()
    layers["conv2"] = _conv(64, 64, CONV_STD)
    layers["relu2"] = nn.ReLU(inplace=True)
    if normalised:
        layers["rnorm2"] = _cross_map_norm()
    layers["pool2"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)  # (N, 64, 6, 6)
    layers["local3"] = LocallyConnected(64, local3, (height, width))
    layers["relu3"] = nn.ReLU(inplace=True)
    layers["local4"] = LocallyConnected(local3, 32, (height, width))
    layers["relu4"] = nn.ReLU(inplace=True)
    layers["flatten"] = nn.Flatten()
    layers["fc10"] = _full(32 * height * width, classes, 0.01)
    return nn.Sequential(layers)


class LocallyConnected(nn.Module):
    """A 3x3 convolution with padding 1 whose kernels and biases differ from place to place (``type=local``).

    ``weight`` is (places, in x 9, filters), places row by row and inputs map by map; ``bias`` (places, filters).
    """

    def __init__(self, channels: int, filters: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        places = size[0] * size[1]
        self.weight = nn.Parameter(torch.empty(places, channels * 9, filters))
        self.bias = nn.Parameter(torch.zeros(places, 1, filters))
        nn.init.normal_(self.weight, std=LOCAL_STD)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, filters, H, W)."""
        patches = F.unfold(x, 3, padding=1).permute(2, 0, 1)  # (H W, N, in x 9)
        sums = torch.baddbmm(self.bias, patches, self.weight)  # (H W, N, filters)
        return sums.permute(1, 2, 0).reshape(len(x), -1, *self.size)


class SameMapNorm(nn.Module):
    """Response normalisation over the 3x3 neighbours in the same map (``type=rnorm``)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same; the mean is always over nine, with zeros beyond the border."""
        mean = F.avg_pool2d(x.square(), SAME_MAP_SIZE, stride=1, padding=SAME_MAP_SIZE // 2)
        return x / (1 + SAME_MAP_SCALE * mean) ** NORM_POWER


def _cross_map_norm() -> nn.Module:
    """Response normalisation over 9 neighbouring maps (``type=cmrnorm``); cuda-convnet divides the scale by 9."""
    return ResponseNorm(CROSS_MAP_SIZE, alpha=CROSS_MAP_SCALE / CROSS_MAP_SIZE, k=1.0)


def _conv(channels: int, filters: int, std: float) -> nn.Conv2d:
    conv = nn.Conv2d(channels, filters, 5, padding=2)
    nn.init.normal_(conv.weight, std=std)
    assert conv.bias is not None  # for the type checker
    nn.init.zeros_(conv.bias)
    return conv


def _full(units: int, outputs: int, std: float) -> nn.Linear:
    full = nn.Linear(units, outputs)
    nn.init.normal_(full.weight, std=std)
    nn.init.zeros_(full.bias)
    return full


def _pooled_side(side: int, times: int, in_shape: tuple[int, int, int]) -> int:
    """The side after ``times`` poolings 3/2 that cover the whole map."""
    left = side
    for _ in range(times):
        if left < 3:
            raise ValueError(f"input {in_shape} is too small: a side of {side} leaves {left} pixels to a 3x3 pooling")
        left = -((3 - left) // 2) + 1
    return left
