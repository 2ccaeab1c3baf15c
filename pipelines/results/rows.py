"""The rows of report/ledger.json, as ``ledger`` makes them and the page, the terminal and MLflow show them."""

from __future__ import annotations

from typing import Any, TypedDict

from pipelines.config.claims import TOP5


class Summary(TypedDict):
    """The seeds one by one, their mean, and its interval [low, high]: null with fewer than three seeds."""

    per_seed: dict[str, float]
    mean: float | None
    ci95: list[float] | None


class TestSet(Summary):
    """Our figures on the whole test split, of a row whose claim was measured on other images."""

    images: int


class Provenance(TypedDict):
    """Of one body of evidence, as ``evidence.Evidence`` has it; null where nothing was run, or it is not known."""

    epochs: float | None  # of the shortest trial, over the images that the recipe trains on
    config: dict[str, Any] | None  # model, recipe and length as they were trained
    parameters: int | None
    wall_s: float | None  # of training, summed over the seeds
    device: str | None
    precision: str | None  # fp32 or bf16; with their seeds where these were trained in both
    hardware: str | None
    versions: str | None  # of Python and the libraries that trained
    git_commit: str | None  # with -dirty where the tree had uncommitted changes
    dataset_digest: str | None
    images_per_s: float | None  # of one trial
    finished: float | None  # when the last trial was, unix seconds


class Ablated(TypedDict):
    """How much more error than the whole net a net without a part has, in points."""

    of: str  # the benchmark of the whole net
    claimed: float
    margin: float
    mean: float | None  # ours; null until both are measured at the same budget
    ci95: list[float] | None


class LedgerRow(Summary, Provenance):
    """One body of evidence in report/ledger.json; figures in % and in the metric of the claim.

    ``per_seed``, ``mean``, ``ci95`` and so ``verdict`` are of the images that the claim was measured on. A benchmark
    without evidence has one row, in which these are empty.
    """

    benchmark: str
    label: str | None  # qualifies the verdict: a variant, a stand-in, seeds of two precisions
    dataset: str
    metric: str
    claim: dict[str, Any]  # as the benchmark has it (config.claims)
    deviations: list[str]
    paper_epochs: int
    margin: float | None  # the claim's own sampling error, in points
    difference: str | None  # what it means that the claim's images are not the whole test split, in one sentence
    remarks: str | None  # what was tried to reach the claim, and what is left to try
    origin: str | None  # "this checkout" or "committed"; null: untested
    best: bool  # of the benchmark's rows, the one to quote
    changed: str | None  # of committed evidence: how the recipe or the protocol differs from the row's now
    agrees: bool | None  # of this checkout's, with the committed at the same budget; null: nothing to compare
    agreement: str | None  # the same in words, with the committed figure
    budget: str | None  # null: neither in the suite that ran nor committed
    n: int  # seeds
    test_set: TestSet | None  # null: the claim was measured on the whole test split, or nothing was run
    ablation: Ablated | None  # null: the claim is of this net alone; else the verdict is on this difference
    verdict: str
    at_chance: list[int]  # the seeds that are stuck at chance: no better than guessing
    views: str | None  # the protocol of our evaluation
    train_error: dict[str, float | None]  # a seed, in % of the last epoch
    seconds: dict[str, float | None]  # a seed, of training


def as_error(metric: str, value: float) -> float:
    """A figure in % read as an error."""
    return 100 - value if metric == "accuracy" else value


def claimed_error(metric: str, value: float | None) -> float | None:
    """A claim in % as an error that a training error compares with; None where there is none, and for a top-5 error."""
    return None if value is None or metric == TOP5 else as_error(metric, value)
