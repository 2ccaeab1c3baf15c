"""report/index.html: one file that opens from the disk, with its style, script, data and images inside it.

``report.html`` and ``macros.html`` are its templates. The explorer within it is drawn in the browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.command.progress import duration
from pipelines.config.params import Benchmark, Params
from pipelines.results import explorer
from pipelines.results.ledger import LedgerRow, as_error
from pipelines.results.page import images, plots, table3
from pipelines.results.page.html import TEMPLATES, render
from pipelines.results.reader import Outcome
from pipelines.results.verdicts import MEANING, MIN_SEEDS, Verdict
from pipelines.results.words import CERTAINTY, MARK, NONE, centre, commit, day, each, ends, seeds, stuck, versions

FILTER_PIXELS = 44  # screen pixels a filter, about
TEMPLATE_PIXELS = 96  # screen pixels a class template
SIGNS = {
    Verdict.REPRODUCED: "✓",
    Verdict.BETTER: "▲",
    Verdict.NOT_REPRODUCED: "✕",
    Verdict.INCONCLUSIVE: "?",
    Verdict.UNDER_BUDGET: "◔",
    Verdict.UNTESTED: "–",
}


def _interval(found: Mapping[str, Any]) -> str:
    return f"{ends(found, ' to ')}, " if found["ci95"] else ""


TEMPLATES.globals |= {
    "as_error": as_error,
    "as_it_is": lambda metric, value: value,
    "centre": centre,
    "certainty": CERTAINTY,
    "describe": plots.describe,
    "duration": duration,
    "height": plots.HEIGHT,
    "interval": _interval,
    "mark": MARK,
    "none_yet": NONE,
    "row_axis": plots.row_axis,
    "seeds": seeds,
    "signs": SIGNS,
    "stuck": stuck,
    "zoom_height": plots.ZOOM_HEIGHT,
}


def build(params: Params, ledger: Sequence[LedgerRow], outcomes: Mapping[str, Outcome]) -> str:
    """The page, for a ledger with a row a benchmark of ``params`` and the outcomes of those that were run."""
    claimed = {row["benchmark"]: as_error(row["metric"], row["claim"]["value"]) for row in ledger}
    return render(
        "report.html",
        tally=_tally(ledger),
        run=_run(params, outcomes),
        grid=table3.grid(table3.cells(params.benchmarks, ledger)),
        ledger=ledger,
        axis=plots.ledger_axis(ledger),
        marked=any(row["test_set"] for row in ledger),
        layers=list(_layers(outcomes)),
        rows=[_details(row, params.benchmarks[row["benchmark"]], outcomes.get(row["benchmark"])) for row in ledger],
        meaning=MEANING,
        min_seeds=MIN_SEEDS,
        footer=_footer(outcomes),
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


def _run(params: Params, outcomes: Mapping[str, Outcome]) -> str:
    run = f"Suite {params.suite.name}: {len(outcomes)} of {len(params.benchmarks)} benchmarks run"
    results = _results(outcomes)
    if not results:
        return run
    spent = sum(float(r["wall_s"]) for r in results)
    last = day(max(float(r["finished"]) for r in results))
    trials = f"{len(results)} trials, {duration(spent)} of training summed over them"
    return f"{run}, {trials}, the last finished on {last}."


def _footer(outcomes: Mapping[str, Outcome]) -> str:
    results = _results(outcomes)
    if not results:
        return "Nothing was run yet."
    commits = each(commit(r)[:12] for r in results)
    return f"Commit {commits} on {each(r['hardware'] for r in results)}."


def _results(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    return [trial.result for outcome in outcomes.values() for trial in outcome.trials]


def _details(row: LedgerRow, benchmark: Benchmark, outcome: Outcome | None) -> dict[str, Any]:
    """What ``macros.html`` shows of one row when it is opened."""
    results = [trial.result for trial in outcome.trials] if outcome else []
    return {
        "row": row,
        "outcome": outcome,
        "protocols": _protocols(row, benchmark),
        "provenance": _provenance(outcome.dataset, results) if outcome else {},
        "config": json.dumps(row["config"], indent=2, sort_keys=True),
        "on": benchmark.evaluation.claimed_on,
    }


def _protocols(row: LedgerRow, benchmark: Benchmark) -> dict[str, str]:
    claim, on, tested = row["claim"], benchmark.evaluation.claimed_on, row["test_set"]
    reported = f"{claim['value']:g} % {row['metric']}, ± {row['margin']:.2f} by chance alone"
    images = "whole test set" if on is None else on.words
    facts = {
        "Claim": f"{reported} on its {benchmark.claim.test_images:,} images",
        "Source": f"{claim['source']} ({CERTAINTY[claim['certainty']]})",
        "Its protocol": claim["protocol"],
        f"Ours{MARK if on else ''}": f"{benchmark.evaluation.protocol}, {images}, last epoch, once",
    }
    if tested:
        measured = f"{centre(tested)} % {row['metric']} ({_interval(tested)}all {tested['images']:,} images)"
        facts["On the test set"] = measured
    if row["difference"]:
        facts["The difference"] = row["difference"]
    size = "not built in this run" if row["parameters"] is None else f"{row['parameters']:,} parameters"
    return facts | {"Model": f"{benchmark.model.name} ({size})"}


def _provenance(dataset: str, results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    speeds = [float(r["images_per_s"]) for r in results if r.get("images_per_s") is not None]
    return {
        "Commit": each(commit(r) for r in results),
        "Hardware": each(r["hardware"] for r in results),
        "Device": each(f"{r.get('device')}, {r.get('workers', 1)} worker(s)" for r in results),
        "Versions": versions(results),
        "Data": f"{dataset}, digest {each(str(r.get('dataset_digest'))[:16] for r in results)}",
        "Speed": f"{sum(speeds) / len(speeds):,.0f} images/s a trial" if speeds else NONE,
        "Resumed": f"{sum(int(r.get('resumed') or 0) for r in results)} times, over all seeds",
        "Finished": max(day(float(r["finished"])) for r in results),
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
            sheet = images.filter_sheet(outcome.filters)
            colour = "colour" if channels == 3 else "grey"
            caption = f"{head}: {count} filters of {height} × {width}, {colour}"
            across = sheet.width * max(3, round(FILTER_PIXELS / width))
            yield {"caption": caption, "labels": None, "picture": sheet, "width": across}


def _is_linear(outcome: Outcome) -> bool:
    """Whether the templates are all there is: a net with ten hidden units leaves ten that belong to no class."""
    assert outcome.templates is not None
    weights, biases = outcome.templates.size, len(outcome.classes)
    return len(outcome.templates) == biases and outcome.trials[0].result["parameters"] <= weights + biases
