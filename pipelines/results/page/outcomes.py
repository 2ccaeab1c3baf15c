"""What train and evaluate left of one benchmark, read and checked: the ledger and the page are made of nothing else.

Every file that should be there and is not, is damaged, or contradicts its neighbours becomes one UserError line naming
it; a report made of half a result would look like a whole one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from pipelines.command.errors import UserError
from pipelines.command.progress import is_number
from pipelines.config import wording
from pipelines.config.benchmarks import Benchmark
from pipelines.config.claims import ClaimedOn
from pipelines.results import examples
from pipelines.results.page import arrays
from pipelines.results.verdicts import claim_margin
from pipelines.training import store

EVALUATIONS = Path("evaluations")
RUNS = Path("runs")

Array = npt.NDArray[Any]


class ClaimRow(TypedDict):
    """The source's side of a ledger row."""

    value: float
    unit: str
    source: str
    protocol: str
    certainty: str


class TestSet(TypedDict):
    """Our figures on the whole test split, of a row whose claim was measured on other images."""

    per_seed: dict[str, float]
    mean: float
    ci95: list[float] | None
    images: int


class LedgerRow(TypedDict):
    """One benchmark in report/ledger.json; figures in % and in the metric of the claim.

    ``per_seed``, ``mean``, ``ci95`` and so ``verdict`` are of the images that the claim was measured on.
    """

    benchmark: str
    label: str | None  # a variant, a stand-in, an uncertain definition: what must stand beside the verdict
    dataset: str
    metric: str
    claim: ClaimRow
    deviations: list[str]
    budget: str | None  # null: not in the suite that ran
    per_seed: dict[str, float]
    n: int
    mean: float | None
    ci95: list[float] | None  # [low, high]; null with fewer than three seeds
    verdict: str
    at_chance: list[int]  # the seeds that did no better on the test set than guessing does
    wall_s: float | None  # training time, summed over the seeds
    hardware: str | None
    versions: str | None  # of Python and the libraries that trained
    git_commit: str | None  # with -dirty where the tree had uncommitted changes
    epochs: float | None  # of the shortest trial: passes over the training images
    paper_epochs: int
    parameters: int | None
    config: dict[str, Any] | None  # model, recipe and length as they were trained
    margin: float  # the claim's own sampling error, in points
    views: str | None  # how we looked at a test image
    test_set: TestSet | None  # null: the claim was measured on the whole test split, or nothing was run
    difference: str | None  # what it means that it was not, in one sentence
    remarks: str | None  # what was tried to reach the claim, and what is left to try


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One seed: its test figures, its confusion matrix, its curve and its provenance."""

    seed: int
    error: float  # %
    accuracy: float  # %
    confusion: Array  # (C, C) int64, rows actual, columns predicted
    curve: list[dict[str, Any]]
    result: dict[str, Any]
    claimed_on: float | None = None  # error in % on the images that the claim was measured on; None: the test split

    def tested(self, metric: str) -> float:
        """The figure in % on the whole test split."""
        return self.error if metric == "error" else self.accuracy

    def compared(self, metric: str) -> float:
        """The figure in % that is set beside the claim."""
        if self.claimed_on is None:
            return self.tested(metric)
        return self.claimed_on if metric == "error" else 100 - self.claimed_on

    @property
    def at_chance(self) -> bool:
        """Whether it is no better, by more than luck, than naming the commonest class for every test image.

        A net whose loss never left ln C, the plateau of C classes, ends there.
        """
        images = int(self.confusion.sum())
        guessing = 100 * (1 - int(self.confusion.sum(axis=1).max()) / images)
        return self.error >= guessing - claim_margin(guessing, images)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Test images behind the cells of the confusion matrices, and what each of the S seeds said of each of them."""

    images: Array  # (M, C, H, W) uint8
    actual: Array  # (M,) int64
    index: Array  # (M,) int64, rising: position in the test file
    predicted: Array  # (S, M) int64
    confidence: Array  # (S, M) float64, probability of the predicted class

    def part(self, kept: Array) -> Examples:
        """Those of the images at these positions."""
        return Examples(
            images=self.images[kept],
            actual=self.actual[kept],
            index=self.index[kept],
            predicted=self.predicted[:, kept],
            confidence=self.confidence[:, kept],
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One benchmark that was run."""

    classes: list[str]
    dataset: str
    shape: tuple[int, ...]  # of a test image
    protocol: str
    test: int
    trials: tuple[Trial, ...]  # by rising seed
    examples: Examples  # what was said of them by seed, in the order of the trials
    filters: Array | None  # (O, I, kH, kW) float32
    templates: Array | None  # (C, channels, H, W) float32


def load(benchmark: Benchmark, *, budget: str, evaluations: Path = EVALUATIONS, runs: Path = RUNS) -> Outcome | None:
    """Read what was left of a benchmark at a budget; None when it was never run, so that neither folder exists.

    Raises UserError for a file that is missing or damaged, or that another budget or data set left behind.
    """
    name, on = benchmark.name, benchmark.evaluation.claimed_on
    folder = evaluations / name
    if not folder.exists() and not (runs / name).exists():
        return None
    about = _about(folder / "classes.json")
    for key, now in (("protocol", benchmark.evaluation.protocol), ("dataset", benchmark.dataset)):
        if about[key] != now:
            line = f"{key} is {wording.show(about[key])}, and {now} in params.yaml"
            raise UserError(f"{folder / 'classes.json'}: {line}; expected the same: run dvc repro")
    trials = tuple(
        _trial(
            folder / "trials" / f"seed-{seed}",
            runs / name / f"seed-{seed}",
            seed=seed,
            about=about,
            on=on,
            config=json.loads(json.dumps(benchmark.resolved(budget))),
        )
        for seed in sorted(benchmark.budgets[budget].seeds)
    )
    layer = arrays.first_layer(folder / "first_layer.npz")
    return Outcome(
        classes=about["classes"],
        dataset=about["dataset"],
        shape=tuple(about["shape"]),
        protocol=about["protocol"],
        test=about["test"],
        trials=trials,
        examples=_examples(folder / "examples.npz", about, trials),
        filters=layer.get("filters"),
        templates=layer.get("templates"),
    )


def _about(path: Path) -> dict[str, Any]:
    about = store.read_json(path)
    names, shape = about.get("classes"), about.get("shape")
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: classes is {wording.show(names)}; expected a list of at least two names")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_whole(side, 1, arrays.LONGEST) for side in shape):
        raise UserError(f"{path}: shape is {wording.show(shape)}; expected channels, height and width")
    for key in ("dataset", "protocol"):
        if not isinstance(about.get(key), str):
            raise UserError(f"{path}: {key} is {wording.show(about.get(key))}; expected text")
    if not _whole(about.get("test"), 1, arrays.MOST):
        raise UserError(f"{path}: test is {wording.show(about.get('test'))}; expected the number of test images")
    return about


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _trial(
    evaluated: Path,
    trained: Path,
    *,
    seed: int,
    about: Mapping[str, Any],
    on: ClaimedOn | None,
    config: Mapping[str, Any],
) -> Trial:
    metrics = store.read_json(evaluated / "metrics.json")
    error, accuracy = (_percent(evaluated / "metrics.json", metrics, key) for key in ("error", "accuracy"))
    confusion = _confusion(evaluated / "confusion.csv", size=len(about["classes"]), images=int(about["test"]))
    counted = 100 * (1 - float(np.trace(confusion)) / int(about["test"]))
    if abs(counted - error) > 0.01:
        line = f"error is {error:.2f} %, but {evaluated / 'confusion.csv'} counts {counted:.2f} %"
        raise UserError(f"{evaluated / 'metrics.json'}: {line}; expected files of one evaluation")
    curve = _curve(trained / "curve.jsonl")
    result = _result(trained / "result.json", config)
    if metrics.get("key") != result.get("key"):
        line = f"the key is {wording.show(metrics.get('key'))}, that of the run {wording.show(result.get('key'))}"
        raise UserError(f"{evaluated / 'metrics.json'}: {line}; expected the same trial: run dvc repro")
    if result.get("seed") != seed:  # or one seed would count twice
        found = wording.show(result.get("seed"))
        raise UserError(f"{trained / 'result.json'}: the seed is {found}; expected {seed}: run dvc repro")
    return Trial(
        seed=seed,
        error=error,
        accuracy=accuracy,
        confusion=confusion,
        curve=curve,
        result=result,
        claimed_on=_claimed_on(evaluated / "metrics.json", metrics.get("claimed_on"), on),
    )


def _claimed_on(path: Path, found: Any, on: ClaimedOn | None) -> float | None:
    """The error in % on the images of ``on``."""
    names = [field.name for field in dataclasses.fields(ClaimedOn)]
    images = {key: found.get(key) for key in names} if isinstance(found, Mapping) else None
    if images != (dataclasses.asdict(on) if on else None):
        expected = f"the {on.words}" if on else "none, the whole test split"
        raise UserError(f"{path}: claimed_on is {wording.show(images)}; expected {expected}: run dvc repro")
    return None if on is None else _percent(path, found, "error", within="claimed_on.")


def _percent(path: Path, found: Mapping[str, Any], key: str, within: str = "") -> float:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise UserError(f"{path}: {within}{key} is {wording.show(value)}; expected per cent, 0 to 100")
    return float(value)


def _confusion(path: Path, *, size: int, images: int) -> Array:
    with store.reading(path) as file:
        text = file.read()
    try:
        matrix = np.array([row.split(",") for row in text.decode().split()], dtype=np.int64)
    except (ValueError, OverflowError):
        raise UserError(f"{path} is damaged; expected {size} lines of {size} whole numbers") from None
    if matrix.shape != (size, size) or matrix.min() < 0 or matrix.max() > images or matrix.sum() != images:
        found = f"{'x'.join(map(str, matrix.shape))} counts that sum to {int(matrix.sum())}"
        raise UserError(f"{path} holds {found}; expected {size}x{size} that sum to the {images} test images")
    return matrix


def _curve(path: Path) -> list[dict[str, Any]]:
    curve = store.read_lines(path)
    if not curve:
        raise UserError(f"{path} is missing or empty; expected one line an epoch")
    for number, line in enumerate(curve, 1):
        if not is_number(line.get("epoch")) or not 0 < line["epoch"] < 1e9:
            told = wording.show(line.get("epoch"))
            raise UserError(
                f"{path} line {number}: epoch is {told}; expected how many passes over the images were made"
            )
        for key in ("loss", "train_error"):
            value = line.get(key)
            if not (value is None or isinstance(value, float) or is_number(value)):  # of a diverged trial NaN
                raise UserError(f"{path} line {number}: {key} is {wording.show(value)}; expected a number, or null")
    return curve


def _result(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's own account; a claim's deviations as they are now must not stand beside another recipe's figures."""
    result = store.TrialFiles(path.parent).read_result(None)
    differs = difference(result.get("config"), config)
    if differs is not None:
        key, was, now = differs
        line = f"config{key} is {wording.show(was)}, and {wording.show(now)} by params.yaml"
        again = f"run dvc repro, or dvc repro -f train@{path.parent.parent.name} where it finds nothing to do"
        raise UserError(f"{path}: {line}; expected a trial of what stands there: {again}")
    for key, needed in _NUMBERS.items():
        value = result.get(key)
        if not (is_number(value) and 0 <= value < LARGEST) and (needed or value is not None):
            raise UserError(f"{path}: {key} is {wording.show(value)}; expected a number from 0 to {LARGEST:g}")
    for key, kind, words in (("hardware", str, "text"), ("versions", dict, "an object")):
        if not isinstance(result.get(key), kind):
            raise UserError(f"{path}: {key} is {wording.show(result.get(key))}; expected {words}")
    return result


LARGEST = 1e11  # of what a trial says of itself; as unix seconds the year 5138
_NUMBERS = {
    "epochs": True,
    "parameters": True,
    "wall_s": True,
    "finished": True,
    "images_per_s": False,
    "resumed": False,
}


def difference(was: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two nests of dicts and plain values differ: its dotted key and both values.

    A key that is missing counts as one without a value: a field may be added that says nothing where it is unset.
    """
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return None if was == now else (key, was, now)
    found = (difference(was.get(one), now.get(one), f"{key}.{one}") for one in sorted({*was, *now}))
    return next((one for one in found if one is not None), None)


def _examples(path: Path, about: Mapping[str, Any], trials: Sequence[Trial]) -> Examples:
    found = arrays.read(path, {"images": 4, "actual": 1, "index": 1, "seeds": 1, "predicted": 2, "confidence": 2})
    _check_shapes(path, found, about)
    seeds = found["seeds"].tolist()
    lost = [trial.seed for trial in trials if trial.seed not in seeds]
    if lost:
        raise UserError(f"{path} has nothing of seed {lost[0]}; expected all that were evaluated: run dvc repro")
    rows = [seeds.index(trial.seed) for trial in trials]
    actual, predicted = found["actual"].astype(np.int64), found["predicted"][rows].astype(np.int64)
    for trial, said in zip(trials, predicted, strict=True):
        counted = np.zeros_like(trial.confusion)
        np.add.at(counted, (actual, said), 1)
        if (counted > trial.confusion).any():
            raise UserError(f"{path} has more images of a cell than seed {trial.seed} put there; expected no more")
    return Examples(
        images=found["images"],
        actual=actual,
        index=found["index"].astype(np.int64),
        predicted=predicted,
        confidence=found["confidence"][rows].astype(np.float64),
    )


def _check_shapes(path: Path, found: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """UserError for arrays that do not belong together, or hold what the test file and its classes can't."""
    images, tile = found["images"], examples.shape(about["shape"])
    if images.dtype != np.uint8 or images.shape[1:] != tile or tile[0] not in (1, 3):
        told = f"{images.dtype} of shape {images.shape}"
        raise UserError(f"{path}: images is {told}; expected uint8 of shape (N, {', '.join(map(str, tile))})")
    one, each = (len(images),), (len(found["seeds"]), len(images))
    for key, shape in (("actual", one), ("index", one), ("predicted", each), ("confidence", each)):
        if found[key].shape != shape:
            raise UserError(f"{path}: {key} has shape {found[key].shape}; expected {shape}")
    classes = len(about["classes"])
    for key, end in (("actual", classes), ("predicted", classes), ("index", about["test"])):
        if found[key].dtype.kind not in "iu" or not ((found[key] >= 0) & (found[key] < end)).all():
            raise UserError(f"{path}: {key} holds something else; expected whole numbers from 0 to {end - 1}")
    if not (np.diff(found["index"].astype(np.int64)) > 0).all():
        raise UserError(f"{path}: index does not rise; expected each image once, in the order of the test file")
    if not ((found["confidence"] >= 0) & (found["confidence"] <= 1)).all():
        raise UserError(f"{path}: confidence holds something else; expected probabilities, 0 to 1")
