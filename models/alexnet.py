"""AlexNet: Krizhevsky, Sutskever, Hinton, NIPS 2012, section 3.5 and Fig. 2; and torchvision's version with one tower.

| layer | what                                            | output    | parameters  |
|-------|-------------------------------------------------|-----------|-------------|
| input |                                                 | 3x227x227 | 0           |
| conv1 | 11x11 stride 4, ReLU                            | 96x55x55  | 34,944      |
|       | response normalisation, max pool 3x3/2          | 96x27x27  | 0           |
| conv2 | 5x5, ReLU, in two towers                        | 256x27x27 | 307,456     |
|       | response normalisation, max pool 3x3/2          | 256x13x13 | 0           |
| conv3 | 3x3, ReLU, across the towers                    | 384x13x13 | 885,120     |
| conv4 | 3x3, ReLU, in two towers                        | 384x13x13 | 663,936     |
| conv5 | 3x3, ReLU, in two towers                        | 256x13x13 | 442,624     |
|       | max pool 3x3/2                                  | 256x6x6   | 0           |
| fc6   | full, ReLU, dropout 0.5                         | 4096      | 37,752,832  |
| fc7   | full, ReLU, dropout 0.5                         | 4096      | 16,781,312  |
| fc8   | full                                            | 1000      | 4,097,000   |
| total |                                                 |           | 60,965,224  |

The two towers, one on each of the authors' GPUs, are convolutions in two groups. Input: RGB of 0..255 less the mean;
the initial deviation of 0.01 suits only that scale.

The paper removes four parts, one at a time: ``normalise`` (section 3.3), ``overlap`` (3.4; poolings of 2x2/2 give maps
of the same size), ``dropout`` (4.2) and ``towers`` (3.2). Its net for one GPU has half as many maps in conv1 to conv4,
but not in conv5 (recalled, a footnote), so the full layers keep their size: 59,798,312 parameters.

Open questions, and what we chose:
  the paper's 224x224 images do not give its 55x55 maps at stride 4 without padding: 224 is padded by 2, 227 is not
    (``in_shape``);
  the formula of section 3.3 sums alpha a^2 over n = 5 maps; other programs divide the sum by n. We follow the formula;
  whether the normalisation stops at the border between the towers: it runs over all N maps of the layer, as the formula
    reads;
  the paper starts the biases of conv2, conv4, conv5 and the hidden full layers at 1: so does ``bias=1.0``. BVLC found
    that "initialization to 1 gave flat loss" and took 0.1, with a deviation of 0.005 for fc6 and fc7: ``bias=0.1,
    fc_std=0.005`` is the fallback;
  whether biases decay, and at which rate they are trained: the paper gives one decay and one rate for all layers, and
    does not mention biases. BVLC's do not decay, and have twice the weights' rate: the recipe says which it follows.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from models.normalisation import ResponseNorm

LRN_SIZE, LRN_ALPHA, LRN_K = 5, 1e-4, 2.0  # section 3.3; beta is 3/4
STD = 0.01  # of the initial weights (section 5)
UNITS = 4096
MAPS = {2: (96, 256, 384, 384, 256), 1: (48, 128, 192, 192, 256)}  # of the convolutions, by the number of towers
RANGES = {"bias": (-10.0, 10.0), "fc_std": (1e-6, 1.0), "dropout": (0.0, 0.99)}  # options in which the net trains


def alexnet(
    *,
    bias: float = 1.0,
    fc_std: float = STD,
    dropout: float = 0.5,
    normalise: bool = True,
    overlap: bool = True,
    towers: Literal[1, 2] = 2,
    classes: int = 1000,
    in_shape: tuple[int, int, int] = (3, 227, 227),
) -> nn.Module:
    """Build the net of 2012: (N, 3, 227, 227) -> logits (N, classes); (3, 224, 224) is padded by 2.

    Args:
        bias: initial biases of conv2, conv4, conv5, fc6 and fc7; all others 0.
        fc_std: deviation of the initial weights of fc6 and fc7; all others 0.01.
        dropout: the fraction of fc6's and fc7's outputs to drop in training.
        normalise: whether conv1 and conv2 are followed by response normalisation.
        overlap: whether the windows of a pooling overlap: 3x3/2, else 2x2/2.
        towers: 2, or the paper's smaller net for one GPU.
        classes: outputs.
        in_shape: (channels, height, width), sides from 67 pixels up.

    Raises:
        ValueError: the image is too small for the three poolings, or an option is out of its range.
    """
    _check(bias=bias, fc_std=fc_std, dropout=dropout)
    window = 3 if overlap else 2
    padding = 2 if in_shape[1:] == (224, 224) else 0
    positions = _positions(in_shape, padding, window)
    m1, m2, m3, m4, m5 = MAPS[towers]
    norms = {f"norm{i}": ResponseNorm(LRN_SIZE, alpha=LRN_ALPHA, k=LRN_K) for i in (1, 2) if normalise}
    net = nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(in_shape[0], m1, 11, stride=4, padding=padding),  # (N, 96, 55, 55)
            relu1=nn.ReLU(inplace=True),
            norm1=norms.get("norm1", nn.Identity()),
            pool1=nn.MaxPool2d(window, stride=2),  # (N, 96, 27, 27)
            conv2=nn.Conv2d(m1, m2, 5, padding=2, groups=towers),  # (N, 256, 27, 27)
            relu2=nn.ReLU(inplace=True),
            norm2=norms.get("norm2", nn.Identity()),
            pool2=nn.MaxPool2d(window, stride=2),  # (N, 256, 13, 13)
            conv3=nn.Conv2d(m2, m3, 3, padding=1),  # (N, 384, 13, 13)
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(m3, m4, 3, padding=1, groups=towers),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(m4, m5, 3, padding=1, groups=towers),  # (N, 256, 13, 13)
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(window, stride=2),  # (N, 256, 6, 6)
            flatten=nn.Flatten(),
            fc6=nn.Linear(m5 * positions, UNITS),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(dropout),
            fc7=nn.Linear(UNITS, UNITS),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(dropout),
            fc8=nn.Linear(UNITS, classes),
        )
    )
    _start(net, bias, fc_std)
    return net


def one_tower(
    *, dropout: float = 0.5, classes: int = 1000, in_shape: tuple[int, int, int] = (3, 224, 224)
) -> nn.Module:
    """Build torchvision's ``alexnet``, after Krizhevsky, "One weird trick", arXiv:1404.5997: logits (N, classes).

    | layer | what                                                       | output    | parameters  |
    |-------|------------------------------------------------------------|-----------|-------------|
    | conv1 | 11x11 stride 4, padded by 2, ReLU, max pool 3x3/2          | 64x55x55  | 23,296      |
    | conv2 | 5x5, ReLU, max pool 3x3/2                                  | 192x27x27 | 307,392     |
    | conv3 | 3x3, ReLU                                                  | 384x13x13 | 663,936     |
    | conv4 | 3x3, ReLU                                                  | 256x13x13 | 884,992     |
    | conv5 | 3x3, ReLU, max pool 3x3/2                                  | 256x13x13 | 590,080     |
    | fc6   | dropout 0.5, full, ReLU                                    | 4096      | 37,752,832  |
    | fc7   | dropout 0.5, full, ReLU                                    | 4096      | 16,781,312  |
    | fc8   | full                                                       | 1000      | 4,097,000   |
    | total |                                                            |           | 61,100,840  |

    No normalisation, and PyTorch's own initial weights. That paper's net differs: a footnote has 384 maps in conv4
    (vision#704), its layer file normalises, and its dropout follows the full layers (vision#549).

    Args:
        dropout: the fraction of fc6's and fc7's inputs to drop in training.
        classes: outputs.
        in_shape: (channels, height, width), sides from 63 pixels up.

    Raises:
        ValueError: the image is too small for the three poolings, or the dropout out of its range.
    """
    _check(dropout=dropout)
    positions = _positions(in_shape, 2, 3)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(in_shape[0], 64, 11, stride=4, padding=2),  # (N, 64, 55, 55)
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(3, stride=2),  # (N, 64, 27, 27)
            conv2=nn.Conv2d(64, 192, 5, padding=2),  # (N, 192, 27, 27)
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(3, stride=2),  # (N, 192, 13, 13)
            conv3=nn.Conv2d(192, 384, 3, padding=1),  # (N, 384, 13, 13)
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(384, 256, 3, padding=1),  # (N, 256, 13, 13)
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(256, 256, 3, padding=1),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=2),  # (N, 256, 6, 6)
            flatten=nn.Flatten(),
            drop6=nn.Dropout(dropout),
            fc6=nn.Linear(256 * positions, UNITS),
            relu6=nn.ReLU(inplace=True),
            drop7=nn.Dropout(dropout),
            fc7=nn.Linear(UNITS, UNITS),
            relu7=nn.ReLU(inplace=True),
            fc8=nn.Linear(UNITS, classes),
        )
    )


def _check(**options: float) -> None:
    for name, value in options.items():
        least, most = RANGES[name]
        if not least <= value <= most:
            raise ValueError(f"{name} {value:g} must be from {least:g} to {most:g}")


def _positions(in_shape: tuple[int, int, int], padding: int, window: int) -> int:
    """The positions of pool5's maps; ValueError where the image is too small to leave any."""
    rows, columns = (_after_pool5(side + 2 * padding, window) for side in in_shape[1:])
    if min(rows, columns) < 1:
        least = next(side for side in range(1, 68) if _after_pool5(side + 2 * padding, window) == 1)
        raise ValueError(f"input {in_shape} is too small: a side of {min(in_shape[1:])} is below {least}")
    return rows * columns


def _start(net: nn.Module, bias: float, fc_std: float) -> None:
    for name, layer in net.named_children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert layer.bias is not None  # for the type checker
            nn.init.normal_(layer.weight, std=fc_std if name in ("fc6", "fc7") else STD)
            nn.init.constant_(layer.bias, bias if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0)


def _after_pool5(side: int, window: int) -> int:
    """The side of pool5's maps, 0 or less where the image is too small."""
    side = (side - 11) // 4 + 1
    for _ in range(3):
        side = (side - window) // 2 + 1
    return side
