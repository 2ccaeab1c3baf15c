"""A trial as a value for any process: picklable, with absolute paths. Imports no torch, so that planning is quick."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.config.benchmarks import Benchmark
from pipelines.config.recipes import Arithmetic
from pipelines.data import datasets, subsets
from pipelines.training import fingerprint, store
from pipelines.training.store import TrialFiles  # by its own name: a field called store hides the module

if TYPE_CHECKING:
    from pipelines.config.params import Params  # a trial is planned from one row of them

CPUINFO = Path("/proc/cpuinfo")
CANDIDATE = 1.2  # the time of a candidate of boosting in training images, measured: one or two members classify it


class Alike(NamedTuple):
    """The identity of trials that differ only in their seeds; ``tune`` labels its candidates."""

    benchmark: str
    label: str
    budget: str
    device: str
    precision: str  # that of another kind of device where the trial began there


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One benchmark at one budget from one seed, on one dataset and one kind of device."""

    benchmark: Benchmark
    budget: str
    seed: int
    data: Path
    store: Path
    device: str = "cpu"  # cpu | cuda
    precision: Arithmetic = "fp32"
    threads: int | None = None  # CPU threads; None leaves torch's own choice
    digest: str = ""  # of the dataset
    code: Mapping[str, str] = field(default_factory=dict)  # in the key: digests by module
    label: str = ""  # distinguishes it in a log from the benchmark's own trials

    @functools.cached_property
    def key(self) -> str:
        """The trial's key; its precision, which may differ between kinds of device, is a part of it."""
        return store.key(self.config, self.digest, self.seed, self.code)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the trial in its precision."""
        return self.benchmark.resolved(self.budget, self.precision)

    @property
    def alike(self) -> Alike:
        """Its identity without the seed."""
        return Alike(self.benchmark.name, self.label, self.budget, self.device, self.precision)

    @property
    def files(self) -> TrialFiles:
        """The trial's files in the store."""
        return TrialFiles(self.store / self.key)

    @property
    def name(self) -> str:
        """The trial's name in logs."""
        return " ".join(filter(None, (self.benchmark.name, self.label, f"seed {self.seed}")))

    def on(self, device: str, *, threads: int) -> Spec:
        """The same trial on a kind of device, in the precision that its row has there."""
        precision = self.benchmark.recipe.precision.on(device, fast_bf16=has_fast_bf16())
        return dataclasses.replace(self, device=device, precision=precision, threads=threads)

    @property
    def variants(self) -> list[Spec]:
        """This trial, then the same in the precisions of other kinds of devices, where they differ."""
        others = sorted(self.benchmark.recipe.precision.choices - {self.precision})
        return [self, *(dataclasses.replace(self, precision=other) for other in others)]

    @property
    def settled(self) -> Spec:
        """The variant that is finished in the store, or else begun, or else the trial itself.

        So a trial that a machine of another kind has trained or begun is not trained anew.
        """
        finished = (variant for variant in self.variants if variant.files.finished)
        begun = (variant for variant in self.variants if variant.files.checkpoint.exists())
        return next(itertools.chain(finished, begun), self)

    @property
    def finished(self) -> bool:
        """Whether a variant is trained to its end."""
        return any(variant.files.finished for variant in self.variants)

    @property
    def epochs(self) -> int:
        """Epochs over the training images that the budget leaves; ``recipe_epochs`` counts the recipe's."""
        return self.benchmark.budgets[self.budget].epochs

    def recipe_epochs(self, epochs: float | None = None) -> float:
        """``epochs``, by default all, counted over the images that the recipe trains on before the budget cuts them."""
        whole, kept = self._images_an_epoch
        return (self.epochs if epochs is None else epochs) * kept / whole

    def images(self) -> float:
        """Training images from start to end, and the search for an ensemble's examples, counted in such images."""
        _, kept = self._images_an_epoch
        boosting, paper = self.benchmark.recipe.boosting, self.benchmark.budgets["paper"].epochs
        searched = 0.0 if boosting is None else CANDIDATE * boosting.candidates * self.epochs / paper
        return self.epochs * kept + searched

    @functools.cached_property
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
    device: str = "cpu",
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
        device=device,
        precision=benchmark.recipe.precision.on(device, fast_bf16=has_fast_bf16()),
        **rest,
    )


@functools.cache
def has_fast_bf16() -> bool:
    """Whether this CPU trains faster in bf16 than in fp32, as measured (results/HISTORY.md).

    True where it multiplies matrices in tiles (AMX), and on AMD's processors with AVX-512's bf16; false on Intel's with
    the latter alone, which are slower in bf16, and where oneDNN's environment keeps it from these instructions.
    """
    try:
        cpu = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    unlimited = allowed in ("", "DEFAULT", "ALL")
    tiles = "amx_bf16" in cpu and (unlimited or "AMX" in allowed)
    amd = "AuthenticAMD" in cpu and "avx512_bf16" in cpu and (unlimited or allowed.endswith(("BF16", "FP16", "AMX")))
    return tiles or amd


def trials(params: Params, name: str, *, data: Path, root: Path, budget: str | None = None) -> list[Spec]:
    """The trials of one benchmark, a seed each, at ``budget`` or at its usual one; UserError for an unknown budget."""
    benchmark, budget, sources = params.benchmark(name), params.budget(name, budget), fingerprint.read()
    seeds = benchmark.budgets[budget].seeds
    return [plan(benchmark, budget, seed, data=data, root=root, sources=sources) for seed in seeds]
