"""A trial as something that can be run anywhere: picklable, with absolute paths. Imports no torch: naming is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params
from pipelines.data import datasets
from pipelines.training import store
from pipelines.training.store import TrialFiles  # by its own name: a field called store hides the module


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
    key: str = ""
    label: str = ""  # what sets it apart from the benchmark's own trials in a log

    @property
    def files(self) -> TrialFiles:
        """Where the trial lives."""
        return TrialFiles(self.store / self.key)

    @property
    def name(self) -> str:
        """What the trial is called in logs."""
        return " ".join(filter(None, (self.benchmark.name, self.label, f"seed {self.seed}")))

    def on(self, device: str, *, threads: int) -> Spec:
        """The same trial on a kind of device."""
        return dataclasses.replace(self, device=device, threads=threads)

    @property
    def epochs(self) -> int:
        """Passes over the training images that the budget leaves; ``workload.passes`` has them of the recipe's."""
        return self.benchmark.budgets[self.budget].epochs


def plan(benchmark: Benchmark, budget: str, seed: int, *, data: Path, root: Path, **rest: Any) -> Spec:
    """The trial of ``benchmark`` at ``budget`` from ``seed`` on the dataset in ``data``; reads the data's digest."""
    dataset = datasets.open_dataset(data, benchmark.dataset)
    found = store.key(benchmark.resolved(budget), dataset.digest, seed)
    return Spec(
        benchmark=benchmark, budget=budget, seed=seed, data=data.absolute(), store=root.absolute(), key=found, **rest
    )


def trials(params: Params, name: str, *, data: Path, root: Path, budget: str | None = None) -> list[Spec]:
    """The trials of one benchmark, a seed each, at ``budget`` or at its usual one; UserError for an unknown budget."""
    benchmark = params.benchmark(name)
    budget = budget or usual_budget(params, name)
    if budget not in benchmark.budgets:
        raise wording.unknown(f"--budget: {name}: budget", budget, benchmark.budgets)
    return [plan(benchmark, budget, seed, data=data, root=root) for seed in benchmark.budgets[budget].seeds]


def usual_budget(params: Params, name: str) -> str:
    """What the active suite runs the benchmark at; the paper's budget outside it."""
    entry = params.suite.benchmarks.get(name)
    return entry.budget if entry else "paper"
