"""The only reader of finished trials and evaluations, for the ledger, the page and MLflow.

A file that is missing, damaged or contradicts others is one DamagedError line that names it. The digests of a trial's
files are checked here (``training.store``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.command.files import DamagedError, read_json, read_lines, reading
from pipelines.command.progress import is_number
from pipelines.config import wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.claims import ClaimedOn
from pipelines.config.values import plain
from pipelines.results import arrays
from pipelines.results.arrays import Array
from pipelines.results.verdicts import claim_margin
from pipelines.training import status, store

EVALUATIONS = Path("evaluations")
RUNS = Path("runs")
SEED = re.compile(r"seed-(\d+)")  # a trial's folder below runs/ and evaluations/
LATEST = 1e11  # the largest number accepted from a trial; as unix seconds the year 5138
AGAIN = "run dvc repro, with -f where it finds nothing to do"

Json = dict[str, Any]


class Kind(NamedTuple):
    """A condition on a JSON value, and the words for it."""

    fits: Callable[[Any], bool]
    words: str

    @property
    def optional(self) -> Kind:
        """The same, or null."""
        return Kind(lambda value: value is None or self.fits(value), f"{self.words}, or null")


def _whole(value: object, low: int = 0, high: float = LATEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def items(fits: Callable[[Any], bool], least: int = 0, most: float = math.inf) -> Callable[[Any], bool]:
    """A condition: a list of ``least`` to ``most`` such items."""
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))


TEXT = Kind(lambda value: isinstance(value, str) and value != "", "text")
OBJECT = Kind(lambda value: isinstance(value, dict), "an object")
WHOLE = Kind(_whole, "a whole number")
NUMBER = Kind(is_number, "a number")
AMOUNT = Kind(lambda value: is_number(value) and 0 <= value < LATEST, f"a number from 0 to {LATEST:g}")
PERCENT = Kind(lambda value: is_number(value) and 0 <= value <= 100, "per cent, 0 to 100")
MEASURED = Kind(lambda value: isinstance(value, float) or is_number(value), "a number").optional  # NaN if it diverged

CURVE = {
    "epoch": Kind(lambda value: is_number(value) and 0 < value < 1e9, "the epochs done, a number above 0"),
    **dict.fromkeys(("time", "seconds"), AMOUNT),
    **dict.fromkeys(("loss", "train_error", "lr", "images_per_s"), MEASURED),
}
RESULT = {
    **dict.fromkeys(("epochs", "parameters", "wall_s", "finished"), AMOUNT),
    **dict.fromkeys(("images_per_s", "resumed", "device_s", "images_seen"), AMOUNT.optional),
    "hardware": Kind(lambda value: isinstance(value, str), "text"),
    "versions": OBJECT,
}
ABOUT = {
    "classes": Kind(items(lambda name: isinstance(name, str), 2), "a list of at least two names"),
    "shape": Kind(items(lambda side: _whole(side, 1), 3, 3), "channels, height and width"),
    **dict.fromkeys(("dataset", "protocol"), TEXT),
    "test": Kind(lambda value: _whole(value, 1), "the number of test images"),
}
TEST_FIGURES = {
    **dict.fromkeys(("error", "accuracy"), PERCENT),
    **dict.fromkeys(("top5_error", "single_view_error"), PERCENT.optional),
    "loss": NUMBER.optional,
}
LIST = Kind(lambda value: isinstance(value, list), "a list")
METRICS = {**TEST_FIGURES, "key": TEXT, "claimed_on": OBJECT.optional}


def check(where: object, found: Any, kinds: Mapping[str, Kind], within: str = "") -> None:
    """Raise DamagedError unless ``found`` is an object whose values are of these kinds."""
    if not isinstance(found, dict):
        raise DamagedError(f"{where} is damaged: {within or 'it'} is {wording.show(found)}; expected an object")
    for key, kind in kinds.items():
        if not kind.fits(found.get(key)):
            raise DamagedError(f"{where}: {within}{key} is {wording.show(found.get(key))}; expected {kind.words}")


class ClassFigures(NamedTuple):
    """A class's precision, recall and F1 in %, None where undefined, and its number of test images."""

    precision: float | None
    recall: float | None
    f1: float | None
    images: int


@dataclass(frozen=True, kw_only=True)
class About:
    """The content of ``classes.json``, common to all evaluations of a benchmark."""

    classes: list[str]
    dataset: str
    shape: tuple[int, ...]  # of a test image: channels, height, width
    protocol: str
    test: int  # number of test images


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One seed on the test split, ``evaluations/<benchmark>/trials/seed-<n>``, and its training where that was read."""

    folder: Path
    about: About
    confusion: Array  # (C, C) int64, rows actual, columns predicted
    metrics: Json  # the whole file, with the trial's key
    curve: list[Json] = field(default_factory=list)
    result: Json = field(default_factory=dict)  # provenance and cost

    @property
    def seed(self) -> int:
        """The seed, from the folder's name."""
        return int(self.folder.name.removeprefix("seed-"))

    @property
    def error(self) -> float:
        """The error in % on the whole test split."""
        return float(self.metrics["error"])

    @property
    def claimed_on(self) -> float | None:
        """The error in % on the images of the claim; None where these are the whole test split."""
        return self.metrics["claimed_on"]["error"] if self.metrics.get("claimed_on") else None

    @property
    def at_chance(self) -> bool:
        """Whether it only guesses: its training loss never left the plateau, or its test error is no better than that.

        A guess names the commonest class for every test image; the margin is that of a claim of its error.
        """
        loss = self.result.get("config", {}).get("recipe", {}).get("loss", "")
        images = int(self.confusion.sum())
        guessing = 100 * (1 - int(self.confusion.sum(axis=1).max()) / images)
        return self.error >= guessing - claim_margin(guessing, images) or status.at_plateau(
            loss, [line.get("loss") for line in self.curve], len(self.about.classes)
        )


@dataclass(frozen=True, kw_only=True)
class ClassifiedExamples:
    """M test images behind the cells of the confusion matrices, with the answers of S seeds to each."""

    images: Array  # (M, C, H, W) uint8
    actual: Array  # (M,) int64
    index: Array  # (M,) int64, rising: position in the test file
    predicted: Array  # (S, M) int64
    confidence: Array  # (S, M) float64, probability of the predicted class

    def part(self, kept: Array) -> ClassifiedExamples:
        """The images at these positions."""
        one = {key: getattr(self, key)[kept] for key in ("images", "actual", "index")}
        return ClassifiedExamples(**one, predicted=self.predicted[:, kept], confidence=self.confidence[:, kept])


@dataclass(frozen=True, kw_only=True)
class Outcome(About):
    """One benchmark that was trained and evaluated."""

    trials: tuple[Trial, ...]  # by rising seed
    examples: ClassifiedExamples | None  # answers in the order of the trials; None where none were kept
    filters: Array | None = None  # (O, I, kH, kW) float32
    towers: int = 1  # equal groups of filters, one after the other, that the next layer takes apart
    templates: Array | None = None  # (C, channels, H, W) float32


def load(benchmark: Benchmark, *, budget: str, evaluations: Path = EVALUATIONS, runs: Path = RUNS) -> Outcome | None:
    """Read the outcome of a benchmark at a budget; None when it was never run: neither folder exists.

    Raises DamagedError for a file that is missing, damaged, or of another recipe, budget or data set.
    """
    name, folder = benchmark.name, evaluations / benchmark.name
    if not folder.exists() and not (runs / name).exists():
        return None
    about = read_about(folder / "classes.json")
    _agree(folder / "classes.json", "protocol", about.protocol, benchmark.evaluation.protocol, benchmark.where)
    _agree(folder / "classes.json", "dataset", about.dataset, benchmark.dataset, benchmark.where)
    trials = tuple(
        _trial(benchmark, folder / f"trials/seed-{seed}", runs / name / f"seed-{seed}", about, budget)
        for seed in sorted(benchmark.budgets[budget].seeds)
    )
    layer = arrays.first_layer(folder / "first_layer.npz")
    kept = read_examples(folder / "examples.npz", trials)
    return Outcome(**vars(about), trials=trials, examples=kept, **layer)


def _trial(benchmark: Benchmark, evaluated: Path, trained: Path, about: About, budget: str) -> Trial:
    """The evaluation and the run of one seed: both of the same trial, and of the current row."""
    evaluation = read_evaluation(evaluated, about)
    on = evaluation.metrics.get("claimed_on")
    images = {key: on.get(key) for key in ClaimedOn.__annotations__} if on else None
    metrics = evaluated / "metrics.json"
    _agree(metrics, "claimed_on", images, plain(benchmark.evaluation.claimed_on), benchmark.where)
    curve = read_curve(trained / "curve.jsonl")
    if not curve:
        raise DamagedError(f"{trained / 'curve.jsonl'} is missing or empty; expected one line an epoch")
    result, path = read_result(trained), trained / "result.json"
    config = json.loads(json.dumps(config_as(result.get("config"), benchmark, budget)))
    _agree(path, "config", result.get("config"), config, benchmark.where)
    _agree(metrics, "key", evaluation.metrics["key"], result.get("key"), path)
    _agree(path, "seed", result.get("seed"), evaluation.seed, evaluated)  # or one seed would count twice
    return replace(evaluation, curve=curve, result=result)


def config_as(trained: Any, benchmark: Benchmark, budget: str) -> Json:
    """The row's config in a trained config's precision, where some device has that; otherwise in a CPU's."""
    recipe = trained.get("recipe") if isinstance(trained, dict) else None
    precision = recipe.get("precision") if isinstance(recipe, dict) else None
    known = next((one for one in benchmark.recipe.precision.choices if one == precision), None)
    return benchmark.resolved(budget, known)


def _agree(path: Path, key: str, was: Any, now: Any, where: object) -> None:
    """DamagedError unless the value of ``key`` in a file is the one that stands ``where``."""
    differs = difference(was, now, key)
    if differs is not None:
        name, one, other = differs
        line = f"{name} is {wording.show(one)}, and {wording.show(other)} in {where}; expected the same"
        raise DamagedError(f"{path}: {line}: {AGAIN}")


def difference(was: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first difference between two nests of dicts and plain values: its dotted key and both values.

    A missing key counts as null, so that optional fields can be added.
    """
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return None if was == now else (key, was, now)
    differences = (difference(was.get(name), now.get(name), f"{key}.{name}") for name in sorted({*was, *now}))
    return next((one for one in differences if one is not None), None)


def read_object(path: Path, kinds: Mapping[str, Kind]) -> Json:
    """The JSON object in ``path``, with values of these kinds."""
    found: Json = read_json(path)
    check(path, found, kinds)
    return found


def read_about(path: Path) -> About:
    """Read ``classes.json``."""
    found = read_object(path, ABOUT)
    return About(**{key: found[key] for key in ABOUT if key != "shape"}, shape=tuple(found["shape"]))


def read_evaluation(folder: Path, about: About) -> Trial:
    """One trial's metrics and confusion matrix, which must agree."""
    path, table = folder / "metrics.json", folder / "confusion.csv"
    metrics = read_object(path, METRICS)
    if metrics.get("claimed_on"):
        check(path, metrics["claimed_on"], TEST_FIGURES, "claimed_on.")
    confusion = _confusion(table, size=len(about.classes), images=about.test)
    counted = 100 * (1 - float(np.trace(confusion)) / about.test)
    if abs(counted - metrics["error"]) > 0.01:
        line = f"error is {metrics['error']:.2f} %, but {table} counts {counted:.2f} %"
        raise DamagedError(f"{path}: {line}; expected files of one evaluation")
    return Trial(folder=folder, about=about, confusion=confusion, metrics=metrics)


def per_class(confusion: Array) -> tuple[ClassFigures, ...]:
    """Figures of each class from a matrix (C, C) of counts, None for a division by 0.

    Precision is undefined for a class that was never predicted, recall for a class without images, and F1, which is
    2 TP / (2 TP + FP + FN), where both are: a class with images that was never predicted has an F1 of 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    actual, predicted = (axis.ravel() for axis in np.indices(confusion.shape))
    *shares, images = precision_recall_fscore_support(
        actual, predicted, labels=range(len(confusion)), sample_weight=confusion.ravel(), zero_division=np.nan
    )
    columns = ([None if np.isnan(one) else round(100 * float(one), 2) for one in share] for share in shares)
    return tuple(ClassFigures(*four) for four in zip(*columns, images.astype(int).tolist(), strict=True))


def short(value: float | None) -> float | None:
    """Four digits, enough for a curve; None for a loss that is no number, since JSON has no NaN."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def _confusion(path: Path, *, size: int, images: int) -> Array:
    with reading(path) as file:
        text = file.read()
    try:
        matrix = np.array([row.split(",") for row in text.decode().split()], dtype=np.int64)
    except (ValueError, OverflowError):
        raise DamagedError(f"{path} is damaged; expected {size} lines of {size} whole numbers") from None
    if matrix.shape != (size, size) or matrix.min() < 0 or matrix.max() > images or matrix.sum() != images:
        counts = f"{'x'.join(map(str, matrix.shape))} counts that sum to {int(matrix.sum())}"
        raise DamagedError(f"{path} holds {counts}; expected {size}x{size} that sum to the {images} test images")
    return matrix


def read_curve(path: Path) -> list[Json]:
    """A trial's learning curve, one object an epoch; empty without a file."""
    curve: list[Json] = read_lines(path)
    for number, line in enumerate(curve, 1):
        check(f"{path} line {number}", line, CURVE)
    return curve


def read_result(folder: Path, *, weights: bool = True) -> Json:
    """The provenance of the finished trial in ``folder``, checked; ``weights`` False skips their digest."""
    result: Json = store.TrialFiles(folder).read_result(None, weights=weights)
    check(folder / "result.json", result, RESULT)
    return result


def read_examples(path: Path, trials: Sequence[Trial]) -> ClassifiedExamples:
    """The test images kept with an evaluation, and the answers of these trials to them."""
    found = arrays.read(path)
    keys = found["keys"].tolist() if "keys" in found else []
    lost = [trial for trial in trials if trial.metrics["key"] not in keys]
    if lost:
        what = f"seed {lost[0].seed}, trial {lost[0].metrics['key']}"
        raise DamagedError(f"{path} has nothing of {what}; expected all that were evaluated: {AGAIN}")
    rows = [keys.index(trial.metrics["key"]) for trial in trials]
    return ClassifiedExamples(
        images=found["images"],
        actual=found["actual"],
        index=found["index"],
        predicted=found["predicted"][rows],
        confidence=found["confidence"][rows].astype(np.float64),
    )
