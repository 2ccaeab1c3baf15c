"""Test-time augmentation: the views of an image whose predicted probabilities an evaluation averages."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipelines.config.claims import Evaluation
from pipelines.data.transforms import Augment, center_crop

SINGLE = Evaluation()
CENTRE = 4  # of the ten crops


def views(images: Tensor, how: Evaluation, augment: Augment, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the views (N, C, h, w) of preprocessed ``images`` (N, C, H, W), made lazily.

    - ``single``: the image, or its centre where training crops;
    - ``random``: training augmentations of the image (ConvNetJS), drawn from ``generator`` batch by batch, so that the
      same views need the same batch size as well as the same seed;
    - ``ten_crop``: four corners and the centre, then the mirror image of each (AlexNet, section 4.1).
    """
    if how.views == "random":
        return (augment(images, generator) for _ in range(how.count))
    size = how.crop or augment.crop_size
    if how.views == "ten_crop":
        assert size is not None  # the config requires it
        return _ten_crop(images, size)
    return iter([images if size is None else center_crop(images, size)])


def _ten_crop(images: Tensor, size: int) -> Iterator[Tensor]:
    bottom, right = images.shape[2] - size, images.shape[3] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [images[:, :, top : top + size, left : left + size] for top, left in corners]
    crops.append(center_crop(images, size))  # slices, which take no memory
    yield from crops
    for crop in crops:
        yield crop.flip(3)
