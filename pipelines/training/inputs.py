"""The network of a benchmark and what it sees: derived once from the benchmark and its dataset, and handed down."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.command import locks
from pipelines.command.errors import UserError, reason
from pipelines.command.files import DamagedError, MissingError, check_seal, sealing, set_aside
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

LOADED = fingerprint.read()  # the code that this process runs, whatever becomes of the files
PATIENCE_S = 600.0  # for another process that fits the same
LONGEST_REASON = 300  # characters of an error of torch's
Transforms = tuple[transforms.Preprocess, transforms.Augment]
KeptT = TypeVar("KeptT")


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

        The store keeps them for all trials: to fit GCN and ZCA on CIFAR-10 took 20 s on one core.
        """
        identity = self._identity("preprocess", "augment", "subset")
        kept = self.root / "fitted" / f"{stream(*identity):016x}.pt"

        def make() -> Transforms:
            preprocess, augment = fit(self.benchmark.recipe, self.dataset)
            state = {"of": identity, "preprocess": preprocess.state_dict(), "augment": augment.state_dict()}
            tensors.save_sealed(kept, state)
            return preprocess, augment

        what = f"fitting the preprocessing of {self.benchmark.name}"
        return _kept(kept, what, lambda: self._restored(kept, identity), make, "fitted again")

    def preprocessed(self, spec: Spec, workers: int = 1) -> NDArray[np.float32] | None:
        """All training images (N, C, H, W) after preprocessing, where a trial on a CPU is quicker with them; else None.

        That is, where the preprocessing is dear, the trial is long, and the bits are those of each minibatch that is
        preprocessed by itself: how a matrix product rounds depends on its threads, and on some processors on its rows,
        if these are few. The store keeps them: 614 MB for CIFAR-10; trials on one machine share the pages.
        """
        preprocess, _ = self.transforms
        if not (preprocess.dear and spec.device == "cpu" and spec.threads == 1 and spec.repeats):
            return None
        images, _ = self.dataset.split("train")
        shape = (len(images), *transforms.output_shape(preprocess, self.dataset.shape))
        path = self.root / "fitted" / f"{stream(*self._identity('preprocess', 'subset')):016x}.npy"

        def make() -> NDArray[np.float32]:
            _write(path, preprocess, images, shape, each=self.benchmark.recipe.batch)
            return _mapped(path, shape)

        what = f"preprocessing the training images of {self.benchmark.name}"
        kept = _kept(path, what, lambda: _mapped(path, shape), make, "made again")
        return kept if all(_alike(preprocess, images, kept, size) for size in self._shares(spec, workers)) else None

    def _shares(self, spec: Spec, workers: int) -> set[int]:
        """How many images of a minibatch a worker has: of a whole one, and of an epoch's last."""
        batch, even = self.benchmark.recipe.batch, self.benchmark.resources.most
        rest = len(subsets.cut(self.positions, self.benchmark.budgets[spec.budget].train_images)) % batch
        return {count // even * even // workers for count in (batch, rest)} - {0}

    def build(self) -> nn.Module:
        """The benchmark's network for these inputs, freshly initialised."""
        return build_network(self.benchmark, len(self.dataset.classes), self.shape)

    def load(self, weights: Path) -> nn.Module:
        """The benchmark's network with trained weights."""
        return load_network(self.benchmark, len(self.dataset.classes), self.shape, weights)

    def _identity(self, *keys: str) -> list[str]:
        """What decides the transforms that ``keys`` of the recipe name: data, arguments and code."""
        recipe = plain(self.benchmark.recipe)
        chosen = {key: recipe[key] for key in keys}
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


def _kept(path: Path, what: str, read: Callable[[], KeptT], make: Callable[[], KeptT], again: str) -> KeptT:
    """What ``read`` finds in ``path``, or else what ``make`` puts there, one process at a time; damage is set aside."""
    with locks.held(path.with_suffix(".lock"), what, patience_s=PATIENCE_S):
        try:
            return read()
        except MissingError:
            pass
        except DamagedError as error:
            set_aside(path)
            print(f"{error}; set aside, and {again}", flush=True)
        return make()


def _write(
    path: Path, preprocess: transforms.Preprocess, images: NDArray[np.uint8], shape: tuple[int, ...], each: int
) -> None:
    """An .npy file of float32, and its digest; ``each`` images at a time to the last, as in a minibatch."""
    with sealing(path) as file:
        header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for end in range(each, len(images) + each, each):
            some = preprocess(torch.from_numpy(np.array(images[max(0, min(end, len(images)) - each) : end])))
            file.write(some[max(0, end - len(images)) :].contiguous().numpy().data)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What ``_write`` has written; DamagedError for anything else."""
    check_seal(path)
    with tensors.laid_out(path):
        found: NDArray[np.float32] = np.load(path, mmap_mode="r")
        if found.shape != shape or found.dtype != np.float32:
            raise ValueError(f"{found.dtype} {found.shape}")
    return found


def _alike(preprocess: transforms.Preprocess, images: NDArray[np.uint8], kept: NDArray[np.float32], size: int) -> bool:
    """Whether a minibatch of ``size`` images, from all over the file, comes to the bits that are kept."""
    places = np.arange(size) * len(images) // size
    return torch.equal(preprocess(torch.from_numpy(images[places])), torch.from_numpy(kept[places]))


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
    make = _builder(benchmark)
    options = _options(benchmark, make)
    where, name = f"{benchmark.where}.model", benchmark.model.name
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


def load_network(benchmark: Benchmark, classes: int, shape: tuple[int, ...], weights: Path) -> nn.Module:
    """The trained network in ``weights``, in evaluation mode; UserError when the file is damaged or another's."""
    model = build_network(benchmark, classes, shape)
    state = tensors.load(weights, f"the weights of {benchmark.name}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        differs = " ".join(str(error).split())[:160]
        raise UserError(f"{weights} does not hold the weights of {benchmark.name}: {differs}") from None
    return model.eval()


def builders(family: str) -> dict[str, Callable[..., nn.Module]]:
    """The public functions of ``models/<family>.py``, by name."""
    module = importlib.import_module(f"models.{family}")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _builder(benchmark: Benchmark) -> Callable[..., nn.Module]:
    known, name = builders(benchmark.model.family), benchmark.model.name
    if name not in known:
        raise UserError(wording.unknown(f"{benchmark.where}.model.name: model", name, known))
    return known[name]


def _options(benchmark: Benchmark, make: Callable[..., nn.Module]) -> dict[str, Any]:
    """The options, converted to the types of the builder's signature; UserError for one of another name or type."""
    where = f"{benchmark.where}.model.options"
    hints, options = typing.get_type_hints(make), benchmark.model.options
    allowed = set(inspect.signature(make).parameters) - {"classes", "in_shape"}
    for option in options:
        if option not in allowed:
            raise UserError(wording.unknown(f"{where}: {benchmark.model.name}: option", option, allowed))
    return {name: schema.convert(hints[name], value, f"{where}.{name}") for name, value in options.items()}
