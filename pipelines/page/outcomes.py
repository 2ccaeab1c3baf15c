"""What train and evaluate left of one benchmark, read and checked: the ledger and the page are made of nothing else.

Every file that should be there and is not, is damaged, or contradicts its neighbours becomes one UserError line naming
it; a report made of half a result would look like a whole one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from pipelines import schema, store
from pipelines.benchmarks import Benchmark, ClaimedOn
from pipelines.errors import UserError
from pipelines.verdicts import claim_margin

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
    ci95: list[float] | None  # [low, high]; null with fewer than two seeds
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
    """Test images behind the cells of the lowest seed's confusion matrix."""

    images: Array  # (M, C, H, W) uint8
    actual: Array  # (M,) int64
    predicted: Array  # (M,) int64
    confidence: Array  # (M,) float64, probability of the predicted class
    index: Array  # (M,) int64, position in the test file


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One benchmark that was run."""

    classes: list[str]
    dataset: str
    protocol: str
    test: int
    trials: tuple[Trial, ...]  # by rising seed
    examples: Examples
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
    about = _classes(folder / "classes.json")
    if about["protocol"] != benchmark.evaluation.protocol:
        line = f"protocol is {about['protocol']}, and {benchmark.evaluation.protocol} in params.yaml"
        raise UserError(f"{folder / 'classes.json'}: {line}; expected the same: run dvc repro")
    classes = [str(c) for c in about["classes"]]
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
    layer = _arrays(folder / "first_layer.npz", ()) if (folder / "first_layer.npz").exists() else {}
    return Outcome(
        classes=classes,
        dataset=str(about["dataset"]),
        protocol=str(about["protocol"]),
        test=int(about["test"]),
        trials=trials,
        examples=_examples(folder / "examples.npz", len(classes)),
        filters=_four_axes(folder / "first_layer.npz", layer, "filters"),
        templates=_four_axes(folder / "first_layer.npz", layer, "templates"),
    )


def _classes(path: Path) -> dict[str, Any]:
    about = store.read_json(path)
    names = about.get("classes")
    if not isinstance(names, list) or len(names) < 2:
        raise UserError(f"{path}: classes is {schema.show(names)}; expected a list of at least two names")
    for key, kind in (("dataset", str), ("protocol", str), ("test", int)):
        if not isinstance(about.get(key), kind):
            raise UserError(f"{path}: {key} is {schema.show(about.get(key))}; expected {_KINDS[kind]}")
    return about


_KINDS: Mapping[type, str] = {str: "text", int: "a whole number", dict: "an object"}


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
    curve = store.read_lines(trained / "curve.jsonl")
    if not curve:
        raise UserError(f"{trained / 'curve.jsonl'} is missing or empty; expected one line an epoch")
    result = _result(trained / "result.json", config)
    if metrics.get("key") != result.get("key"):
        line = f"the key is {schema.show(metrics.get('key'))}, that of the run {schema.show(result.get('key'))}"
        raise UserError(f"{evaluated / 'metrics.json'}: {line}; expected the same trial: run dvc repro")
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
        raise UserError(f"{path}: claimed_on is {schema.show(images)}; expected {expected}: run dvc repro")
    return None if on is None else _percent(path, found, "error", within="claimed_on.")


def _percent(path: Path, found: Mapping[str, Any], key: str, within: str = "") -> float:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise UserError(f"{path}: {within}{key} is {schema.show(value)}; expected per cent, 0 to 100")
    return float(value)


def _confusion(path: Path, *, size: int, images: int) -> Array:
    try:
        matrix = np.array([row.split(",") for row in path.read_text().split()], dtype=np.int64)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a file that an earlier stage writes") from None
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged; expected {size} lines of {size} whole numbers") from None
    if matrix.shape != (size, size) or matrix.min() < 0 or matrix.sum() != images:
        found = f"{'x'.join(map(str, matrix.shape))} counts that sum to {int(matrix.sum())}"
        raise UserError(f"{path} holds {found}; expected {size}x{size} that sum to the {images} test images")
    return matrix


def _result(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's own account; a claim's deviations as they are now must not stand beside another recipe's figures."""
    result = store.TrialFiles(path.parent).read_result(None)
    differs = difference(result.get("config"), config)
    if differs is not None:
        key, was, now = differs
        line = f"config{key} is {schema.show(was)}, and {schema.show(now)} by params.yaml"
        again = f"run dvc repro, or dvc repro -f train@{path.parent.parent.name} where it finds nothing to do"
        raise UserError(f"{path}: {line}; expected a trial of what stands there: {again}")
    for key in ("epochs", "parameters", "wall_s", "finished"):
        value = result.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{path}: {key} is {schema.show(value)}; expected a number")
    for key, kind in (("hardware", str), ("versions", dict)):
        if not isinstance(result.get(key), kind):
            raise UserError(f"{path}: {key} is {schema.show(result.get(key))}; expected {_KINDS[kind]}")
    return result


def difference(was: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two nests of dicts and plain values differ: its dotted key and both values.

    A key that is missing counts as one without a value: a field may be added that says nothing where it is unset.
    """
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return None if was == now else (key, was, now)
    found = (difference(was.get(one), now.get(one), f"{key}.{one}") for one in sorted({*was, *now}))
    return next((one for one in found if one is not None), None)


def _arrays(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a file that an earlier stage writes") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the stage again") from None
    for key in keys:
        if key not in found:
            raise UserError(f"{path} lacks {key}; expected the arrays {', '.join(keys)}")
    return found


def _examples(path: Path, classes: int) -> Examples:
    found = _arrays(path, ("images", "actual", "predicted", "confidence", "index"))
    images = found["images"]
    if images.ndim != 4 or images.dtype != np.uint8 or (len(images) and images.shape[1] not in (1, 3)):
        raise UserError(f"{path}: images is {images.dtype} of shape {images.shape}; expected uint8 (N, 1 or 3, H, W)")
    for key in ("actual", "predicted", "confidence", "index"):
        if found[key].shape != (len(images),):
            raise UserError(f"{path}: {key} has shape {found[key].shape}; expected ({len(images)},)")
    labels = np.concatenate([found["actual"], found["predicted"]]).astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(f"{path}: a class is {int(labels.max())}; expected 0 to {classes - 1}")
    return Examples(
        images=images,
        actual=found["actual"].astype(np.int64),
        predicted=found["predicted"].astype(np.int64),
        confidence=found["confidence"].astype(np.float64),
        index=found["index"].astype(np.int64),
    )


def _four_axes(path: Path, found: Mapping[str, Array], key: str) -> Array | None:
    array = found.get(key)
    if array is None:
        return None
    if array.ndim != 4 or 0 in array.shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UserError(f"{path}: {key} is {array.dtype} of shape {array.shape}; expected finite floats on four axes")
    return array.astype(np.float32)
