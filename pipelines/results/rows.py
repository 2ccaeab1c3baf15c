"""The rows of report/ledger.json: ``ledger`` makes them, the page, the terminal and MLflow show them."""

from __future__ import annotations

from typing import Any, TypedDict

from pipelines.config.claims import TOP5


class Summary(TypedDict):
    """Each seed's figure, their mean and its interval [low, high]; null with fewer than three seeds."""

    per_seed: dict[str, float]
    mean: float | None
    ci95: list[float] | None


class TestSet(Summary):
    """Figures on the whole test split, where the claim was measured on other images."""

    images: int


class Provenance(TypedDict):
    """The provenance of ``evidence.Evidence``; null where nothing was run or it is unknown."""

    epochs: float | None  # of the shortest trial, over the images that the recipe trains on
    config: dict[str, Any] | None  # model, recipe and length as they were trained
    parameters: int | None
    wall_s: float | None  # of training, summed over the seeds
    device: str | None
    precision: str | None  # fp32 or bf16; with the seeds where there are both
    hardware: str | None
    versions: str | None  # of Python and the libraries that trained
    git_commit: str | None  # with -dirty where the tree had uncommitted changes
    dataset_digest: str | None
    images_per_s: float | None  # of one trial
    finished: float | None  # end of the last trial, unix seconds


class Ablated(TypedDict):
    """How many points more error a net has without a part than the whole net."""

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
    difference: str | None  # the meaning of a claim on other images than the test split, in a sentence
    remarks: str | None  # attempts to reach the claim, and ideas left
    origin: str | None  # "this checkout" or "committed"; null: untested
    best: bool  # of the benchmark's rows, the one to quote
    changed: str | None  # how committed evidence differs from the current recipe and protocol
    agrees: bool | None  # this checkout's with committed evidence at the same budget; null: nothing to compare
    agreement: str | None  # the same in words, with the committed figure
    budget: str | None  # null: neither in the suite that ran nor committed
    n: int  # seeds
    test_set: TestSet | None  # null: the claim was measured on the whole test split, or nothing was run
    ablation: Ablated | None  # null: the claim is of this net alone; else the verdict is on this difference
    verdict: str
    at_chance: list[int]  # seeds no better than guessing
    views: str | None  # the protocol of our evaluation
    train_error: dict[str, float | None]  # a seed, in % of the last epoch
    seconds: dict[str, float | None]  # a seed, of training


def as_error(metric: str, value: float) -> float:
    """A figure in % as an error."""
    return 100 - value if metric == "accuracy" else value


def claimed_error(metric: str, value: float | None) -> float | None:
    """A claim in % as an error to compare training errors with; None without one, and for a top-5 error."""
    return None if value is None or metric == TOP5 else as_error(metric, value)
