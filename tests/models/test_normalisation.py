"""Guards the response normalisation: the formula as the paper prints it, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import normalisation
from models.normalisation import ResponseNorm

SHAPES = [(3, 1, 2, 2), (2, 3, 3, 2), (3, 12, 2, 2)]  # one map; fewer and more maps than the widest sum has
SIZES = [1, 3, 4, 5, 9]


def literal(maps: torch.Tensor, size: int, alpha: float, k: float) -> torch.Tensor:
    """Section 3.3, map by map."""
    out = torch.empty_like(maps)
    count = maps.shape[1]
    for i in range(count):
        near = maps[:, max(0, i - size // 2) : min(count, i + (size - 1) // 2 + 1)]
        out[:, i] = maps[:, i] / (k + alpha * (near**2).sum(1)) ** 0.75
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula_and_its_gradient(size: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "CACHED", 2 * shape[1] * shape[2] * shape[3])  # two images a piece, then a rest
    maps = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    norm = ResponseNorm(size, alpha=0.3, k=1.5)
    torch.testing.assert_close(norm(maps), literal(maps, size, 0.3, 1.5))
    assert torch.autograd.gradcheck(norm, (maps,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_torchs_where_the_sum_is_divided(layout: torch.memory_format) -> None:
    maps = torch.randn(4, 96, 7, 7).mul(50).to(memory_format=layout)
    ours, theirs = ResponseNorm(5, alpha=1e-4, k=2.0), nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    made = ours(maps)
    torch.testing.assert_close(made, theirs(maps))
    assert made.is_contiguous(memory_format=layout)


def test_half_precision_is_widened_and_no_image_is_none() -> None:
    norm = ResponseNorm(5, alpha=1e-4, k=2.0)
    assert norm(torch.ones(2, 8, 3, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert norm(torch.ones(0, 8, 3, 3)).shape == (0, 8, 3, 3)
