"""How a model is trained: transforms, loss, optimiser, schedule and images; a budget adds how long."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipelines.config import registry, wording
from pipelines.config.values import Count, NotNegative, Positive, Rule, default, plain, within
from pipelines.config.wording import require

MAP_CONSTANT = 1.0  # ours: the paper calls it positive
Arithmetic = Literal["fp32", "bf16"]
MOST_CANDIDATES = 1_000_000_000  # images
Op = dict[str, dict[str, Any]]  # one transform: {name: {argument: value}}


OPTIMISER_FIELDS = registry.entries("training/optimisers.py", "OPTIMISERS")  # by optimiser
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
    """The schedule multiplies ``lr``; ``weight_decay`` is PyTorch's, added to the gradient.

    Under sdlm a minibatch's step is the sum over its images, so ``lr`` is the rate of one image.
    """

    name: OptimiserName
    lr: Positive
    momentum: Annotated[float, Rule("at least 0 and below 1", lambda value: 0 <= value < 1)] = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    decay_biases: bool = True  # ConvNetJS and cuda-convnet decay weights alone
    layer_decay: dict[str, NotNegative] = field(default_factory=dict)  # a layer's own weight_decay, by module name
    layer_lr: dict[str, Positive] | None = None  # factor on a layer's rate, by module name
    bias_lr: Positive = 1.0  # factor on the rate of biases; 2 in cuda-convnet's layer files
    rho: Annotated[float, Rule("a number between 0 and 1", lambda value: 0 < value < 1)] = 0.95  # adadelta only
    eps: Positive = 1e-8  # adadelta only
    mu: Positive = 0.02  # sdlm only: added to each second derivative
    samples: Count = 500  # sdlm only: training images from which second derivatives are estimated, before each epoch

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):
            value = getattr(self, key.name)
            if key.name not in self.used and value != default(key):
                raise ValueError(f"{key.name} is {wording.show(value)}; expected none with {self.name}")
        plain_step = not self.nesterov or self.momentum > 0
        require(plain_step, "nesterov is true; expected it beside a momentum above 0")

    @property
    def used(self) -> set[str]:
        """The fields that the named optimiser reads; the others keep their defaults and stay out of a trial's key."""
        named = {"name", "lr", "bias_lr", "layer_lr", *OPTIMISER_FIELDS[self.name]}
        return named | ({"decay_biases", "layer_decay"} if "weight_decay" in named else set())


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factors by epoch of the *paper's* budget; a shorter budget compresses them.

    ``between: hold`` keeps a factor until the next point (steps), ``linear`` interpolates.
    """

    points: tuple[tuple[float, NotNegative], ...] = ((0.0, 1.0),)
    between: Between = "hold"

    def __post_init__(self) -> None:
        epochs = [epoch for epoch, _ in self.points]
        shown = f"points is {wording.show([list(point) for point in self.points])}"
        begins = f"{shown}; expected points that begin at epoch 0, as in [[0, 1.0], [20, 0.1]]"
        require(len(epochs) > 0 and epochs[0] == 0, begins)
        require(epochs == sorted(set(epochs)), f"{shown}; expected rising epochs")
        require(any(factor > 0 for _, factor in self.points), f"{shown}; expected a factor above 0")


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """An ensemble of three, whose earlier members select hard examples for the later ones.

    Both numbers are for the *paper's* budget; a shorter one scales them down (``training.boosting``).
    """

    epochs: tuple[Count, Count, Count]  # of each member in turn
    # augmented images that the second member's examples are selected from; as many again for the third
    candidates: Annotated[int, within(1, MOST_CANDIDATES)]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A network's arithmetic by kind of device; weights and optimiser are float32 throughout.

    bf16 is faster on GPUs and on some CPUs, and slower on others.
    """

    cpu: Literal[Arithmetic, "fastest"] = "fp32"  # ``fastest``: bf16 on CPUs that are faster in it, fp32 on others
    cuda: Arithmetic = "fp32"

    def on(self, device: str, *, fast_bf16: bool = False) -> Arithmetic:
        """The arithmetic on ``cuda``, or on a ``cpu`` that is faster in bf16 or is not."""
        if device == "cuda":
            return self.cuda
        if self.cpu == "fastest":
            return "bf16" if fast_bf16 else "fp32"
        return self.cpu

    @property
    def choices(self) -> set[Arithmetic]:
        """The arithmetics of all kinds of devices."""
        return {self.on("cpu"), self.on("cpu", fast_bf16=True), self.cuda}


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The images to train on, by their position in the training file."""

    # k: leave out positions 0, k, 2k, ... (ConvNetJS validates on n % 10 == 0)
    skip_every: Annotated[int, within(2)] | None = None
    first: Count | None = None  # only the first n
    sample: Count | None = None  # n of them at random, the same for every seed
    hold_out: Count | None = None  # leave out the validation slice of n images (pipelines.tune)

    def __post_init__(self) -> None:
        if self.first is not None and self.sample is not None:
            most = f"sample is {self.sample}; expected at most {self.first}, the images that first leaves"
            require(self.sample <= self.first, most)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, for any budget."""

    batch: Count  # images a step, over all workers
    optimiser: Optimiser
    loss: LossName = "cross_entropy"
    map_constant: Positive = MAP_CONSTANT  # map only: j, the penalty of the class "rubbish"
    schedule: Schedule = field(default_factory=Schedule)
    preprocess: tuple[Op, ...] = ()
    augment: tuple[Op, ...] = ()
    subset: Subset = field(default_factory=Subset)
    shuffle: bool = True
    precision: Precision = field(default_factory=Precision)
    channels_last: bool = False
    boosting: Boosting | None = None

    def __post_init__(self) -> None:
        j = f"map_constant is {self.map_constant}; expected none with loss: {self.loss}"
        require(self.loss == "map" or self.map_constant == MAP_CONSTANT, j)
        for name, ops in (("preprocess", self.preprocess), ("augment", self.augment)):
            for i, op in enumerate(ops):
                given = f"{name}[{i}] is {wording.show(op)}"
                require(len(op) == 1, f"{given}; expected one transform, as in {{flip: {{}}}}")
        if self.boosting is not None:
            require(len(self.augment) > 0, "augment is []; expected one, which boosting draws its candidates from")
            # SDLM estimates second derivatives once an epoch, and a member may change within one.
            require(self.optimiser.name != "sdlm", "optimiser.name is sdlm; expected another with boosting")

    def resolved(self, precision: Arithmetic) -> dict[str, Any]:
        """The recipe in one precision, in plain types; of the optimiser only the fields in use."""
        recipe: dict[str, Any] = plain(self)
        optimiser = {key: recipe["optimiser"][key] for key in sorted(self.optimiser.used)}
        return recipe | {"optimiser": optimiser, "precision": precision}
