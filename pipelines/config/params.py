"""params.yaml as frozen dataclasses: benchmarks, claims, recipes, suites, and every check on what a user may write.

Imports nothing heavy, so that a misspelt key is reported at once. ``training.checks`` checks what needs torch or the
data (does the model exist, does the batch fit the data).
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.command.errors import UserError
from pipelines.config import registry, schema, yamlfile
from pipelines.config.schedules import Boosting, Schedule
from pipelines.config.schema import require, require_within

PARAMS = Path("params.yaml")
CHOICES = Path("results/choices")  # the records of tune
SUITE_BLOCK = re.compile(r"^suite:(\r?\n)(?:(?:[ \t].*)?\r?\n)*(?:[ \t].*)?\Z", re.MULTILINE)  # the last of the file
NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")  # of a benchmark, a suite, a budget
LONGEST_NAME = 60  # characters
LARGEST_SIZE = 1024  # pixels: an image is stored as size x size x 3 bytes, then 3 MB
MOST_EPOCHS = 1_000_000
MOST_VIEWS = 1000  # of one test image
MOST_CANDIDATES = 1000  # of a choice: each is trained
MOST_IMAGES = 1_000_000_000  # of a claim's test set
LEAST_GPU = 0.01  # the smallest share of one
MAP_CONSTANT = 1.0  # ours: the paper calls it positive
PINNED = ("mnist", "cifar10")  # datasets that are a kind each; data.dvc pins their raw files
Op = dict[str, dict[str, Any]]  # one transform: {name: {argument: value}}
OPTIMISERS = registry.entries("training/optimisers.py", "OPTIMISERS")  # and the fields that each uses
if TYPE_CHECKING:
    LossName = str
    OptimiserName = str
else:
    LossName = Literal[tuple(registry.entries("training/losses.py", "LOSSES"))]
    OptimiserName = Literal[tuple(OPTIMISERS)]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a dataset comes from; ``mnist`` and ``cifar10`` have their pins in data.dvc."""

    kind: Literal["mnist", "cifar10", "imagefolder"]
    archive: str | None = None  # imagefolder: file name of a tar, tgz or zip below $DATA_MIRROR or data/
    folder: str | None = None  # imagefolder: an unpacked directory in place of an archive
    md5: str | None = None
    bytes: int | None = None
    size: int = 256  # pixels: images are stored as size x size, short side scaled, centre cropped
    train: str = "train"
    val: str = "val"

    def __post_init__(self) -> None:
        archive, folder = schema.show(self.archive), schema.show(self.folder)
        if self.kind == "imagefolder":
            one = (self.archive is None) != (self.folder is None)
            require(one, f"archive is {archive} and folder {folder}; expected exactly one of the two")
            require_within("size", self.size, 8, LARGEST_SIZE, " pixels")
            for name in ("archive", "folder", "train", "val"):
                value = getattr(self, name)
                named = value is None or (value.strip() and "\n" not in value)
                require(bool(named), f"{name} is {schema.show(value)}; expected a name")
            for name, pin in (("md5", self.md5), ("bytes", self.bytes)):
                alone = f"{name} is {schema.show(pin)}; expected it beside archive alone"
                require(self.folder is None or pin is None, alone)
        else:
            for key in dataclasses.fields(self):
                value = getattr(self, key.name)
                unset = key.name == "kind" or value == key.default
                require(unset, f"{key.name} is {schema.show(value)}; expected none with kind: {self.kind}")
        md5 = self.md5 is None or re.fullmatch("[0-9a-f]{32}", self.md5)
        require(bool(md5), f"md5 is {schema.show(self.md5)}; expected 32 hexadecimal digits")
        require(self.bytes is None or self.bytes >= 1, f"bytes is {self.bytes}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Model:
    """``models/<family>.py`` has a function ``name`` that is called with ``options``."""

    family: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)


# The optimisers that a field means something to; the others refuse it. What is not named here, all of them use.
@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """``lr`` is the rate that the schedule multiplies; ``weight_decay`` is PyTorch's, added to the gradient.

    With sdlm a minibatch makes the sum of its images' steps, so that ``lr`` is the rate of one image.
    """

    name: OptimiserName
    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_biases: bool = True  # ConvNetJS and cuda-convnet decay weights alone
    layer_decay: dict[str, float] = field(default_factory=dict)  # weight_decay of single layers, by their module's name
    bias_lr: float = 1.0  # factor on the rate of biases; 2 in cuda-convnet's layer files
    rho: float = 0.95  # adadelta only
    eps: float = 1e-8  # adadelta only
    mu: float = 0.02  # sdlm only: added to each second derivative
    samples: int = 500  # sdlm only: training images from which second derivatives are estimated, before each pass

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr is {self.lr}; expected a number above 0")
        require(0 <= self.momentum < 1, f"momentum is {self.momentum}; expected at least 0 and below 1")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; expected at least 0")
        require(self.bias_lr > 0, f"bias_lr is {self.bias_lr}; expected a number above 0")
        for layer, decay in self.layer_decay.items():
            require(decay >= 0, f"{schema.place('layer_decay', layer)} is {decay}; expected at least 0")
        require(0 < self.rho < 1, f"rho is {self.rho}; expected a number between 0 and 1")
        require(self.eps > 0, f"eps is {self.eps}; expected a number above 0")
        require(self.mu > 0, f"mu is {self.mu}; expected a number above 0")
        require(self.samples >= 1, f"samples is {self.samples}; expected at least 1")
        used = {"name", "lr", "bias_lr", *OPTIMISERS[self.name]}
        if "weight_decay" in used:
            used |= {"decay_biases", "layer_decay"}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            unset = one.default_factory() if callable(one.default_factory) else one.default
            fits = one.name in used or value == unset
            require(fits, f"{one.name} is {schema.show(value)}; expected none with {self.name}")
        plain = not self.nesterov or self.momentum > 0
        require(plain, "nesterov is true; expected it beside a momentum above 0")


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Which images of the training file are trained on, by their position in it."""

    skip_every: int | None = None  # leave out positions 0, k, 2k, ... (ConvNetJS validates on n % 10 == 0)
    first: int | None = None  # only the first n
    sample: int | None = None  # n of them at random, the same for every seed
    hold_out: int | None = None  # without the validation slice of n images (pipelines.tune)

    def __post_init__(self) -> None:
        require(self.skip_every is None or self.skip_every >= 2, f"skip_every is {self.skip_every}; expected 2 or more")
        for name, value in (("first", self.first), ("sample", self.sample), ("hold_out", self.hold_out)):
            require(value is None or value >= 1, f"{name} is {value}; expected 1 or more")
        if self.first is not None and self.sample is not None:
            told = f"sample is {self.sample}; expected at most {self.first}, the images that first leaves"
            require(self.sample <= self.first, told)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, but for how long."""

    batch: int  # images a step, over all workers
    optimiser: Optimiser
    loss: LossName = "cross_entropy"
    map_constant: float = MAP_CONSTANT  # map only: j, the penalty of the class "rubbish"
    schedule: Schedule = field(default_factory=Schedule)
    preprocess: tuple[Op, ...] = ()
    augment: tuple[Op, ...] = ()
    subset: Subset = field(default_factory=Subset)
    shuffle: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    boosting: Boosting | None = None

    def __post_init__(self) -> None:
        require(self.batch >= 1, f"batch is {self.batch}; expected at least 1")
        j = f"map_constant is {self.map_constant}"
        require(self.map_constant > 0, f"{j}; expected a number above 0")
        require(self.loss == "map" or self.map_constant == MAP_CONSTANT, f"{j}; expected none with loss: {self.loss}")
        for name, ops in (("preprocess", self.preprocess), ("augment", self.augment)):
            for i, op in enumerate(ops):
                require(len(op) == 1, f"{name}[{i}] is {schema.show(op)}; expected one transform, as in {{flip: {{}}}}")
        if self.boosting is not None:
            require(len(self.augment) > 0, "augment is []; expected one, which boosting draws its candidates from")
            # Its second derivatives are estimated once a pass, and a member may change within one.
            require(self.optimiser.name != "sdlm", "optimiser.name is sdlm; expected another with boosting")


@dataclass(frozen=True, kw_only=True)
class ClaimedOn:
    """The images that a claim was measured on, where they are not the whole test split: ``count`` from ``first`` on.

    ``drawn`` takes as many at random from there in their place, the same for every seed.
    """

    split: Literal["train", "test"]
    first: int = 0  # position in the file, from 0
    count: int
    drawn: bool = False

    def __post_init__(self) -> None:
        require(self.first >= 0, f"first is {self.first}; expected at least 0")
        require(self.count >= 1, f"count is {self.count}; expected at least 1")

    @property
    def end(self) -> int:
        """The position behind the last image."""
        return self.first + self.count

    @property
    def words(self) -> str:
        """The images as a reader counts them, from 1."""
        file = {"train": "training", "test": "test"}[self.split]
        if self.drawn:
            return f"{self.count:,} images drawn from the {file} file"
        return f"images {self.first + 1:,} to {self.end:,} of the {file} file"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a test image is looked at: once, as ``count`` random augmentations, or as ten crops of ``crop`` pixels.

    ``claimed_on`` names other images to look at in the same way, where the source measured its figure on them; they are
    then what the verdict rests on, and the whole test split stands beside it.
    """

    views: Literal["single", "random", "ten_crop"] = "single"
    count: int = 6
    crop: int | None = None
    claimed_on: ClaimedOn | None = None

    def __post_init__(self) -> None:
        require_within("count", self.count, 1, MOST_VIEWS)
        require(self.crop is None or self.crop >= 1, f"crop is {self.crop}; expected at least 1 pixel")
        require(
            self.views != "ten_crop" or self.crop is not None, "crop is missing; expected the pixels of the ten crops"
        )
        beside = f"crop is {self.crop}; expected it beside views: ten_crop alone"
        require(self.views == "ten_crop" or self.crop is None, beside)
        beside = f"count is {self.count}; expected it beside views: random alone"
        require(self.views == "random" or self.count == Evaluation.count, beside)

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        words = {
            "single": "single view",
            "random": f"{self.count} random views averaged",
            "ten_crop": "10-crop averaged",
        }
        return words[self.views]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a trial trains, in passes over its training images, and from which seeds."""

    epochs: int
    seeds: tuple[int, ...]
    train_images: int | None = None  # only n of the images that the recipe trains on, the same for every seed

    def __post_init__(self) -> None:
        require_within("epochs", self.epochs, 1, MOST_EPOCHS)
        few = self.train_images
        require(few is None or few >= 1, f"train_images is {few}; expected at least 1, or nothing for all")
        _check_seeds(self.seeds)


def _check_seeds(seeds: Sequence[int]) -> None:
    require(len(seeds) > 0, "seeds is []; expected at least one seed")
    double = schema.repeated(seeds)
    require(not double, f"seeds names {schema.listed(double)} more than once; expected distinct seeds")
    require(all(seed >= 0 for seed in seeds), f"seeds is {schema.show(seeds)}; expected whole numbers from 0")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The grid from which ``pipelines.tune`` takes the best, by the error on a slice of train."""

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
            require(len(set(values)) == len(values), f"{name} is {schema.show(values)}; expected each once")
            require(all(value > 0 for value in values), f"{name} is {schema.show(values)}; expected numbers above 0")
        lengths = [max(1, len(axis)) for axis in (self.rates, self.mus, self.map_constants, self.batches)]
        count = math.prod(lengths)
        told = f"rates, mus, map_constants and batches make {count:,} candidates"
        require(count <= MOST_CANDIDATES, f"{told}; expected at most {MOST_CANDIDATES:,}")
        require(self.hold_out >= 1, f"hold_out is {self.hold_out}; expected at least 1")
        _check_seeds(self.seeds)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a trial asks of the cluster, and how many workers a trial has."""

    cpus: int = 1
    gpus: float = 0.0  # required; a fraction packs several trials on one GPU
    gpus_if_any: float = 0.0  # taken where the cluster has GPUs; without any, the trial runs on CPUs
    workers: int = 1

    def __post_init__(self) -> None:
        require(self.cpus >= 1, f"cpus is {self.cpus}; expected at least 1")
        require(self.workers >= 1, f"workers is {self.workers}; expected at least 1")
        for name, gpus in (("gpus", self.gpus), ("gpus_if_any", self.gpus_if_any)):
            require(gpus >= 0, f"{name} is {gpus}; expected at least 0")
            whole = gpus == int(gpus)
            require(gpus == 0 or gpus >= LEAST_GPU, f"{name} is {gpus}; expected 0, or at least {LEAST_GPU}")
            require(gpus <= 1 or whole, f"{name} is {gpus}; expected a fraction up to 1, or a whole number")
            require(self.workers == 1 or whole, f"{name} is {gpus}; expected 0 or a whole number with several workers")
        both = f"gpus is {self.gpus} and gpus_if_any {self.gpus_if_any}; expected at most one of the two"
        require(not (self.gpus and self.gpus_if_any), both)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the source reports, in per cent; ``test_images`` is the size of the set it was measured on.

    ``certainty`` is that of ``source``, which holds no other: "a table (place recalled)" would be read and recalled.
    ``difference`` says in one sentence what it means that ``evaluation.claimed_on`` is not the whole test split.
    """

    metric: Literal["error", "accuracy"]
    value: float
    source: str
    protocol: str
    certainty: Literal["read", "recalled", "computed"]
    test_images: int
    difference: str | None = None

    def __post_init__(self) -> None:
        require(0 <= self.value <= 100, f"value is {self.value}; expected per cent, 0 to 100")
        require_within("test_images", self.test_images, 1, MOST_IMAGES)
        require(bool(self.source.strip()), f"source is {schema.show(self.source)}; expected where the figure stands")
        told = re.search(r"\b(recalled|computed|read|uncertain)\b", self.source)
        sure = f"source says {schema.show(told and told[0])}; expected that in certainty, or in protocol, alone"
        require(told is None, sure)
        require(bool(self.protocol.strip()), f"protocol is {schema.show(self.protocol)}; expected how it was measured")
        empty = self.difference is not None and not self.difference.strip()
        require(not empty, f"difference is {schema.show(self.difference)}; expected one sentence, or nothing")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row: model, dataset, recipe and claim."""

    name: str
    dataset: str
    model: Model
    recipe: Recipe
    budgets: dict[str, Budget]
    claim: Claim
    evaluation: Evaluation  # this and the next may be {}, but must stand there: dvc.yaml names them for every benchmark
    resources: Resources
    deviations: tuple[str, ...] = ()
    label: str | None = None  # what must stand beside the verdict: a variant, a stand-in, an uncertain definition
    remarks: str | None = None  # where the claim is missed: what was tried, what is left to try
    choice: Choice | None = None

    def __post_init__(self) -> None:
        for key, words, expected in (("label", self.label, "a few words"), ("remarks", self.remarks, "a paragraph")):
            empty = words is not None and not words.strip()
            require(not empty, f"{key} is {schema.show(words)}; expected {expected}, or nothing")
        require("\n" not in (self.label or "").strip(), f"label is {schema.show(self.label)}; expected one line")
        for i, one in enumerate(self.deviations):
            require(bool(one.strip()), f"deviations[{i}] is {schema.show(one)}; expected a sentence")
        double = schema.repeated(self.deviations)
        require(
            not double, f"deviations has {schema.show(next(iter(double), None))} more than once; expected each once"
        )
        for name in self.budgets:
            _check_name(name, f"{schema.place('budgets', name)}:", "paper")
        require("paper" in self.budgets, "budgets.paper is missing; expected the length and seeds as published")
        cut = self.budgets["paper"].train_images
        require(cut is None, f"budgets.paper.train_images is {cut}; expected nothing: the paper's budget is never cut")
        workers = self.resources.workers
        message = f"recipe.batch is {self.recipe.batch}; expected a multiple of the {workers} workers"
        require(self.recipe.batch % workers == 0, message)
        self._check_schedule()
        self._check_boosting()
        views = "evaluation.views is 'random'; expected recipe.augment to say what the views are drawn from"
        require(self.evaluation.views != "random" or len(self.recipe.augment) > 0, views)
        self._check_claimed_on()
        self._check_choice()

    def _check_schedule(self) -> None:
        """A point behind the end of the paper's budget would never be reached; a line may lead to one."""
        schedule, end = self.recipe.schedule, self.budgets["paper"].epochs
        behind = [epoch for epoch, _ in schedule.points if epoch > end]
        last = f"recipe.schedule.points has epoch {behind[-1]:g}" if behind else ""
        reached = len(behind) <= (schedule.between != "hold")
        require(reached, f"{last}; expected none behind {end}, budgets.paper.epochs")

    def _check_choice(self) -> None:
        if self.choice is not None:
            name, workers = self.recipe.optimiser.name, self.resources.workers
            told = f"choice.mus is {schema.show(self.choice.mus)}; expected nothing: recipe.optimiser.name is {name}"
            require(not self.choice.mus or name == "sdlm", told)
            told = f"choice.map_constants is {schema.show(self.choice.map_constants)}; expected nothing: recipe.loss is"
            require(not self.choice.map_constants or self.recipe.loss == "map", f"{told} {self.recipe.loss}")
            told = f"choice.batches is {schema.show(self.choice.batches)}; expected multiples of the {workers} workers"
            require(all(batch % workers == 0 for batch in self.choice.batches), told)

    def _check_boosting(self) -> None:
        boosting, epochs, workers = self.recipe.boosting, self.budgets["paper"].epochs, self.resources.workers
        if boosting is not None:
            shown = f"recipe.boosting.epochs is {list(boosting.epochs)}"
            require(sum(boosting.epochs) == epochs, f"{shown}; expected a sum of {epochs}, budgets.paper.epochs")
            # Several would wait for the gradients of the members that have none.
            require(workers == 1, f"resources.workers is {workers}; expected 1 with recipe.boosting")

    def _check_claimed_on(self) -> None:
        on, claim = self.evaluation.claimed_on, self.claim
        if on is None:
            told = f"claim.difference is {schema.show(claim.difference)}"
            require(claim.difference is None, f"{told}; expected it beside evaluation.claimed_on alone")
            return
        missing = "claim.difference is missing; expected one sentence on what evaluation.claimed_on changes"
        require(claim.difference is not None, missing)
        size = f"claim.test_images is {claim.test_images}; expected {on.count}, the count of evaluation.claimed_on"
        require(claim.test_images == on.count, size)

    def resolved(self, budget: str) -> dict[str, Any]:
        """All that decides the weights of a trial, but for its data, source files and seed; plain types only."""
        return {
            "dataset": self.dataset,
            "model": dataclasses.asdict(self.model),
            "recipe": plain(self.recipe),
            "epochs": self.budgets[budget].epochs,
            "train_images": self.budgets[budget].train_images,
            "paper_epochs": self.budgets["paper"].epochs,
            "workers": self.resources.workers,
        }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A benchmark as the active suite runs it."""

    family: str
    dataset: str
    budget: str


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What ``dvc repro`` runs."""

    name: str
    datasets: tuple[str, ...]
    benchmarks: dict[str, Entry]

    def __post_init__(self) -> None:
        double = schema.repeated(self.datasets)
        require(not double, f"datasets names {schema.listed(double)} more than once; expected each once")


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A suite that can be chosen: which benchmarks, at which budget."""

    budget: str
    benchmarks: tuple[str, ...]

    def __post_init__(self) -> None:
        require(len(self.benchmarks) > 0, "benchmarks is []; expected at least one benchmark")
        double = schema.repeated(self.benchmarks)
        require(not double, f"benchmarks names {schema.listed(double)} more than once; expected each once")


@dataclass(frozen=True, kw_only=True)
class Params:
    """The whole of params.yaml, checked."""

    datasets: dict[str, Source]
    benchmarks: dict[str, Benchmark]
    suites: dict[str, SuitePlan]
    suite: Suite

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark called ``name``; UserError naming the known ones otherwise."""
        if name not in self.benchmarks:
            raise schema.unknown("benchmark", name, self.benchmarks)
        return self.benchmarks[name]


def plain(value: Any) -> Any:
    """A dataclass as plain dicts and lists, as JSON and Lightning's checkpoints want them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """The YAML of ``path`` as it stands; UserError when it is absent or no YAML."""
    return yamlfile.read(path)


def load_params(path: Path = PARAMS) -> Params:
    """Read and check ``path``; UserError with one line for the first thing that is wrong."""
    return build_params(read_params(path), str(path))


def build_params(found: Mapping[str, Any], where: str = "params.yaml", *, switching: bool = False) -> Params:
    """Check a mapping laid out like params.yaml; UserError with one line for the first thing that is wrong.

    ``switching``: the block ``suite`` is about to be written and need not agree with the suites.
    """
    keys = ("datasets", "benchmarks", "suites", "suite")
    for key in found:
        if key not in keys:
            raise schema.unknown(f"{where}: the key", key if isinstance(key, str) else schema.show(key), keys)
    for key in keys:
        if key not in found:
            raise UserError(f"{where}: {key} is missing; expected a mapping")
        if not isinstance(found[key], Mapping):
            raise UserError(f"{where}: {key} is {schema.show(found[key])}; expected a mapping")
    datasets = _datasets(found["datasets"], Path(where).parent)
    families = {path.stem for path in (Path(__file__).parents[2] / "models").glob("*.py")} - {"__init__"}
    schema.check_keys(found["benchmarks"], "benchmarks")
    benchmarks = {name: _benchmark(name, one, datasets, families) for name, one in found["benchmarks"].items()}
    suites = _suites(found["suites"], benchmarks)
    suite = schema.parse(Suite, found["suite"], "suite")
    _check_suite(suite, datasets, benchmarks)
    if not switching:
        _check_plan(suite, suites)
    return Params(datasets=datasets, benchmarks=benchmarks, suites=suites, suite=suite)


def _check_name(name: str, where: str, example: str) -> None:
    """ValueError for a name that could not stand in a path, a command or a line of DVC's."""
    require(bool(NAME.fullmatch(name)), f"{where} expected a name of small letters, digits and hyphens, like {example}")
    require(len(name) <= LONGEST_NAME, f"{where} expected a name of at most {LONGEST_NAME} characters")


def _datasets(value: Mapping[Any, Any], root: Path) -> dict[str, Source]:
    schema.check_keys(value, "datasets")
    datasets = {name: _dataset(name, entry) for name, entry in value.items()}
    _check_apart(datasets, root)
    return datasets


def _dataset(name: str, value: Any) -> Source:
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        expected = f"small letters, digits, hyphens and underscores, at most {LONGEST_NAME}, like my-photos"
        raise UserError(f"{schema.place('datasets', name)}: expected a name of {expected}")
    source = schema.parse(Source, value, f"datasets.{name}")
    kind = name if name in PINNED else "imagefolder"
    if source.kind != kind:
        other = f"the name {source.kind}" if source.kind in PINNED else "another name"
        raise UserError(f"datasets.{name}.kind is {schema.show(source.kind)}; expected {kind}, or {other}")
    return source


def _check_apart(datasets: Mapping[str, Source], root: Path) -> None:
    """Fetch and DVC replace ``datasets/<name>`` whole; what a dataset is made from must not stand there."""
    outputs = {Path(os.path.realpath(root / "datasets" / name)): name for name in datasets}
    above = {folder: name for output, name in outputs.items() for folder in output.parents}
    for name, source in datasets.items():
        for key, value, place in (("folder", source.folder, root), ("archive", source.archive, root / "data")):
            if value is None:
                continue
            here = Path(os.path.realpath(place / value))
            there = next((outputs[path] for path in (here, *here.parents) if path in outputs), above.get(here))
            if there is not None:
                apart = f"expected one apart from datasets/{there}, which fetch replaces"
                raise UserError(f"datasets.{name}.{key} is {schema.show(value)}; {apart}")


def _suites(value: Any, benchmarks: Mapping[str, Benchmark]) -> dict[str, SuitePlan]:
    suites: dict[str, SuitePlan] = schema.convert(dict[str, SuitePlan], value, "suites")
    for name, plan in suites.items():
        _check_block_name("suites", name, "laptop")
        for benchmark in plan.benchmarks:
            if benchmark not in benchmarks:
                raise schema.unknown(f"suites.{name}.benchmarks: benchmark", benchmark, benchmarks)
            if plan.budget not in benchmarks[benchmark].budgets:
                raise schema.unknown(
                    f"suites.{name}.budget: {benchmark}: budget", plan.budget, benchmarks[benchmark].budgets
                )
    return suites


def _check_block_name(block: str, name: str, example: str) -> None:
    try:
        _check_name(name, f"{schema.place(block, name)}:", example)
    except ValueError as error:
        raise UserError(str(error)) from None


def _benchmark(name: str, value: Any, datasets: Mapping[str, Source], families: Collection[str]) -> Benchmark:
    _check_block_name("benchmarks", name, "lenet5-mnist")
    benchmark = schema.parse(Benchmark, value, f"benchmarks.{name}", name=name)
    if benchmark.dataset not in datasets:
        raise schema.unknown(f"benchmarks.{name}.dataset: dataset", benchmark.dataset, datasets)
    if benchmark.model.family not in families:
        raise schema.unknown(f"benchmarks.{name}.model.family: model family", benchmark.model.family, families)
    return benchmark


def _check_suite(suite: Suite, datasets: Mapping[str, Source], benchmarks: Mapping[str, Benchmark]) -> None:
    """The block that dvc.yaml reads repeats what the benchmarks say; it must not contradict them."""
    for name in suite.datasets:
        if name not in datasets:
            raise schema.unknown("suite.datasets: dataset", name, datasets)
    for name, entry in suite.benchmarks.items():
        if name not in benchmarks:
            raise schema.unknown("suite.benchmarks: benchmark", name, benchmarks)
        benchmark = benchmarks[name]
        if entry.budget not in benchmark.budgets:
            raise schema.unknown(f"suite.benchmarks.{name}.budget: budget", entry.budget, benchmark.budgets)
        for key, have, want in (
            ("family", entry.family, benchmark.model.family),
            ("dataset", entry.dataset, benchmark.dataset),
        ):
            if have != want:
                raise UserError(f"suite.benchmarks.{name}.{key} is {schema.name(have)}; benchmarks.{name} says {want}")
        if benchmark.dataset not in suite.datasets:
            raise UserError(f"suite.datasets lacks {benchmark.dataset}, which suite.benchmarks.{name} needs")


def _check_plan(suite: Suite, suites: Mapping[str, SuitePlan]) -> None:
    """A suite that was edited must be switched to again: DVC reads the block, and would go on with the old one."""
    if suite.name not in suites:
        raise schema.unknown("suite.name: suite", suite.name, suites)
    plan = suites[suite.name]
    again = f"run `python -m pipelines.suite {suite.name}` to bring the block up to date"
    if set(suite.benchmarks) != set(plan.benchmarks):
        differ = schema.listed(sorted(set(suite.benchmarks) ^ set(plan.benchmarks)))
        raise UserError(f"suite.benchmarks is not what suites.{suite.name} says ({differ}); {again}")
    for name, entry in suite.benchmarks.items():
        if entry.budget != plan.budget:
            told = f"suite.benchmarks.{name}.budget is {entry.budget}"
            raise UserError(f"{told}; suites.{suite.name} says {plan.budget}; {again}")
