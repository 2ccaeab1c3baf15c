"""From a recipe's optimiser to torch's."""

from __future__ import annotations

import torch
from torch import nn

from pipelines import benchmarks


def build_optimiser(chosen: benchmarks.Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """The torch optimiser for ``chosen``; ConvNetJS's Adadelta (Zeiler's, no rate) is torch's with ``lr`` 1."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for name, p in named if not chosen.decay_biases and name.rpartition(".")[2] == "bias"]
    decayed = [p for name, p in named if chosen.decay_biases or name.rpartition(".")[2] != "bias"]
    groups = [{"params": decayed}] + ([{"params": free, "weight_decay": 0.0}] if free else [])
    if chosen.name == "adadelta":
        return torch.optim.Adadelta(
            groups, lr=chosen.lr, rho=chosen.rho, eps=chosen.eps, weight_decay=chosen.weight_decay
        )
    return torch.optim.SGD(
        groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=chosen.nesterov, weight_decay=chosen.weight_decay
    )
