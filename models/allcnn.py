"""The all-convolutional nets of Springenberg, Dosovitskiy, Brox, Riedmiller, arXiv:1412.6806 (ICLR 2015 workshop).

Table 1, the three base models for 3x32x32 images (each conv is followed by a ReLU):

| output    | A                    | B                    | C                    |
|-----------|----------------------|----------------------|----------------------|
| 96x32x32  | conv 5x5             | conv 5x5, conv 1x1   | conv 3x3, conv 3x3   |
| 96x16x16  | max pool 3x3/2       | the same             | the same             |
| 192x16x16 | conv 5x5             | conv 5x5, conv 1x1   | conv 3x3, conv 3x3   |
| 192x8x8   | max pool 3x3/2       | the same             | the same             |
| 192x6x6   | conv 3x3             | the same             | the same             |
| 192x6x6   | conv 1x1             | the same             | the same             |
| 10x6x6    | conv 1x1             | the same             | the same             |
| 10        | global average (6x6) | the same             | the same             |

Section 3.1, three changes to each (Table 2 draws them for C):

  strided  each pooling is removed, and the stride of the convolution before it raised by 1
  convpool a 3x3 convolution of the same width is added before each pooling
  allcnn   each pooling becomes a 3x3 convolution of the same width with stride 2

All-CNN-C, the net of Table 2's last column, layer by layer:

| layer | kernel       | output    | parameters |
|-------|--------------|-----------|------------|
| 1     | 3x3x3x96     | 96x32x32  | 2,688      |
| 2     | 3x3x96x96    | 96x32x32  | 83,040     |
| 3     | 3x3x96x96/2  | 96x16x16  | 83,040     |
| 4     | 3x3x96x192   | 192x16x16 | 166,080    |
| 5     | 3x3x192x192  | 192x16x16 | 331,968    |
| 6     | 3x3x192x192/2 | 192x8x8  | 331,968    |
| 7     | 3x3x192x192  | 192x6x6   | 331,968    |
| 8     | 1x1x192x192  | 192x6x6   | 37,056     |
| 9     | 1x1x192x10   | 10x6x6    | 1,930      |

Layers of the other nets: 5x5x3x96 (7,296) and 5x5x96x192 (460,992) in A and B, 1x1x96x96 (9,312) and
1x1x192x192 (37,056) in B. A ConvPool-CNN has All-CNN's layers 3 and 6 at stride 1, each before a pooling.

Total parameters for 10 classes, and those of the paper's Table 3 in brackets:

|   | base              | strided | convpool           | allcnn            |
|---|-------------------|---------|--------------------|-------------------|
| A | 839,242 (0.9 M)   | same    | 1,254,250 (1.28 M) | same as convpool  |
| B | 885,610 (1 M)     | same    | 1,300,618 (1.35 M) | same as convpool  |
| C | 954,730 (1.3 M)   | same    | 1,369,738 (1.4 M)  | same as convpool  |

The bracketed 1.3 M of C does not follow from the paper's own layers.

Open questions, and what we chose:
  the size that is averaged: the paper's 6x6 follows if the 3x3 convolution after the last pooling (layer 7 of
    All-CNN-C) is not padded: ``conv7_padding=0``, as in the Caffe rebuild that comes closest to the paper. The neon
    rebuild pads it and averages 8x8: ``conv7_padding=1``. Both have as many parameters.
  the border of the poolings: we follow Caffe's rule (windows start at 0, the last one may hang over), by which 3x3 with
    stride 2 reduces 32 to 16; a stride-2 convolution does so with padding k // 2.
  the ReLU on the last convolution: Table 1 has "10 or 100 ReLU", so it is on by default (``logits_relu``). All logits
    of an image may then be zero: a training that starts there stays at ln 10.
  the initial weights: not stated (``init``); biases zero.
  where the dropout acts: 20 % of the input, 50 % after each pooling or what replaces it, unit by unit. In the strided
    variant that is the convolution whose stride was raised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

# (kernel sizes of a stage) for the three base models
STAGES = {"A": (5,), "B": (5, 1), "C": (3, 3)}
WIDTHS = (96, 192)  # maps of the two stages
INPUT_DROPOUT, STAGE_DROPOUT = 0.2, 0.5
SMALLEST_PHOTOGRAPH = 67  # pixels a side that leave 1x1 of 6x6
SMALLEST = 12  # pixels a side: two poolings leave 3x3 for the unpadded convolution


INITS: dict[str, Callable[[Tensor], object]] = {
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # N(0, 2/F), F the fan-in
    "xavier": nn.init.xavier_uniform_,  # Glorot's: U of variance 2/(F + fan-out)
    "caffe": partial(nn.init.kaiming_uniform_, nonlinearity="linear"),  # what Caffe calls xavier: U of variance 1/F
    "normal005": partial(nn.init.normal_, std=0.05),  # N(0, 0.05^2), neon's rebuild
}


def allcnn(
    *,
    base: Literal["A", "B", "C"] = "C",
    variant: Literal["base", "strided", "convpool", "allcnn"] = "allcnn",
    dropout: bool = True,
    logits_relu: bool = True,
    conv7_padding: int = 0,
    init: Literal["he", "xavier", "caffe", "normal005"] = "he",
    classes: int = 10,
    in_shape: tuple[int, int, int] = (3, 32, 32),
) -> nn.Module:
    """Build one of the twelve nets of Table 3: (N, 3, 32, 32) -> logits (N, classes). Other sides from 12 pixels up.

    Args:
        base: "A", "B" or "C".
        variant: "base", "strided", "convpool" or "allcnn".
        dropout: whether to drop 20 % of the input and 50 % after each pooling or its replacement, in training.
        logits_relu: whether the last convolution has a ReLU, as in the paper's table.
        conv7_padding: 0 averages 6x6, 1 averages 8x8.
        init: a key of ``INITS``; biases start at zero.
        classes: outputs.
        in_shape: (channels, height, width).

    Raises:
        ValueError: ``conv7_padding`` is neither 0 nor 1, or the image is too small.
    """
    if conv7_padding not in (0, 1):
        raise ValueError(f"conv7_padding {conv7_padding} must be 0 or 1")
    if min(in_shape[1:]) < SMALLEST:
        raise ValueError(f"input {in_shape} is too small: a side of {min(in_shape[1:])} is below {SMALLEST}")
    channels = in_shape[0]
    layers: list[nn.Module] = [nn.Dropout(INPUT_DROPOUT)] if dropout else []
    for width in WIDTHS:
        layers += _stage(channels, width, STAGES[base], variant)
        layers += [nn.Dropout(STAGE_DROPOUT)] if dropout else []
        channels = width
    layers += _conv(channels, 192, 3, padding=conv7_padding)  # (N, 192, 6, 6)
    layers += _conv(192, 192, 1)
    layers += _conv(192, classes, 1)  # (N, classes, 6, 6)
    if not logits_relu:
        layers.pop()
    return _started(layers, init)


def imagenet(*, dropout: float = 0.5, classes: int = 1000, in_shape: tuple[int, int, int] = (3, 227, 227)) -> nn.Module:
    """Build All-CNN-B scaled up for ImageNet (section 3.4, the appendix's table): (N, 3, 227, 227) -> (N, classes).

    | layer | kernel            | output     | parameters |
    |-------|-------------------|------------|------------|
    | 1     | 11x11x3x96/4      | 96x55x55   | 34,944     |
    | 2     | 1x1x96x96         | 96x55x55   | 9,312      |
    | 3     | 3x3x96x96/2       | 96x27x27   | 83,040     |
    | 4     | 5x5x96x256        | 256x27x27  | 614,656    |
    | 5     | 1x1x256x256       | 256x27x27  | 65,792     |
    | 6     | 3x3x256x256/2     | 256x13x13  | 590,080    |
    | 7     | 3x3x256x384       | 384x13x13  | 885,120    |
    | 8     | 1x1x384x384       | 384x13x13  | 147,840    |
    | 9     | 3x3x384x384/2     | 384x6x6    | 1,327,488  |
    | 10    | 3x3x384x1024      | 1024x6x6   | 3,539,968  |
    | 11    | 1x1x1024x1024     | 1024x6x6   | 1,049,600  |
    | 12    | 1x1x1024x1000     | 1000x6x6   | 1,025,000  |
    | total |                   |            | 9,372,840  |

    The table is recalled; its sum fits the paper's "less than 10 million". Maps of 6x6 follow from 227 pixels without
    padding in layer 1 and the layers of stride 2. Dropout follows layer 9; no ReLU follows the logits.

    Args:
        dropout: the fraction of layer 9's outputs to drop in training.
        classes: outputs.
        in_shape: (channels, height, width), sides from 67 pixels up.

    Raises:
        ValueError: the image is too small.
    """
    if min(in_shape[1:]) < SMALLEST_PHOTOGRAPH:
        raise ValueError(f"input {in_shape} is too small: a side of {min(in_shape[1:])} is below {SMALLEST_PHOTOGRAPH}")
    layers, channels = _conv(in_shape[0], 96, 11, stride=4, padding=0), 96
    for width, kernel in ((96, 0), (256, 5), (384, 3)):
        layers += _conv(channels, width, kernel) if kernel else []
        layers += [*_conv(width, width, 1), *_conv(width, width, 3, stride=2, padding=0)]
        channels = width
    layers += [nn.Dropout(dropout), *_conv(384, 1024, 3), *_conv(1024, 1024, 1), *_conv(1024, classes, 1)[:1]]
    return _started(layers, "he")


class GlobalAverage(nn.Module):
    """Mean over the positions of each map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return x.mean((2, 3))


def _started(layers: list[nn.Module], init: str) -> nn.Module:
    """The net of these layers and the average over each map, with its initial weights."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            INITS[init](layer.weight)
            assert layer.bias is not None  # for the type checker
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, GlobalAverage())


def _stage(channels: int, width: int, kernels: tuple[int, ...], variant: str) -> list[nn.Module]:
    """The convolutions of one stage and its reduction to half the side: (N, channels, H, W) -> (N, width, H/2, W/2)."""
    layers: list[nn.Module] = []
    for position, kernel in enumerate(kernels, 1):
        last = position == len(kernels)
        layers += _conv(channels, width, kernel, stride=2 if variant == "strided" and last else 1)
        channels = width
    if variant == "convpool":
        layers += _conv(width, width, 3)
    if variant == "allcnn":
        layers += _conv(width, width, 3, stride=2)
    if variant in ("base", "convpool"):
        layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
    return layers


def _conv(channels: int, width: int, kernel: int, stride: int = 1, padding: int | None = None) -> list[nn.Module]:
    """A convolution that keeps the side (stride 2: halves it) unless ``padding`` is given, and its ReLU."""
    padding = kernel // 2 if padding is None else padding
    return [nn.Conv2d(channels, width, kernel, stride=stride, padding=padding), nn.ReLU(inplace=True)]
