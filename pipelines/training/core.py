"""The numeric core of a trial, where the walk over the code in its key begins (``fingerprint``).

It neither reads, checks and writes files nor reports.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelines.config.registry import Registry
from pipelines.data import subsets
from pipelines.data.batches import Batches
from pipelines.data.streams import stream
from pipelines.training import boosting
from pipelines.training.classifier import Classifier

if TYPE_CHECKING:
    from pipelines.config.benchmarks import Benchmark
    from pipelines.training.inputs import Inputs
    from pipelines.training.spec import Spec

# Other kinds of minibatches, by the key of the recipe that asks for them.
LOADERS: Registry[Callable[..., Callable[..., Batches]]] = Registry("kind of minibatches", __name__)


@LOADERS.entry("boosting")
def boosted(benchmark: Benchmark, model: nn.Module, stretch: float) -> Callable[..., Batches]:
    """Minibatches for the members of an ensemble."""
    assert benchmark.recipe.boosting is not None
    return functools.partial(
        boosting.BoostedBatches,
        boosting=benchmark.recipe.boosting,
        members=boosting.members(model),
        stretch=stretch,
        where=f"{benchmark.where}.recipe.boosting",
    )


def assemble(
    spec: Spec, inputs: Inputs, *, rank: int = 0, workers: int = 1, once: bool = True
) -> tuple[Batches, Classifier]:
    """The trial's minibatches, on its device, and its module around a freshly initialised network.

    A trial that looks at as many images as there are preprocesses each ``once`` beforehand where that is dear.
    """
    benchmark, recipe, device = spec.benchmark, spec.benchmark.recipe, torch.device(spec.device)
    preprocess, augment = inputs.transforms
    torch.manual_seed(stream(spec.seed, "weights"))
    model = inputs.build()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stretch = benchmark.budgets["paper"].epochs / spec.epochs  # a shorter budget runs through the paper's schedule
    kind = Batches if recipe.boosting is None else LOADERS["boosting"](benchmark, model, stretch)
    kept = subsets.positions(inputs.dataset.train, recipe.subset)
    loader = kind(
        *inputs.dataset.split("train"),
        torch.from_numpy(subsets.cut(kept, benchmark.budgets[spec.budget].train_images)),
        batch=recipe.batch,
        seed=spec.seed,
        preprocess=preprocess.to(device),
        augment=augment.to(device),
        shuffle=recipe.shuffle,
        channels_last=recipe.channels_last,
        device=device,
        rank=rank,
        workers=workers,
        even=benchmark.resources.most,
        once=once and spec.images() >= inputs.dataset.train,
    )
    module = Classifier(model, recipe, steps=len(loader), stretch=stretch, seed=spec.seed, rank=rank)
    return loader, module


def settle(threads: int | None) -> None:
    """Make the process repeatable, on a CPU to the bit; ``threads`` None leaves torch's own number."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # search for the fastest kernels: a GPU repeats no bits in any case
    # Lightning's determinism has torch fill every new tensor with NaN, to show reads of unset memory: a twentieth of
    # the time of a small network.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")  # fp32 is fp32; a recipe that wants speed sets bf16
    torch.backends.cudnn.allow_tf32 = False  # the same for convolutions


def trainer_settings(spec: Spec) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that decide numbers."""
    return {
        "max_epochs": spec.epochs,
        "deterministic": spec.device == "cpu",
        "precision": "bf16-mixed" if spec.precision == "bf16" else "32-true",
    }
