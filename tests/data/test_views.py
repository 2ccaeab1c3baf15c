"""Test-time views against plain slicing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.config.claims import Evaluation
from pipelines.data.transforms import Augment, build_augment
from pipelines.data.views import SINGLE, views


def augmenter(*spec: dict[str, Any]) -> Augment:
    return build_augment(list(spec))


CROP = augmenter({"crop": {"size": 4}}, {"flip": {}})
SHIFT = augmenter({"shift": {"pixels": 2}}, {"flip": {}})


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(1, 2, (16, 3, 8, 9)).astype(np.float32))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("augment", [Augment(), SHIFT])
def test_single_is_the_image_itself(images: Tensor, augment: Augment) -> None:
    (view,) = views(images, SINGLE, augment, seeded())
    assert torch.equal(view, images)


def test_single_is_the_centre_where_training_crops(images: Tensor) -> None:
    (view,) = views(images, SINGLE, CROP, seeded())
    assert torch.equal(view, images[:, :, 2:6, 2:6])


def test_random_views_are_the_training_augmentation(images: Tensor) -> None:
    stack = list(views(images, Evaluation(views="random"), SHIFT, seeded()))
    generator = seeded()
    assert len(stack) == 6
    assert all(torch.equal(view, SHIFT(images, generator)) for view in stack)
    assert not torch.equal(stack[0], stack[1])
    again = views(images, Evaluation(views="random", count=2), SHIFT, seeded())
    assert all(torch.equal(view, first) for view, first in zip(again, stack[:2], strict=True))


def test_ten_crop_is_corners_and_centre_then_their_mirrors(images: Tensor) -> None:
    stack = [view.numpy() for view in views(images, Evaluation(views="ten_crop", crop=4), SHIFT, seeded())]
    array = images.numpy()
    crops = [array[:, :, :4, :4], array[:, :, :4, 5:], array[:, :, 4:, :4], array[:, :, 4:, 5:], array[:, :, 2:6, 2:6]]
    assert len(stack) == 10
    for view, expected in zip(stack, [*crops, *(crop[..., ::-1] for crop in crops)], strict=True):
        np.testing.assert_array_equal(view, expected)


def test_views_are_made_one_at_a_time(images: Tensor) -> None:
    generator = seeded()
    start = generator.get_state()
    stream = views(images, Evaluation(views="random"), SHIFT, generator)
    assert torch.equal(generator.get_state(), start)  # nothing is drawn before it is asked for
    next(stream)
    assert not torch.equal(generator.get_state(), start)
