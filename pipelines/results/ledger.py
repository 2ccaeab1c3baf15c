"""The ledger: one row a benchmark, with the source's figure, ours, and the verdict."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params
from pipelines.results import reader
from pipelines.results.reader import EVALUATIONS, RUNS, Outcome
from pipelines.results.verdicts import claim_margin, judge, shown
from pipelines.results.words import commit, each, versions
from pipelines.training.store import DamagedError

DIGITS = 4  # of a figure in %; the verdict is reached on unrounded ones


class ClaimRow(TypedDict):
    """The source's side of a ledger row."""

    value: float | None  # null: no claim
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
    label: str | None  # qualifies the verdict: a variant, a stand-in, an uncertain definition
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
    at_chance: list[int]  # the seeds that did no better on the test set than guessing
    wall_s: float | None  # training time, summed over the seeds
    hardware: str | None
    versions: str | None  # of Python and the libraries that trained
    git_commit: str | None  # with -dirty where the tree had uncommitted changes
    epochs: float | None  # of the shortest trial, over the images that the recipe trains on
    paper_epochs: int
    parameters: int | None
    config: dict[str, Any] | None  # model, recipe and length as they were trained
    margin: float | None  # the claim's own sampling error, in points
    views: str | None  # the protocol of our evaluation
    test_set: TestSet | None  # null: the claim was measured on the whole test split, or nothing was run
    difference: str | None  # what it means that it was not, in one sentence
    remarks: str | None  # what was tried to reach the claim, and what is left to try


def gather(params: Params, *, evaluations: Path = EVALUATIONS, runs: Path = RUNS) -> dict[str, Outcome]:
    """The outcomes of the active suite's benchmarks, in the order of params.yaml, without those never run.

    Raises DamagedError for what ``reader.load`` refuses, and for images of two shapes from one data set.
    """
    outcomes: dict[str, Outcome] = {}
    for name, benchmark in params.benchmarks.items():
        entry = params.suite.benchmarks.get(name)
        if entry is not None:  # what another suite left is not read
            outcome = reader.load(benchmark, budget=entry.budget, evaluations=evaluations, runs=runs)
            outcomes |= {name: outcome} if outcome else {}
    for first, (name, outcome) in itertools.product(outcomes.values(), outcomes.items()):
        if first.dataset == outcome.dataset and first.shape != outcome.shape:
            line = f"images of {outcome.shape} from {outcome.dataset}, another benchmark of {first.shape}"
            raise DamagedError(f"{evaluations / name} has {line}; expected the same: run dvc repro")
    return outcomes


def make_ledger(params: Params, outcomes: Mapping[str, Outcome]) -> list[LedgerRow]:
    """One row a benchmark, in the order of params.yaml; those that were not run come last."""
    rows = []
    for name, benchmark in params.benchmarks.items():
        entry = params.suite.benchmarks.get(name)
        row = make_row(benchmark, budget=entry.budget if entry else None, outcome=outcomes.get(name))
        subset = params.datasets[benchmark.dataset].subset.words
        rows.append({**row, "dataset": f"{row['dataset']}: {subset}"} if subset else row)
    return sorted(rows, key=lambda row: row["n"] == 0)


def make_row(benchmark: Benchmark, *, budget: str | None, outcome: Outcome | None) -> LedgerRow:
    """The ledger's row of one benchmark; without an outcome it is untested."""
    claim = benchmark.claim
    trials = outcome.trials if outcome else ()
    figures = {str(t.seed): t.compared(claim.metric) for t in trials}
    epochs = min((float(t.result["epochs"]) for t in trials), default=None)
    paper_epochs = benchmark.budgets["paper"].epochs
    verdict = judge(
        metric=claim.metric,
        claim=claim.value,
        test_images=claim.test_images,
        values=list(figures.values()),
        short=epochs is not None and epochs < paper_epochs,
    )
    return {
        "benchmark": benchmark.name,
        "label": benchmark.label,
        "dataset": benchmark.dataset,
        "metric": claim.metric,
        "claim": {
            "value": claim.value,
            "unit": "%",
            "source": claim.source,
            "protocol": claim.protocol,
            "certainty": claim.certainty,
        },
        "deviations": list(benchmark.deviations),
        "budget": budget,
        "per_seed": _per_seed(figures),
        "n": len(figures),
        "mean": _mean(figures) if figures else None,
        "ci95": _ci95(figures),
        "views": outcome.protocol if outcome else None,
        "verdict": verdict.value,
        "at_chance": [trial.seed for trial in trials if trial.at_chance],
        "wall_s": round(sum(float(t.result["wall_s"]) for t in trials), 2) if trials else None,
        "hardware": each(t.result["hardware"] for t in trials) if trials else None,
        "versions": versions(t.result for t in trials) if trials else None,
        "git_commit": each(commit(t.result) for t in trials) if trials else None,
        "epochs": epochs,
        "paper_epochs": paper_epochs,
        "parameters": int(trials[0].result["parameters"]) if trials else None,
        "config": trials[0].result["config"] if trials else None,
        "margin": None if claim.value is None else round(claim_margin(claim.value, claim.test_images), DIGITS),
        "test_set": _test_set(benchmark, outcome) if outcome else None,
        "difference": claim.difference,
        "remarks": benchmark.remarks,
    }


def _test_set(benchmark: Benchmark, outcome: Outcome) -> TestSet | None:
    """Our figures on the whole test split, where the claim is not of it."""
    if benchmark.evaluation.claimed_on is None:
        return None
    figures = {str(t.seed): t.tested(benchmark.claim.metric) for t in outcome.trials}
    return {
        "per_seed": _per_seed(figures),
        "mean": _mean(figures),
        "ci95": _ci95(figures),
        "images": outcome.test,
    }


def _per_seed(figures: Mapping[str, float]) -> dict[str, float]:
    return {seed: round(value, DIGITS) for seed, value in figures.items()}


def _mean(figures: Mapping[str, float]) -> float:
    return round(statistics.fmean(figures.values()), DIGITS)


def _ci95(figures: Mapping[str, float]) -> list[float] | None:
    spread = shown(list(figures.values()))
    return [round(end, DIGITS) for end in spread] if spread else None


def as_error(metric: str, value: float) -> float:
    """A figure in % read as an error."""
    return 100 - value if metric == "accuracy" else value


def claimed_error(row: Mapping[str, Any]) -> float | None:
    """The claim of a row in % as an error that a training error compares with; None for none, and for a top-5 error."""
    value = row["claim"]["value"]
    return None if value is None or row["metric"] == "top-5 error" else as_error(row["metric"], value)
