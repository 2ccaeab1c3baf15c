"""The explorer: confusion matrices with the test images behind their cells, learning curves, figures of each class.

``page/page.js`` draws it in a browser from the JSON made here. The report embeds it with all benchmarks; MLflow gets it
with one benchmark, or one trial, as an artifact. A figure is one function in page.js and one line in its ``FIGURES``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.config.values import plain
from pipelines.results.arrays import Array
from pipelines.results.evidence import WIDEST, Evidence, Seed, seeds_of
from pipelines.results.page import images
from pipelines.results.page.html import render, visible
from pipelines.results.page.images import Sheet
from pipelines.results.reader import ClassifiedExamples, Outcome, per_class, recipe_of
from pipelines.results.rows import Summary
from pipelines.results.words import mean_or_each

MOST_CONFUSIONS = 40  # listed where the classes are too many for a matrix
ARTIFACT_BYTES = 400_000  # of the images in an artifact of MLflow, encoded


@dataclass(frozen=True, kw_only=True)
class Net:
    """One body of evidence in the explorer."""

    dataset: str
    body: Outcome | Evidence  # an outcome is of this checkout, and has test images
    claimed_error: float | None  # in %, as the source reports it

    @cached_property
    def seeds(self) -> Mapping[str, Seed]:
        """The evaluated trials by seed."""
        return seeds_of(self.body) if isinstance(self.body, Outcome) else self.body.seeds

    @property
    def boosted(self) -> bool:
        """Whether its curve jumps where the next member of an ensemble begins."""
        trained = self.body.trials[0].result if isinstance(self.body, Outcome) else self.body
        return bool(trained and recipe_of(trained.config).get("boosting"))


def artifact(*, title: str, facts: Mapping[str, str], outcome: Outcome, claimed_error: float | None) -> str:
    """One benchmark's explorer as a page of its own, with ``facts`` under the title."""
    net = Net(dataset=outcome.dataset, body=outcome, claimed_error=claimed_error)
    return render("explorer.html", title=title, facts=facts, data=data({title: net}, budget=ARTIFACT_BYTES))


def data(nets: Mapping[str, Net], *, budget: int = images.SHEET_BYTES) -> dict[str, Any]:
    """The data of the script, in plain types; images take at most ``budget`` bytes, or one of each cell."""
    wanted = {name: _wanted(net.body) if isinstance(net.body, Outcome) else None for name, net in nets.items()}
    by_dataset: dict[str, list[ClassifiedExamples]] = {net.dataset: [] for net in nets.values()}
    for name, kept in wanted.items():
        by_dataset[nets[name].dataset] += [kept] if kept else []
    sheets, a_cell = images.sheets(by_dataset, budget)
    return {
        "columns": images.COLUMNS,
        "most": images.MOST_SHOWN,
        "a_cell": a_cell,
        "sheets": {name: vars(sheet) for name, sheet in sheets.items()},
        "benchmarks": [
            {"name": name, **_shown(net), "examples": _behind(wanted[name], a_cell, sheets[net.dataset], net.seeds)}
            for name, net in nets.items()
        ],
    }


def _shown(net: Net) -> dict[str, Any]:
    errors = {seed: one.error for seed, one in net.seeds.items()}
    compared = {seed: one.claimed_error for seed, one in net.seeds.items() if one.claimed_error is not None}
    matrices = {seed: one.confusion for seed, one in net.seeds.items() if one.confusion}
    own = net.body if isinstance(net.body, Outcome) else None
    counts = {str(trial.seed): trial.confusion for trial in own.trials} if own else matrices
    return {
        "dataset": net.dataset,
        "protocol": net.body.protocol,
        "classes": [visible(name) for name in net.body.classes or ()],
        "claimed_error": net.claimed_error,
        "seeds": [int(seed) for seed in net.seeds],
        "boosted": net.boosted,
        "error": mean_or_each(Summary.of(errors)),  # rounded as in the ledger
        "errors": errors,
        "compared_errors": compared or None,  # on the images of the claim
        "curves": {seed: plain(one.curve) for seed, one in net.seeds.items() if one.curve},
        "per_class": {seed: per_class(np.array(matrix)) for seed, matrix in counts.items()},
        **({"matrices": matrices} if matrices or not own else {"confusions": _commonest(own)}),
    }


def _commonest(outcome: Outcome) -> list[list[int]]:
    """The most frequent confusions over all seeds: [actual, predicted, count]."""
    total: Array = np.sum([trial.confusion for trial in outcome.trials], axis=0)
    np.fill_diagonal(total, 0)
    order = np.argsort(-total, axis=None, kind="stable")[:MOST_CONFUSIONS]
    cells = zip(*np.unravel_index(order, total.shape), strict=True)
    return [[int(i), int(j), int(total[i, j])] for i, j in cells if total[i, j]]


def _wanted(outcome: Outcome) -> ClassifiedExamples | None:
    """The examples that the page can show: all of them, or those of the listed confusions."""
    kept, count = outcome.examples, len(outcome.classes)
    if kept is None or count <= WIDEST:
        return kept
    cells = [i * count + j for i, j, _ in _commonest(outcome)]
    return kept.part(np.flatnonzero(np.isin(kept.actual * count + kept.predicted, cells).any(axis=0)))


def _behind(found: ClassifiedExamples | None, a_cell: int, sheet: Sheet, seeds: Iterable[str]) -> dict[str, Any] | None:
    """The tiles of a benchmark's examples, with each seed's answer and confidence in %."""
    if found is None:
        return None
    kept = images.chosen(found, a_cell)
    return {
        "tiles": np.searchsorted(sheet.index, kept.index).tolist(),
        "predicted": dict(zip(seeds, kept.predicted.tolist(), strict=True)),
        "confidence": dict(zip(seeds, (100 * kept.confidence).round().astype(int).tolist(), strict=True)),
    }
