"""The evidence committed below results/: about these claims, from committed code, as the rows stand today.

No figure is expected here: a rerun may show another, and then the file is replaced as a whole.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.config.params import load_params
from pipelines.results import evidence
from pipelines.results.evidence import EVIDENCE, Evidence
from pipelines.results.ledger import make_row
from pipelines.results.verdicts import Verdict
from tests.conftest import ROOT

PARAMS = load_params(ROOT / "params.yaml")
FILES = sorted((ROOT / EVIDENCE).glob("*"))
COMMITTED = evidence.read(PARAMS.benchmarks, ROOT / EVIDENCE)
BODIES = [pytest.param(name, body, id=f"{name}-{body.budget}") for name, bodies in COMMITTED.items() for body in bodies]
THERE = (Verdict.REPRODUCED, Verdict.BETTER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_small_and_of_a_benchmark(path: Path) -> None:
    assert path.suffix == ".json" and path.stem in PARAMS.benchmarks
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_as_its_command_writes_it(path: Path) -> None:
    bodies = {body.budget: body for body in COMMITTED[path.stem]}
    assert evidence.text(bodies) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "body"), BODIES)
def test_evidence_is_of_the_row_as_it_is_today(name: str, body: Evidence) -> None:
    """A recipe that is changed takes its figures with it: the row is run again, or its evidence goes."""
    benchmark = PARAMS.benchmarks[name]
    assert body.changed(benchmark) is None
    seeds = [str(seed) for seed in benchmark.budgets[body.budget].seeds]
    assert list(body.seeds) == seeds[: len(body.seeds)], "the seeds of the budget from the first on, none picked"
    epochs = benchmark.budgets["paper"].epochs
    assert body.epochs == epochs if body.budget == "paper" else body.epochs < epochs


@pytest.mark.parametrize(("name", "body"), BODIES)
def test_evidence_has_its_provenance(name: str, body: Evidence) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(, [0-9a-f]{40})*", body.git_commit)
    assert "torch" in body.versions and body.hardware and body.device


def test_a_claim_has_one_certainty() -> None:
    """That which a page prints behind the source, which holds no other."""
    for name, benchmark in PARAMS.benchmarks.items():
        assert not re.search("recalled|read|computed|certain", benchmark.claim.source), name


@pytest.mark.parametrize("suite", ["mnist", "cifar10", "laptop"])
def test_every_row_of_a_suite_that_two_cores_reach_is_measured(suite: str) -> None:
    plan = PARAMS.suites[suite]
    for name in plan.benchmarks:
        (body,) = (body for body in COMMITTED[name] if body.budget == plan.budget)
        assert len(body.seeds) >= min(5, len(PARAMS.benchmarks[name].budgets[plan.budget].seeds)), name


@pytest.mark.parametrize(("name", "body"), BODIES)
def test_a_claim_missed_at_the_papers_budget_has_its_paragraph(name: str, body: Evidence) -> None:
    benchmark = PARAMS.benchmarks[name]
    if body.budget == "paper" and make_row(benchmark, body).verdict not in THERE:
        assert "Left to try" in (benchmark.remarks or ""), "expected what was tried, and what is left to try"
