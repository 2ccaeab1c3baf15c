"""The rows of report/ledger.json: ``ledger`` makes them, the page, the terminal and MLflow show them.

A row may come from a file of an older version: a field that is newer than others is empty then.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.config.claims import TOP5, Claim
from pipelines.config.values import Number, Text
from pipelines.results.verdicts import Interval, clipped

DIGITS = 6  # decimals of a figure in %: of a million images, each counts


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds and its interval [low, high]; None with fewer than three seeds, or none at all."""

    mean: Number | None = None
    ci95: tuple[Number, Number] | None = None


@dataclass(frozen=True, kw_only=True)
class Summary(Mean):
    """Each seed's figure, their mean and its interval."""

    per_seed: dict[str, Number]

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> Summary:
        """The summary of each seed's figure in %."""
        return Summary(
            per_seed={seed: round(value, DIGITS) for seed, value in figures.items()},
            mean=round(statistics.fmean(figures.values()), DIGITS) if figures else None,
            ci95=rounded(clipped(list(figures.values()))),
        )


@dataclass(frozen=True, kw_only=True)
class OnTestSet(Summary):
    """Figures on the whole test split, where the claim was measured on other images."""

    images: int


@dataclass(frozen=True, kw_only=True)
class AblationRow(Mean):
    """How many points more error a net has without a part than the whole net; no mean until both are measured."""

    of: str  # the benchmark of the whole net
    claimed: Number
    margin: Number


@dataclass(frozen=True, kw_only=True)
class LedgerRow(Summary):
    """One body of evidence in report/ledger.json; figures in % and in the metric of the claim.

    ``per_seed``, ``mean``, ``ci95`` and so ``verdict`` are of the images that the claim was measured on. A benchmark
    without evidence has one row, in which these are empty. Fields that ``evidence.Evidence`` has too hold its values.
    """

    benchmark: Text
    label: str | None = None  # qualifies the verdict: a variant, a stand-in, seeds of two precisions
    dataset: Text
    metric: Text
    claim: Claim
    deviations: tuple[str, ...] = ()
    paper_epochs: int
    margin: Number | None = None  # the claim's own sampling error, in points
    difference: str | None = None  # the meaning of a claim on other images than the test split, in a sentence
    remarks: str | None = None  # attempts to reach the claim, and ideas left
    origin: str | None = None  # "this checkout" or "committed"; None: untested
    best: bool = False  # of the benchmark's rows, the one to quote
    changed: str | None = None  # how committed evidence differs from the current recipe and protocol
    agrees: bool | None = None  # this checkout's with committed evidence at the same budget; None: nothing to compare
    agreement: str | None = None  # the same in words, with the committed figure
    budget: str | None = None  # None: neither in the suite that ran nor committed
    n: int  # seeds
    test_set: OnTestSet | None = None  # None: the claim was measured on the whole test split, or nothing was run
    ablation: AblationRow | None = None  # None: the claim is of this net alone; else the verdict is on this difference
    verdict: Text
    at_chance: tuple[int, ...] = ()  # seeds no better than guessing
    views: str | None = None  # the protocol of our evaluation
    train_error: dict[str, Number | None] = field(default_factory=dict)  # a seed, in % of the last epoch
    seconds: dict[str, Number | None] = field(default_factory=dict)  # a seed, of training
    epochs: Number | None = None  # of the shortest trial, over the images that the recipe trains on
    config: dict[str, Any] | None = None  # model, recipe and length as they were trained
    parameters: int | None = None
    wall_s: Number | None = None  # of training, summed over the seeds
    device: str | None = None
    precision: str | None = None  # fp32 or bf16; with the seeds where there are both
    hardware: str | None = None
    versions: str | None = None  # of Python and the libraries that trained
    git_commit: str | None = None  # with -dirty where the tree had uncommitted changes
    dataset_digest: str | None = None
    images_per_s: Number | None = None  # of one trial
    finished: Number | None = None  # end of the last trial, unix seconds


def rounded(spread: Interval | None) -> Interval | None:
    """An interval to ``DIGITS`` decimals."""
    return spread and Interval(*(round(end, DIGITS) for end in spread))


def as_error(metric: str, value: float) -> float:
    """A figure in % as an error."""
    return 100 - value if metric == "accuracy" else value


def claimed_error(metric: str, value: float | None) -> float | None:
    """A claim in % as an error to compare training errors with; None without one, and for a top-5 error."""
    return None if value is None or metric == TOP5 else as_error(metric, value)
