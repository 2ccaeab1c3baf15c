"""Evidence: the figures of a benchmark's trials at one budget, from this checkout or committed.

``results/evidence/<benchmark>.json`` has one object a budget: the trained configuration, the protocol, the provenance,
and for each seed its errors, learning curve and confusion matrix. Claims, deviations and remarks are only in
models/*.yaml. ``pipelines.publish`` writes these files.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pipelines.command.files import read_json
from pipelines.config.claims import TOP5, ClaimedOn
from pipelines.config.schema import parse
from pipelines.config.values import AT_LEAST_ONE, Count, Percent, Rule, plain
from pipelines.config.wording import require, show
from pipelines.results import reader
from pipelines.results.reader import Amount, Outcome, Trial
from pipelines.results.rows import DIGITS
from pipelines.results.words import each

if TYPE_CHECKING:
    from pipelines.config.benchmarks import Benchmark

EVIDENCE = Path("results/evidence")
HERE, COMMITTED = "this checkout", "committed"  # origins
MOST_POINTS = 100  # of a learning curve
WIDEST = 30  # the most classes of a matrix on the page and in a file


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A learning curve, at most one value an epoch; null for a loss that is no number."""

    epoch: tuple[float, ...]
    loss: tuple[float | None, ...]
    train_error: tuple[float | None, ...]  # %

    def __post_init__(self) -> None:
        lengths = {len(values) for values in vars(self).values()}
        require(len(lengths) == 1 and 0 not in lengths, "epoch, loss and train_error differ in length, or are empty")


CURVE_COLUMNS = tuple(Curve.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One evaluated trial."""

    error: Percent  # of the whole test split
    claimed_error: Percent | None  # of the images of the claim, where these are not the test split
    at_chance: bool
    wall_s: float | None
    curve: Curve | None
    confusion: tuple[tuple[int, ...], ...] | None  # rows actual, columns predicted
    top5_error: Percent | None = None  # of the whole test split
    precision: str | None = None  # where the evidence's config has another

    def __post_init__(self) -> None:
        if self.confusion is not None:
            square = {len(row) for row in self.confusion} == {len(self.confusion)}
            require(square and min(map(min, self.confusion)) >= 0, "confusion is no square of counts")
            right, images = sum(row[i] for i, row in enumerate(self.confusion)), sum(map(sum, self.confusion))
            agrees = images > 0 and abs(100 * (1 - right / images) - self.error) < 0.02
            require(agrees, f"confusion has {right} of {images} right; expected an error of {self.error:.2f} %")

    def figure(self, metric: str, *, tested: bool = False) -> float:
        """The figure to compare with the claim; with ``tested`` that of the whole test split."""
        if metric == TOP5:
            assert self.top5_error is not None
            return self.top5_error
        error = self.error if tested or self.claimed_error is None else self.claimed_error
        return error if metric == "error" else 100 - error


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The outcome of one benchmark's trials at one budget."""

    origin: str
    budget: str
    protocol: str
    claimed_on: ClaimedOn | None  # the images of the claim, where they are not the whole test split
    classes: tuple[str, ...] | None
    test_images: Count
    epochs: Amount  # of the shortest trial
    parameters: Count
    wall_s: Amount  # over the seeds
    images_per_s: Amount | None  # of a trial
    device: str
    hardware: str
    versions: str
    git_commit: str
    dataset_digest: str | None
    finished: Amount | None  # unix seconds
    config: dict[str, Any]  # as the first seed was trained
    seeds: Annotated[dict[Annotated[str, Rule("a whole number", str.isdecimal)], Seed], AT_LEAST_ONE]

    def __post_init__(self) -> None:
        sizes = {len(seed.confusion) for seed in self.seeds.values() if seed.confusion}
        require(sizes <= {len(self.classes or ())}, "a confusion matrix has not the size of classes")
        trained_in = reader.recipe_of(self.config).get("precision")
        require(isinstance(trained_in, str), f"config.recipe.precision is {show(trained_in)}; expected fp32 or bf16")

    @property
    def by_precision(self) -> dict[str, list[str]]:
        """The seeds by the precision of their training: machines of a cluster may have begun some in another."""
        found: dict[str, list[str]] = {}
        for name, seed in self.seeds.items():
            found.setdefault(seed.precision or self.config["recipe"]["precision"], []).append(name)
        return found

    @property
    def precision(self) -> str:
        """The precision in words, with the seeds where there are two."""
        found = self.by_precision
        named = (f"{one} ({'seeds' if len(of) > 1 else 'seed'} {', '.join(of)})" for one, of in found.items())
        return ", ".join(found if len(found) == 1 else named)

    def changed(self, benchmark: Benchmark) -> str | None:
        """How the benchmark differs from the trained and tested one, in words; None where it does not."""
        if self.budget not in benchmark.budgets:
            return f"its budget {self.budget} is gone"
        config, on = reader.config_as(self.config, benchmark, self.budget), benchmark.evaluation
        was = {"config": self.config, "protocol": self.protocol, "claimed_on": self.claimed_on}
        now = {"config": config, "protocol": on.protocol, "claimed_on": on.claimed_on}
        differs = reader.difference(plain(was), plain(now))
        return differs and f"{differs[0][1:]} was {show(differs[1])}, now {show(differs[2])}"


def of_outcome(outcome: Outcome, budget: str, on: ClaimedOn | None) -> Evidence:
    """The evidence of this checkout's evaluated trials; ``on`` are the images of the claim."""
    results = [trial.result for trial in outcome.trials if trial.result]
    speeds = [result.images_per_s for result in results if result.images_per_s is not None]
    return Evidence(
        origin=HERE,
        budget=budget,
        protocol=outcome.protocol,
        claimed_on=on,
        classes=outcome.classes,
        test_images=outcome.test,
        epochs=min(result.epochs for result in results),
        parameters=results[0].parameters,
        wall_s=round(sum(result.wall_s for result in results), 2),
        images_per_s=round(statistics.fmean(speeds), 1) if speeds else None,
        device=each(result.device for result in results),
        hardware=each(result.hardware for result in results),
        versions=each(f"{name} {version}" for r in results for name, version in r.versions.items() if version),
        git_commit=each(result.commit for result in results),
        dataset_digest=each(result.dataset_digest or "unknown" for result in results),
        finished=max(result.finished for result in results),
        config=results[0].config,
        seeds=seeds_of(outcome),
    )


def seeds_of(outcome: Outcome) -> dict[str, Seed]:
    """The trials of an outcome by seed."""
    usual = _precision(outcome.trials[0])
    return {str(trial.seed): _seed(trial, usual) for trial in outcome.trials}


def _precision(trial: Trial) -> str | None:
    """The precision of a trial; None where its result is gone."""
    return reader.recipe_of(trial.result.config).get("precision") if trial.result else None


def _seed(trial: Trial, usual: str | None) -> Seed:
    """A trial with a thinned curve, and without its matrix where that has many classes."""
    at = sorted({round(at) for at in np.linspace(0, len(trial.curve) - 1, min(len(trial.curve), MOST_POINTS))})
    columns = {key: tuple(_short(getattr(trial.curve[i], key)) for i in at) for key in CURVE_COLUMNS}
    metrics, precision = trial.metrics, _precision(trial)
    on, top5 = metrics.claimed_on, metrics.top5_error
    return Seed(
        error=round(metrics.error, DIGITS),
        claimed_error=None if on is None else round(on.error, DIGITS),
        at_chance=trial.at_chance,
        wall_s=round(trial.result.wall_s, 2) if trial.result else None,
        curve=Curve(**columns) if at else None,  # type: ignore[arg-type]
        confusion=tuple(map(tuple, trial.confusion.tolist())) if len(trial.confusion) <= WIDEST else None,
        top5_error=None if top5 is None else round(top5, DIGITS),
        precision=precision if precision != usual else None,
    )


def _short(value: float | None) -> float | None:
    """Four digits, enough for a curve; None for a loss that is no number, since JSON has no NaN."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def read(names: Iterable[str], folder: Path = EVIDENCE) -> dict[str, list[Evidence]]:
    """The committed evidence of these benchmarks, one a budget; UserError names a bad file."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {
        name: [
            parse(Evidence, body, f"{path}: {budget}", origin=COMMITTED, budget=budget)
            for budget, body in read_json(path).items()
        ]
        for name, path in paths.items()
        if path.exists()
    }


def text(bodies: Mapping[str, Evidence]) -> str:
    """The evidence file of one benchmark: one key a line, each list on one line."""
    found = {budget: plain(body) for budget, body in sorted(bodies.items())}
    for body in found.values():
        del body["origin"], body["budget"]
        for seed in body["seeds"].values():
            for key in ("top5_error", "precision"):
                if seed[key] is None:
                    del seed[key]
    return _laid_out(found) + "\n"


def _laid_out(value: Any, indent: str = " ") -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    lines = (f"{indent}{json.dumps(key)}: {_laid_out(one, f'{indent} ')}" for key, one in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent[1:]}}}"
