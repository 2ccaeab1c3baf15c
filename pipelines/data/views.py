"""Test-time augmentation: the views of an image whose predicted probabilities an evaluation averages."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipelines.data.transforms import Augment, center_crop

VIEWS = ("single", "random", "ten_crop")
CENTRE = 4  # of the ten crops
RANDOM_VIEWS = 6  # ConvNetJS's CIFAR-10 demo (demo/js/images-demo.js)


def views(
    images: Tensor,
    kind: str,
    *,
    augment: Augment | None = None,
    generator: torch.Generator | None = None,
    count: int = RANDOM_VIEWS,
    size: int | None = None,
) -> Iterator[Tensor]:
    """Yield the views (N, C, h, w) of preprocessed ``images`` (N, C, H, W), each made when it is asked for.

    - ``single``: the image, or its centre where training crops;
    - ``random``: ``count`` copies through the training augmentation (ConvNetJS), drawn from ``generator``. The draws
      follow the batches: the same views need the same batch size as well as the same seed;
    - ``ten_crop``: four corners and the centre, then the mirror image of each (AlexNet, section 4.1).

    ``size`` is the crop's side and comes from ``augment`` unless given. ValueError names what a kind lacks.
    """
    if kind not in VIEWS:
        raise ValueError(f"views are {kind!r}; expected one of {', '.join(VIEWS)}")
    if size is None and augment is not None:
        size = augment.crop_size
    if size is not None and not 1 <= size <= min(images.shape[2:]):
        raise ValueError(f"size is {size}; expected 1..{min(images.shape[2:])}, the images' shorter side")
    if kind == "random":
        if augment is None or generator is None:
            raise ValueError("random views lack an augmentation or a generator; expected both")
        return (augment(images, generator) for _ in range(count))
    if kind == "ten_crop":
        if size is None:
            raise ValueError("ten_crop lacks a size; expected one, or an augmentation that crops")
        return _ten_crop(images, size)
    return iter([images if size is None else center_crop(images, size)])


def _ten_crop(images: Tensor, size: int) -> Iterator[Tensor]:
    bottom, right = images.shape[2] - size, images.shape[3] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [images[:, :, top : top + size, left : left + size] for top, left in corners]
    crops.append(center_crop(images, size))  # slices of the images: they take no memory
    yield from crops
    for crop in crops:
        yield crop.flip(3)
