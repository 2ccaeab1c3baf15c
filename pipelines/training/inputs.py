"""A benchmark's network, shapes and fitted transforms, derived once from the benchmark and its dataset."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipelines.command import locks
from pipelines.command.errors import UserError, reason
from pipelines.command.files import DamagedError, MissingError, set_aside
from pipelines.config import schema, wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.values import plain
from pipelines.data import datasets, subsets, transforms
from pipelines.data.streams import stream
from pipelines.training import fingerprint, tensors

if TYPE_CHECKING:
    from pipelines.config.recipes import Recipe
    from pipelines.data.datasets import Dataset
    from pipelines.training.spec import Spec

LOADED = fingerprint.read()  # the code that this process runs, even if the files change
PATIENCE_S = 600.0  # for another process that fits the same transforms
UNKNOWN_FLOPS = 10**13  # operations of an image: as of a large network, so that what is cut by them is cut small
LONGEST_REASON = 300  # characters of an error of torch's
Transforms = tuple[transforms.Preprocess, transforms.Augment]


class Inputs:
    """Network, input shape and fitted transforms of one benchmark on one dataset, each derived on first use."""

    def __init__(self, benchmark: Benchmark, dataset: Dataset, root: Path) -> None:
        """``root`` is the run store, which keeps fitted transforms."""
        self.benchmark, self.dataset, self.root = benchmark, dataset, root

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """The inputs of a trial; opens its dataset."""
        return cls(spec.benchmark, datasets.open_dataset(spec.data, spec.benchmark.dataset), spec.store)

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input; UserError for a transform that is unknown or does not fit the images."""
        recipe, shape = self.benchmark.recipe, self.dataset.shape
        for key, known, build, ops in (
            ("preprocess", transforms.PREPROCESS, transforms.build_preprocess, recipe.preprocess),
            ("augment", transforms.AUGMENT, transforms.build_augment, recipe.augment),
        ):
            try:
                check_operations(ops, known)
                shape = transforms.output_shape(build(ops), shape)
            except (UserError, ValueError) as error:
                raise UserError(f"{self.benchmark.where}.recipe.{key}: {error}") from None
        return shape

    @functools.cached_property
    def transforms(self) -> Transforms:
        """The recipe's transforms, fitted on its training images, on the CPU.

        The store keeps them for all trials: to fit GCN and ZCA on CIFAR-10 took 20 s on one core. One process fits at a
        time; a damaged file is set aside.
        """
        identity, what = self._identity(), f"fitting the preprocessing of {self.benchmark.name}"
        kept = self.root / "fitted" / f"{stream(*identity):016x}.pt"
        with locks.held(kept.with_suffix(".lock"), what, patience_s=PATIENCE_S):
            try:
                return self._restored(kept, identity)
            except MissingError:
                pass
            except DamagedError as error:
                set_aside(kept)
                print(f"{error}; set aside, and fitted again", flush=True)
            preprocess, augment = fit(self.benchmark.recipe, self.dataset)
            state = {"of": identity, "preprocess": preprocess.state_dict(), "augment": augment.state_dict()}
            tensors.save_sealed(kept, state)
            return preprocess, augment

    @functools.cached_property
    def flops(self) -> int:
        """``forward_flops`` of the benchmark's network."""
        return forward_flops(self.build, self.shape)

    def build(self) -> nn.Module:
        """The benchmark's network for these inputs, freshly initialised."""
        return build_network(self.benchmark, len(self.dataset.classes), self.shape)

    def load(self, weights: Path) -> nn.Module:
        """The trained network in ``weights``, in evaluation mode; UserError when the file is damaged or another's."""
        model, name = self.build(), self.benchmark.name
        state = tensors.load(weights, f"the weights of {name}")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            differs = " ".join(str(error).split())[:160]
            raise UserError(f"{weights} does not hold the weights of {name}: {differs}") from None
        return model.eval()

    def _identity(self) -> list[str]:
        """All that decides the fitted transforms: data, arguments and code."""
        recipe = plain(self.benchmark.recipe)
        chosen = {key: recipe[key] for key in ("preprocess", "augment", "subset")}
        code = fingerprint.of_fitting(chosen, LOADED)
        return [self.dataset.digest, *map(str, chosen.values()), *(f"{name} {hash_}" for name, hash_ in code.items())]

    def _restored(self, path: Path, identity: list[str]) -> Transforms:
        recipe = self.benchmark.recipe
        state = tensors.load_sealed(path, f"the fitted preprocessing of {self.benchmark.name}")
        with tensors.laid_out(path):
            if state["of"] != identity:
                raise ValueError("another recipe's")
            preprocess = transforms.build_preprocess(recipe.preprocess).restore(state["preprocess"])
            return preprocess, transforms.build_augment(recipe.augment).restore(state["augment"])


def check_operations(spec: transforms.Spec, known: Mapping[str, type[transforms.Op]]) -> None:
    """UserError for an argument that an operation of a recipe can't take, ValueError for an unknown operation."""
    for item in spec:
        for name, arguments in item.items():
            schema.parse(known[name], arguments, name)


def fit(recipe: Recipe, dataset: Dataset) -> Transforms:
    """The transforms of ``recipe``, fitted on the images that it trains on and on no other."""
    preprocess, augment = transforms.build_preprocess(recipe.preprocess), transforms.build_augment(recipe.augment)
    images, _ = dataset.split("train")
    transforms.fit(preprocess, images, subsets.positions(dataset.train, recipe.subset), augment)
    return preprocess, augment


def build_network(benchmark: Benchmark, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The network for images of ``shape`` (C, H, W) as preprocessed and augmented; UserError when it can't be built."""
    known, name, where = builders(benchmark.model.family), benchmark.model.name, f"{benchmark.where}.model"
    if name not in known:
        raise UserError(wording.unknown(f"{where}.name: model", name, known))
    make = known[name]
    options = _options(benchmark, make)
    try:
        model: nn.Module = make(classes=classes, in_shape=shape, **options)
    except ValueError as error:
        raise UserError(f"{where}: {name}: {reason(error, LONGEST_REASON)}") from None
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # torch's own, for a size or a deviation
        line = reason(error, LONGEST_REASON)
        if not isinstance(error, RuntimeError) or "allocate" in line:  # a size that fits no memory, or no number
            line = "it is too large for this machine"
        raise UserError(f"{where}: {name} with the options {wording.show(options)}: {line}") from None
    return model


def forward_flops(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> int:
    """Floating-point operations, about, of a network's forward pass over one image of ``shape`` (C, H, W).

    ``UNKNOWN_FLOPS`` where the network can't run without values, on torch's device "meta".
    """
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            build().eval()(torch.empty(1, *shape))
    except (NotImplementedError, RuntimeError):
        return UNKNOWN_FLOPS
    return int(counter.get_total_flops())


def builders(family: str) -> dict[str, Callable[..., nn.Module]]:
    """The public functions of ``models/<family>.py``, by name."""
    module = importlib.import_module(f"models.{family}")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _options(benchmark: Benchmark, make: Callable[..., nn.Module]) -> dict[str, Any]:
    """The options, converted to the types of the builder's signature; UserError for one of another name or type."""
    where = f"{benchmark.where}.model.options"
    hints, options = typing.get_type_hints(make), benchmark.model.options
    allowed = set(inspect.signature(make).parameters) - {"classes", "in_shape"}
    for option in options:
        if option not in allowed:
            raise UserError(wording.unknown(f"{where}: {benchmark.model.name}: option", option, allowed))
    return {name: schema.convert(hints[name], value, f"{where}.{name}") for name, value in options.items()}
