"""How a model is trained, but for how long: transforms, loss, optimiser, schedule, and which images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.config import registry, wording
from pipelines.config.values import default, plain
from pipelines.config.wording import require, require_within

MAP_CONSTANT = 1.0  # ours: the paper calls it positive
Arithmetic = Literal["fp32", "bf16"]
MOST_CANDIDATES = 1_000_000_000  # images
Op = dict[str, dict[str, Any]]  # one transform: {name: {argument: value}}


OPTIMISER_FIELDS = registry.entries("training/optimisers.py", "OPTIMISERS")  # by name, those that each uses
if TYPE_CHECKING:
    Between = str
    LossName = str
    OptimiserName = str
else:
    Between = Literal[tuple(registry.entries("training/schedules.py", "BETWEEN"))]
    LossName = Literal[tuple(registry.entries("training/losses.py", "LOSSES"))]
    OptimiserName = Literal[tuple(OPTIMISER_FIELDS)]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """``lr`` is the rate that the schedule multiplies; ``weight_decay`` is PyTorch's, added to the gradient.

    With sdlm a minibatch takes the sum of its images' steps, so that ``lr`` is the rate of one image.
    """

    name: OptimiserName
    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_biases: bool = True  # ConvNetJS and cuda-convnet decay weights alone
    layer_decay: dict[str, float] = field(default_factory=dict)  # weight_decay of single layers, by their module's name
    layer_lr: dict[str, float] | None = None  # factors on the rate of single layers, by their module's name
    bias_lr: float = 1.0  # factor on the rate of biases; 2 in cuda-convnet's layer files
    rho: float = 0.95  # adadelta only
    eps: float = 1e-8  # adadelta only
    mu: float = 0.02  # sdlm only: added to each second derivative
    samples: int = 500  # sdlm only: training images from which second derivatives are estimated, before each epoch

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr is {self.lr}; expected a number above 0")
        require(0 <= self.momentum < 1, f"momentum is {self.momentum}; expected at least 0 and below 1")
        require_within("weight_decay", self.weight_decay, 0)
        require(self.bias_lr > 0, f"bias_lr is {self.bias_lr}; expected a number above 0")
        for layer, decay in self.layer_decay.items():
            require_within(wording.place("layer_decay", layer), decay, 0)
        for layer, factor in (self.layer_lr or {}).items():
            require(factor > 0, f"{wording.place('layer_lr', layer)} is {factor}; expected a number above 0")
        require(0 < self.rho < 1, f"rho is {self.rho}; expected a number between 0 and 1")
        require(self.eps > 0, f"eps is {self.eps}; expected a number above 0")
        require(self.mu > 0, f"mu is {self.mu}; expected a number above 0")
        require_within("samples", self.samples, 1)
        for key in dataclasses.fields(self):
            value = getattr(self, key.name)
            fits = key.name in self.used or value == default(key)
            require(fits, f"{key.name} is {wording.show(value)}; expected none with {self.name}")
        plain_step = not self.nesterov or self.momentum > 0
        require(plain_step, "nesterov is true; expected it beside a momentum above 0")

    @property
    def used(self) -> set[str]:
        """The fields that the named optimiser reads; the others keep their defaults and enter no trial's key."""
        named = {"name", "lr", "bias_lr", "layer_lr", *OPTIMISER_FIELDS[self.name]}
        return named | ({"decay_biases", "layer_decay"} if "weight_decay" in named else set())


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factors at epochs of the *paper's* budget; a shorter budget runs through them faster.

    ``between: hold`` keeps a factor until the next point (steps), ``linear`` interpolates.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    between: Between = "hold"

    def __post_init__(self) -> None:
        epochs = [epoch for epoch, _ in self.points]
        shown = f"points is {wording.show([list(point) for point in self.points])}"
        begins = f"{shown}; expected points that begin at epoch 0, as in [[0, 1.0], [20, 0.1]]"
        require(len(epochs) > 0 and epochs[0] == 0, begins)
        require(epochs == sorted(set(epochs)), f"{shown}; expected rising epochs")
        require(all(factor >= 0 for _, factor in self.points), f"{shown}; expected factors of at least 0")
        require(any(factor > 0 for _, factor in self.points), f"{shown}; expected a factor above 0")


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """An ensemble of three whose later members train on examples that the earlier ones find hard.

    Both numbers are of the *paper's* budget: a shorter one trains each member, and searches the candidates, in
    proportion (``training.boosting``).
    """

    epochs: tuple[int, int, int]  # that train each member, one after the other
    candidates: int  # augmented images to select the second member's examples from, and as many for the third's

    def __post_init__(self) -> None:
        require(min(self.epochs) >= 1, f"epochs is {list(self.epochs)}; expected at least 1 for each member")
        require_within("candidates", self.candidates, 1, MOST_CANDIDATES)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of a network on each kind of device; weights and optimiser are float32 throughout.

    bf16 is quicker on GPUs and on CPUs with AMX, and slower on other CPUs.
    """

    cpu: Arithmetic = "fp32"
    amx: Arithmetic | None = None  # of CPUs with AMX; by default that of every CPU
    cuda: Arithmetic = "fp32"

    def on(self, device: str, *, amx: bool = False) -> Arithmetic:
        """That of ``cuda``, or of a ``cpu`` with or without AMX."""
        if device == "cuda":
            return self.cuda
        return self.amx if self.amx and amx else self.cpu

    @property
    def choices(self) -> set[Arithmetic]:
        """All that some kind of device has."""
        return {self.cpu, self.amx or self.cpu, self.cuda}


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The images of the training file to train on, by their position in it."""

    skip_every: int | None = None  # leave out positions 0, k, 2k, ... (ConvNetJS validates on n % 10 == 0)
    first: int | None = None  # only the first n
    sample: int | None = None  # n of them at random, the same for every seed
    hold_out: int | None = None  # without the validation slice of n images (pipelines.tune)

    def __post_init__(self) -> None:
        require_within("skip_every", self.skip_every, 2)
        for name, value in (("first", self.first), ("sample", self.sample), ("hold_out", self.hold_out)):
            require_within(name, value, 1)
        if self.first is not None and self.sample is not None:
            most = f"sample is {self.sample}; expected at most {self.first}, the images that first leaves"
            require(self.sample <= self.first, most)


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
    precision: Precision = field(default_factory=Precision)
    channels_last: bool = False
    boosting: Boosting | None = None

    def __post_init__(self) -> None:
        require_within("batch", self.batch, 1)
        j = f"map_constant is {self.map_constant}"
        require(self.map_constant > 0, f"{j}; expected a number above 0")
        require(self.loss == "map" or self.map_constant == MAP_CONSTANT, f"{j}; expected none with loss: {self.loss}")
        for name, ops in (("preprocess", self.preprocess), ("augment", self.augment)):
            for i, op in enumerate(ops):
                given = f"{name}[{i}] is {wording.show(op)}"
                require(len(op) == 1, f"{given}; expected one transform, as in {{flip: {{}}}}")
        if self.boosting is not None:
            require(len(self.augment) > 0, "augment is []; expected one, which boosting draws its candidates from")
            # SDLM estimates second derivatives once an epoch, and a member may change within one.
            require(self.optimiser.name != "sdlm", "optimiser.name is sdlm; expected another with boosting")

    def resolved(self, precision: Arithmetic) -> dict[str, Any]:
        """The recipe in one precision, in plain types and without the fields of other optimisers than its own."""
        recipe: dict[str, Any] = plain(self)
        optimiser = {key: recipe["optimiser"][key] for key in sorted(self.optimiser.used)}
        return recipe | {"optimiser": optimiser, "precision": precision}
