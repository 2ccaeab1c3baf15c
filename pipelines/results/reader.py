"""The only reader of finished trials and evaluations, for the ledger, the page and MLflow.

A file that is missing, damaged or contradicts others is one line that names it (UserError). The digests of a trial's
files are checked here (``training.store``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np

from pipelines.command.files import DamagedError, read_json, read_lines
from pipelines.config import wording
from pipelines.config.claims import ClaimedOn
from pipelines.config.schema import parse
from pipelines.config.values import Count, Number, Percent, Rule, Text, plain, within
from pipelines.results import arrays
from pipelines.results.arrays import Array
from pipelines.results.verdicts import claim_margin
from pipelines.training import status, store

if TYPE_CHECKING:
    from pipelines.config.benchmarks import Benchmark

EVALUATIONS = Path("evaluations")
RUNS = Path("runs")
LATEST = 1e11  # the largest number accepted from a trial; as unix seconds the year 5138
AGAIN = "run dvc repro, with -f where it finds nothing to do"

Amount = Annotated[float, Rule(f"a number from 0 to {LATEST:g}", lambda value: 0 <= value < LATEST)]
Epochs = Annotated[float, Rule("the epochs done, a number above 0", lambda value: 0 < value < 1e9)]
Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class CurveLine:
    """A line of ``curve.jsonl``, written after an epoch; the loss of a net that diverged is NaN."""

    epoch: Epochs
    time: Amount  # unix seconds
    seconds: Amount  # of training so far
    loss: float | None = None
    train_error: float | None = None  # %
    lr: float | None = None
    images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A trial, in its ``trial.json`` and its ``result.json``."""

    key: Text
    benchmark: Text
    budget: Text
    seed: Annotated[int, within(0)]
    config: dict[str, Any]
    dataset: dict[str, Text] | None = None  # name and digest, in trial.json
    dataset_digest: Text | None = None  # in result.json


@dataclass(frozen=True, kw_only=True)
class Result(Identity):
    """``result.json``: the provenance and the cost of a finished trial."""

    epochs: Amount
    parameters: Count
    wall_s: Amount
    finished: Amount  # unix seconds
    hardware: str
    versions: dict[str, str | None]
    device: str = "unknown"
    cuda_graph: str | None = None  # on a GPU: "replayed", or why not
    images_per_s: Amount | None = None
    device_s: Amount | None = None
    images_seen: Amount | None = None
    resumed: Annotated[int, within(0)] | None = None
    workers: Any = None  # a number, or of an elastic trial a list of them
    git_commit: str | None = None
    git_dirty: bool | None = None

    @property
    def commit(self) -> str:
        """The commit, with -dirty where the tree had uncommitted changes."""
        return f"{self.git_commit}{'-dirty' if self.git_dirty else ''}" if self.git_commit else "unknown"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of a trial on some images, in % but for the loss."""

    error: Percent
    accuracy: Percent
    top5_error: Percent | None = None
    single_view_error: Percent | None = None
    loss: Number | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimedFigures(Figures, ClaimedOn):
    """Figures of a trial on the images of the claim."""


@dataclass(frozen=True, kw_only=True)
class Metrics(Figures):
    """``metrics.json`` of a trial: figures on the test split."""

    key: Text  # the trial's
    claimed_on: ClaimedFigures | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """``classes.json``, common to all evaluations of a benchmark."""

    classes: Annotated[tuple[str, ...], Rule("at least two names", lambda names: len(names) >= 2)]
    dataset: Text
    shape: tuple[Count, Count, Count]  # of a test image: channels, height, width
    protocol: Text
    test: Count  # number of test images


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One seed on the test split, ``evaluations/<benchmark>/trials/seed-<n>``, and its training where that was read."""

    folder: Path
    about: About
    metrics: Metrics
    labels: Array  # (N,) int64, the classes of the test images
    predicted: Array  # (N,) int64, the most probable classes
    confidence: Array  # (N,) float64, their probabilities
    curve: Sequence[CurveLine] = ()
    result: Result | None = None

    @property
    def seed(self) -> int:
        """The seed, from the folder's name."""
        return int(self.folder.name.removeprefix("seed-"))

    @cached_property
    def confusion(self) -> Array:
        """The counts (C, C), rows actual, columns predicted."""
        return arrays.confusion(self.labels, self.predicted, len(self.about.classes))

    @property
    def at_chance(self) -> bool:
        """Whether it only guesses: its training loss never left the plateau, or its test error is no better than that.

        A guess names the commonest class for every test image; the margin is that of a claim of its error.
        """
        loss = recipe_of(self.result.config).get("loss", "") if self.result else ""
        images = len(self.labels)
        guessing = 100 * (1 - int(np.bincount(self.labels).max()) / images)
        return self.metrics.error >= guessing - claim_margin(guessing, images) or status.at_plateau(
            loss, [line.loss for line in self.curve], len(self.about.classes)
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


def load(
    benchmark: Benchmark, *, budget: str, seeds: Sequence[int] | None = None, project: Path = Path()
) -> Outcome | None:
    """Read the outcome of a benchmark at a budget; None when it was never run: neither folder exists.

    ``seeds`` are by default the budget's. Raises UserError for a file that is missing, damaged, or of another recipe,
    budget or data set.
    """
    folder, runs = project / EVALUATIONS / benchmark.name, project / RUNS / benchmark.name
    if not folder.exists() and not runs.exists():
        return None
    trials = tuple(
        _trial(benchmark, folder / f"trials/seed-{seed}", runs / f"seed-{seed}", budget)
        for seed in sorted(seeds or benchmark.budgets[budget].seeds)
    )
    kept, layer = read_examples(folder / "examples.npz", trials), arrays.first_layer(folder / "first_layer.npz")
    return Outcome(**vars(trials[0].about), trials=trials, examples=kept, **layer)


def _trial(benchmark: Benchmark, evaluated: Path, trained: Path, budget: str) -> Trial:
    """The evaluation and the run of one seed: both of the same trial, and of the current row."""
    evaluation, classes = read_evaluation(evaluated), evaluated.parents[1] / "classes.json"
    _agree(classes, "protocol", evaluation.about.protocol, benchmark.evaluation.protocol, benchmark.where)
    _agree(classes, "dataset", evaluation.about.dataset, benchmark.dataset, benchmark.where)
    on = evaluation.metrics.claimed_on
    images = {field.name: getattr(on, field.name) for field in fields(ClaimedOn)} if on else None
    metrics = evaluated / "metrics.json"
    _agree(metrics, "claimed_on", images, plain(benchmark.evaluation.claimed_on), benchmark.where)
    curve = read_curve(trained / "curve.jsonl")
    if not curve:
        raise DamagedError(f"{trained / 'curve.jsonl'} is missing or empty; expected one line an epoch")
    result, path = read_result(trained), trained / "result.json"
    _agree(path, "config", result.config, plain(config_as(result.config, benchmark, budget)), benchmark.where)
    _agree(metrics, "key", evaluation.metrics.key, result.key, path)
    _agree(path, "seed", result.seed, evaluation.seed, evaluated)  # or one seed would count twice
    return replace(evaluation, curve=curve, result=result)


def config_as(trained: Mapping[str, Any], benchmark: Benchmark, budget: str) -> dict[str, Any]:
    """The row's config in a trained config's precision, where some device has that; otherwise in a CPU's."""
    precision = recipe_of(trained).get("precision")
    known = next((one for one in benchmark.recipe.precision.choices if one == precision), None)
    return benchmark.resolved(budget, known)


def recipe_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe in a trained config; empty where a damaged file has something else in its place."""
    recipe = config.get("recipe")
    return recipe if isinstance(recipe, Mapping) else {}


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


def parsed(kind: type[Kind], found: Any, where: object) -> Kind:
    """A JSON object of ours as this dataclass; keys of other versions are ignored."""
    return parse(kind, found, f"{where}:", strict=False)


def read(kind: type[Kind], path: Path) -> Kind:
    """The JSON file of ours at ``path`` as this dataclass."""
    return parsed(kind, read_json(path), path)


def read_evaluation(folder: Path) -> Trial:
    """One trial's metrics and its answers to the test images, which must agree."""
    about = read(About, folder.parents[1] / "classes.json")
    path, table = folder / "metrics.json", folder / "predictions.npz"
    metrics, answers = read(Metrics, path), arrays.read(table)
    for key in ("labels", "predicted", "confidence"):
        if key not in answers or answers[key].shape != (about.test,):
            holds = f"of shape {answers[key].shape}" if key in answers else "missing"
            raise DamagedError(f"{table}: {key} is {holds}; expected shape ({about.test},): {AGAIN}")
    labels, predicted = (answers[key].astype(np.int64) for key in ("labels", "predicted"))
    last, classes = max(labels.max(), predicted.max()), len(about.classes)
    if last >= classes:
        raise DamagedError(f"{table} holds answers up to class {last}; expected up to {classes - 1}: {AGAIN}")
    counted = 100 * float((predicted != labels).mean())
    if abs(counted - metrics.error) > 0.01:
        line = f"error is {metrics.error:.2f} %, but {table} counts {counted:.2f} %"
        raise DamagedError(f"{path}: {line}; expected files of one evaluation")
    confidence = answers["confidence"].astype(np.float64)
    return Trial(folder=folder, about=about, metrics=metrics, labels=labels, predicted=predicted, confidence=confidence)


def per_class(confusion: Array) -> list[tuple[float | None, ...]]:
    """Precision, recall and F1 of each class in %, None for a division by 0, and its images, from counts (C, C).

    Precision is undefined for a class that was never predicted, recall for a class without images, and F1, which is
    2 TP / (2 TP + FP + FN), where both are: a class with images that was never predicted has an F1 of 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    actual, predicted = (axis.ravel() for axis in np.indices(confusion.shape))
    *shares, images = precision_recall_fscore_support(
        actual, predicted, labels=range(len(confusion)), sample_weight=confusion.ravel(), zero_division=np.nan
    )
    columns = ([None if np.isnan(one) else round(100 * float(one), 2) for one in share] for share in shares)
    return list(zip(*columns, images.astype(int).tolist(), strict=True))


def read_curve(path: Path) -> list[CurveLine]:
    """A trial's learning curve, one line an epoch; empty without a file."""
    return [parsed(CurveLine, line, f"{path} line {number}") for number, line in enumerate(read_lines(path), 1)]


def read_result(folder: Path, *, weights: bool = True) -> Result:
    """The provenance of the finished trial in ``folder``; ``weights`` False skips their digest."""
    files = store.TrialFiles(folder)
    return parsed(Result, files.read_result(None, weights=weights), files.result)


def read_examples(path: Path, trials: Sequence[Trial]) -> ClassifiedExamples:
    """The test images kept with an evaluation, and the answers of these trials to them."""
    found = arrays.read(path)
    lost = [trial for trial in trials if trial.metrics.key not in found.get("keys", ())]
    if lost:
        what = f"seed {lost[0].seed}, trial {lost[0].metrics.key}"
        raise DamagedError(f"{path} has nothing of {what}; expected all that were evaluated: {AGAIN}")
    index = found["index"]
    return ClassifiedExamples(
        images=found["images"],
        actual=trials[0].labels[index],
        index=index,
        predicted=np.stack([trial.predicted[index] for trial in trials]),
        confidence=np.stack([trial.confidence[index] for trial in trials]),
    )
