"""A benchmark: model, data set, recipe and claim, with the budgets and resources of its trials."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config import wording
from pipelines.config.claims import TOP5, Claim, Evaluation
from pipelines.config.recipes import Arithmetic, Recipe
from pipelines.config.values import plain
from pipelines.config.wording import require, require_distinct, require_name, require_within, require_words

MOST_EPOCHS = 1_000_000
LARGEST_GRID = 1000  # of a grid: each is trained
LEAST_GPU = 0.01  # the smallest share of one
MOST_MEMORY = 100_000.0  # GB
ACCELERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
RESERVED = ("CPU", "GPU", "memory", "object_store_memory")  # names of Ray's own resources


@dataclass(frozen=True, kw_only=True)
class Model:
    """``models/<family>.py`` has a function ``name`` that is called with ``options``."""

    family: str  # the name of the file that the row stands in
    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a trial trains, in epochs of its training images, and from which seeds."""

    epochs: int
    seeds: tuple[int, ...]
    train_images: int | None = None  # only n of the images that the recipe trains on, the same for every seed

    def __post_init__(self) -> None:
        require_within("epochs", self.epochs, 1, MOST_EPOCHS)
        require_within("train_images", self.train_images, 1)
        _check_seeds(self.seeds)


def _check_seeds(seeds: Sequence[int]) -> None:
    require(len(seeds) > 0, "seeds is []; expected at least one seed")
    require_distinct("seeds", seeds)
    require(all(seed >= 0 for seed in seeds), f"seeds is {wording.show(seeds)}; expected whole numbers from 0")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The grid that ``pipelines.tune`` searches, by the error on a slice of train."""

    rates: tuple[float, ...]
    mus: tuple[float, ...] = ()  # each with each rate; for sdlm
    map_constants: tuple[float, ...] = ()  # each with each of those; for the loss map
    batches: tuple[int, ...] = ()  # each with each of those; without any, the recipe's
    hold_out: int = 10_000  # images of the validation slice
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        require(len(self.rates) > 0, "rates is []; expected at least one rate")
        for name in ("rates", "mus", "map_constants", "batches"):
            values = getattr(self, name)
            require_distinct(name, values)
            require(all(value > 0 for value in values), f"{name} is {wording.show(values)}; expected numbers above 0")
        lengths = [max(1, len(axis)) for axis in (self.rates, self.mus, self.map_constants, self.batches)]
        count = math.prod(lengths)
        size = f"rates, mus, map_constants and batches make {count:,} candidates"
        require(count <= LARGEST_GRID, f"{size}; expected at most {LARGEST_GRID:,}")
        require_within("hold_out", self.hold_out, 1)
        _check_seeds(self.seeds)


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """As many workers as fit when a trial starts or resumes; of ``min`` to ``max``, those numbers that divide ``max``.

    The minibatches are the same with any of them; sums are rounded otherwise, and dropout draws other masks.
    """

    min: int
    max: int

    def __post_init__(self) -> None:
        require(self.min >= 1, f"min is {self.min}; expected at least 1")
        require(self.max > self.min, f"max is {self.max}; expected more than {self.min}, the min")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a trial asks of the cluster, and how many workers a trial has.

    How many is part of what is trained, the rest is not.
    """

    cpus: int = 1
    gpus: float = 0.0  # required; a fraction packs several trials on one GPU
    gpus_if_any: float = 0.0  # taken where the cluster has GPUs; without any, the trial runs on CPUs
    accelerator_type: str | None = None  # of the GPU, as Ray names it: H100, A100, V100, …
    memory: float | None = None  # GB (10^9 bytes)
    custom: dict[str, float] = field(default_factory=dict)  # what nodes were started with: `ray start --resources`
    workers: int | Elastic = 1

    def __post_init__(self) -> None:
        require_within("cpus", self.cpus, 1)
        require(self.most >= 1, f"workers is {self.workers}; expected at least 1")
        for name, gpus in (("gpus", self.gpus), ("gpus_if_any", self.gpus_if_any)):
            require_within(name, gpus, 0)
            whole = gpus == int(gpus)
            require(gpus == 0 or gpus >= LEAST_GPU, f"{name} is {gpus}; expected 0, or at least {LEAST_GPU}")
            require(gpus <= 1, f"{name} is {gpus}; expected at most 1: a worker trains on one, several on more")
            require(self.most == 1 or whole, f"{name} is {gpus}; expected 0 or 1 with several workers")
        both = f"gpus is {self.gpus} and gpus_if_any {self.gpus_if_any}; expected at most one of the two"
        require(not (self.gpus and self.gpus_if_any), both)
        self._check_others()

    def _check_others(self) -> None:
        kind, memory, share = self.accelerator_type, self.memory, self.gpus or self.gpus_if_any
        if kind is not None:
            require(bool(ACCELERATOR.fullmatch(kind)), f"accelerator_type is {wording.show(kind)}; expected H100 or so")
            require(share > 0, f"accelerator_type is {kind}; expected it beside gpus or gpus_if_any")
        require(memory is None or 0 < memory <= MOST_MEMORY, f"memory is {memory}; expected GB, up to {MOST_MEMORY:,}")
        for name, amount in self.custom.items():
            taken = f"custom has {wording.show(name)}; expected it as a key of resources"
            require(name not in RESERVED and not name.startswith("accelerator_type"), taken)
            require(amount > 0, f"custom.{name} is {amount}; expected more than 0")
        others = [name for name in ("accelerator_type", "memory", "custom") if getattr(self, name)]
        shared = f"gpus is {share} beside {wording.listed(others)}; expected a whole one, or none"
        require(not others or share in (0, 1), shared)

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of workers that a trial may have, the largest first."""
        if isinstance(self.workers, int):
            return (self.workers,)
        return tuple(n for n in range(self.workers.max, self.workers.min - 1, -1) if self.workers.max % n == 0)

    @property
    def most(self) -> int:
        """Workers at most."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row: model, dataset, recipe and claim."""

    name: str
    dataset: str
    model: Model
    recipe: Recipe
    budgets: dict[str, Budget]
    claim: Claim
    evaluation: Evaluation  # this and the next may be {}, but not absent: dvc.yaml names both for every benchmark
    resources: Resources
    parameters: int | None = None  # that are trained, as published or derived; a test counts them in the network
    deviations: tuple[str, ...] = ()
    label: str | None = None  # words in brackets that qualify the verdict: a variant, a stand-in
    remarks: str | None = None  # on a claim that is missed: what was tried, what is left to try
    choice: Choice | None = None

    def __post_init__(self) -> None:
        self._check_words()
        self._check_budgets()
        require_within("parameters", self.parameters, 1)
        workers = self.resources.most
        message = f"recipe.batch is {self.recipe.batch}; expected a multiple of the {workers} workers"
        require(self.recipe.batch % workers == 0, message)
        self._check_schedule()
        self._check_boosting()
        views = "evaluation.views is 'random'; expected recipe.augment to say what the views are drawn from"
        require(self.evaluation.views != "random" or len(self.recipe.augment) > 0, views)
        self._check_claimed_on()
        self._check_choice()

    def _check_words(self) -> None:
        require_words("label", self.label, "a few words, or nothing")
        require_words("remarks", self.remarks, "a paragraph, or nothing")
        require("\n" not in (self.label or "").strip(), f"label is {wording.show(self.label)}; expected one line")
        for i, sentence in enumerate(self.deviations):
            require_words(f"deviations[{i}]", sentence, "a sentence")
        require_distinct("deviations", self.deviations)

    def _check_budgets(self) -> None:
        for name in self.budgets:
            require_name(name, wording.place("budgets", name), "paper")
        require("paper" in self.budgets, "budgets.paper is missing; expected the length and seeds as published")
        cut = self.budgets["paper"].train_images
        require(cut is None, f"budgets.paper.train_images is {cut}; expected nothing: the paper's budget is never cut")

    def _check_schedule(self) -> None:
        """A point behind the end of the paper's budget would never be reached; a line may lead to one."""
        schedule, end = self.recipe.schedule, self.budgets["paper"].epochs
        behind = [epoch for epoch, _ in schedule.points if epoch > end]
        last = f"recipe.schedule.points has epoch {behind[-1]:g}" if behind else ""
        reached = len(behind) <= (schedule.between != "hold")
        require(reached, f"{last}; expected none behind {end}, budgets.paper.epochs")

    def _check_choice(self) -> None:
        """A grid varies only what the recipe uses."""
        choice, workers = self.choice, self.resources.most
        optimiser, loss = self.recipe.optimiser.name, self.recipe.loss
        if choice is None:
            return
        for key, used, because in (
            ("mus", optimiser == "sdlm", f"recipe.optimiser.name is {optimiser}"),
            ("map_constants", loss == "map", f"recipe.loss is {loss}"),
        ):
            values = getattr(choice, key)
            require(used or not values, f"choice.{key} is {wording.show(values)}; expected nothing: {because}")
        fit = all(batch % workers == 0 for batch in choice.batches)
        require(fit, f"choice.batches is {wording.show(choice.batches)}; expected multiples of the {workers} workers")

    def _check_boosting(self) -> None:
        boosting, epochs, workers = self.recipe.boosting, self.budgets["paper"].epochs, self.resources.most
        if boosting is not None:
            shown = f"recipe.boosting.epochs is {list(boosting.epochs)}"
            require(sum(boosting.epochs) == epochs, f"{shown}; expected a sum of {epochs}, budgets.paper.epochs")
            # Several would wait for the gradients of the members that have none.
            require(workers == 1, f"resources.workers is {workers}; expected 1 with recipe.boosting")

    def _check_claimed_on(self) -> None:
        on, claim = self.evaluation.claimed_on, self.claim
        if on is None:
            given = f"claim.difference is {wording.show(claim.difference)}"
            require(claim.difference is None, f"{given}; expected it beside evaluation.claimed_on alone")
            return
        top = f"claim.metric is {claim.metric}; expected error or accuracy with evaluation.claimed_on"
        require(claim.metric != TOP5, top)
        missing = "claim.difference is missing; expected one sentence on what evaluation.claimed_on changes"
        require(claim.difference is not None, missing)
        size = f"claim.test_images is {claim.test_images}; expected {on.count}, the count of evaluation.claimed_on"
        require(claim.test_images == on.count, size)

    @property
    def where(self) -> str:
        """The place of the row, as errors name it."""
        return f"models/{self.model.family}.yaml: {self.name}"

    def resolved(self, budget: str, precision: Arithmetic | None = None) -> dict[str, Any]:
        """All that decides the weights of a trial, but for its data, source files and seed; plain types only.

        By default in the precision of a CPU.
        """
        return {
            "dataset": self.dataset,
            "model": dataclasses.asdict(self.model),
            "recipe": self.recipe.resolved(precision or self.recipe.precision.cpu),
            "epochs": self.budgets[budget].epochs,
            "train_images": self.budgets[budget].train_images,
            "paper_epochs": self.budgets["paper"].epochs,
            "workers": plain(self.resources.workers),
        }
