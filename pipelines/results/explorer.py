"""The explorer: confusion matrices with the test images behind their cells, learning curves, figures of each class.

``page/page.js`` draws it in a browser from the JSON made here. The report embeds it with all benchmarks; MLflow gets it
with one benchmark, or one trial, as an artifact. A figure is one function in page.js and one line in its ``FIGURES``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.results.page import images
from pipelines.results.page.html import render, visible
from pipelines.results.page.images import Sheet
from pipelines.results.reader import Array, ClassifiedExamples, Outcome, short

MOST_CLASSES = 30  # of a confusion matrix that fits a page; beyond it the commonest confusions are listed
MOST_CONFUSIONS = 40
ARTIFACT_BYTES = 400_000  # of the images in an artifact of MLflow, encoded


def artifact(*, title: str, facts: Mapping[str, str], outcome: Outcome, claimed_error: float | None) -> str:
    """One benchmark's explorer as a page of its own, with ``facts`` in their order under the title."""
    found = data({title: outcome}, {title: claimed_error}, budget=ARTIFACT_BYTES)
    return render("explorer.html", title=title, facts=facts, data=found, a_cell=found["a_cell"])


def data(
    outcomes: Mapping[str, Outcome], claimed: Mapping[str, float | None], *, budget: int = images.SHEET_BYTES
) -> dict[str, Any]:
    """All that the script needs, in plain types; ``claimed`` are the errors in % that the sources report.

    The images take at most ``budget`` bytes, or one image of each cell.
    """
    wanted = {name: _wanted(outcome) for name, outcome in outcomes.items()}
    by_dataset: dict[str, list[ClassifiedExamples]] = {outcome.dataset: [] for outcome in outcomes.values()}
    for name, kept in wanted.items():
        by_dataset[outcomes[name].dataset] += [kept] if kept else []
    sheets, a_cell = images.sheets(by_dataset, budget)
    return {
        "columns": images.COLUMNS,
        "most": images.MOST_SHOWN,
        "a_cell": a_cell,
        "sheets": {name: _tiles(sheet) for name, sheet in sheets.items()},
        "benchmarks": [
            {
                "name": name,
                "claimed_error": claimed[name],
                **_about(outcome),
                **_matrices(outcome),
                "curves": {str(trial.seed): _curve(trial.curve) for trial in outcome.trials},
                "per_class": {str(trial.seed): trial.per_class for trial in outcome.trials},
                "examples": _behind(wanted[name], a_cell, sheets[outcome.dataset], outcome),
            }
            for name, outcome in outcomes.items()
        ],
    }


def _about(outcome: Outcome) -> dict[str, Any]:
    compared = {str(trial.seed): trial.claimed_on for trial in outcome.trials if trial.claimed_on is not None}
    return {
        "dataset": outcome.dataset,
        "protocol": outcome.protocol,
        "classes": [visible(name) for name in outcome.classes],
        "seeds": [trial.seed for trial in outcome.trials],
        "errors": {str(trial.seed): trial.error for trial in outcome.trials},
        "compared_errors": compared or None,  # on the images of the claim
    }


def _matrices(outcome: Outcome) -> dict[str, Any]:
    if len(outcome.classes) <= MOST_CLASSES:
        return {"matrices": {str(trial.seed): trial.confusion.tolist() for trial in outcome.trials}}
    return {"confusions": _commonest(outcome)}


def _commonest(outcome: Outcome) -> list[list[int]]:
    """The cells off the diagonal with the highest counts over all seeds: [actual, predicted, count]."""
    total: Array = np.sum([trial.confusion for trial in outcome.trials], axis=0)
    np.fill_diagonal(total, 0)
    order = np.argsort(-total, axis=None, kind="stable")[:MOST_CONFUSIONS]
    cells = zip(*np.unravel_index(order, total.shape), strict=True)
    return [[int(i), int(j), int(total[i, j])] for i, j in cells if total[i, j]]


def _wanted(outcome: Outcome) -> ClassifiedExamples | None:
    """The examples that a reader can reach: all of them, or those of the listed confusions."""
    kept, count = outcome.examples, len(outcome.classes)
    if kept is None or count <= MOST_CLASSES:
        return kept
    cells = [i * count + j for i, j, _ in _commonest(outcome)]
    return kept.part(np.flatnonzero(np.isin(kept.actual * count + kept.predicted, cells).any(axis=0)))


def _tiles(sheet: Sheet) -> dict[str, Any]:
    """A sheet, and for each of its tiles the position in the test file and the class that it shows."""
    size = {"source": sheet.source, "width": sheet.width, "height": sheet.height}
    return {**size, "index": list(sheet.places), "actual": list(sheet.actual)}


def _behind(wanted: ClassifiedExamples | None, a_cell: int, sheet: Sheet, outcome: Outcome) -> dict[str, Any] | None:
    """The tiles of a benchmark's examples, with each seed's answer and its confidence in %."""
    if wanted is None:
        return None
    kept, seeds = images.shown(wanted, a_cell), [str(trial.seed) for trial in outcome.trials]
    return {
        "tiles": [sheet.places[index] for index in kept.index.tolist()],
        "predicted": dict(zip(seeds, kept.predicted.tolist(), strict=True)),
        "confidence": dict(zip(seeds, (100 * kept.confidence).round().astype(int).tolist(), strict=True)),
    }


def _curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {
        "epoch": [float(f"{line['epoch']:.5g}") for line in lines],
        "loss": [short(line.get("loss")) for line in lines],
        "error": [short(line.get("train_error")) for line in lines],
    }
