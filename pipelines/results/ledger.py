"""The ledger: claim, figure and verdict, one row for each body of evidence of each benchmark.

The best evidence of a benchmark has the full length of the source; then more seeds, then more epochs, then comes from
this checkout. Committed evidence of another recipe than the row's is listed, but is never the best.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from pipelines.command.errors import UserError
from pipelines.command.files import DamagedError
from pipelines.config.benchmarks import Benchmark
from pipelines.config.claims import TOP5
from pipelines.config.params import Params
from pipelines.results import evidence, reader
from pipelines.results.evidence import Evidence
from pipelines.results.reader import EVALUATIONS, Outcome
from pipelines.results.rows import DIGITS, AblationRow, LedgerRow, OnTestSet, Summary, rounded
from pipelines.results.verdicts import ablation_margin, claim_margin, difference, judge, judge_ablation
from pipelines.results.words import figure

COPIED = {field.name for field in fields(Evidence)} & {field.name for field in fields(LedgerRow)}  # into a row


def gather(params: Params, project: Path = Path()) -> dict[str, Outcome]:
    """The outcomes of the active suite's benchmarks that were run, in the order of params.yaml.

    Raises UserError for what ``reader.load`` refuses, and for images of two shapes from one data set.
    """
    outcomes: dict[str, Outcome] = {}
    for name, benchmark in params.benchmarks.items():
        if name in params.suite.benchmarks:  # other suites' leftovers are not read
            outcome = reader.load(benchmark, budget=params.suite.budget, project=project)
            outcomes |= {name: outcome} if outcome else {}
    for first, (name, outcome) in itertools.product(outcomes.values(), outcomes.items()):
        if first.dataset == outcome.dataset and first.shape != outcome.shape:
            line = f"images of {outcome.shape} from {outcome.dataset}, another benchmark of {first.shape}"
            raise DamagedError(f"{project / EVALUATIONS / name} has {line}; expected the same: run dvc repro")
    return outcomes


def make_ledger(
    params: Params, outcomes: Mapping[str, Outcome], committed: Mapping[str, Sequence[Evidence]] | None = None
) -> list[LedgerRow]:
    """The rows of each benchmark, its best first, in the order of params.yaml; those without evidence last."""
    rows: list[LedgerRow] = []
    for name, benchmark in params.benchmarks.items():
        found = outcomes.get(name)
        budget = params.suite.budget if name in params.suite.benchmarks else None
        own = [evidence.of_outcome(found, budget, benchmark.evaluation.claimed_on)] if budget and found else []
        subset = params.datasets[benchmark.dataset].subset.words
        dataset = f"{benchmark.dataset}: {subset}" if subset else benchmark.dataset
        of_benchmark = _of_benchmark(benchmark, budget, [*own, *(committed or {}).get(name, ())])
        rows += [replace(row, dataset=dataset) for row in of_benchmark]
    rows = [_judged(params, row, rows) for row in rows]
    measured = {row.benchmark for row in rows if row.best and row.n}
    return sorted(rows, key=lambda row: row.benchmark not in measured)


def _of_benchmark(benchmark: Benchmark, budget: str | None, bodies: Sequence[Evidence]) -> list[LedgerRow]:
    rows = [make_row(benchmark, body) for body in bodies]
    rows = [_compared(row, rows) for row in rows]
    if all(row.changed for row in rows):
        return [replace(make_row(benchmark, None), budget=budget, best=True), *rows]
    best = max(rows, key=_rank)
    return [replace(best, best=True), *(row for row in rows if row is not best)]


def _judged(params: Params, row: LedgerRow, rows: Sequence[LedgerRow]) -> LedgerRow:
    """An ablation's row with its difference to the whole net at the same budget, and the verdict on that."""
    claimed = params.benchmarks[row.benchmark].claim.ablation
    if claimed is None:
        return row
    whole = params.benchmarks[claimed.of].claim
    margin = ablation_margin(whole.value or 0.0, whole.test_images)
    there = [r for r in rows if r.benchmark == claimed.of and r.n and not r.changed]
    other = max((r for r in there if r.budget == row.budget), key=_rank, default=None)
    pair = list(row.per_seed.values()), list(other.per_seed.values()) if other else []
    short = any((r.epochs or 0.0) < r.paper_epochs for r in (row, other) if r)
    ablation = AblationRow(
        of=claimed.of,
        claimed=claimed.points,
        margin=round(margin, DIGITS),
        mean=round(statistics.fmean(pair[0]) - statistics.fmean(pair[1]), DIGITS) if all(pair) else None,
        ci95=rounded(difference(*pair)),
    )
    verdict = judge_ablation(claim=claimed.points, margin=margin, values=pair[0], others=pair[1], short=short)
    return replace(row, ablation=ablation, verdict=verdict.value)


def _rank(row: LedgerRow) -> tuple[bool, bool, int, float, bool]:
    """The quality of a row's evidence."""
    epochs = row.epochs or 0.0
    return not row.changed, epochs >= row.paper_epochs, row.n, epochs, row.origin == evidence.HERE


def _compared(row: LedgerRow, rows: Sequence[LedgerRow]) -> LedgerRow:
    """The row, with whether our mean lies within the committed interval, widened by half of ours."""
    same = [r for r in rows if r.origin == evidence.COMMITTED and r.budget == row.budget and not r.changed]
    if row.origin != evidence.HERE or not same:
        return row
    other = same[0]
    if row.per_seed == other.per_seed:
        return replace(row, agreement="equals the committed figures, seed by seed", agrees=True)
    if row.mean is None or row.ci95 is None or other.ci95 is None:
        return replace(row, agreement=f"too few seeds to compare with the committed {figure(other)}")
    half = (row.ci95[1] - row.ci95[0]) / 2
    agrees = other.ci95[0] - half <= row.mean <= other.ci95[1] + half
    words = f"{'agrees' if agrees else 'does not agree'} with the committed {figure(other)}"
    return replace(row, agreement=words, agrees=agrees)


def make_row(benchmark: Benchmark, body: Evidence | None) -> LedgerRow:
    """The ledger's row of one body of evidence; without one the benchmark is untested."""
    claim, paper_epochs = benchmark.claim, benchmark.budgets["paper"].epochs
    seeds = body.seeds if body else {}
    if claim.metric == TOP5 and any(one.top5_error is None for one in seeds.values()):
        lacking = f"{body.origin if body else ''}: a seed has no top5_error"
        raise UserError(f"{benchmark.name}, {lacking}; expected it: {benchmark.where}.claim is of a top-5 error")
    figures = {seed: one.figure(claim.metric) for seed, one in seeds.items()}
    tested = {seed: one.figure(claim.metric, tested=True) for seed, one in seeds.items()}
    verdict = judge(
        metric=claim.metric,
        claim=claim.value,
        test_images=claim.test_images,
        values=list(figures.values()),
        short=body is not None and body.epochs < paper_epochs,
    )
    mixed = "two precisions" if body and len(body.by_precision) > 1 else None
    row = LedgerRow(
        **vars(Summary.of(figures)),
        benchmark=benchmark.name,
        label=", ".join(filter(None, (benchmark.label, mixed))) or None,
        dataset=benchmark.dataset,
        metric=claim.metric,
        claim=claim,
        deviations=benchmark.deviations,
        paper_epochs=paper_epochs,
        margin=None if claim.value is None else round(claim_margin(claim.value, claim.test_images), DIGITS),
        difference=claim.difference,
        remarks=benchmark.remarks,
        n=len(figures),
        verdict=verdict.value,
    )
    if body is None:
        return row
    return replace(
        row,
        **{name: getattr(body, name) for name in COPIED},
        precision=body.precision,
        changed=body.changed(benchmark),
        test_set=OnTestSet(**vars(Summary.of(tested)), images=body.test_images) if body.claimed_on else None,
        at_chance=tuple(int(seed) for seed, one in seeds.items() if one.at_chance),
        views=body.protocol,
        train_error={seed: one.curve.train_error[-1] if one.curve else None for seed, one in seeds.items()},
        seconds={seed: one.wall_s for seed, one in seeds.items()},
    )


def quoted(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """The rows of a table: of each benchmark with evidence the best, and below it this checkout's."""
    return [row for row in rows if row.n and (row.best or row.origin == evidence.HERE)]
