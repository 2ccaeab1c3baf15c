"""Write evidence to commit: results/evidence/<benchmark>.json, README.md's ledger and results/index.html.

    python -m pipelines.publish lenet5-mnist     # from its finished, evaluated trials, in a clean tree
    python -m pipelines.publish                  # README.md's ledger and results/index.html alone

The ledger of README.md stands between the comments ``<!-- ledger -->`` and ``<!-- end -->``; a test compares it and the
page with the evidence.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import arguments
from pipelines.command.errors import UserError, guard
from pipelines.command.files import write_bytes
from pipelines.config.benchmarks import Benchmark
from pipelines.config.params import Params, Suite, load_params
from pipelines.results import evidence, reader
from pipelines.results.evidence import EVIDENCE, Evidence
from pipelines.results.ledger import make_ledger
from pipelines.results.page import report
from pipelines.results.page.html import render
from pipelines.results.reader import EVALUATIONS, RUNS
from pipelines.results.rows import LedgerRow
from pipelines.training import provenance

README, PAGE = Path("README.md"), Path("results/index.html")
LEDGER_BLOCK = re.compile(r"(<!-- ledger -->\n).*?(<!-- end -->)", re.DOTALL)


def evidence_text(params: Params, name: str, budget: str | None, project: Path) -> str:
    """A benchmark's evidence file, with the trials evaluated in ``project``; UserError where they are no evidence.

    The seeds are the budget's from the first on, as far as they are evaluated: none is picked.
    """
    benchmark, budget = params.benchmark(name), params.budget(name, budget)
    evaluated, path = _evaluated(benchmark, budget, project), EVIDENCE / f"{name}.json"
    changed = [word for word in evaluated.git_commit.split(", ") if word.endswith("-dirty") or word == "unknown"]
    if changed:
        raise UserError(f"{project / RUNS / name}: trained at {changed[0]}; expected a clean tree of a known commit")
    committed = {body.budget: body for body in evidence.read([name]).get(name, ())}
    before = committed.get(budget)
    if before and not before.changed(benchmark) and len(evaluated.seeds) < len(before.seeds):
        fewer = f"{len(evaluated.seeds)} evaluated seeds at the budget {budget}"
        raise UserError(f"{name} has {fewer}; expected at least the {len(before.seeds)} of {path}")
    return evidence.text({**committed, budget: evaluated})


def _evaluated(benchmark: Benchmark, budget: str, project: Path) -> Evidence:
    trials = project / EVALUATIONS / benchmark.name / "trials"
    planned = benchmark.budgets[budget].seeds
    seeds = list(itertools.takewhile(lambda seed: (trials / f"seed-{seed}").exists(), planned))
    if not seeds:
        again = f"dvc repro evaluate@{benchmark.name}"
        raise UserError(f"{trials / f'seed-{planned[0]}'} is missing; expected an evaluated trial: run {again}")
    outcome = reader.load(benchmark, budget=budget, seeds=seeds, project=project)
    assert outcome is not None
    return evidence.of_outcome(outcome, budget, benchmark.evaluation.claimed_on)


def ledger(rows: Sequence[LedgerRow]) -> str:
    """Every claim with evidence as a Markdown table; figures in per cent."""
    shown = [row for row in rows if row.n and not row.changed]
    paper = {row.benchmark: row for row in shown if row.budget == "paper"}
    short = {row.benchmark: row for row in shown if row.budget != "paper"}
    return render("readme.md", names=list(dict.fromkeys(row.benchmark for row in shown)), paper=paper, short=short)


def rewritten(text: str, rows: Sequence[LedgerRow]) -> str:
    """``text`` with the ledger of these rows; UserError where it has no place for a ledger."""
    match = LEDGER_BLOCK.search(text)
    if match is None:
        raise UserError(f"{README} has no place for the ledger; expected <!-- ledger --> and, below it, <!-- end -->")
    return text[: match.end(1)] + ledger(rows) + text[match.start(2) :]


def made(params: Params, root: Path = Path()) -> dict[Path, str]:
    """README.md and the page, made from the committed evidence below ``root``."""
    committed = evidence.read(params.benchmarks, root / EVIDENCE)
    params = dataclasses.replace(params, suite=Suite(name="committed", budget="paper", benchmarks=()))
    rows = make_ledger(params, {}, committed)
    text = (root / README).read_text(encoding="utf-8")
    return {README: rewritten(text, rows), PAGE: report.build(params, rows, {}, committed)}


def main() -> None:
    """Record the evidence of the named benchmarks, all or none; then write the README's ledger and the page."""
    args, params = _arguments(), load_params()
    dirty = provenance.git_state()["git_dirty"]
    if args.benchmarks and dirty is not False:
        state = "has uncommitted changes" if dirty else "is not in Git"
        raise UserError(f"this tree {state}; expected a clean one: evidence is of committed code")
    texts = {name: evidence_text(params, name, args.budget, args.project) for name in args.benchmarks}
    files = {EVIDENCE / f"{name}.json": text for name, text in texts.items()}
    for path, text in files.items():
        write_bytes(path, text.encode())
    for path, text in made(params).items():
        write_bytes(path, text.encode(errors="backslashreplace"))
    print("wrote", *(path.as_posix() for path in (*files, README, PAGE)))


def _arguments() -> argparse.Namespace:
    parser = arguments.Parser(prog="python -m pipelines.publish", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", help="whose trials become evidence; by default none")
    parser.add_argument("--budget", help="laptop or paper; by default the active suite's, or paper outside it")
    parser.add_argument("--project", type=Path, default=Path(), help="checkout that has runs/ and evaluations/")
    return parser.parse_args()


if __name__ == "__main__":
    guard(main)
