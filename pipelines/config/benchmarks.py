"""A benchmark: model, data set, recipe and claim, with the budgets and resources of its trials."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pipelines.config import wording
from pipelines.config.claims import TOP5, Claim, Evaluation
from pipelines.config.recipes import Arithmetic, Recipe
from pipelines.config.values import AT_LEAST_ONE, EACH_ONCE, Count, Name, Positive, Rule, Seeds, plain, within, words
from pipelines.config.wording import require

MOST_EPOCHS = 1_000_000
LARGEST_GRID = 1000  # candidates, each of which is trained
LEAST_GPU = 0.01  # the smallest share of a GPU
MOST_MEMORY = 100_000.0  # GB
RESERVED = re.compile("CPU|GPU|memory|object_store_memory|accelerator_type.*", re.DOTALL)  # Ray's own resources

Accelerator = Annotated[str, Rule("H100 or so", lambda kind: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", kind))]
CustomName = Annotated[str, Rule("it as a key of resources", lambda name: not RESERVED.fullmatch(name))]
Memory = Annotated[float, Rule(f"above 0, at most {MOST_MEMORY:,} GB", lambda size: 0 < size <= MOST_MEMORY)]
Rates = Annotated[tuple[Positive, ...], AT_LEAST_ONE, EACH_ONCE]
Share = Annotated[
    float, Rule(f"0, or {LEAST_GPU} to 1: a worker trains on one", lambda share: share == 0 or LEAST_GPU <= share <= 1)
]  # of a GPU


@dataclass(frozen=True, kw_only=True)
class Model:
    """``models/<family>.py`` has a function ``name`` that is called with ``options``."""

    family: str  # name of the row's file
    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a trial trains, in epochs of its training images, and from which seeds."""

    epochs: Annotated[int, within(1, MOST_EPOCHS)]
    seeds: Seeds
    train_images: Count | None = None  # only n of the recipe's training images, the same for every seed


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The grid that ``pipelines.tune`` searches, by the error on a slice of train."""

    rates: Rates
    mus: Annotated[tuple[Positive, ...], EACH_ONCE] = ()  # combined with each rate; sdlm only
    map_constants: Annotated[tuple[Positive, ...], EACH_ONCE] = ()  # combined with all of the above; loss map only
    batches: Annotated[tuple[Count, ...], EACH_ONCE] = ()  # combined with all of the above; by default the recipe's
    hold_out: Count = 10_000  # images of the validation slice
    seeds: Seeds = (0,)

    def __post_init__(self) -> None:
        lengths = [max(1, len(axis)) for axis in (self.rates, self.mus, self.map_constants, self.batches)]
        count = math.prod(lengths)
        size = f"rates, mus, map_constants and batches make {count:,} candidates"
        require(count <= LARGEST_GRID, f"{size}; expected at most {LARGEST_GRID:,}")


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """As many workers as fit when a trial starts or resumes: a divisor of ``max`` from ``min`` to ``max``.

    Minibatches do not depend on their number; sums round differently, and dropout draws other masks.
    """

    min: Count
    max: int

    def __post_init__(self) -> None:
        require(self.max > self.min, f"max is {self.max}; expected more than {self.min}, the min")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each worker of a trial needs from the cluster, and how many workers a trial has.

    Of these only the number of workers is part of a trial's key.
    """

    cpus: Count = 1
    gpus: Share = 0.0  # required; a fraction packs several trials on one GPU
    gpus_if_any: Share = 0.0  # used where the cluster has GPUs; elsewhere the trial runs on CPUs
    accelerator_type: Accelerator | None = None  # of the GPU, as Ray names it: H100, A100, V100, …
    memory: Memory | None = None  # GB (10^9 bytes)
    custom: dict[CustomName, Positive] = field(default_factory=dict)  # of nodes: `ray start --resources`
    workers: Count | Elastic = 1

    def __post_init__(self) -> None:
        for name, gpus in (("gpus", self.gpus), ("gpus_if_any", self.gpus_if_any)):
            require(self.most == 1 or gpus in (0, 1), f"{name} is {gpus}; expected 0 or 1 with several workers")
        both = f"gpus is {self.gpus} and gpus_if_any {self.gpus_if_any}; expected at most one of the two"
        require(not (self.gpus and self.gpus_if_any), both)
        kind, share = self.accelerator_type, self.gpus or self.gpus_if_any
        require(kind is None or share > 0, f"accelerator_type is {kind}; expected it beside gpus or gpus_if_any")
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
    """One row of the ledger."""

    name: str
    dataset: str
    model: Model
    recipe: Recipe
    budgets: dict[Name, Budget]
    claim: Claim
    evaluation: Evaluation  # this and the next may be {}, but not absent: dvc.yaml names both for every benchmark
    resources: Resources
    parameters: Count | None = None  # trainable, as published or derived; a test counts those of the network
    deviations: Annotated[tuple[Annotated[str, words("a sentence")], ...], EACH_ONCE] = ()
    # words in brackets that qualify the verdict: a variant, a stand-in
    label: Annotated[str, words("a few words, or nothing")] | None = None
    # where the claim is missed: what was tried, what is left to try
    remarks: Annotated[str, words("a paragraph, or nothing")] | None = None
    choice: Choice | None = None

    def __post_init__(self) -> None:
        require("\n" not in (self.label or "").strip(), f"label is {wording.show(self.label)}; expected one line")
        self._check_budgets()
        workers = self.resources.most
        message = f"recipe.batch is {self.recipe.batch}; expected a multiple of the {workers} workers"
        require(self.recipe.batch % workers == 0, message)
        self._check_schedule()
        self._check_boosting()
        views = "evaluation.views is 'random'; expected recipe.augment to say what the views are drawn from"
        require(self.evaluation.views != "random" or len(self.recipe.augment) > 0, views)
        self._check_claimed_on()
        self._check_choice()

    def _check_budgets(self) -> None:
        require("paper" in self.budgets, "budgets.paper is missing; expected the length and seeds as published")
        cut = self.budgets["paper"].train_images
        require(cut is None, f"budgets.paper.train_images is {cut}; expected nothing: the paper's budget is never cut")

    def _check_schedule(self) -> None:
        """No point lies behind the end of the paper's budget, but for one that a linear segment leads to."""
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
            # Each worker waits for the gradients of all members, and only one member has some at a time.
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
        """The row's place, for errors."""
        return f"models/{self.model.family}.yaml: {self.name}"

    def resolved(self, budget: str, precision: Arithmetic | None = None) -> dict[str, Any]:
        """The settings that decide a trial's weights, beside its data, source files and seed; in plain types.

        ``precision`` is by default that of a CPU that is not faster in bf16.
        """
        return {
            "dataset": self.dataset,
            "model": dataclasses.asdict(self.model),
            "recipe": self.recipe.resolved(precision or self.recipe.precision.on("cpu")),
            "epochs": self.budgets[budget].epochs,
            "train_images": self.budgets[budget].train_images,
            "paper_epochs": self.budgets["paper"].epochs,
            "workers": plain(self.resources.workers),
        }
