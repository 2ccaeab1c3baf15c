"""The convolutional nets of Karpathy's ConvNetJS demos; the ml4a chapter trained the same two.

Source: karpathy/convnetjs, demo/cifar10.html and demo/mnist.html.

cifar10, 22,466 parameters:

| layer            | output   | parameters                |
|------------------|----------|---------------------------|
| input            | 3x32x32  | 0                         |
| conv 5x5, ReLU   | 16x32x32 | 16 x (3 x 25 + 1) = 1,216 |
| max pool 2/2     | 16x16x16 | 0                         |
| conv 5x5, ReLU   | 20x16x16 | 20 x (16 x 25 + 1) = 8,020 |
| max pool 2/2     | 20x8x8   | 0                         |
| conv 5x5, ReLU   | 20x8x8   | 20 x (20 x 25 + 1) = 10,020 |
| max pool 2/2     | 20x4x4   | 0                         |
| softmax          | 10       | 320 x 10 + 10 = 3,210     |

mnist, 5,994 parameters:

| layer            | output   | parameters                |
|------------------|----------|---------------------------|
| input (a crop)   | 1x24x24  | 0                         |
| conv 5x5, ReLU   | 8x24x24  | 8 x (25 + 1) = 208        |
| max pool 2/2     | 8x12x12  | 0                         |
| conv 5x5, ReLU   | 16x12x12 | 16 x (8 x 25 + 1) = 3,216 |
| max pool 3/3     | 16x4x4   | 0                         |
| softmax          | 10       | 256 x 10 + 10 = 2,570     |

Both return logits; the loss contains the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

RELU_BIAS = 0.1  # ConvNetJS starts the biases of ReLU layers here, all others at 0


def cifar10(*, classes: int = 10, in_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """Build the CIFAR-10 demo's net: (N, 3, 32, 32) -> logits (N, classes); sides from 8 pixels up.

    Open questions: none in the architecture, which is read from code. Weights N(0, 1/F) for a fan-in of F.

    Raises:
        ValueError: the image is too small for the three poolings.
    """
    return _net(in_shape, classes, maps=(16, 20, 20), pools=(2, 2, 2))


def mnist(*, classes: int = 10, in_shape: tuple[int, int, int] = (1, 24, 24)) -> nn.Module:
    """Build the MNIST demo's net: (N, 1, 24, 24) -> logits (N, classes); sides from 6 pixels up.

    The recipe crops 24x24 from 28x28, as the demo does. Open questions: none in the architecture.

    Raises:
        ValueError: the image is too small for the two poolings.
    """
    return _net(in_shape, classes, maps=(8, 16), pools=(2, 3))


def _net(in_shape: tuple[int, int, int], classes: int, maps: Sequence[int], pools: Sequence[int]) -> nn.Module:
    channels, height, width = in_shape
    layers: list[nn.Module] = []
    for count, pool in zip(maps, pools, strict=True):
        conv = nn.Conv2d(channels, count, 5, padding=2)
        _start(conv, fan_in=channels * 25, bias=RELU_BIAS)
        layers += [conv, nn.ReLU(), nn.MaxPool2d(pool)]
        channels, height, width = count, height // pool, width // pool
    if min(height, width) < 1:
        raise ValueError(f"input {in_shape} is too small for poolings of {tuple(pools)}: it leaves {height}x{width}")
    softmax = nn.Linear(channels * height * width, classes)
    _start(softmax, fan_in=softmax.in_features, bias=0.0)
    return nn.Sequential(*layers, nn.Flatten(), softmax)


def _start(layer: nn.Conv2d | nn.Linear, fan_in: int, bias: float) -> None:
    nn.init.normal_(layer.weight, std=fan_in**-0.5)
    assert layer.bias is not None  # for the type checker: both kinds are built with one
    nn.init.constant_(layer.bias, bias)
