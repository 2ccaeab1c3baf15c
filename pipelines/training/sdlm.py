"""Stochastic diagonal Levenberg-Marquardt: gradient descent with a rate for each parameter (LeCun et al. 1998, app. C).

One example's step is w_k -= eta / (mu + h_kk) dE/dw_k. h_kk is the second derivative of the loss E with respect to w_k,
averaged over some hundred samples and estimated anew before each epoch. It comes from one backward pass in which, after
Gauss and Newton, no term with a unit's own second derivative f'' is kept, and of each layer's only the diagonal: with
a_i = sum_j u_ij x_j and x_i = f(a_i),

    d2E/da_i^2 = f'(a_i)^2 d2E/dx_i^2,   d2E/du_ij^2 = d2E/da_i^2 x_j^2,   d2E/dx_j^2 = sum_i u_ij^2 d2E/da_i^2,

and a weight shared by several connections gets their sum. Nothing in it can become negative.

That is the ordinary backward pass with its factors squared: weights, inputs and slopes. So the unmodified model runs
forward with its multiplying operations replaced (``_SquaredBackward``) by operations of the same value whose backward
pass squares, and autograd does the rest.

Our reading of the paper:
  the paper steps after each example; a minibatch makes the sum of its examples' steps, taken at the same weights, so
    that the published rates keep their meaning;
  a subsampling unit adds its four inputs, then multiplies the sum by its coefficient: one connection, from the sum,
    which bounds h by the square of the sum where four connections would have the sum of squares;
  the outputs' own second derivatives come from the loss (``losses.Loss.curvature``); a head that the recursion's sums
    and squashings do not describe, as the paper's RBF units, computes its own (``Head``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from pipelines.training.losses import Loss

AT_ONCE = 100  # samples: bounds the memory, not the result


class SDLM(torch.optim.Optimizer):
    """Steps of ``lr`` / (``mu`` + h) for each example of a minibatch; ``estimate`` h before each epoch.

    Gradients are means over the minibatch's ``examples``, which is set before each step. mu + h is part of the
    optimiser's state, and so of a checkpoint.
    """

    def __init__(
        self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr: float, mu: float, samples: int = 500
    ) -> None:
        """``samples`` is the number of training images that ``estimate`` is called with."""
        super().__init__(params, {"lr": lr, "mu": mu})
        self.examples, self.samples = 1, samples
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["divisor"] = torch.full_like(p, mu, requires_grad=False)  # h = 0

    def estimate(self, model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> None:
        """Second derivatives anew, by ``curvature``; ``model`` holds this optimiser's parameters.

        Every worker sees the same samples; all take rank 0's estimate, as a GPU's sums vary from run to run.
        """
        found, named = curvature(model, loss, images, labels), dict(model.named_parameters())
        h = {id(named[name]): value for name, value in found.items()}
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["divisor"] = group["mu"] + h[id(p)]
                if dist.is_initialized():
                    dist.broadcast(self.state[p]["divisor"], src=0)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One minibatch: the sum of its examples' steps."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.addcdiv_(p.grad, self.state[p]["divisor"], value=-group["lr"] * self.examples)


@runtime_checkable
class Head(Protocol):
    """A last layer with a rule of its own for the second derivatives."""

    def curvature(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The loss's diagonal second derivative with respect to the layer's inputs ``x`` (N, in).

        ``first`` and ``second`` (N, out) are its derivatives with respect to the layer's outputs.
        """


def curvature(model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The diagonal second derivative of ``loss`` for each trainable parameter of ``model``, mean over the images.

    ``images`` (N, C, H, W), ``labels`` (N,). None is negative. Raises ValueError where the model computes with an
    operation that has no rule here.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = [torch.zeros_like(p) for p in parameters.values()]
    for some, their_labels in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
        with torch.autocast(images.device.type, enabled=False):
            ends, h = _ends(model, loss, some, their_labels)
        found = torch.autograd.grad(ends, list(parameters.values()), h, allow_unused=True, materialize_grads=True)
        for total, part in zip(sums, found, strict=True):
            total += part
    return {name: total / len(images) for name, total in zip(parameters, sums, strict=True)}


def _ends(model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor where the recursion begins, the outputs or the head's inputs, and each image's second derivatives."""
    heads: list[tuple[Head, Tensor, Tensor]] = []  # with their inputs and outputs
    with contextlib.ExitStack() as hooks, _SquaredBackward():
        for module in model.modules():
            if isinstance(module, Head):
                note = module.register_forward_hook(lambda head, args, out: heads.append((head, args[0], out)))
                hooks.enter_context(note)
        outputs: Tensor = model(images)
    at = outputs.detach().requires_grad_()
    (first,) = torch.autograd.grad(loss(at, labels) * len(labels), at)
    second = loss.curvature(at.detach())
    for head, x, out in heads:
        if out is outputs:
            return x, head.curvature(x.detach(), first, second)
    return outputs, second


# --- the backward pass that squares ------------------------------------------------------------------------------


class _SquaredBackward(TorchFunctionMode):
    """Within it, operations keep their value, and their backward pass multiplies by squares."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.__name__.removeprefix("__").removesuffix("__"), dict(kwargs or {})
        if name in RULES:
            return RULES[name](*args, **kwargs)
        found = func(*args, **kwargs)
        plain = name in PLAIN and "alpha" not in kwargs  # torch.add multiplies by it
        if not plain and isinstance(found, Tensor) and found.requires_grad:
            why = f"it has no second derivatives for {name}, with which the model computes"
            raise ValueError(f"name is sdlm; expected another: {why}")
        return found


# Backward passes that multiply by 0 or 1 alone: sums, copies and choices. "get" reads an attribute, such as a shape.
PLAIN = {
    *("add", "radd", "sum", "relu", "max_pool2d"),
    *("get", "getitem", "index_copy", "index_select", "repeat_interleave", "cat", "stack", "pad"),
    *("contiguous", "expand", "flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view"),
}


def _valued(value: Tensor, path: Tensor) -> Tensor:
    """``value``, with the backward pass of ``path``."""
    return value.detach() + (path - path.detach())


def _product(op: Callable[[Any, Any], Tensor], a: Tensor | float, b: Tensor | float) -> Tensor:
    """``op`` is linear in each of its two arguments; backwards each is multiplied by the square of the other."""
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    a, b = (torch.as_tensor(factor, dtype=like.dtype, device=like.device) for factor in (a, b))
    return _valued(op(a, b), op(a, b.detach().square()) + op(a.detach().square(), b))


def _unit(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``f`` works element by element; backwards it multiplies by the square of its slope."""

    def apply(a: Tensor) -> Tensor:
        at = a.detach().requires_grad_()
        with torch.enable_grad():
            value = f(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        return _valued(value, a * slope.square())

    return apply


def _multiply(a: Tensor | float, b: Tensor | float) -> Tensor:
    return _product(torch.mul, a, b)


def _subtract(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The square of -1 is 1."""
    return _valued(torch.as_tensor(a - b), torch.as_tensor(a + b))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = _product(F.linear, x, weight)
    return out if bias is None else out + bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
    out = _product(lambda a, b: F.conv2d(a, b, None, *rest, **kwargs), x, weight)
    return out if bias is None else out + bias[:, None, None]


RULES: dict[str, Callable[..., Tensor]] = {
    "conv2d": _convolve,
    "linear": _linear,
    "mul": _multiply,
    "rmul": _multiply,
    "sigmoid": _unit(torch.sigmoid),
    "square": _unit(torch.square),
    "sub": _subtract,
    "tanh": _unit(torch.tanh),
}
