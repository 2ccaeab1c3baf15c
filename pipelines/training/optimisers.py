"""From a recipe's optimiser to torch's.

One entry in ``OPTIMISERS`` adds one. Its keyword arguments are the fields of ``config.recipes.Optimiser`` that it uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipelines.config import wording
from pipelines.config.registry import Registry
from pipelines.training.sdlm import SDLM

if TYPE_CHECKING:
    from pipelines.config.recipes import Optimiser

Groups = list[dict[str, Any]]  # of parameters, as torch takes them
OPTIMISERS: Registry[Callable[..., Optimizer]] = Registry("optimiser", __name__)


@OPTIMISERS.entry("sgd")
def sgd(groups: Groups, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent, with momentum as PyTorch defines it."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


@OPTIMISERS.entry("adadelta")
def adadelta(groups: Groups, *, lr: float, rho: float, eps: float, weight_decay: float) -> Optimizer:
    """Zeiler's Adadelta; his and ConvNetJS's have no rate, which is ``lr`` 1."""
    return torch.optim.Adadelta(groups, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)


@OPTIMISERS.entry("sdlm")
def sdlm(groups: Groups, *, lr: float, mu: float, samples: int) -> Optimizer:
    """Stochastic diagonal Levenberg-Marquardt."""
    return SDLM(groups, lr=lr, mu=mu, samples=samples)


def build_optimiser(chosen: Optimiser, model: nn.Module) -> Optimizer:
    """The optimiser of ``model``'s trained parameters; ValueError for an unknown name or layer."""
    make = OPTIMISERS[chosen.name]
    uses = [name for name in inspect.signature(make).parameters if name != "groups"]
    return make(parameter_groups(chosen, model), **{name: getattr(chosen, name) for name in uses})


def parameter_groups(chosen: Optimiser, model: nn.Module) -> Groups:
    """The trained parameters by decay and rate; the schedule multiplies ``initial_lr``.

    ValueError when ``layer_decay`` or ``layer_lr`` names a layer that the model does not have.
    """
    layers = [name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))]
    factors = chosen.layer_lr or {}
    for field, named in (("layer_decay", chosen.layer_decay), ("layer_lr", factors)):
        unknown = set(named) - set(layers)
        if unknown:
            raise ValueError(  # only here, a call of ``wording`` does not enter a trial's key
                f"{field} names {wording.listed(sorted(unknown))}; "
                f"expected layers of the model: {wording.listed(layers)}"
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        bias = kind.endswith("bias")
        decay = chosen.layer_decay.get(layer, chosen.weight_decay) if chosen.decay_biases or not bias else 0.0
        rate = chosen.lr * factors.get(layer, 1.0) * (chosen.bias_lr if bias else 1.0)
        if parameter.requires_grad:
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": held, "lr": lr, "initial_lr": lr, "weight_decay": w} for (lr, w), held in groups.items()]
