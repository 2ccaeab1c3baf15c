"""report/index.html: one file that opens from the disk, with its style, script, data and images inside it.

``template.html``, ``page.css`` and ``page.js`` beside this file are its source. What needs no script is written here as
HTML; confusion matrices and learning curves are drawn in the browser from the JSON in the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.params import Params
from pipelines.results.page import images, table3, tables
from pipelines.results.page.images import Sheet
from pipelines.results.page.markup import Html, embedded, joined, tag, text, visible
from pipelines.results.page.outcomes import Array, Examples, LedgerRow, Outcome
from pipelines.results.page.plots import as_error
from pipelines.results.verdicts import MEANING, MIN_SEEDS, Verdict

SOURCE = Path(__file__).parent
MOST_CLASSES = 30  # of a confusion matrix that fits a page; beyond it the commonest confusions are listed
MOST_CONFUSIONS = 40


def build(params: Params, ledger: Sequence[LedgerRow], outcomes: Mapping[str, Outcome]) -> str:
    """The page, for a ledger with a row a benchmark of ``params`` and the outcomes of those that were run."""
    grid = table3.cells(params.benchmarks, ledger)
    data = _data(ledger, outcomes)
    parts = {
        "css": Html((SOURCE / "page.css").read_text(encoding="utf-8")),
        "js": Html((SOURCE / "page.js").read_text(encoding="utf-8")),
        "tally": _tally(ledger),
        "facts": text(_facts(params, outcomes)),
        "table3_link": tag("a", "Table 3", href="#table3") if grid else Html(""),
        "table3": _table3(grid) if grid else Html(""),
        "tested_key": _tested_key(ledger),
        "ledger": tables.ledger(ledger),
        "layers": tables.first_layers(outcomes),
        "rows": tables.details(ledger, params.benchmarks, outcomes),
        "rules": _rules(),
        "footer": text(_footer(outcomes)),
        "a_cell": text(data["a_cell"]),
        "data": embedded(data),
    }
    template = (SOURCE / "template.html").read_text(encoding="utf-8")
    # One pass, so that a {{name}} inside a benchmark's own words is left alone.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _tally(ledger: Sequence[LedgerRow]) -> Html:
    """How many rows have each verdict, and how many of these have a label that it must not be read without."""
    items = []
    for verdict in Verdict:
        rows = [row for row in ledger if row["verdict"] == verdict]
        labelled = sum(row["label"] is not None and row["n"] > 0 for row in rows)
        note = tag("span", f" ({labelled} qualified)", class_="muted") if labelled else Html("")
        if rows:
            items.append(tag("li", tag("b", len(rows)), table3.badge(verdict), note))
    return joined(items)


def _tested_key(ledger: Sequence[LedgerRow]) -> Html:
    """What the mark means, where a row has one."""
    if not any(row["test_set"] for row in ledger):
        return Html("")
    words = f"{table3.MARK} measured on images chosen like those of the claim; the ring is ours on the whole test set"
    return tag("span", tag("i", class_="key-tested"), words)


def _facts(params: Params, outcomes: Mapping[str, Outcome]) -> str:
    run = f"Suite {params.suite.name}: {len(outcomes)} of {len(params.benchmarks)} benchmarks run"
    results = _results(outcomes)
    if not results:
        return run
    spent = sum(float(r["wall_s"]) for r in results)
    last = tables.day(max(float(r["finished"]) for r in results))
    trials = f"{len(results)} trials, {tables.duration(spent)} of training summed over them"
    return f"{run}, {trials}, the last finished on {last}."


def _footer(outcomes: Mapping[str, Outcome]) -> str:
    results = _results(outcomes)
    if not results:
        return "Nothing was run yet."
    commits = tables.each(tables.commit(r)[:12] for r in results)
    return f"Commit {commits} on {tables.each(r['hardware'] for r in results)}."


def _results(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    return [trial.result for outcome in outcomes.values() for trial in outcome.trials]


def _table3(grid: Mapping[table3.Cell, LedgerRow]) -> Html:
    words = (
        "Twelve nets on CIFAR-10 without augmentation, test error in %, laid out as in Springenberg et al. 2014: "
        "the paper's figure above, ours below with half its 95 % interval."
    )
    return tag(
        "section",
        tag("h2", "Table 3 of “Striving for Simplicity”"),
        tag("p", words),
        tag("div", table3.grid(grid), class_="scroll"),
        tag("p", f"{table3.labels(grid)}{table3.counts()}", class_="muted"),
        id="table3",
    )


def _rules() -> Html:
    lead = (
        "An interval is Student's t at 95 % on the mean over seeds. The margin is the claim's own 95 % sampling error: "
        "1.96 · √(p(1 − p)/images) on the images it was measured on."
    )
    items = (tag("li", table3.badge(verdict), f" {words.replace('`', '')}.") for verdict, words in MEANING.items())
    tail = f"Reproduced, better and not reproduced need at least {MIN_SEEDS} seeds."
    return joined([tag("p", lead), tag("ul", *items, class_="rules"), tag("p", tail)])


def _data(ledger: Sequence[LedgerRow], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """All that the script needs, in plain types."""
    wanted = {name: _wanted(outcome) for name, outcome in outcomes.items()}
    by_dataset: dict[str, list[Examples]] = {}
    for name, outcome in outcomes.items():
        by_dataset.setdefault(outcome.dataset, []).append(wanted[name])
    sheets, a_cell = images.sheets(by_dataset)
    rows = {row["benchmark"]: row for row in ledger}
    return {
        "columns": images.COLUMNS,
        "most": images.MOST_SHOWN,
        "a_cell": a_cell,
        "sheets": {name: _tiles(sheet) for name, sheet in sheets.items()},
        "benchmarks": [
            {
                **_about(rows[name], outcome),
                **_matrices(outcome),
                "curves": {str(trial.seed): _curve(trial.curve) for trial in outcome.trials},
                "examples": _behind(images.shown(wanted[name], a_cell), sheets[outcome.dataset], outcome),
            }
            for name, outcome in outcomes.items()
        ],
    }


def _about(row: LedgerRow, outcome: Outcome) -> dict[str, Any]:
    errors = {str(trial.seed): trial.error for trial in outcome.trials}
    compared = [trial.compared("error") for trial in outcome.trials]
    return {
        "name": row["benchmark"],
        "dataset": outcome.dataset,
        "protocol": outcome.protocol,
        "classes": [visible(name) for name in outcome.classes],
        "seeds": [trial.seed for trial in outcome.trials],
        "error": math.fsum(errors.values()) / len(errors),
        "errors": errors,
        "claimed_error": as_error(row["metric"], row["claim"]["value"]),
        "compared_error": math.fsum(compared) / len(compared) if row["test_set"] else None,
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


def _wanted(outcome: Outcome) -> Examples:
    """The examples that a reader can reach: all of them, or those of the listed confusions."""
    found = outcome.examples
    if len(outcome.classes) <= MOST_CLASSES:
        return found
    count = len(outcome.classes)
    listed = [i * count + j for i, j, _ in _commonest(outcome)]
    return found.part(np.flatnonzero(np.isin(found.actual * count + found.predicted, listed).any(axis=0)))


def _tiles(sheet: Sheet) -> dict[str, Any]:
    """A sheet, and of each of its tiles the position in the test file and the class that it shows."""
    size = {"source": sheet.source, "width": sheet.width, "height": sheet.height}
    return {**size, "index": list(sheet.places), "actual": list(sheet.actual)}


def _behind(kept: Examples, sheet: Sheet, outcome: Outcome) -> dict[str, Any]:
    """The tiles of a benchmark's examples, and what each seed called them with which confidence in %."""
    seeds = [str(trial.seed) for trial in outcome.trials]
    return {
        "tiles": [sheet.places[index] for index in kept.index.tolist()],
        "predicted": dict(zip(seeds, kept.predicted.tolist(), strict=True)),
        "confidence": dict(zip(seeds, (100 * kept.confidence).round().astype(int).tolist(), strict=True)),
    }


def _curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {
        "epoch": [float(f"{line['epoch']:.5g}") for line in lines],
        "loss": [_short(line.get("loss")) for line in lines],
        "error": [_short(line.get("train_error")) for line in lines],
    }


def _short(value: Any) -> float | None:
    """Four digits are all a chart can show; JSON has no NaN, so a diverged trial's loss is null."""
    return float(f"{value:.4g}") if isinstance(value, (int, float)) and math.isfinite(value) else None
