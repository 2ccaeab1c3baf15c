"""report/index.html: one file that opens from the disk, with its style, script, data and images inside it.

``report.html`` and ``macros.html`` are its templates. The explorer within it is drawn in the browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.command.progress import duration
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params
from pipelines.results import explorer
from pipelines.results.ledger import LedgerRow, claimed_error
from pipelines.results.page import images, plots, table3
from pipelines.results.page.html import TEMPLATES, render
from pipelines.results.reader import Outcome
from pipelines.results.verdicts import Verdict
from pipelines.results.words import NONE, commit

FILTER_PIXELS = 44  # screen pixels a filter, about
TEMPLATE_PIXELS = 96  # screen pixels a class template
SIGNS = {
    Verdict.REPRODUCED: "✓",
    Verdict.BETTER: "▲",
    Verdict.NOT_REPRODUCED: "✕",
    Verdict.INCONCLUSIVE: "?",
    Verdict.UNDER_BUDGET: "◔",
    Verdict.UNTESTED: "–",
    Verdict.NO_CLAIM: "·",
}


def _speed(results: Sequence[Mapping[str, Any]]) -> str:
    speeds = [float(r["images_per_s"]) for r in results if r.get("images_per_s") is not None]
    return f"{sum(speeds) / len(speeds):,.0f} images/s a trial" if speeds else NONE


def _device(result: Mapping[str, Any]) -> str:
    return f"{result.get('device')}, {result.get('workers', 1)} worker(s)"


TEMPLATES.filters |= {"commit": commit, "device": _device}
TEMPLATES.globals |= {"plots": plots, "duration": duration, "signs": SIGNS, "speed": _speed}


def build(params: Params, ledger: Sequence[LedgerRow], outcomes: Mapping[str, Outcome]) -> str:
    """The page, for a ledger with a row a benchmark of ``params`` and the outcomes of those that were run."""
    results = [trial.result for outcome in outcomes.values() for trial in outcome.trials]
    claimed = {row["benchmark"]: claimed_error(row) for row in ledger}
    return render(
        "report.html",
        tally=_tally(ledger),
        suite=params.suite.name,
        results=results,
        commits=[commit(result)[:12] for result in results],
        run=len(outcomes),
        grid=table3.grid(table3.cells(params.benchmarks, ledger)),
        ledger=ledger,
        axis=plots.ledger_axis(ledger),
        marked=any(row["test_set"] for row in ledger),
        layers=list(_layers(outcomes)),
        rows=[_details(row, params.benchmarks[row["benchmark"]], outcomes.get(row["benchmark"])) for row in ledger],
        data=explorer.data(outcomes, claimed),
    )


def _tally(ledger: Sequence[LedgerRow]) -> list[tuple[int, str, int]]:
    """For each verdict that occurs: the rows that have it, and how many of these have a label that qualifies it."""
    by_verdict = {verdict: [row for row in ledger if row["verdict"] == verdict] for verdict in Verdict}
    return [
        (len(rows), verdict.value, sum(row["label"] is not None and row["n"] > 0 for row in rows))
        for verdict, rows in by_verdict.items()
        if rows
    ]


def _details(row: LedgerRow, benchmark: Benchmark, outcome: Outcome | None) -> dict[str, Any]:
    """What ``macros.html`` shows of one row when it is opened."""
    return {
        "row": row,
        "benchmark": benchmark,
        "outcome": outcome,
        "results": [trial.result for trial in outcome.trials] if outcome else [],
        "config": json.dumps(row["config"], indent=2, sort_keys=True),
    }


def _layers(outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """Class templates of the linear nets and filters of the convolutional ones, from the lowest seed of each."""
    for name, outcome in outcomes.items():
        head = f"{name}, seed {outcome.trials[0].seed}"
        if outcome.templates is not None:
            pictures, linear = images.template_pictures(outcome.templates), _is_linear(outcome)
            labels = outcome.classes if linear else [f"unit {i}" for i in range(len(pictures))]
            caption = f"{head}: the weights of each {'class' if linear else 'hidden unit'}, laid out as the image"
            shown = list(zip(pictures, labels, strict=True))
            yield {"caption": caption, "labels": shown, "width": TEMPLATE_PIXELS}
        if outcome.filters is not None:
            count, channels, height, width = outcome.filters.shape
            sheet = images.filter_sheet(outcome.filters, outcome.towers)
            colour = "colour" if channels == 3 else "grey"
            apart = f"; {outcome.towers} towers of {count // outcome.towers}, one below the other"
            caption = f"{head}: {count} filters of {height} × {width}, {colour}{apart if outcome.towers > 1 else ''}"
            across = sheet.width * max(3, round(FILTER_PIXELS / width))
            yield {"caption": caption, "labels": None, "picture": sheet, "width": across}


def _is_linear(outcome: Outcome) -> bool:
    """Whether the templates are all there is: a net with ten hidden units leaves ten that belong to no class."""
    assert outcome.templates is not None
    weights, biases = outcome.templates.size, len(outcome.classes)
    return len(outcome.templates) == biases and outcome.trials[0].result["parameters"] <= weights + biases
