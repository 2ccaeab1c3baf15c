"""Guards the ledger's rows: what a reader has to know of a row's images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.config.params import load_params
from pipelines.results import evidence, words
from pipelines.results.evidence import Evidence
from pipelines.results.ledger import make_ledger
from tests import projects
from tests.conftest import ROOT


def test_a_row_on_a_subset_by_rule_shows_the_rule() -> None:
    found = projects.read(ROOT)
    found["benchmarks"]["linear-mnist"]["dataset"] = "ilsvrc100"
    rows = {row.benchmark: row.dataset for row in make_ledger(projects.build(found), {})}
    rule = "the first 100 classes by id, the first 500 training images of each class"
    assert rows["linear-mnist"] == f"ilsvrc100: {rule}"
    assert rows["lenet5-mnist"] == load_params(ROOT / "params.yaml").benchmark("lenet5-mnist").dataset


def flat(body: Evidence, error: float) -> Evidence:
    """The same with one error for all seeds."""
    return replace(body, seeds={n: replace(seed, error=error, confusion=None) for n, seed in body.seeds.items()})


def test_an_ablation_is_compared_with_the_whole_net_at_the_same_budget() -> None:
    """On committed figures: as if the fixed rate of lenet1-mnist had cost it something that lenet4-mnist has not."""
    found = projects.read(ROOT)
    claim = found["benchmarks"]["lenet1-mnist"]["claim"]
    claim |= {"ablation": {"of": "lenet4-mnist", "points": 0.6}}
    del claim["value"]
    params = projects.build(found)
    committed = evidence.read(("lenet1-mnist", "lenet4-mnist"), ROOT / evidence.EVIDENCE)
    row, whole = (
        next(row for row in make_ledger(params, {}, committed) if row.benchmark == name)
        for name in ("lenet1-mnist", "lenet4-mnist")
    )
    ablation = row.ablation
    assert ablation and ablation.of == "lenet4-mnist" and whole.ablation is None
    assert row.mean and whole.mean and ablation.mean and ablation.ci95
    assert ablation.mean == pytest.approx(row.mean - whole.mean, abs=2e-6)
    assert ablation.ci95[0] < ablation.mean < ablation.ci95[1]
    assert words.claim(row).startswith("0.6 ± 0.") and words.claim(row).endswith(" more than lenet4-mnist")
    alone = next(r for r in make_ledger(params, {}, {"lenet1-mnist": committed["lenet1-mnist"]}) if r.n)
    assert alone.verdict == "untested" and alone.ablation and words.mean_and_interval(alone.ablation) == "–"


def test_an_ablations_verdict_is_of_figures_as_the_evidence_has_them() -> None:
    """Not of those that a reader sees: a part that helps by 0.00003 points helps."""
    found = projects.read(ROOT)
    claim = found["benchmarks"]["lenet1-mnist"]["claim"]
    claim |= {"ablation": {"of": "lenet4-mnist", "points": 0.1}}
    del claim["value"]
    errors = {"lenet1-mnist": 1.00003, "lenet4-mnist": 1.0}
    committed = evidence.read(errors, ROOT / evidence.EVIDENCE)
    close = {name: [flat(committed[name][0], error)] for name, error in errors.items()}
    row = next(row for row in make_ledger(projects.build(found), {}, close) if row.benchmark == "lenet1-mnist")
    assert row.ablation and row.ablation.ci95 == (0.00003, 0.00003) and row.verdict == "reproduced"
