"""Guards that a step neither waits for the device nor sends it anything: on "meta", whose tensors have no values."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.config.benchmarks import Budget
from pipelines.config.params import load_params
from pipelines.data import batches
from pipelines.training import core, spec
from pipelines.training.classifier import Classifier
from pipelines.training.graphs import Passed
from pipelines.training.inputs import Inputs
from pipelines.training.optimisers import build_optimiser
from tests.golden import trainings

STEPS = 3
BATCH = 4
# Each family of nets, optimiser, loss and kind of transform. Of boosting the first member: the others' examples are
# searched for, once a member, with as many waits as there are candidates by the 256.
ROWS = [name for name in trainings.ROWS if name != "allcnn-c-cifar10"]  # Strided-A's transforms, optimiser and loss


class Sent(TorchDispatchMode):
    """Notes the operations that turn a tensor of the CPU into one of the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in args if isinstance(value, Tensor) and value.dim()}
        if "cpu" in devices and isinstance(found, Tensor) and found.is_meta:
            self.seen.append(str(func))
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of each data set, and what is fitted on them."""
    folder = tmp_path_factory.mktemp("waiting")
    for name in trainings.SHAPES:
        trainings.write_images(folder / "datasets", name)
    return folder


def on_meta(name: str, home: Path) -> tuple[batches.Batches, Classifier]:
    """The row's minibatches and module on a device without values: to look at one, as to wait for it, is an error."""
    benchmark = load_params(trainings.PARAMS).benchmark(name)
    epochs = benchmark.budgets["paper"].epochs  # the first of which is the first member's
    budget = Budget(epochs=epochs, seeds=(0,), train_images=STEPS * BATCH)
    preprocess = tuple(op for op in benchmark.recipe.preprocess if "zca" not in op)  # a product, and slow to fit
    recipe = dataclasses.replace(benchmark.recipe, batch=BATCH, preprocess=preprocess)
    benchmark = dataclasses.replace(benchmark, recipe=recipe, budgets=benchmark.budgets | {"short": budget})
    planned = spec.plan(benchmark, "short", 0, data=home / "datasets", root=home / "store", threads=1)
    planned = dataclasses.replace(planned, device="meta")
    inputs = Inputs.of(planned)
    loader, module = core.assemble(planned, inputs)
    module.to("meta")
    module.sums.to("meta")
    return loader, module


@pytest.mark.parametrize("name", ROWS)
def test_a_step_neither_waits_nor_sends(monkeypatch: pytest.MonkeyPatch, name: str, home: Path) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which meta has none of
    loader, module = on_meta(name, home)
    optimiser = build_optimiser(module.recipe.optimiser, module.model)
    with Sent() as sent:
        for number, (images, labels) in enumerate(loader):
            module.prepare_step(optimiser, 0, number)
            judged = module.judge(images, labels)
            module.sums.add(Passed(judged.loss.detach(), judged.wrong), len(labels))
            optimiser.zero_grad()
            judged.loss.backward()
            optimiser.step()
            if number == 0:  # the epoch's order and random numbers are there
                assert sent.seen != []
                sent.seen.clear()
                monkeypatch.delattr("pipelines.data.batches.stream")  # nothing more is drawn on the host
    assert number == STEPS - 1 and sent.seen == []
    with pytest.raises(RuntimeError, match="meta"):  # what the steps have passed
        judged.loss.item()
