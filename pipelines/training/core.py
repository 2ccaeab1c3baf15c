"""The numeric core of a trial: what decides its weights begins here, and so does the code in its key (``fingerprint``).

Reading, checking, reporting and keeping files are none of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.config.registry import Registry
from pipelines.data import subsets
from pipelines.data.batches import Batches
from pipelines.data.streams import stream
from pipelines.data.transforms import Preprocess
from pipelines.training import boosting
from pipelines.training.classifier import Classifier

if TYPE_CHECKING:
    from pipelines.config.benchmarks import Benchmark
    from pipelines.data.datasets import Dataset
    from pipelines.training.inputs import Transforms
    from pipelines.training.spec import Spec

# By the key of a recipe that asks for them: how minibatches are made, where not as usual.
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
    spec: Spec,
    dataset: Dataset,
    transforms: Transforms,
    build: Callable[[], nn.Module],
    *,
    preprocessed: NDArray[np.float32] | None = None,
    rank: int = 0,
    workers: int = 1,
) -> tuple[Batches, Classifier]:
    """The trial's minibatches, on its device, and its module around the freshly initialised network of ``build``.

    ``preprocessed`` (N, C, H, W) are the training images as they are after preprocessing, where that is done already.
    """
    benchmark, recipe, device = spec.benchmark, spec.benchmark.recipe, torch.device(spec.device)
    preprocess, augment = transforms
    torch.manual_seed(stream(spec.seed, "weights"))
    model = build()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stretch = benchmark.budgets["paper"].epochs / spec.epochs  # a shorter budget runs through the paper's schedule
    kind = Batches if recipe.boosting is None else LOADERS["boosting"](benchmark, model, stretch)
    kept = subsets.positions(dataset.train, recipe.subset)
    images: NDArray[Any]
    images, labels = dataset.split("train")
    if preprocessed is not None:
        images, preprocess = preprocessed, Preprocess()
    loader = kind(
        images,
        labels,
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
    )
    module = Classifier(model, recipe, steps=len(loader), stretch=stretch, seed=spec.seed, rank=rank)
    return loader, module


def settle(threads: int | None) -> None:
    """Make the process repeatable; ``threads`` None leaves torch's own number."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    # Lightning's determinism has torch fill every new tensor with NaN, to show reads of unset memory: a twentieth of
    # the time of a small network.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")  # fp32 is fp32; a recipe that wants speed sets bf16


def trainer_settings(spec: Spec) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that decide numbers."""
    return {
        "max_epochs": spec.epochs,
        "deterministic": spec.device == "cpu",
        "precision": "bf16-mixed" if spec.precision == "bf16" else "32-true",
    }
