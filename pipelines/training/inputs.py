"""What a network of a benchmark sees: derived once from the benchmark and its dataset, and handed down."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipelines.command import locks
from pipelines.command.errors import UserError
from pipelines.config.benchmarks import Benchmark
from pipelines.config.schema import plain
from pipelines.data import datasets, subsets, transforms
from pipelines.data.batches import stream
from pipelines.training import fingerprint, network, store, tensors

if TYPE_CHECKING:
    from pipelines.config.recipes import Recipe
    from pipelines.data.datasets import Dataset
    from pipelines.training.spec import Spec

LOADED = fingerprint.read()  # the code that this process runs, whatever becomes of the files
PATIENCE_S = 600.0  # for another process that fits the same
Transforms = tuple[transforms.Preprocess, transforms.Augment]


class Inputs:
    """Positions, shape and fitted transforms of one benchmark on one dataset, each derived when first asked for."""

    def __init__(self, benchmark: Benchmark, dataset: Dataset, root: Path) -> None:
        """``root`` is the run store, which keeps fitted transforms."""
        self.benchmark, self.dataset, self.root = benchmark, dataset, root

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """The inputs of a trial; opens its dataset."""
        return cls(spec.benchmark, datasets.open_dataset(spec.data, spec.benchmark.dataset), spec.store)

    @functools.cached_property
    def positions(self) -> NDArray[np.int64]:
        """Positions (n,) in the training file of the images that the recipe trains on."""
        return subsets.positions(self.dataset.train, self.benchmark.recipe.subset)

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input; UserError for a transform that is unknown or does not fit the images."""
        recipe, shape = self.benchmark.recipe, self.dataset.shape
        for key, build, ops in (
            ("preprocess", transforms.build_preprocess, recipe.preprocess),
            ("augment", transforms.build_augment, recipe.augment),
        ):
            try:
                shape = transforms.output_shape(build(ops), shape)
            except ValueError as error:
                raise UserError(f"{self.benchmark.where}.recipe.{key}: {error}") from None
        return shape

    @functools.cached_property
    def transforms(self) -> Transforms:
        """The recipe's transforms, fitted on its training images, on the CPU.

        The store keeps them for all trials: to fit GCN and ZCA on CIFAR-10 took 18 s on one core.
        """
        identity = self._identity()
        kept = self.root / "fitted" / f"{stream(*identity):016x}.pt"
        what = f"the preprocessing of {self.benchmark.name}"
        with locks.held(kept.with_suffix(".lock"), f"fitting {what}", patience_s=PATIENCE_S):
            try:
                return self._restored(kept, identity)
            except store.MissingError:
                pass
            except store.DamagedError as error:
                store.set_aside(kept)
                print(f"{error}; set aside, and fitted again", flush=True)
            preprocess, augment = fit(self.benchmark.recipe, self.dataset)
            state = {"of": identity, "preprocess": preprocess.state_dict(), "augment": augment.state_dict()}
            tensors.save_sealed(kept, state)
        return preprocess, augment

    def build(self) -> nn.Module:
        """The benchmark's network for these inputs, freshly initialised."""
        return network.build(self.benchmark, len(self.dataset.classes), self.shape)

    def load(self, weights: Path) -> nn.Module:
        """The benchmark's network with trained weights."""
        return network.load(self.benchmark, len(self.dataset.classes), self.shape, weights)

    def _identity(self) -> list[str]:
        """What decides the fitted transforms: data, arguments and code."""
        recipe = plain(self.benchmark.recipe)
        chosen = {key: recipe[key] for key in ("preprocess", "augment", "subset")}
        code = fingerprint.of_fitting(chosen, LOADED)
        return [self.dataset.digest, *map(str, chosen.values()), *(f"{name} {one}" for name, one in code.items())]

    def _restored(self, path: Path, identity: list[str]) -> Transforms:
        recipe = self.benchmark.recipe
        state = tensors.load_sealed(path, f"the fitted preprocessing of {self.benchmark.name}")
        with tensors.laid_out(path):
            if state["of"] != identity:
                raise ValueError("another recipe's")
            preprocess = transforms.build_preprocess(recipe.preprocess).restore(state["preprocess"])
            return preprocess, transforms.build_augment(recipe.augment).restore(state["augment"])


def fit(recipe: Recipe, dataset: Dataset) -> Transforms:
    """The transforms of ``recipe``, fitted on the images that it trains on and on no other."""
    preprocess, augment = transforms.build_preprocess(recipe.preprocess), transforms.build_augment(recipe.augment)
    images, _ = dataset.split("train")
    transforms.fit(preprocess, images, subsets.positions(dataset.train, recipe.subset), augment=augment)
    return preprocess, augment
