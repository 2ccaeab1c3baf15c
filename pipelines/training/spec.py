"""A trial as a value for any process: picklable, with absolute paths. Imports no torch, so that planning is quick."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config import wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params
from pipelines.data import datasets, subsets
from pipelines.training import fingerprint, store
from pipelines.training.store import TrialFiles  # by its own name: a field called store hides the module

DEVICES = ("cpu", "cuda")
CANDIDATE = 1.2  # training images that a candidate of boosting takes the time of, measured: one or two members' answers


class Alike(NamedTuple):
    """The same for trials that differ in their seeds alone; ``tune`` labels its candidates."""

    benchmark: str
    label: str
    budget: str
    device: str


class Sizes(NamedTuple):
    """Bytes that a trial keeps."""

    weights: int  # parameters and buffers
    state: int  # of the optimiser


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One benchmark at one budget from one seed, on one dataset and one kind of device."""

    benchmark: Benchmark
    budget: str
    seed: int
    data: Path
    store: Path
    device: str = "cpu"  # cpu | cuda
    threads: int | None = None  # CPU threads; None leaves torch's own choice
    digest: str = ""  # of the dataset
    code: Mapping[str, str] = field(default_factory=dict)  # in the key: digests by module
    label: str = ""  # distinguishes it in a log from the benchmark's own trials

    @functools.cached_property
    def key(self) -> str:
        """The trial's key; a recipe's precision may differ between kinds of device, and the key with it."""
        return store.key(self.config, self.digest, self.seed, self.code)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the trial on its device."""
        return self.benchmark.resolved(self.budget, self.device)

    @property
    def precision(self) -> str:
        """fp32 or bf16."""
        return self.benchmark.recipe.precision.on(self.device)

    @property
    def alike(self) -> Alike:
        """What it is, but for its seed."""
        return Alike(self.benchmark.name, self.label, self.budget, self.device)

    @property
    def files(self) -> TrialFiles:
        """The trial's files in the store."""
        return TrialFiles(self.store / self.key)

    @property
    def name(self) -> str:
        """The trial's name in logs."""
        return " ".join(filter(None, (self.benchmark.name, self.label, f"seed {self.seed}")))

    def on(self, device: str, *, threads: int) -> Spec:
        """The same trial on a kind of device."""
        return dataclasses.replace(self, device=device, threads=threads)

    @property
    def variants(self) -> list[Spec]:
        """This trial and, where another kind of device has another precision, that of the other kind."""
        both = [dataclasses.replace(self, device=device) for device in DEVICES]
        return [self, *(other for other in both if other.key != self.key)]

    @property
    def settled(self) -> Spec:
        """The variant that is finished in the store, or else the trial itself: what is trained is not trained anew."""
        return next((one for one in self.variants if one.files.finished), self)

    @property
    def finished(self) -> bool:
        """Whether a variant is trained to its end."""
        return self.settled.files.finished

    @property
    def epochs(self) -> int:
        """Epochs over the training images that the budget leaves; ``recipe_epochs`` counts the recipe's."""
        return self.benchmark.budgets[self.budget].epochs

    def recipe_epochs(self) -> float:
        """Epochs over the images that the recipe trains on: fewer where the budget cuts those."""
        whole, kept = self._images_an_epoch()
        return self.epochs * kept / whole

    def images(self) -> float:
        """Training images from start to end, and as many more as the search for an ensemble's examples takes."""
        _, kept = self._images_an_epoch()
        boosting, paper = self.benchmark.recipe.boosting, self.benchmark.budgets["paper"].epochs
        searched = 0.0 if boosting is None else CANDIDATE * boosting.candidates * self.epochs / paper
        return self.epochs * kept + searched

    def _images_an_epoch(self) -> tuple[int, int]:
        """Images that the recipe trains on, and those of them that the budget leaves."""
        dataset = datasets.open_dataset(self.data, self.benchmark.dataset)
        whole = len(subsets.positions(dataset.train, self.benchmark.recipe.subset))
        return whole, min(whole, self.benchmark.budgets[self.budget].train_images or whole)


def plan(
    benchmark: Benchmark,
    budget: str,
    seed: int,
    *,
    data: Path,
    root: Path,
    sources: Mapping[str, str] | None = None,
    **rest: Any,
) -> Spec:
    """The trial of ``benchmark`` at ``budget`` from ``seed`` on the dataset in ``data``; reads the data's digest.

    Its key is that of ``sources``, by default the code as its files are now.
    """
    dataset = datasets.open_dataset(data, benchmark.dataset)
    code = fingerprint.of_training(benchmark.resolved(budget), sources or fingerprint.read())
    return Spec(
        benchmark=benchmark,
        budget=budget,
        seed=seed,
        data=data.absolute(),
        store=root.absolute(),
        digest=dataset.digest,
        code=code,
        **rest,
    )


def trials(params: Params, name: str, *, data: Path, root: Path, budget: str | None = None) -> list[Spec]:
    """The trials of one benchmark, a seed each, at ``budget`` or at its usual one; UserError for an unknown budget."""
    benchmark, sources = params.benchmark(name), fingerprint.read()
    budget = budget or usual_budget(params, name)
    if budget not in benchmark.budgets:
        raise wording.unknown(f"--budget: {name}: budget", budget, benchmark.budgets)
    seeds = benchmark.budgets[budget].seeds
    return [plan(benchmark, budget, seed, data=data, root=root, sources=sources) for seed in seeds]


def usual_budget(params: Params, name: str) -> str:
    """The budget of the active suite; outside it the paper's."""
    entry = params.suite.benchmarks.get(name)
    return entry.budget if entry else "paper"
