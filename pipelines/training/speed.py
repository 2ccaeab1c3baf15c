"""A trial's rate on this machine, measured over a few plain steps."""

from __future__ import annotations

import dataclasses
import itertools
import time

import torch

from pipelines.training import core, memory
from pipelines.training.inputs import Inputs
from pipelines.training.optimisers import build_optimiser
from pipelines.training.spec import Spec

WARM_UP = 2  # steps before a measurement begins
MEASURE_S = 1.0  # of the steps after those


def measure(spec: Spec, seconds: float = MEASURE_S) -> float:
    """Images a second, measured for about ``seconds``; only the fitted preprocessing stays in the store.

    Of an ensemble the first member is measured, which needs no search for examples. ZCA is left out: it takes half a
    minute to fit, and a trial of an epoch and more whitens its images before the first step. On a GPU the kernels are
    launched one by one, while a trial replays them (``graphs``) and takes less time.
    """
    memory.keep()
    core.settle(spec.threads)
    preprocess = tuple(op for op in spec.benchmark.recipe.preprocess if "zca" not in op)
    recipe = dataclasses.replace(spec.benchmark.recipe, boosting=None, preprocess=preprocess)
    spec = dataclasses.replace(spec, benchmark=dataclasses.replace(spec.benchmark, recipe=recipe))
    loader, module = core.assemble(spec, Inputs.of(spec), once=False)
    module.to(spec.device)
    optimiser = build_optimiser(recipe.optimiser, module.model)
    module.prepare_epoch(optimiser, loader, 0)
    began, images = 0.0, 0
    for step, (batch, labels) in enumerate(itertools.chain.from_iterable(itertools.repeat(loader))):
        with torch.autocast(spec.device, torch.bfloat16, enabled=spec.precision == "bf16"):
            outputs = module.model(batch)
        optimiser.zero_grad()
        module.loss(outputs.float(), labels).backward()
        optimiser.step()
        if step == WARM_UP:
            wait(spec.device)
            began = time.monotonic()
        elif step > WARM_UP:
            images += len(labels)
            if time.monotonic() - began > seconds:
                break
    wait(spec.device)
    return images / (time.monotonic() - began)


def wait(device: str) -> None:
    """Until the device has finished its work; a GPU is behind the host."""
    if device == "cuda":
        torch.cuda.synchronize()
