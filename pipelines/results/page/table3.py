"""Table 3 of "Striving for Simplicity" with our figures: twelve nets on CIFAR-10 without augmentation.

Source: Springenberg, Dosovitskiy, Brox, Riedmiller 2014, arXiv:1412.6806, Table 3, test error in %.
A benchmark fills a cell by its model's options ``base`` (A, B, C) and ``variant``, when its data set is CIFAR-10 and
nothing is augmented; a cell that no benchmark fills stays untested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.benchmarks import Benchmark
from pipelines.results.ledger import LedgerRow
from pipelines.results.verdicts import Verdict
from pipelines.results.words import plus_minus

BASES = ("A", "B", "C")
VARIANTS = {"base": "Model", "strided": "Strided-CNN", "convpool": "ConvPool-CNN", "allcnn": "All-CNN"}
PUBLISHED = {
    "A": {"base": 12.47, "strided": 13.46, "convpool": 10.21, "allcnn": 10.30},
    "B": {"base": 10.20, "strided": 10.98, "convpool": 9.33, "allcnn": 9.10},
    "C": {"base": 9.74, "strided": 10.19, "convpool": 9.31, "allcnn": 9.08},
}
# Of Model and Strided-CNN, then of ConvPool-CNN and All-CNN: counted in the layers, and printed in the table.
PARAMETERS = {
    "A": ((839_242, "0.9 M"), (1_254_250, "1.28 M")),
    "B": ((885_610, "1 M"), (1_300_618, "1.35 M")),
    "C": ((954_730, "1.3 M"), (1_369_738, "1.4 M")),
}

Cell = tuple[str, str]  # base, variant


def cells(benchmarks: Mapping[str, Benchmark], ledger: Sequence[LedgerRow]) -> dict[Cell, LedgerRow] | None:
    """The row of each cell; None when no benchmark belongs to the table."""
    rows = {row["benchmark"]: row for row in ledger if row["best"]}
    found: dict[Cell, LedgerRow] = {}
    for name, benchmark in benchmarks.items():
        cell = _cell(benchmark)
        if cell is None:
            continue
        earlier = found.get(cell)
        if earlier is None or (earlier["n"] == 0 and rows[name]["n"] > 0):
            found[cell] = rows[name]
    return found or None


def _cell(benchmark: Benchmark) -> Cell | None:
    options = benchmark.model.options
    cell = (str(options.get("base", "C")), str(options.get("variant", "allcnn")))  # the builder's defaults
    fits = benchmark.model.family == "allcnn" and benchmark.dataset == "cifar10" and not benchmark.recipe.augment
    return cell if fits and cell[0] in BASES and cell[1] in VARIANTS else None


def grid(found: Mapping[Cell, LedgerRow] | None) -> dict[str, Any] | None:
    """The table in the paper's order: a row a base net, a column a way of doing without pooling."""
    if found is None:
        return None
    rows = {base: [_square(base, variant, found.get((base, variant))) for variant in VARIANTS] for base in BASES}
    full = sum(row["n"] > 0 and (row["epochs"] or 0) >= row["paper_epochs"] for row in found.values())
    return {"columns": list(VARIANTS.values()), "rows": rows, "notes": notes(found), "measured": full}


def _square(base: str, variant: str, row: LedgerRow | None) -> dict[str, Any]:
    return {
        "claim": row["claim"]["value"] if row else PUBLISHED[base][variant],
        "ours": plus_minus(row) if row and row["n"] else None,
        "verdict": row["verdict"] if row else Verdict.UNTESTED.value,
    }


def notes(found: Mapping[Cell, LedgerRow]) -> str:
    """The labels that qualify our verdicts, and the parameters, of which the paper's count for Model C is off."""
    labels = sorted({row["label"] for row in found.values() if row["label"]})
    pairs = (
        f"{base} {plain[0]:,} ({plain[1]}) and {longer[0]:,} ({longer[1]})"
        for base, (plain, longer) in PARAMETERS.items()
    )
    ours = f"Ours: {'; '.join(labels)}. " if labels else ""
    return (
        f"{ours}Parameters of Model and Strided-CNN, and of ConvPool-CNN and All-CNN, counted here (and printed there)"
        f": {', '.join(pairs)}. The 1.3 M of Model C does not fit the paper's own layers."
    )
