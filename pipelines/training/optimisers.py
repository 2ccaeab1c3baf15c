"""From a recipe's optimiser to torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.config import wording
from pipelines.config.recipes import Optimiser
from pipelines.training.sdlm import SDLM


def build_optimiser(chosen: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """The torch optimiser for ``chosen``; ConvNetJS's Adadelta (Zeiler's, no rate) is torch's with ``lr`` 1."""
    groups = parameter_groups(chosen, model)
    if chosen.name == "adadelta":
        return torch.optim.Adadelta(
            groups, lr=chosen.lr, rho=chosen.rho, eps=chosen.eps, weight_decay=chosen.weight_decay
        )
    if chosen.name == "sdlm":
        return SDLM(groups, lr=chosen.lr, mu=chosen.mu)
    return torch.optim.SGD(
        groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=chosen.nesterov, weight_decay=chosen.weight_decay
    )


def parameter_groups(chosen: Optimiser, model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters by decay and rate; ``initial_lr`` is what the schedule multiplies.

    ValueError when ``layer_decay`` names a layer that the model does not have.
    """
    layers = [name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))]
    unknown = set(chosen.layer_decay) - set(layers)
    if unknown:
        names = wording.listed(sorted(unknown))
        raise ValueError(f"layer_decay names {names}; expected layers of the model: {wording.listed(layers)}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        bias = kind.endswith("bias")
        decay = chosen.layer_decay.get(layer, chosen.weight_decay) if chosen.decay_biases or not bias else 0.0
        if parameter.requires_grad:
            groups.setdefault((chosen.lr * (chosen.bias_lr if bias else 1.0), decay), []).append(parameter)
    return [{"params": held, "lr": lr, "initial_lr": lr, "weight_decay": w} for (lr, w), held in groups.items()]
