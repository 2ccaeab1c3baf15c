"""Guards the ledger's rows: what a reader has to know of a row's images."""

from __future__ import annotations

from pipelines.config.params import load_params
from pipelines.results.ledger import make_ledger
from tests import projects
from tests.conftest import ROOT


def test_a_row_on_a_subset_by_rule_shows_the_rule() -> None:
    found = projects.read(ROOT)
    found["benchmarks"]["linear-mnist"]["dataset"] = "ilsvrc100"
    rows = {row["benchmark"]: row["dataset"] for row in make_ledger(projects.build(found), {})}
    rule = "the first 100 classes by id, the first 500 training images of each class"
    assert rows["linear-mnist"] == f"ilsvrc100: {rule}"
    assert rows["lenet5-mnist"] == load_params(ROOT / "params.yaml").benchmark("lenet5-mnist").dataset
