"""report/index.html: one file, with its style, script, data and images, that opens from the disk.

``report.html`` and ``macros.html`` are its templates. A browser draws the explorer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter

from pipelines.command.progress import duration
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params
from pipelines.results import evidence, explorer
from pipelines.results.evidence import Evidence
from pipelines.results.explorer import Net
from pipelines.results.ledger import quoted
from pipelines.results.page import images, plots
from pipelines.results.page.html import TEMPLATES, render
from pipelines.results.reader import Outcome
from pipelines.results.rows import LedgerRow, claimed_error

TEMPLATES.filters["settings"] = partial(json.dumps, indent=2, sort_keys=True)
TEMPLATES.globals |= {"plots": plots, "images": images, "origins": evidence, "duration": duration}


def build(
    params: Params,
    ledger: Sequence[LedgerRow],
    outcomes: Mapping[str, Outcome],
    committed: Mapping[str, Sequence[Evidence]] | None = None,
) -> str:
    """The page of a ledger, of this checkout's outcomes and, where there is any, of committed evidence."""
    by_name = {name: list(rows) for name, rows in groupby(ledger, key=attrgetter("benchmark"))}
    untested = [rows[0] for rows in by_name.values() if not rows[0].n]
    shown = quoted(ledger)
    nets, without = _explored(params, outcomes, committed or {})
    return render(
        "report.html",
        suite=params.suite.name,
        own=[row for row in ledger if row.origin == evidence.HERE],
        elsewhere=[row for row in shown if row.best and row.origin == evidence.COMMITTED],
        all=by_name,
        table3_rows=table3(params.benchmarks, ledger),
        shown=shown,
        untested=untested,
        axis=plots.ledger_axis([*shown, *untested]),
        marked=any(row.test_set for row in shown),
        layers={name: one for name, one in outcomes.items() if one.templates is not None or one.filters is not None},
        benchmarks=params.benchmarks,
        data=explorer.data(nets),
        without=without,
    )


def table3(benchmarks: Mapping[str, Benchmark], ledger: Sequence[LedgerRow]) -> dict[tuple[str, str], LedgerRow]:
    """The rows of "Striving for Simplicity", Table 3, by base and variant; of two rows, the one with evidence.

    Source: Springenberg, Dosovitskiy, Brox, Riedmiller 2014, arXiv:1412.6806: nets on CIFAR-10, nothing augmented.
    """
    found = {}
    for row in sorted((row for row in ledger if row.best), key=lambda row: row.n > 0):
        benchmark = benchmarks[row.benchmark]
        options = benchmark.model.options
        if benchmark.model.family == "allcnn" and benchmark.dataset == "cifar10" and not benchmark.recipe.augment:
            found[options.get("base", "C"), options.get("variant", "allcnn")] = row  # the builder's defaults
    return found


def _explored(
    params: Params, outcomes: Mapping[str, Outcome], committed: Mapping[str, Sequence[Evidence]]
) -> tuple[dict[str, Net], list[str]]:
    """This checkout's nets and the committed ones with matrices, the longest trained first; the others' names."""
    nets: dict[str, Net] = {}
    without = []
    for name, benchmark in params.benchmarks.items():
        claimed = claimed_error(benchmark.claim.metric, benchmark.claim.value)
        if name in outcomes:
            nets[name] = Net(dataset=outcomes[name].dataset, body=outcomes[name], claimed_error=claimed)
        current = [body for body in committed.get(name, ()) if not body.changed(benchmark)]
        for body in sorted(current, key=attrgetter("epochs"), reverse=True):
            label = f"{name} ({'committed, ' if outcomes else ''}{body.budget} budget)"
            if not all(seed.confusion for seed in body.seeds.values()):
                without.append(label)
            else:
                nets[label] = Net(dataset=benchmark.dataset, body=body, claimed_error=claimed)
    return nets, without
