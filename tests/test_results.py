"""The ledgers committed below results/: about these claims, from committed code, with the verdict of their seeds.

No figure is expected here: a rerun may say something else, and then the ledger is replaced as a whole.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.params import load_params
from pipelines.results import reader, words
from pipelines.results.verdicts import Verdict, claim_margin, judge, shown
from tests.conftest import ROOT

PARAMS = load_params(ROOT / "params.yaml")
LEDGERS = sorted((ROOT / "results").glob("*.json"))
RUN: list[tuple[Path, Any]] = [(path, row) for path in LEDGERS for row in json.loads(path.read_text()) if row["n"]]
ROWS = [pytest.param(path, row, id=f"{path.stem}-{row['benchmark']}") for path, row in RUN]
THERE = (Verdict.REPRODUCED, Verdict.BETTER)


def test_there_are_ledgers_and_each_can_be_read_by_a_person_too() -> None:
    assert LEDGERS
    for path in LEDGERS:
        assert path.with_suffix(".md").exists()


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_a_committed_row_is_what_its_seeds_say_of_the_claim(path: Path, row: dict[str, Any]) -> None:
    claim = PARAMS.benchmarks[row["benchmark"]].claim
    assert (row["claim"]["value"], row["metric"]) == (claim.value, claim.metric)
    values = list(row["per_seed"].values())
    short = row["epochs"] < row["paper_epochs"]
    verdict = judge(metric=claim.metric, claim=claim.value, test_images=claim.test_images, values=values, short=short)
    assert row["verdict"] == verdict


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_a_row_of_another_suite_is_untested_and_has_no_budget(path: Path) -> None:
    """A ledger is what ``compare`` writes of one suite, and nothing put together by hand."""
    plan = PARAMS.suites[path.stem]
    for row in json.loads(path.read_text()):
        assert row["budget"] == (plan.budget if row["benchmark"] in plan.benchmarks else None), row["benchmark"]


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_a_ledger_says_of_each_claim_what_params_says(path: Path) -> None:
    """Source, protocol and deviations of the rows that were run; the Markdown has them too."""
    ledger, markdown = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    assert {row["benchmark"] for row in ledger} <= set(PARAMS.benchmarks)  # one that is added waits for its run
    for row in ledger:
        if not row["n"]:
            continue
        benchmark = PARAMS.benchmarks[row["benchmark"]]
        said = {key: row["claim"][key] for key in ("value", "source", "protocol", "certainty")}
        assert said == {key: getattr(benchmark.claim, key) for key in said}, benchmark.name
        assert row["deviations"] == list(benchmark.deviations), benchmark.name
        assert (row["label"], row["remarks"]) == (benchmark.label, benchmark.remarks)
        for text in (f"Claim: {benchmark.claim.source} (", f"; {benchmark.claim.protocol}\n", *benchmark.deviations):
            assert text in markdown, benchmark.name


def test_a_claim_has_one_certainty() -> None:
    """That which a page prints behind the source, which holds no other."""
    for name, benchmark in PARAMS.benchmarks.items():
        assert not re.search("recalled|read|computed|certain", benchmark.claim.source), name


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_a_committed_row_says_where_it_comes_from(path: Path, row: dict[str, Any]) -> None:
    budget = PARAMS.benchmarks[row["benchmark"]].budgets[row["budget"]]
    assert list(row["per_seed"]) == [str(seed) for seed in budget.seeds], "all the seeds of the budget, none picked"
    assert row["paper_epochs"] == PARAMS.benchmarks[row["benchmark"]].budgets["paper"].epochs
    assert "-dirty" not in row["git_commit"] and "torch" in row["versions"] and row["hardware"]


def test_every_mnist_row_is_measured_at_the_papers_budget() -> None:
    """results/mnist.json has each row of suites.mnist, with seeds enough for an interval."""
    path = ROOT / "results/mnist.json"
    assert path in LEDGERS, "expected the ledger of the suite mnist"
    measured = {
        row["benchmark"]: (row["budget"], row["epochs"]) for row in json.loads(path.read_text()) if row["n"] >= 5
    }
    wanted = {
        name: ("paper", PARAMS.benchmarks[name].budgets["paper"].epochs) for name in PARAMS.suites["mnist"].benchmarks
    }
    assert measured == wanted


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_a_committed_row_was_trained_as_its_block_says_today(path: Path, row: dict[str, Any]) -> None:
    """A recipe that is changed takes its figures with it: the suite is run again, or the row goes."""
    benchmark = PARAMS.benchmarks[row["benchmark"]]
    now = json.loads(json.dumps(benchmark.resolved(row["budget"])))
    assert reader.difference(row["config"], now) is None
    assert (row["views"], row["label"]) == (benchmark.evaluation.protocol, benchmark.label)


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_mean_interval_and_margin_are_those_of_the_row(path: Path, row: dict[str, Any]) -> None:
    values, claim = list(row["per_seed"].values()), PARAMS.benchmarks[row["benchmark"]].claim
    assert row["mean"] == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert claim.value is not None
    assert row["margin"] == pytest.approx(claim_margin(claim.value, claim.test_images), abs=1e-3)
    assert row["ci95"] == pytest.approx(shown(values), abs=1e-3)


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_the_markdown_says_what_the_row_says(path: Path, row: dict[str, Any]) -> None:
    claim = f"{row['claim']['value']:g} ± {row['margin']:.2f}"
    epochs = f"{row['epochs']:g} of {row['paper_epochs']}"
    cells = (row["metric"], claim, words.ours(row), str(row["n"]))
    assert (
        f" | {' | '.join(cells)} | {epochs} ({row['budget']}) | {row['verdict']} |"
        in path.with_suffix(".md").read_text()
    )


@pytest.mark.parametrize(("path", "row"), ROWS)
def test_a_claim_missed_at_the_papers_budget_has_its_paragraph(path: Path, row: dict[str, Any]) -> None:
    if row["budget"] == "paper" and row["verdict"] not in THERE:
        remarks = PARAMS.benchmarks[row["benchmark"]].remarks or ""
        assert "Left to try" in remarks, "expected what was tried, and what is left to try"
