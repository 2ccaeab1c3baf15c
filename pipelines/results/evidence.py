"""Evidence: the figures of a benchmark's trials at one budget, of this checkout or committed from wherever they ran.

``results/evidence/<benchmark>.json`` has one object a budget: the configuration that was trained, the protocol, the
provenance, and for each seed its errors, learning curve and confusion matrix. Claims, deviations and remarks stand in
models/*.yaml alone. ``pipelines.results.publish`` writes these files.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.benchmarks import Benchmark
from pipelines.config.claims import ClaimedOn
from pipelines.config.wording import show
from pipelines.results import reader
from pipelines.results.reader import (
    AMOUNT,
    OBJECT,
    PERCENT,
    TEXT,
    WHOLE,
    Array,
    ClassFigures,
    Json,
    Kind,
    Outcome,
    Trial,
    check,
)
from pipelines.results.words import commit, each, versions
from pipelines.training import store
from pipelines.training.store import DamagedError

EVIDENCE = Path("results/evidence")
HERE, COMMITTED = "this checkout", "committed"  # origins
MOST_POINTS = 60  # of a committed learning curve
WIDEST = 30  # classes up to which confusion matrices are committed
CURVES = ("epoch", "loss", "train_error")

FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
BODY = {
    **dict.fromkeys(("protocol", "device", "hardware", "versions", "git_commit"), TEXT),
    **dict.fromkeys(("epochs", "wall_s"), AMOUNT),
    **{"parameters": WHOLE, "test_images": WHOLE, "claimed_on": OBJECT.optional},
    **dict.fromkeys(("images_per_s", "finished"), AMOUNT.optional),
    "dataset_digest": TEXT.optional,
    "classes": Kind(reader.items(lambda name: isinstance(name, str), 2), "a list of at least two names").optional,
    **dict.fromkeys(("config", "seeds"), OBJECT),
}
SEED_BODY = {
    **{"error": PERCENT, "claimed_error": PERCENT.optional, "at_chance": FLAG, "wall_s": AMOUNT.optional},
    "curve": OBJECT.optional,
    "confusion": Kind(reader.items(reader.items(WHOLE.fits)), "rows of whole numbers").optional,
}


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One evaluated trial; figures in %."""

    error: float  # on the whole test split
    claimed_error: float | None  # on the images of the claim, where those are others
    at_chance: bool
    wall_s: float | None
    curve: Mapping[str, list[float | None]] | None  # CURVES, one value an epoch, or fewer
    confusion: list[list[int]] | None  # rows actual, columns predicted

    def figure(self, metric: str, *, tested: bool = False) -> float:
        """The figure that is compared with the claim, or with ``tested`` that of the whole test split."""
        error = self.error if tested or self.claimed_error is None else self.claimed_error
        return error if metric == "error" else 100 - error

    @property
    def train_error(self) -> float | None:
        """Of the last epoch, where it is known."""
        return self.curve["train_error"][-1] if self.curve else None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the trials of one benchmark showed at one budget."""

    origin: str
    budget: str
    config: Json  # as it was trained
    protocol: str
    claimed_on: Json | None  # the images of the claim, where they are not the whole test split
    classes: list[str] | None
    test_images: int
    epochs: float  # of the shortest trial
    parameters: int
    wall_s: float  # over the seeds
    device: str
    hardware: str
    versions: str
    git_commit: str
    dataset_digest: str | None
    images_per_s: float | None  # of a trial
    finished: float | None  # unix seconds
    seeds: Mapping[int, Seed]

    def changed(self, benchmark: Benchmark) -> str | None:
        """Where the benchmark is no longer what was trained and tested, in words; None where it still is."""
        if self.budget not in benchmark.budgets:
            return f"its budget {self.budget} is gone"
        on = benchmark.evaluation.claimed_on
        now = {
            "config": benchmark.resolved(self.budget),
            "protocol": benchmark.evaluation.protocol,
            "claimed_on": dataclasses.asdict(on) if on else None,
        }
        was = {key: getattr(self, key) for key in now}
        differs = reader.difference(was, json.loads(json.dumps(now)))
        return differs and f"{differs[0][1:]} was {show(differs[1])}, now {show(differs[2])}"


def of_outcome(outcome: Outcome, budget: str) -> Evidence:
    """The evidence of trials that this checkout has evaluated."""
    results = [trial.result for trial in outcome.trials]
    speeds = [float(result["images_per_s"]) for result in results if result.get("images_per_s") is not None]
    on = outcome.trials[0].metrics.get("claimed_on")
    return Evidence(
        origin=HERE,
        budget=budget,
        config=results[0]["config"],
        protocol=outcome.protocol,
        claimed_on={field.name: on.get(field.name) for field in dataclasses.fields(ClaimedOn)} if on else None,
        classes=outcome.classes,
        test_images=outcome.test,
        epochs=min(float(result["epochs"]) for result in results),
        parameters=int(results[0]["parameters"]),
        wall_s=round(sum(float(result["wall_s"]) for result in results), 2),
        device=each(result.get("device", "unknown") for result in results),
        hardware=each(result["hardware"] for result in results),
        versions=versions(results),
        git_commit=each(map(commit, results)),
        dataset_digest=each(result.get("dataset_digest", "unknown") for result in results),
        images_per_s=round(statistics.fmean(speeds), 1) if speeds else None,
        finished=max(result["finished"] for result in results),
        seeds={trial.seed: _seed(trial) for trial in outcome.trials},
    )


def _seed(trial: Trial) -> Seed:
    return Seed(
        error=trial.error,
        claimed_error=trial.claimed_on,
        at_chance=trial.at_chance,
        wall_s=round(float(trial.result["wall_s"]), 2),
        curve={key: [line.get(key) for line in trial.curve] for key in CURVES},
        confusion=trial.confusion.tolist(),
    )


def read(names: Iterable[str], folder: Path = EVIDENCE) -> dict[str, list[Evidence]]:
    """The committed evidence of these benchmarks, one a budget, where there is any; DamagedError names a bad file."""
    there = {name: path for name in names if (path := folder / f"{name}.json").exists()}
    return {name: [_body(path, *item) for item in store.read_json(path).items()] for name, path in there.items()}


def _body(path: Path, budget: str, found: Any) -> Evidence:
    check(path, found, BODY, f"{budget}.")
    seeds = {}
    for seed, one in found["seeds"].items():
        where = f"{budget}.seeds.{seed}."
        check(path, one, SEED_BODY, where)
        if not seed.isdecimal():
            raise DamagedError(f"{path}: {where[:-1]} is no seed; expected a whole number from 0")
        _check_seed(path, one, where, found)
        seeds[int(seed)] = Seed(**{key: one.get(key) for key in SEED_BODY})
    if not seeds:
        raise DamagedError(f"{path}: {budget}.seeds is empty; expected at least one seed")
    fields = {key: found.get(key) for key in BODY if key != "seeds"}
    return Evidence(origin=COMMITTED, budget=budget, seeds=seeds, **fields)


def _check_seed(path: Path, one: Json, where: str, found: Json) -> None:
    """DamagedError for a matrix or a curve that is none, or that contradicts the error."""
    matrix, curve, classes = one.get("confusion"), one.get("curve"), found.get("classes") or []
    if matrix is not None:
        size, images = len(classes), sum(map(sum, matrix))
        right = sum(row[place] for place, row in enumerate(matrix) if place < len(row))
        square = {len(row) for row in matrix} == {size} and len(matrix) == size and images == found["test_images"]
        if not square or abs(100 * (1 - right / images) - one["error"]) > 0.01:
            line = f"{where}confusion has {images} images, {right} of them right"
            raise DamagedError(f"{path}: {line}; expected {size}x{size} counts, and an error of {one['error']:.2f} %")
    if curve is not None:
        lists = [curve.get(key) for key in CURVES]
        sound = all(reader.items(reader.MEASURED.fits, 1)(values) for values in lists)
        if not sound or len({len(values) for values in lists}) > 1:
            raise DamagedError(f"{path}: {where}curve is damaged; expected {', '.join(CURVES)} of one length")


def text(bodies: Mapping[str, Evidence]) -> str:
    """The file of one benchmark, for the evidence of each budget: an object a key a line, a list on one line."""
    return _laid_out({budget: _plain(body) for budget, body in sorted(bodies.items())}) + "\n"


def _plain(body: Evidence) -> Json:
    found = {key: getattr(body, key) for key in BODY if key != "seeds"}
    return {**found, "seeds": {str(seed): _plain_seed(one) for seed, one in body.seeds.items()}}


def _plain_seed(seed: Seed) -> Json:
    """A seed with its curve thinned out; the matrix of many classes would take more than all else."""
    found = {key: getattr(seed, key) for key in SEED_BODY}
    found |= {key: round(found[key], 6) for key in ("error", "claimed_error") if found[key] is not None}
    if seed.curve:
        length = len(seed.curve["epoch"])
        kept = sorted({round(at) for at in np.linspace(0, length - 1, min(length, MOST_POINTS))})
        found["curve"] = {key: [_digits(values[at]) for at in kept] for key, values in seed.curve.items()}
    if seed.confusion and len(seed.confusion) > WIDEST:
        found["confusion"] = None
    return found


def _digits(value: float | None) -> float | None:
    return value if value is None else float(f"{value:.4g}")


def _laid_out(value: Any, indent: str = " ") -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    lines = (f"{indent}{json.dumps(key)}: {_laid_out(one, f'{indent} ')}" for key, one in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent[1:]}}}"


def outcome_of(body: Evidence, dataset: str) -> Outcome | None:
    """What the explorer shows of committed evidence, without test images; None where a matrix is missing."""
    if body.classes is None or any(seed.confusion is None or seed.curve is None for seed in body.seeds.values()):
        return None
    about = reader.About(classes=body.classes, dataset=dataset, shape=(), protocol=body.protocol, test=body.test_images)
    trials = tuple(_trial(about, seed, one) for seed, one in sorted(body.seeds.items()))
    return Outcome(**vars(about), trials=trials, examples=None)


def _trial(about: reader.About, number: int, seed: Seed) -> Trial:
    assert seed.curve is not None
    confusion = np.array(seed.confusion, dtype=np.int64)
    claimed = None if seed.claimed_error is None else {"error": seed.claimed_error}
    return Trial(
        folder=EVIDENCE,
        about=about,
        seed=number,
        error=seed.error,
        accuracy=100 - seed.error,
        confusion=confusion,
        per_class=_per_class(confusion),
        metrics={"claimed_on": claimed},
        curve=[dict(zip(seed.curve, values, strict=True)) for values in zip(*seed.curve.values(), strict=True)],
        result={},
    )


def _per_class(confusion: Array) -> tuple[ClassFigures, ...]:
    """As ``evaluate`` defines them: None where there is nothing to divide by."""
    right, actual, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    columns = (_share(right, predicted), _share(right, actual), _share(2 * right, actual + predicted))
    return tuple(ClassFigures(*four) for four in zip(*columns, actual.tolist(), strict=True))


def _share(part: Array, whole: Array) -> list[float | None]:
    return [round(100 * a / b, 2) if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]
