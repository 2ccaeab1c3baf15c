"""Response normalisation with a closed-form backward: Krizhevsky, Sutskever, Hinton, NIPS 2012, section 3.3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHED = 1 << 17  # values that stay in a core's cache between the steps


class ResponseNorm(nn.Module):
    """b = a / (k + alpha sum a^2)^(3/4), the sum over ``size`` adjacent maps: (N, C, H, W) -> (N, C, H, W).

    The sum is not divided by ``size``; ``nn.LocalResponseNorm`` divides it, and takes some five times as long on a CPU.
    The exponent is fixed, so that two square roots replace a power. Always computed in float32 or float64. Maps beyond
    the first and the last count as zero.

    Args:
        size: how many adjacent maps, this one in the middle.
        alpha: the factor of the sum.
        k: added to the sum.
    """

    def __init__(self, size: int, *, alpha: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.k = size, alpha, k

    def forward(self, maps: Tensor) -> Tensor:  # noqa: D102
        wide = maps if maps.dtype == torch.float64 else maps.float()
        normalised: Tensor = _Normalise.apply(wide, self.size, self.alpha, self.k)  # type: ignore[no-untyped-call]
        return normalised

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.size}, alpha={self.alpha}, k={self.k}"


class _Normalise(torch.autograd.Function):
    """With d = k + alpha sum a^2: b = a d^(-3/4), and the gradient of a is

    g d^(-3/4) - 3/2 alpha a sum (g a d^(-7/4)), the sum over the maps whose own sums a is part of.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: int, alpha: float, k: float) -> Tensor:
        normalised, divisors = torch.empty_like(maps), torch.empty_like(maps)
        for a, b, d in _pieces(maps, normalised, divisors):
            _window(a * a, size // 2, (size - 1) // 2, out=d).mul_(alpha).add_(k)
            root = d.rsqrt()
            torch.sqrt(root, out=b).mul_(root).mul_(a)
        ctx.save_for_backward(maps, divisors)
        ctx.size, ctx.alpha = size, alpha
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        maps, divisors = ctx.saved_tensors
        made = torch.empty_like(maps)
        for a, d, g, out in _pieces(maps, divisors, gradient, made):
            root = d.rsqrt()
            torch.sqrt(root, out=out).mul_(root).mul_(g)
            share = torch.mul(out, a, out=root).div_(d)
            out.addcmul_(_window(share, (ctx.size - 1) // 2, ctx.size // 2), a, value=-1.5 * ctx.alpha)
        return made, None, None, None


def _window(maps: Tensor, before: int, after: int, *, out: Tensor | None = None) -> Tensor:
    """The sum over each map, the ``before`` maps in front of it and the ``after`` maps behind it."""
    count = maps.shape[1]
    total = torch.empty_like(maps) if out is None else out
    total.copy_(maps)
    for step in range(1, min(before, count - 1) + 1):
        total[:, step:] += maps[:, : count - step]
    for step in range(1, min(after, count - 1) + 1):
        total[:, : count - step] += maps[:, step:]
    return total


def _pieces(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    """The same images of each tensor: on a CPU as few at a time as fit its cache, on a GPU all at once."""
    first = tensors[0]
    images = max(1, CACHED // max(1, first[0].numel())) if first.is_cpu and len(first) else max(1, len(first))
    return zip(*(tensor.split(images) for tensor in tensors), strict=True)
