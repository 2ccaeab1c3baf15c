"""report/index.html: one file, with its style, script, data and images, that opens from the disk.

``report.html`` and ``macros.html`` are its templates. A browser draws the explorer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

from pipelines.command.progress import duration
from pipelines.config.params import Params
from pipelines.results import evidence, explorer
from pipelines.results.evidence import Evidence
from pipelines.results.explorer import Net
from pipelines.results.ledger import quoted
from pipelines.results.page import images, plots, table3
from pipelines.results.page.html import TEMPLATES, render
from pipelines.results.reader import Outcome
from pipelines.results.rows import LedgerRow, claimed_error
from pipelines.results.verdicts import Verdict

FILTER_PIXELS = 44  # screen pixels a filter, about
TEMPLATE_PIXELS = 96  # screen pixels a class template

TEMPLATES.filters["settings"] = partial(json.dumps, indent=2, sort_keys=True)
TEMPLATES.globals |= {"plots": plots, "duration": duration, "origins": evidence}


def build(
    params: Params,
    ledger: Sequence[LedgerRow],
    outcomes: Mapping[str, Outcome],
    committed: Mapping[str, Sequence[Evidence]] | None = None,
) -> str:
    """The page of a ledger, of this checkout's outcomes and, where there is any, of committed evidence."""
    by_name = {name: list(rows) for name, rows in groupby(ledger, key=attrgetter("benchmark"))}
    untested = [rows[0] for rows in by_name.values() if not rows[0].n]
    own = [row for row in ledger if row.origin == evidence.HERE]
    shown = quoted(ledger)
    return render(
        "report.html",
        tally=_tally([rows[0] for rows in by_name.values()]),
        suite=params.suite.name,
        own=own,
        elsewhere=[row for row in shown if row.best and row.origin == evidence.COMMITTED],
        all=by_name,
        grid=table3.grid(table3.cells(params.benchmarks, ledger)),
        shown=shown,
        untested=untested,
        axis=plots.ledger_axis([*shown, *untested]),
        marked=any(row.test_set for row in shown),
        layers=list(_layers(outcomes)),
        benchmarks=params.benchmarks,
        data=_explored(params, outcomes, committed or {}),
    )


def _explored(
    params: Params, outcomes: Mapping[str, Outcome], committed: Mapping[str, Sequence[Evidence]]
) -> dict[str, Any]:
    """The explorer's data: this checkout's nets, and the committed ones with matrices."""
    nets: dict[str, Net] = {}
    for name, benchmark in params.benchmarks.items():
        claimed = claimed_error(benchmark.claim.metric, benchmark.claim.value)
        if name in outcomes:
            nets[name] = Net.of(outcomes[name], claimed)
        for body in committed.get(name, ()):
            if all(seed.confusion for seed in body.seeds.values()) and not body.changed(benchmark):
                about = {"dataset": benchmark.dataset, "protocol": body.protocol, "classes": body.classes or ()}
                label = f"{name} ({'committed, ' if outcomes else ''}{body.budget} budget)"
                nets[label] = Net(**about, seeds=body.seeds, claimed_error=claimed)  # type: ignore[arg-type]
    return explorer.data(nets)


def _tally(best: Sequence[LedgerRow]) -> list[tuple[int, str, int]]:
    """For each verdict that occurs: the number of benchmarks, and of those with a qualifying label."""
    by_verdict = {verdict: [row for row in best if row.verdict == verdict] for verdict in Verdict}
    return [
        (len(rows), verdict.value, sum(row.label is not None and row.n > 0 for row in rows))
        for verdict, rows in by_verdict.items()
        if rows
    ]


def _layers(outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """Class templates of linear nets and filters of convolutional ones, from the lowest seed of each."""
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
            across = sheet.shape[1] * max(3, round(FILTER_PIXELS / width))
            yield {"caption": caption, "labels": None, "picture": images.address(sheet), "width": across}


def _is_linear(outcome: Outcome) -> bool:
    """Whether the templates are the whole net: ten hidden units also leave ten, which belong to no class."""
    result = outcome.trials[0].result
    assert outcome.templates is not None and result is not None
    weights, biases = outcome.templates.size, len(outcome.classes)
    return len(outcome.templates) == biases and result.parameters <= weights + biases
